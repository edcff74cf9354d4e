//! The command line as types.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use image_store::ImageName;
use lifecycle::{EngineChoice, Outcome};
use machine_store::Restart;
use vm_api::MachineName;

use crate::network::NetworkArgs;
use crate::quantity;

/// A virtualization platform: virtual machines with and without hardware assist.
#[derive(Parser)]
#[command(name = "strata", version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a virtual machine
    ///
    /// With IMAGE a machine of its own disk is made, which is kept until `strata rm`. Without
    /// IMAGE, --kernel and --firmware a small Linux guest is started: the kernel and busybox of
    /// Debian's packages, fetched once and cached.
    #[command(args_override_self = true, after_help = Outcome::STATUS_HELP, after_long_help = run_long_help())]
    Run(Box<RunArgs>),
    /// List the machines that run
    #[command(after_help = PS_HELP)]
    Ps(PsArgs),
    /// Show what a machine has done so far: engine counters, halts, memory, device accesses
    ///
    /// Without MACHINE all machines are shown. Reading the counters parks the vCPUs for a moment.
    #[command(after_help = STATS_HELP)]
    Stats(StatsArgs),
    /// Let a running machine continue on another engine
    ///
    /// Returns when the guest executes there. Where the engine refuses, the machine goes on where it was.
    #[command(after_help = ENGINE_HELP)]
    Engine(EngineArgs),
    /// Give a running machine other vCPUs, RAM, disks and network cards
    ///
    /// What is added the guest has at once, what is taken away when it lets go. For vCPUs and RAM
    /// the machine must have been started with --cpus-max or --memory-max.
    #[command(after_help = UPDATE_HELP)]
    Update(UpdateArgs),
    /// Park the vCPUs of machines; their time stands still
    #[command(after_help = CONTROL_HELP)]
    Pause(MachinesArgs),
    /// Let paused machines go on
    #[command(after_help = CONTROL_HELP)]
    Resume(MachinesArgs),
    /// Press the power button of machines and wait for them to end; then force
    #[command(after_help = STOP_HELP)]
    Stop(StopArgs),
    /// Start machines that have ended
    #[command(after_help = CONTROL_HELP)]
    Start(MachinesArgs),
    /// Stop machines and start them again
    #[command(after_help = CONTROL_HELP)]
    Restart(StopArgs),
    /// Remove machines that have ended, with their disks
    #[command(after_help = CONTROL_HELP)]
    Rm(RmArgs),
    /// Print what a machine's console has said
    ///
    /// The newest 4 MiB are kept, at most 8. On a terminal, of what that would obey only colours
    /// are shown; a pipe or file gets every byte.
    #[command(after_help = LOGS_HELP)]
    Logs(LogsArgs),
    /// Use the console of a running machine
    #[command(after_help = console_help())]
    Console(ConsoleArgs),
    /// End machines now, whatever their guests are doing
    #[command(after_help = CONTROL_HELP)]
    Kill(MachinesArgs),
    /// Print a machine's whole configuration as JSON
    #[command(after_help = CONTROL_HELP)]
    Inspect(InspectArgs),
    /// Make, keep and remove images
    #[command(arg_required_else_help = true)]
    Image(ImageArgs),
    /// Run a command in a guest
    ///
    /// Standard input, output and errors are the command's, and so is the exit status. Needs the
    /// agent in the guest, which the built-in guest and images of `strata image build` have.
    #[command(after_help = crate::exec::HELP)]
    Exec(crate::exec::ExecArgs),
    /// Copy files and folders into a guest or out of it
    #[command(after_help = crate::copy::HELP)]
    Cp(crate::copy::CopyArgs),
    /// Say what this host offers, what is missing, and how to get it
    Doctor(DoctorArgs),
    /// Run a small guest of our own on every engine this host offers
    ///
    /// Needs nothing: no image, no network, no privilege.
    Demo(DemoArgs),
    /// Run one guest on two engines in lock-step and report the first difference
    #[command(
        after_help = "Exit status:\n  0  no difference\n  1  Strata or the host failed\n  2  wrong command line or input\n  6  a difference was found"
    )]
    Compare(CompareArgs),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: Shell,
    },
    /// Print the version
    Version,
}

