//! What machine is wanted, as plain data.
//!
//! The command line, configuration files and the API all fill this one type;
//! [`MachineSpec::validate`] is the only place that judges it.

use std::path::PathBuf;

use crate::network::NetSpec;
use crate::pmem::PmemSpec;
use crate::shares::ShareSpec;
use serde::{Deserialize, Serialize};
use x86_state::{CpuModel, CpuModelError};

use crate::disks::{DiskSpec, MAX_DISK_SERIAL, MAX_DISKS};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// The least memory a machine has, in bytes: real-mode tests and boot code fit.
pub const MIN_MEMORY: u64 = 2 * MIB;
/// The most memory a machine has, in bytes: half of what the models' 40 physical
/// address bits reach, which leaves the upper half to devices.
pub const MAX_MEMORY: u64 = 512 << 30;
/// The most vCPUs a machine has: APIC IDs stay below the 8-bit broadcast ID and
/// one host thread a vCPU stays reasonable.
pub const MAX_CPUS: u32 = 64;
/// The longest kernel command line, in bytes (Linux's COMMAND_LINE_SIZE).
pub const MAX_CMDLINE: usize = 2047;
/// The longest name of a port, in bytes.
pub const MAX_PORT_NAME: usize = 63;
/// The most serial ports a machine has (COM1-COM4).
pub const MAX_SERIAL: usize = 4;

/// The board a machine is built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineType {
    /// The least that boots a stock Linux kernel: no firmware, direct boot.
    #[default]
    Micro,
    /// The chipset firmware expects. Adds a firmware image to `micro`'s devices.
    Q35,
}

/// Where guest time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeSource {
    /// The host's monotonic clock.
    #[default]
    Host,
    /// One nanosecond for each instruction: deterministic, one host thread.
    Virtual,
}

/// Where a serial port's output goes and its input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SerialSpec {
    /// The process's standard input and output.
    Stdio,
    /// Output to a file, no input.
    File(PathBuf),
    /// Output discarded, no input.
    Null,
}

/// The entropy device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RngSpec {
    /// Bytes it gives a second at most.
    pub bytes_per_second: u64,
}

impl Default for RngSpec {
    fn default() -> Self {
        RngSpec { bytes_per_second: virtio_rng::DEFAULT_RATE }
    }
}

/// The socket device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VsockSpec {
    /// The guest's context identifier, from 3 on. Each machine's guest knows only
    /// its host, so all may have the same.
    pub cid: u32,
    /// The path of the host's sockets that programs of the guest may reach, without
    /// `_PORT`; `None`: they reach none.
    pub to_host: Option<PathBuf>,
}

impl Default for VsockSpec {
    fn default() -> Self {
        VsockSpec { cid: virtio_vsock::FIRST_GUEST_CID as u32, to_host: None }
    }
}

/// The memory balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BalloonSpec {
    /// The guest may report pages that it does not use; the host has them then.
    pub free_page_reporting: bool,
}

impl Default for BalloonSpec {
    fn default() -> Self {
        BalloonSpec { free_page_reporting: true }
    }
}

/// What virtio devices are reached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VirtioTransport {
    /// Functions of the PCI bus.
    #[default]
    Pci,
    /// Memory-mapped registers that ACPI tells of.
    Mmio,
}

/// A named channel between programs of the guest and of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    /// The guest finds it at /dev/virtio-ports/NAME.
    pub name: String,
    /// The Unix socket at which the host's programs connect.
    pub socket: PathBuf,
}

/// What the machine starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BootSpec {
    /// Kernel image: bzImage, ELF (PVH or vmlinux) or Multiboot.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk, handed to the kernel.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Firmware image, mapped to end at 4 GiB; the vCPU starts at its reset vector.
    pub firmware: Option<PathBuf>,
    /// How the kernel is entered.
    pub protocol: loader::Protocol,
}

/// What a watchdog does when the guest has not restarted it in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WatchdogAction {
    /// Reset the machine.
    #[default]
    Reset,
    /// Switch it off.
    PowerOff,
}

/// A machine, before it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineSpec {
    /// Board.
    pub machine: MachineType,
    /// RAM in bytes, a whole number of MiB.
    pub memory: u64,
    /// The most RAM it can have while it runs, in bytes; `None`: what it starts with.
    pub memory_max: Option<u64>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The most vCPUs it can have while it runs; `None`: what it starts with.
    pub cpus_max: Option<u32>,
    /// Processor model and switched features: `x86-64-v2,-pcid`.
    pub cpu: String,
    /// TSC frequency in kHz; `None` takes the model's.
    pub tsc_khz: Option<u32>,
    /// What to start.
    pub boot: BootSpec,
    /// Serial ports from COM1 on.
    pub serial: Vec<SerialSpec>,
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<DiskSpec>,
    /// Clock mode.
    pub time: TimeSource,
    /// Wall clock at power-on in virtual time, seconds since 1970 (UTC).
    pub epoch: u64,
    /// The watchdog; `None`: there is none.
    pub watchdog: Option<WatchdogAction>,
    /// Port at which a guest write ends the process with a status of its choice.
    pub debug_exit: Option<u16>,
    /// What virtio devices are reached by.
    pub virtio: VirtioTransport,
    /// A virtio console with the process's standard input and output: hvc0 in Linux.
    pub console: bool,
    /// Named channels, ports of one more virtio console device.
    pub ports: Vec<PortSpec>,
    /// Files in the guest's memory, a virtio persistent memory device each.
    pub pmems: Vec<PmemSpec>,
    /// The virtio entropy device; `None`: there is none.
    pub rng: Option<RngSpec>,
    /// The virtio memory balloon; `None`: there is none.
    pub balloon: Option<BalloonSpec>,
    /// Network cards.
    pub nets: Vec<NetSpec>,
    /// The virtio socket device; `None`: there is none.
    pub vsock: Option<VsockSpec>,
    /// Folders of the host, a virtio file system device each.
    pub shares: Vec<ShareSpec>,
}

impl Default for MachineSpec {
    fn default() -> Self {
        MachineSpec {
            machine: MachineType::Micro,
            memory: 512 * MIB,
            memory_max: None,
            cpus: 1,
            cpus_max: None,
            cpu: CpuModel::default_model().name().to_string(),
            tsc_khz: None,
            boot: BootSpec::default(),
            serial: vec![SerialSpec::Stdio],
            disks: Vec::new(),
            time: TimeSource::Host,
            epoch: 1_767_225_600,
            watchdog: Some(WatchdogAction::Reset),
            debug_exit: None,
            virtio: VirtioTransport::default(),
            console: false,
            ports: Vec::new(),
            pmems: Vec::new(),
            rng: None,
            balloon: None,
            nets: Vec::new(),
            vsock: None,
            shares: Vec::new(),
        }
    }
}

/// Why a specification was refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Too little memory.
    #[error(
        "{0} of memory is too little: a machine has at least {min}; give --memory 512M or more for Linux",
        min = bytes_text(MIN_MEMORY)
    )]
    TooLittleMemory(String),
    /// Too much memory.
    #[error("{0} of memory is too much: a machine has at most {max}; use a smaller --memory", max = bytes_text(MAX_MEMORY))]
    TooMuchMemory(String),
    /// Memory is not whole pages.
    #[error("memory of {0} bytes is not a whole number of MiB; round it, e.g. --memory {rounded}M", rounded = .0.div_ceil(MIB))]
    MemoryNotWhole(u64),
    /// A vCPU count outside 1..=MAX_CPUS.
    #[error("{0} vCPUs: a machine has 1 to {MAX_CPUS}; use --cpus 1 to --cpus {MAX_CPUS}")]
    Cpus(u32),
    /// More vCPUs at the start than ever.
    #[error(
        "{0} vCPUs at the start and at most {1} later: give a --cpus-max of {0} to {MAX_CPUS} or leave it out"
    )]
    CpusMax(u32, u32),
    /// More memory at the start than ever, or a difference that is not whole pieces.
    #[error(
        "{0} of memory at the start and at most {1} later: the difference must be a multiple of {piece}, and the most at most {max}; change --memory-max",
        piece = bytes_text(crate::memory::MIN_PIECE), max = bytes_text(MAX_MEMORY)
    )]
    MemoryMax(String, String),
    /// The processor model is not known or inconsistent.
    #[error("CPU model: {0}; see `strata run --help` for models")]
    Cpu(#[from] CpuModelError),
    /// The command line is too long.
    #[error(
        "kernel command line of {0} bytes is longer than the {MAX_CMDLINE} bytes Linux reads; shorten --append"
    )]
    CmdlineTooLong(usize),
    /// The command line contains a zero byte.
    #[error("kernel command line contains a zero byte; remove it from --append")]
    CmdlineZero,
    /// Too many serial ports.
    #[error("{0} serial ports: a machine has at most {MAX_SERIAL}; remove a --serial")]
    Serial(usize),
    /// Two ports want the terminal.
    #[error(
        "two consoles use stdio; give a serial port --serial null or --serial file:PATH, or leave out --console virtio"
    )]
    TwoTerminals,
    /// Too many disks.
    #[error("{0} disks: a machine has at most {MAX_DISKS}; remove a --disk")]
    Disks(usize),
    /// A serial number no interface can tell.
    #[error(
        "disk serial number \"{0}\" is not 1 to {MAX_DISK_SERIAL} letters, digits and punctuation marks; use e.g. serial=data-1"
    )]
    DiskSerial(String),
    /// An initrd without a kernel.
    #[error("an initrd without a kernel has nothing to load it; add --kernel")]
    InitrdAlone,
    /// More virtio devices than the PCI bus has slots.
    #[error(
        "{0} devices on the PCI bus: it has room for {most}; leave some out",
        most = crate::virtio::MAX_DEVICES
    )]
    TooManyDevices(usize),
    /// A network in virtual time.
    #[error("a network answers in the host's time; leave out --time virtual, or use --network none")]
    NetworkInVirtualTime,
    /// A port name that guests cannot show.
    #[error(
        "port name \"{0}\" is not 1 to {MAX_PORT_NAME} letters, digits, dots, dashes and underscores, or is there twice; use e.g. org.example.0"
    )]
    PortName(String),
    /// Too many ports.
    #[error("{0} ports: a machine has at most {most}; remove a --port", most = virtio_console::MAX_PORTS)]
    Ports(usize),
    /// A console's input in virtual time.
    #[error(
        "a virtio console's input comes in the host's time; leave out --time virtual, or use a serial port"
    )]
    ConsoleInVirtualTime,
    /// A context identifier with a meaning of its own.
    #[error("vsock context identifier {0} is not a guest's; choose one from 3 to 4294967294")]
    VsockCid(u32),
    /// A TSC frequency nothing could use.
    #[error("TSC frequency of {0} kHz is outside 1000 to 10000000; leave it out for the model's own")]
    TscFrequency(u32),
}