/// Exit statuses of `strata image`.
macro_rules! image_status {
    () => {
        "Exit status:\n  0  done\n  1  the host, a download or a program failed\n  2  wrong command line or input, no such image, or the name is taken\n  6  (verify) an image is damaged"
    };
}
/// Exit statuses of the commands that speak to a running machine.
macro_rules! control_status {
    () => {
        "Exit status:\n  0  done\n  1  the machine or the host refused\n  2  wrong command line, or no such machine"
    };
}
const CONTROL_HELP: &str = control_status!();
const PS_HELP: &str = concat!(
    "Examples:\n  strata ps\n  strata ps --format json\n  strata kill $(strata ps -q)\n\n",
    control_status!()
);
const STATS_HELP: &str = concat!(
    "Examples:\n  strata stats web\n  strata stats --format json | jq '.[].vcpus[0].counters'\n\n",
    control_status!()
);
const ENGINE_HELP: &str =
    concat!("Examples:\n  strata engine web jit\n  strata engine 3f kvm\n\n", control_status!());
const UPDATE_HELP: &str = concat!(
    "Examples:\n  strata update --cpus 4 web\n  strata update --memory 2G --wait 10s web\n  \
     strata update --disk 0=20G web\n  \
     strata update --add-disk data.img,serial=data web\n  strata update --remove disk-1 web\n\n",
    control_status!()
);
const STOP_HELP: &str = concat!(
    "Examples:\n  strata stop web\n  strata stop --timeout 2m web db\n  strata stop --timeout 0 web\n\n",
    control_status!()
);

const IMAGE_BUILD_HELP: &str = concat!(
    "Examples:\n  strata image build debian\n  strata image build debian --suite trixie --name debian:13 --package git\n  \
     strata image build debian --size 20G --force\n\n",
    image_status!()
);
const IMAGE_IMPORT_HELP: &str = concat!(
    "Without --kernel the disk's own boot loader is needed, and firmware to start it.\n\nExamples:\n  \
     strata image import noble.qcow2 --name ubuntu:24.04 --kernel vmlinuz --initrd initrd.img \\\n    \
     --append 'root=LABEL=cloudimg-rootfs console=ttyS0'\n\n",
    image_status!()
);
const IMAGE_HELP: &str = image_status!();

const LOGS_HELP: &str =
    concat!("Examples:\n  strata logs web\n  strata logs -f web | grep error\n\n", control_status!());

fn console_help() -> String {
    format!("Keys, when standard input is a terminal:\n{}\n\n{CONTROL_HELP}", crate::attach::KEYS)
}

fn run_long_help() -> String {
    format!("{}\n\nKeys, when standard input is a terminal:\n{}", Outcome::STATUS_HELP, crate::console::KEYS)
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON object, on standard error for `run`, else on standard output
    Json,
}

/// Where guest time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Time {
    /// The host's clock
    Host,
    /// One nanosecond for each instruction: every run is the same
    Virtual,
}

/// Where the console is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ConsoleKind {
    /// A serial port
    Serial,
    /// A virtio console
    Virtio,
}

/// What virtio devices are reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// The PCI bus
    Pci,
    /// Memory-mapped registers
    Mmio,
}

/// The board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// The least that boots a stock Linux kernel fast
    Micro,
    /// What PC firmware expects
    Q35,
}

/// What machine, shared by `run` and `compare`.
#[derive(Args)]
pub struct MachineArgs {
    /// Kernel image: bzImage, ELF (PVH or vmlinux) or Multiboot
    #[arg(short, long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(short, long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line, replacing the default one [default with --kernel: console=ttyS0]
    #[arg(short, long, value_name = "TEXT")]
    pub append: Option<String>,
    /// Firmware image, entered at the reset vector
    #[arg(long, value_name = "FILE", conflicts_with = "kernel")]
    pub firmware: Option<PathBuf>,
    /// How the kernel is entered: auto (the fastest the image offers), uncompressed, linux64,
    /// linux32, pvh or multiboot
    #[arg(long, value_name = "PROTOCOL", default_value_t = loader::Protocol::Auto)]
    pub boot_protocol: loader::Protocol,
    /// RAM; units K, M, G, T, a bare number is MiB
    #[arg(short, long, value_name = "SIZE", default_value = "512M", value_parser = quantity::bytes)]
    pub memory: u64,
    /// RAM that `strata update` can give the guest at most, in steps of 128M [default: --memory]
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    pub memory_max: Option<u64>,
    /// Number of vCPUs
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// vCPUs that `strata update` can give the guest at most [default: --cpus]
    #[arg(long, value_name = "N")]
    pub cpus_max: Option<u32>,
    /// Processor model and switched features, e.g. x86-64-v3,-avx2 [default: x86-64-v3 where the
    /// host's processor has all of it, else x86-64-v2]
    #[arg(long, value_name = "MODEL[,±FEATURE…]")]
    pub cpu: Option<String>,
    /// Board
    #[arg(long, value_enum, default_value_t = Machine::Micro)]
    pub machine: Machine,
}

#[derive(Args)]
pub struct RunArgs {
    /// Image to make a machine of; `debian` and `debian:RELEASE` are built at first use
    #[arg(value_name = "IMAGE")]
    pub image: Option<ImageName>,
    #[command(flatten)]
    pub keep: KeepArgs,
    #[command(flatten)]
    pub identity: IdentityArgs,
    /// Read more flags from a file of TOML: each key is a long flag without its dashes, and image
    /// and command; flags given here go before it
    #[arg(short = 'f', long, value_name = "FILE")]
    pub spec: Option<PathBuf>,
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Name for `strata ps` and the commands that take a machine
    #[arg(long, value_name = "NAME")]
    pub name: Option<MachineName>,
    /// Engine: auto, kvm, jit or interp
    #[arg(short, long, default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,
    /// End the run after this long with status 124; units ms, s, m, h, a bare number is seconds
    #[arg(short, long, value_name = "TIME", value_parser = quantity::duration)]
    pub timeout: Option<Duration>,
    /// Where guest time comes from
    #[arg(long, value_enum, default_value_t = Time::Host)]
    pub time: Time,
    /// Serial port, COM1 first; repeat for more: stdio, null or file:PATH [default: stdio]
    #[arg(long, value_name = "SINK", value_parser = serial)]
    pub serial: Vec<board::SerialSpec>,
    /// What the watchdog does when the guest has started it and does not restart it in time:
    /// reset, power-off, or none for no watchdog
    #[arg(long, value_name = "ACTION", default_value = "reset", value_parser = watchdog)]
    pub watchdog: Watchdog,
    /// Where the console is: serial (COM1), or virtio, a faster one that knows the terminal's size
    /// (hvc0 in Linux); COM1 is silent then unless --serial says otherwise
    #[arg(long, value_enum, value_name = "KIND", default_value_t = ConsoleKind::Serial)]
    pub console: ConsoleKind,
    /// Give the guest a channel /dev/virtio-ports/NAME, to which programs of the host connect at the
    /// Unix socket PATH, one at a time; repeat for more
    #[arg(long, value_name = "NAME=PATH", value_parser = crate::ports::parse)]
    pub port: Vec<board::PortSpec>,
    /// What virtio devices are reached by: pci, or mmio, registers that ACPI tells of
    #[arg(long, value_enum, value_name = "KIND", default_value_t = Transport::Pci)]
    pub virtio_transport: Transport,
    /// Put a file into the guest's memory (/dev/pmem0 and on); repeat for more. Commas in PATH are
    /// doubled. With ro the file stays as it is; else its size is a multiple of 2 MiB
    #[arg(long, value_name = "PATH[,ro]", value_parser = crate::disk_option::parse_pmem)]
    pub pmem: Vec<board::PmemSpec>,
    /// Give the guest a virtio entropy device [default: with IMAGE or --disk]
    #[arg(long)]
    pub rng: bool,
    /// Give it none
    #[arg(long, conflicts_with = "rng")]
    pub no_rng: bool,
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Disk image or block device; repeat for more. Commas in PATH are doubled. Options: ro,
    /// format=raw|qcow2 [default: by its first bytes], serial=TEXT, if=nvme|virtio [default: nvme],
    /// cache=writeback|direct|unsafe [default: writeback], aio=threads|io_uring [default: threads],
    /// backing=on (open the files the image says it stands on)
    #[arg(long, value_name = "PATH[,OPTION…]", value_parser = crate::disk_option::parse)]
    pub disk: Vec<board::DiskSpec>,
    /// Give the guest no virtio socket device: `strata exec` and `strata cp` do not reach it
    #[arg(long)]
    pub no_vsock: bool,
    /// Let programs of the guest connect to the host's Unix sockets PATH_PORT by vsock port
    #[arg(long, value_name = "PATH", conflicts_with = "no_vsock")]
    pub vsock_to_host: Option<PathBuf>,
    /// Share a folder of the host; the guest's agent mounts it at GUEST. Options: ro,
    /// backend=virtiofsd (served by that program, which has to be installed). Repeat for more
    #[arg(short = 'v', long = "volume", value_name = "HOST:GUEST[:OPTION,…]", value_parser = crate::shares::parse)]
    pub volumes: Vec<crate::shares::Volume>,
    /// No memory balloon: what the guest has once used stays with it
    #[arg(long)]
    pub no_balloon: bool,
    /// A guest write of V to this port ends the run with status (V << 1) | 1 [default port: 0xf4]
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "0xf4", value_parser = quantity::port)]
    pub debug_exit: Option<u16>,
    /// Continue on another engine so long after the start; repeat for more, e.g. 500ms:kvm
    #[arg(long, value_name = "TIME:ENGINE", value_parser = switch)]
    pub switch: Vec<(Duration, EngineChoice)>,
    /// End with status 4 (reset) or 5 (triple fault) where the guest would start again
    #[arg(long)]
    pub no_reboot: bool,
    /// Go on after the guest's kernel has panicked instead of ending with status 3
    #[arg(long)]
    pub ignore_panic: bool,
    /// Keep every system call and file: no seccomp, no Landlock
    #[arg(long)]
    pub no_sandbox: bool,
    /// Print how long each phase took, and counters, when the run ends
    #[arg(long)]
    pub timings: bool,
    /// Write /tmp/perf-PID.map, so that perf names translated guest code
    #[arg(long)]
    pub perf_map: bool,
    /// Write jit-PID.dump in the working directory, for `perf record -k mono` and `perf inject --jit`
    #[arg(long, conflicts_with = "perf_map")]
    pub jitdump: bool,
    /// The guest kernel's System.map, for names in --perf-map and --jitdump
    #[arg(long, value_name = "FILE")]
    pub guest_symbols: Option<PathBuf>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Command for the guest to run instead of a shell or login, and then power off
    #[arg(last = true, value_name = "CMD", conflicts_with_all = ["kernel", "firmware"])]
    pub command: Vec<String>,
}