/// A byte count for people: `512 MiB`, `1 GiB`, `1000 bytes`.
pub fn bytes_text(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{} GiB", b >> 30),
        b if b >= MIB && b % MIB == 0 => format!("{} MiB", b >> 20),
        b if b >= 1024 && b % 1024 == 0 => format!("{} KiB", b >> 10),
        b => format!("{b} bytes"),
    }
}

impl MachineSpec {
    /// vCPUs that exist or can be added.
    pub fn most_cpus(&self) -> u32 {
        self.cpus_max.unwrap_or(self.cpus)
    }

    /// Bytes of RAM that can be added.
    pub fn more_memory(&self) -> u64 {
        self.memory_max.map_or(0, |most| most.saturating_sub(self.memory))
    }

    /// Devices that take a slot of the PCI bus.
    pub(crate) fn pci_devices(&self) -> usize {
        let single = [
            self.rng.is_some(),
            self.balloon.is_some(),
            self.vsock.is_some(),
            self.console,
            !self.ports.is_empty(),
        ];
        let single = single.into_iter().filter(|there| *there).count();
        single + self.nets.len() + self.disks.len() + self.shares.len() + self.pmems.len()
    }

    fn validate_ports(&self) -> Result<(), SpecError> {
        if self.ports.len() > virtio_console::MAX_PORTS {
            return Err(SpecError::Ports(self.ports.len()));
        }
        for (n, PortSpec { name, .. }) in self.ports.iter().enumerate() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
            let fits = (1..=MAX_PORT_NAME).contains(&name.len()) && name.bytes().all(plain);
            if !fits || self.ports[..n].iter().any(|other| other.name == *name) {
                return Err(SpecError::PortName(name.clone()));
            }
        }
        let waits = self.console || !self.ports.is_empty();
        if waits && self.time == TimeSource::Virtual {
            return Err(SpecError::ConsoleInVirtualTime);
        }
        Ok(())
    }

    /// Judge the specification; answers the processor model it names.
    ///
    /// # Errors
    /// The first thing that is wrong, with the value seen and a remedy.
    pub fn validate(&self) -> Result<CpuModel, SpecError> {
        match self.memory {
            m if m < MIN_MEMORY => return Err(SpecError::TooLittleMemory(bytes_text(m))),
            m if m > MAX_MEMORY => return Err(SpecError::TooMuchMemory(bytes_text(m))),
            m if m % MIB != 0 => return Err(SpecError::MemoryNotWhole(m)),
            _ => {}
        }
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(SpecError::Cpus(self.cpus));
        }
        if !(self.cpus..=MAX_CPUS).contains(&self.most_cpus()) {
            return Err(SpecError::CpusMax(self.cpus, self.most_cpus()));
        }
        let most = self.memory_max.unwrap_or(self.memory);
        let whole = most.checked_sub(self.memory).is_some_and(|more| more % crate::memory::MIN_PIECE == 0);
        if !whole || most > MAX_MEMORY {
            return Err(SpecError::MemoryMax(bytes_text(self.memory), bytes_text(most)));
        }
        if self.boot.cmdline.len() > MAX_CMDLINE {
            return Err(SpecError::CmdlineTooLong(self.boot.cmdline.len()));
        }
        if self.boot.cmdline.contains('\0') {
            return Err(SpecError::CmdlineZero);
        }
        if self.serial.len() > MAX_SERIAL {
            return Err(SpecError::Serial(self.serial.len()));
        }
        let terminals = self.serial.iter().filter(|s| **s == SerialSpec::Stdio).count();
        if terminals + usize::from(self.console) > 1 {
            return Err(SpecError::TwoTerminals);
        }
        self.validate_ports()?;
        if self.disks.len() > MAX_DISKS {
            return Err(SpecError::Disks(self.disks.len()));
        }
        for serial in self.disks.iter().filter_map(|d| d.serial.as_ref()) {
            if !crate::disks::serial_fits(serial) {
                return Err(SpecError::DiskSerial(serial.clone()));
            }
        }
        if self.boot.initrd.is_some() && self.boot.kernel.is_none() {
            return Err(SpecError::InitrdAlone);
        }
        if self.pci_devices() > crate::virtio::MAX_DEVICES {
            return Err(SpecError::TooManyDevices(self.pci_devices()));
        }
        if !self.nets.is_empty() && self.time == TimeSource::Virtual {
            return Err(SpecError::NetworkInVirtualTime);
        }
        let cids = virtio_vsock::FIRST_GUEST_CID as u32..u32::MAX;
        if let Some(cid) = self.vsock.as_ref().map(|v| v.cid).filter(|cid| !cids.contains(cid)) {
            return Err(SpecError::VsockCid(cid));
        }
        let model: CpuModel = self.cpu.parse()?;
        match self.tsc_khz {
            Some(khz) if !(1_000..=10_000_000).contains(&khz) => Err(SpecError::TscFrequency(khz)),
            Some(khz) => Ok(model.with_tsc_khz(khz)),
            None => Ok(model),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut MachineSpec)) -> MachineSpec {
        let mut spec = MachineSpec::default();
        change(&mut spec);
        spec
    }

    #[test]
    fn the_default_machine_is_valid() {
        assert_eq!(MachineSpec::default().validate().unwrap().name(), "x86-64-v2");
    }

    #[test]
    fn each_refusal_names_the_value_seen_and_the_remedy() {
        fn check(change: impl FnOnce(&mut MachineSpec), expect: &[&str]) {
            let text = with(change).validate().unwrap_err().to_string();
            for e in expect {
                assert!(text.contains(e), "\"{text}\" lacks \"{e}\"");
            }
        }
        check(|s| s.memory = MIB, &["1 MiB", "2 MiB", "--memory"]);
        check(|s| s.memory = 0, &["0 bytes", "--memory"]);
        check(|s| s.memory = MAX_MEMORY + MIB, &["512 GiB", "--memory"]);
        check(|s| s.memory = 64 * MIB + 1, &["67108865", "--memory 65M"]);
        check(|s| s.cpus = 0, &["0 vCPUs", "--cpus 1"]);
        check(|s| s.cpus = 65, &["65 vCPUs", "64"]);
        check(|s| s.cpu = "pentium".into(), &["pentium", "x86-64-v3"]);
        check(|s| s.boot.cmdline = "x".repeat(2048), &["2048", "--append"]);
        check(|s| s.boot.cmdline = "a\0b".into(), &["zero byte"]);
        check(|s| s.serial = vec![SerialSpec::Stdio; 2], &["stdio", "--serial null"]);
        check(|s| s.serial = vec![SerialSpec::Null; 5], &["5 serial"]);
        check(|s| s.disks = vec![DiskSpec::new("x"); 17], &["17 disks", "--disk"]);
        let serial = |t: &str| DiskSpec { serial: Some(t.into()), ..DiskSpec::new("x") };
        check(|s| s.disks = vec![serial("a b")], &["a b", "serial=data-1"]);
        check(|s| s.disks = vec![serial("123456789012345678901")], &["20"]);
        check(|s| s.boot.initrd = Some("x".into()), &["--kernel"]);
        check(|s| s.tsc_khz = Some(1), &["1 kHz"]);
        check(|s| s.vsock = Some(VsockSpec { cid: 2, to_host: None }), &["identifier 2", "from 3"]);
    }

    #[test]
    fn a_given_tsc_frequency_reaches_the_model() {
        assert_eq!(with(|s| s.tsc_khz = Some(2_500_000)).validate().unwrap().tsc_khz(), 2_500_000);
    }
}