/// How long a machine lives.
#[derive(Args)]
pub struct KeepArgs {
    /// Start in the background and print the machine's identifier; see logs, console, stop
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the machine and its disks when it ends
    #[arg(long)]
    pub rm: bool,
    /// Start it again when it ends: no, on-failure, on-failure:N (at most N times) or always;
    /// with --detach
    #[arg(long, value_name = "POLICY", default_value_t = Restart::No)]
    pub restart: Restart,
    /// Run a machine that is kept
    #[arg(long, hide = true, value_name = "ID")]
    pub kept: Option<String>,
    /// Start that machine again as its policy says
    #[arg(long, hide = true, requires = "kept")]
    pub supervise: bool,
    /// The start that this process is of
    #[arg(long, hide = true, requires = "kept")]
    pub turn: Option<String>,
}

/// Who the guest of an image is.
#[derive(Args)]
pub struct IdentityArgs {
    /// Host name in the guest [default: --name, else the image's name]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// A user to make in the guest, who may use sudo [default: root alone]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// File whose first line is that user's password, or root's; without one the serial console
    /// logs root in
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// SSH public key that may log in; repeat for more [default: your own in ~/.ssh]
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Vec<PathBuf>,
    /// File to copy into the guest at its first start; repeat for more
    #[arg(long, value_name = "HOST:GUEST", value_parser = guest_file)]
    pub file: Vec<(PathBuf, String)>,
    /// Size of the root disk, if it is to be larger than the image's
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    pub disk_size: Option<u64>,
    /// Copy the image's disk whole, instead of sharing what the machine does not change: more room
    /// on the host, no second file to read from
    #[arg(long)]
    pub disk_copy: bool,
}

#[derive(Args)]
pub struct PsArgs {
    /// Machines that have ended too
    #[arg(short, long)]
    pub all: bool,
    /// Print identifiers only, one a line
    #[arg(short, long)]
    pub quiet: bool,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Args)]
pub struct StatsArgs {
    /// Name or identifier, or how it begins [default: all]
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<String>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Args)]
pub struct EngineArgs {
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// Engine: auto, kvm, jit or interp
    #[arg(value_name = "ENGINE")]
    pub engine: EngineChoice,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Args)]
pub struct MachinesArgs {
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

#[derive(Args)]
pub struct StopArgs {
    /// How long guests may take before they are ended; units ms, s, m, h, a bare number is seconds
    #[arg(short, long, value_name = "TIME", default_value = "30s", value_parser = quantity::duration)]
    pub timeout: Duration,
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct UpdateArgs {
    /// Number of vCPUs
    #[arg(short, long, value_name = "N", group = "what")]
    pub cpus: Option<u32>,
    /// RAM; units K, M, G, T, a bare number is MiB
    #[arg(short, long, value_name = "SIZE", value_parser = quantity::bytes, group = "what")]
    pub memory: Option<u64>,
    /// Make disk N (from 0, as on the command line) larger; units K, M, G, T, a bare number is MiB
    #[arg(short, long, value_name = "N=SIZE", value_parser = quantity::disk_size, group = "what")]
    pub disk: Vec<(usize, u64)>,
    /// Plug in a disk: a raw or qcow2 image, with the options of `strata run --disk`; repeat for more
    #[arg(long, value_name = "PATH[,OPTION…]", value_parser = crate::disk_option::parse, group = "what")]
    pub add_disk: Vec<board::DiskSpec>,
    /// Plug in a network card: nat, with an Ethernet address if wanted
    #[arg(long, value_name = "nat[,mac=ADDRESS]", value_parser = crate::network::parse_added, group = "what")]
    pub add_net: Vec<board::NetSpec>,
    /// Ask the guest to give up a disk or network card, by its name in `strata inspect`: disk-1, net-0;
    /// repeat for more
    #[arg(long, value_name = "ID", group = "what")]
    pub remove: Vec<String>,
    /// How long to wait for a guest that has to let go; units ms, s, m, h, a bare number is seconds
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = quantity::duration)]
    pub wait: Duration,
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Args)]
pub struct RmArgs {
    /// End them first, if they run
    #[arg(short, long)]
    pub force: bool,
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

#[derive(Args)]
pub struct LogsArgs {
    /// Go on until the machine ends
    #[arg(short, long)]
    pub follow: bool,
    /// What its process said, instead of its console
    #[arg(long, conflicts_with = "follow")]
    pub messages: bool,
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

#[derive(Args)]
pub struct ConsoleArgs {
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

#[derive(Args)]
pub struct InspectArgs {
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

#[derive(Args)]
pub struct ImageArgs {
    /// What to do
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Build an image from a distribution's packages
    ///
    /// Debian's packages come from its archive by mmdebstrap, as root or as any user (without user
    /// namespaces by fakechroot). Takes about a minute.
    #[command(after_help = IMAGE_BUILD_HELP)]
    Build(ImageBuildArgs),
    /// List the images
    #[command(after_help = IMAGE_HELP)]
    Ls(ImageLsArgs),
    /// Show all that is known of an image or of a disk image's file, as JSON
    #[command(after_help = IMAGE_HELP)]
    Inspect(crate::convert::InspectArgs),
    /// Make a disk image of another: raw or qcow2, of raw, qcow2, VHDX, VDI or VMDK
    ///
    /// What an image is, its first bytes say, never its name. The new image is there when it is
    /// whole, or not at all; zeroes take no room in it.
    #[command(after_help = crate::convert::HELP)]
    Convert(crate::convert::ConvertArgs),
    /// Take in a disk that others made: raw, qcow2, VHDX, VDI or VMDK
    #[command(after_help = IMAGE_IMPORT_HELP)]
    Import(ImageImportArgs),
    /// Write an image's disk to a file
    #[command(after_help = IMAGE_HELP)]
    Export(ImageExportArgs),
    /// Read images whole and compare them with what they were
    #[command(after_help = IMAGE_HELP)]
    Verify(ImageNamesArgs),
    /// Remove images; machines made from them go on
    #[command(after_help = IMAGE_HELP)]
    Rm(ImageRmArgs),
    /// Give back the space of removed and abandoned images
    #[command(after_help = IMAGE_HELP)]
    Gc(ImageLsArgs),
}

/// Distributions that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// Debian with systemd, SSH and its cloud kernel
    Debian,
}

#[derive(Args)]
pub struct ImageBuildArgs {
    /// What to build
    #[arg(value_enum)]
    pub distribution: Distribution,
    /// Name of the image
    #[arg(long, value_name = "NAME[:TAG]", default_value = "debian")]
    pub name: ImageName,
    /// Release, e.g. bookworm, trixie or stable [default: this host's, if it is a Debian, else stable]
    #[arg(long, value_name = "RELEASE")]
    pub suite: Option<String>,
    /// Debian archive to fetch from
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Size of the root disk; what is not written takes no room
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = quantity::bytes)]
    pub size: u64,
    /// One more package to install; repeat for more
    #[arg(long, value_name = "PACKAGE")]
    pub package: Vec<String>,
    /// Replace an image of that name
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct ImageLsArgs {
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Args)]
pub struct ImageNamesArgs {
    /// The images [default: all]
    #[arg(value_name = "NAME[:TAG]")]
    pub names: Vec<ImageName>,
}

#[derive(Args)]
pub struct ImageRmArgs {
    /// The images
    #[arg(value_name = "NAME[:TAG]", required = true)]
    pub names: Vec<ImageName>,
}

#[derive(Args)]
pub struct ImageExportArgs {
    /// The image
    #[arg(value_name = "NAME[:TAG]")]
    pub name: ImageName,
    /// The file to write, which may not exist
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Args)]
pub struct ImageImportArgs {
    /// Disk image: raw, qcow2, VHDX, VDI or VMDK
    #[arg(value_name = "DISK")]
    pub disk: PathBuf,
    /// Name of the image
    #[arg(long, value_name = "NAME[:TAG]")]
    pub name: ImageName,
    /// Kernel to boot directly
    #[arg(short, long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(short, long, value_name = "FILE", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(
        short,
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "root=/dev/nvme0n1 rw console=ttyS0"
    )]
    pub append: String,
    /// Replace an image of that name
    #[arg(long)]
    pub force: bool,
}

#[derive(Args)]
pub struct DoctorArgs {
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Args)]
pub struct DemoArgs {
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Args)]
pub struct CompareArgs {
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The two engines
    #[arg(long, value_name = "A,B", value_delimiter = ',', default_value = "interp,interp")]
    pub engines: Vec<EngineChoice>,
    /// How many instructions to compare
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10_000_000)]
    pub instructions: u64,
    /// Compare the state after every so many instructions
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub step: u64,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

fn switch(text: &str) -> Result<(Duration, EngineChoice), String> {
    let (time, engine) = text.split_once(':').ok_or("not TIME:ENGINE; write e.g. 500ms:interp")?;
    Ok((quantity::duration(time)?, engine.parse().map_err(|e| format!("{e}"))?))
}

/// What a watchdog does, if there is one. An alias, so that clap does not take
/// it for an argument that may be absent.
pub type Watchdog = Option<board::WatchdogAction>;

fn watchdog(text: &str) -> Result<Watchdog, String> {
    match text {
        "reset" => Ok(Some(board::WatchdogAction::Reset)),
        "power-off" => Ok(Some(board::WatchdogAction::PowerOff)),
        "none" => Ok(None),
        _ => Err("not an action of a watchdog; use reset, power-off or none".to_string()),
    }
}

fn guest_file(text: &str) -> Result<(PathBuf, String), String> {
    match text.rsplit_once(':') {
        Some((from, to)) if !from.is_empty() && to.starts_with('/') => Ok((from.into(), to.to_string())),
        _ => Err("not HOST:GUEST; write e.g. ./motd:/etc/motd".to_string()),
    }
}

fn serial(text: &str) -> Result<board::SerialSpec, String> {
    match (text, text.strip_prefix("file:")) {
        ("stdio", _) => Ok(board::SerialSpec::Stdio),
        ("null", _) => Ok(board::SerialSpec::Null),
        (_, Some(path)) if !path.is_empty() => Ok(board::SerialSpec::File(path.into())),
        _ => Err("not a serial sink; use stdio, null or file:PATH".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn typical_lines_parse() {
        for line in [
            "strata run",
            "strata run --kernel k --initrd i --append console=ttyS0 --memory 1G --cpus 4 --engine interp --timeout 60s",
            "strata run --debug-exit --no-reboot --kernel k",
            "strata run --debug-exit 0x501 --serial file:out --serial null --kernel k",
            "strata run --engine interp --switch 500ms:kvm --switch 2s:interp",
            "strata run --cpu x86-64-v3,-avx2 --format json -- uname -a",
            "strata run --name web-1 --engine jit --perf-map --guest-symbols System.map",
            "strata run --jitdump",
            "strata run --network nat -p 2222:22 --publish 5353:53/udp --egress *.example.org:443/tcp --pcap x.pcap",
            "strata run --network-deny --deny-egress 10.0.0.0/8 --no-host-loopback",
            "strata run --disk a.img --disk b.img,ro,format=raw,serial=x,if=nvme,cache=direct",
            "strata run debian",
            "strata run -d --name web --restart on-failure:3 debian:trixie --memory 1G",
            "strata run --rm debian --user me --password-file p --ssh-key k.pub --file a:/etc/a -- id",
            "strata run -f vm.toml --cpus 2",
            "strata run -d",
            "strata ps -a",
            "strata start web",
            "strata restart -t 5 web db",
            "strata rm -f web",
            "strata logs -f web",
            "strata console web",
            "strata ps",
            "strata ps -q --format json",
            "strata stats",
            "strata stats web db --format json",
            "strata engine web interp",
            "strata pause web",
            "strata resume web db",
            "strata update --cpus 3 web",
            "strata update -m 2G --wait 1m web --format json",
            "strata update --disk 0=20G -d 1=512M web",
            "strata run --cpus-max 4 --memory-max 2G --watchdog power-off",
            "strata stop -t 2m web",
            "strata stop --timeout 0 web",
            "strata kill web",
            "strata inspect web",
            "strata image build debian --suite trixie --name debian:13 --package git --size 8G",
            "strata image ls --format json",
            "strata image import d.qcow2 --name x --kernel k --initrd i",
            "strata image export debian d.raw",
            "strata image convert a.vmdk a.qcow2",
            "strata image convert a b --format raw --snapshot before --backing --force",
            "strata image inspect debian",
            "strata image inspect ./a.qcow2",
            "strata image rm a b:1",
            "strata image gc",
            "strata image verify",
            "strata run -v /srv:/mnt -v data:/data:ro",
            "strata exec web -- uname -a",
            "strata exec -it -e A=b -w /tmp -u root:root web -- sh",
            "strata exec web uname",
            "strata cp a b web:/tmp/",
            "strata cp web:/etc/os-release .",
            "strata doctor --format json",
            "strata demo",
            "strata compare --engines interp,kvm -n 1000 --kernel k",
            "strata completion bash",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in [
            "strata run --initrd i",
            "strata run --engine xen",
            "strata run --serial tcp:1",
            "strata run --disk a.img,rw",
            "strata run --memory lots",
            "strata run --name ../x",
            "strata run Debian",
            "strata run debian --restart sometimes",
            "strata run debian --file a",
            "strata run debian --file a:b",
            "strata rm",
            "strata console",
            "strata run --perf-map --jitdump",
            "strata update web",
            "strata update --disk 20G web",
            "strata run --watchdog bark",
            "strata engine web",
            "strata engine web xen",
            "strata run -v /srv",
            "strata run -v /srv:mnt",
            "strata exec web",
            "strata cp web:/x",
            "strata pause",
            "strata stop",
            "strata image build gentoo",
            "strata image build debian --name ../x",
            "strata image import d.qcow2",
            "strata image rm",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
