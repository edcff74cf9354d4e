//! Machines that outlast their process: made of images, detached, started again.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use board::{BootSpec, DiskSpec, MachineSpec};
use first_boot::{GuestFile, Identity, PasswordHash};
use image_build::{DEFAULT_SIZE, Debian};
use image_store::{DiskFormat, FirstBoot, Image, ImageName, Store, StoreError};
use machine_store::{BASE, ConsoleLog, End, Held, KeepError, Kept, MachineStore, Record, Restart};

use crate::cli::{IdentityArgs, RunArgs};
use crate::failure::InputError;
use crate::{definition, images};

/// What a detached machine's process says, where nobody listens.
pub const MESSAGES: &str = "messages.log";
/// Asks the supervisor not to start the machine again.
const STOP: &str = "stop";
/// The start whose processes may run the machine; written by who starts it, while it
/// holds the machine. A supervisor of an earlier start finds it changed, and ends.
const TURN: &str = "turn";
/// The image, as it was when the machine was made.
const IMAGE: &str = "image.json";
const KERNEL: &str = "kernel";
const INITRD: &str = "initrd";
const SEED: &str = "seed.img";
/// Begins the line with which a detached process says that its machine runs.
const READY: &str = "strata-ready ";
/// Files that go with a machine that goes when it ends.
const FILES: [&str; 16] = [
    BASE,
    MESSAGES,
    STOP,
    TURN,
    IMAGE,
    KERNEL,
    INITRD,
    SEED,
    "disk.raw",
    "disk.qcow2",
    "machine.json",
    "end.json",
    "console.0.log",
    "console.1.log",
    "new",
    "lock",
];
/// Where the shortest pause before a restart begins, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long a process of an earlier start may take to see that it is one.
const GIVE_WAY: Duration = Duration::from_secs(1);

/// Whether a run is of a machine that outlasts it.
pub fn wanted(args: &RunArgs) -> bool {
    args.image.is_some() || args.keep.detach
}

/// Make the machine that a command line describes.
///
/// # Errors
/// When its image or its files cannot be had; nothing is left then.
pub fn make(args: &RunArgs, words: Vec<String>) -> anyhow::Result<Held> {
    let image = args.image.as_ref().map(image).transpose()?;
    let mut record = Record::new(words, definition::directory()?);
    record.name = args.name.clone();
    record.image = args.image.as_ref().map(ToString::to_string);
    record.remove_at_end = args.keep.rm;
    record.restart = args.keep.restart;
    let held = MachineStore::open()?.create(record)?;
    let furnished = image.map_or(Ok(()), |image| furnish(&held, &image, args));
    if let Err(error) = furnished {
        // The error itself is the one to tell.
        let _ = fs::remove_dir_all(held.kept.directory());
        return Err(error);
    }
    Ok(held)
}

/// The image of a name; Debian is built when it is not there.
fn image(name: &ImageName) -> anyhow::Result<Image> {
    match images::store()?.find(name) {
        Err(StoreError::Unknown(_)) if name.name() == "debian" => {
            let suite = Some(name.tag()).filter(|t| *t != "latest").map(str::to_string);
            eprintln!("strata: image {name} is built now, once; it takes a minute or two");
            images::build_shown(&Debian {
                name: name.clone(),
                suite,
                mirror: None,
                size: DEFAULT_SIZE,
                packages: Vec::new(),
                replace: false,
            })
        }
        found => Ok(found?),
    }
}

fn disk_name(format: DiskFormat) -> String {
    format!("disk.{}", format.word())
}

/// Give a machine its disk: one that shares the image's blocks where the file system
/// can, else one that stands on the image and holds what is changed, else, if that is
/// asked for, a copy.
fn give_disk(held: &Held, image: &Image, store: &Store, wanted: &IdentityArgs) -> anyhow::Result<()> {
    let (disk, directory, size) = (&image.disk, held.kept.directory(), wanted.disk_size);
    if let Some(size) = size.filter(|size| *size < disk.virtual_size) {
        let text = format!(
            "--disk-size {} MiB is smaller than the image's disk; leave it out, or give a larger one",
            size >> 20
        );
        return Err(InputError(text).into());
    }
    // A qcow2 image says its disk's size itself, so a larger one stands on it.
    let is_raw = disk.format == DiskFormat::Raw;
    let own = directory.join(disk_name(disk.format));
    let as_it_is = is_raw || size.is_none();
    if as_it_is && wanted.disk_copy {
        store.copy(&disk.blob, &own, size)?;
        return Ok(());
    }
    if as_it_is && store.share(&disk.blob, &own, size)? {
        return Ok(());
    }
    MachineStore::open()?.bases().lay(
        &held.kept,
        disk.blob.digest.as_str(),
        |path| store.is_lent(&disk.blob, path).map_err(anyhow::Error::from),
        |path| store.lend(&disk.blob, path).map_err(anyhow::Error::from),
    )?;
    let format = if is_raw { disk::ImageFormat::Raw } else { disk::ImageFormat::Qcow2 };
    let overlay = directory.join(disk_name(DiskFormat::Qcow2));
    disk_qcow2::create(&overlay, size.unwrap_or(disk.virtual_size), Some((BASE, format)))?;
    // Nobody else looks into a machine's disk.
    fs::set_permissions(&overlay, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", overlay.display()))
}

/// Give a machine its disks and kernel.
fn furnish(held: &Held, image: &Image, args: &RunArgs) -> anyhow::Result<()> {
    let (store, directory) = (images::store()?, held.kept.directory());
    give_disk(held, image, &store, &args.identity)?;
    if let Some(kernel) = &image.kernel {
        store.lend(kernel, &directory.join(KERNEL))?;
    }
    if let Some(initrd) = &image.initrd {
        store.lend(initrd, &directory.join(INITRD))?;
    }
    let seed = identity(held, args)?.seed().context("cannot make the machine's seed disk")?;
    write_private(&directory.join(SEED), &seed)?;
    write_private(&directory.join(IMAGE), &serde_json::to_vec(image)?)
}

/// Give back what machines that are gone stood on.
pub fn collect_bases() {
    // What is left goes the next time.
    let _ = MachineStore::open().and_then(|store| store.bases().collect());
}

fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let written = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content));
    written.with_context(|| format!("cannot write {}; make room there", path.display()))
}

/// Who the guest is, by the command line.
fn identity(held: &Held, args: &RunArgs) -> anyhow::Result<Identity> {
    let IdentityArgs { hostname, user, password_file, ssh_key, file, disk_size: _, disk_copy: _ } =
        &args.identity;
    let record = &held.kept.record;
    let named = record.name.as_ref().map(|n| n.to_string().replace('_', "-"));
    let image = args.image.as_ref().map(|i| i.name().replace(['_', '.'], "-"));
    let password = password_file.as_ref().map(|path| read_text(path, "password file")).transpose()?;
    let keys = if ssh_key.is_empty() { own_keys() } else { ssh_key.clone() };
    let mut lines = Vec::new();
    for path in keys {
        let text = read_text(&path, "SSH public key")?;
        lines.extend(
            text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(String::from),
        );
    }
    Ok(Identity {
        instance: record.id.to_string(),
        hostname: hostname.clone().or(named).or(image).unwrap_or_else(|| "strata".to_string()),
        user: user.clone(),
        password: password.map(|p| PasswordHash::of(p.lines().next().unwrap_or_default())),
        keys: lines,
        files: file.iter().map(|(from, to)| guest_file(from, to)).collect::<Result<_, _>>()?,
        command: (!args.command.is_empty()).then(|| crate::guest::shell_words(&args.command)),
    })
}

fn read_text(path: &Path, what: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| {
        InputError(format!("cannot read the {what} {}; give a text file that you may read", path.display()))
    })
}

/// The user's own public keys: who starts a machine may log in to it.
fn own_keys() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let names = ["id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub"];
    names.iter().map(|name| home.join(".ssh").join(name)).filter(|path| path.is_file()).collect()
}

fn guest_file(from: &Path, to: &str) -> anyhow::Result<GuestFile> {
    use std::os::unix::fs::MetadataExt;
    let told = || {
        let from = from.display();
        InputError(format!(
            "cannot read {from} for the guest; give a file of at most 64 MiB that you may read"
        ))
    };
    let about = fs::metadata(from).with_context(told)?;
    if !about.is_file() || about.len() > first_boot::MAX_FILES {
        return Err(told().into());
    }
    Ok(GuestFile {
        path: to.to_string(),
        mode: about.mode() & 0o777,
        content: fs::read(from).with_context(told)?,
    })
}

/// Let a machine start from its own disks and kernel, unless told otherwise.
///
/// # Errors
/// When what was made with it is gone.
pub fn apply(held: &Held, args: &RunArgs, spec: &mut MachineSpec) -> anyhow::Result<()> {
    let directory = held.kept.directory();
    if args.image.is_none() {
        return Ok(());
    }
    let told = || format!("{} is damaged; remove the machine and make it again", directory.display());
    let image: Image =
        serde_json::from_slice(&fs::read(directory.join(IMAGE)).with_context(told)?).with_context(told)?;
    if spec.boot.kernel.is_none() && spec.boot.firmware.is_none() {
        if image.kernel.is_none() {
            let name = &image.name;
            return Err(InputError(format!(
                "image {name} has no kernel beside its disk; give --firmware, or --kernel and --initrd, \
                 or import it again with those"
            ))
            .into());
        }
        let cmdline = args.machine.append.clone().unwrap_or_else(|| image.cmdline.clone());
        spec.boot = BootSpec {
            kernel: Some(directory.join(KERNEL)),
            initrd: image.initrd.as_ref().map(|_| directory.join(INITRD)),
            cmdline: match image.first_boot {
                FirstBoot::Strata => format!("{cmdline} strata.seed"),
                FirstBoot::NoCloud => format!("{cmdline} ds=nocloud"),
            },
            ..std::mem::take(&mut spec.boot)
        };
    }
    // A disk that stands on another is qcow2, whatever that one is.
    let stands = fs::symlink_metadata(directory.join(BASE)).is_ok();
    let format = if stands { DiskFormat::Qcow2 } else { image.disk.format };
    let mut root = DiskSpec::new(directory.join(disk_name(format)));
    if stands {
        stands_on_base(&root.path)?;
    }
    root.backing = stands;
    root.format = Some(match format {
        DiskFormat::Raw => disk::ImageFormat::Raw,
        DiskFormat::Qcow2 => disk::ImageFormat::Qcow2,
    });
    root.serial = Some("root".to_string());
    let mut seed = DiskSpec::new(directory.join(SEED));
    seed.format = Some(disk::ImageFormat::Raw);
    seed.read_only = true;
    seed.serial = Some("seed".to_string());
    // First, as the image's command line expects its root.
    spec.disks.splice(0..0, [root, seed]);
    Ok(())
}

/// A kept disk's header, which a guest that got at it might have changed, opens no other
/// file than the one it was made on.
fn stands_on_base(path: &Path) -> anyhow::Result<()> {
    let named = disk_qcow2::header(path)?.backing.map(|(name, _)| name);
    if named.as_deref() != Some(BASE) {
        let (path, named) = (path.display(), named.as_deref().unwrap_or("nothing"));
        return Err(InputError(format!(
            "disk {path} stands on {named}, not on {BASE}: its header was changed; remove the machine and make it again"
        ))
        .into());
    }
    Ok(())
}

/// A kept machine while this process runs it: what has to be open before the
/// sandbox closes.
pub struct Keeping {
    held: Held,
    end: File,
}

impl Keeping {
    /// Open it.
    ///
    /// # Errors
    /// When the host refuses a file.
    pub fn open(held: Held) -> anyhow::Result<Keeping> {
        let end = held.kept.end_file()?;
        Ok(Keeping { held, end })
    }

    fn directory(&self) -> &Path {
        self.held.kept.directory()
    }

    /// Its console's log.
    ///
    /// # Errors
    /// When the host refuses the files.
    pub fn log(&self) -> anyhow::Result<ConsoleLog> {
        ConsoleLog::open(self.directory())
            .with_context(|| format!("cannot keep a log in {}; make room there", self.directory().display()))
    }

    /// The directory that goes with it.
    pub fn leaves(&self) -> Option<&Path> {
        self.held.kept.record.remove_at_end.then(|| self.directory())
    }

    /// Messages go to a file from now on.
    ///
    /// # Errors
    /// When the host refuses it.
    pub fn redirect(&self) -> anyhow::Result<Ready> {
        Ready::redirect(self.directory())
    }

    /// Write how it ended, and remove it if it was to go.
    pub fn close(mut self, outcome: &str, status: u8) {
        let ended = serde_json::to_vec(&End::now(outcome, status)).unwrap_or_default();
        // Nobody to tell: the machine counts as lost, as one whose process was killed.
        let _ = self.end.write_all(&ended);
        if let Some(directory) = self.leaves() {
            // What is left goes when somebody looks next.
            remove_files(directory);
        }
    }
}

/// Remove a machine's directory, with no more rights than the sandbox leaves.
fn remove_files(directory: &Path) {
    for name in FILES {
        let _ = fs::remove_file(directory.join(name));
    }
    let _ = fs::remove_dir(directory);
}

/// A machine just made: dropped before its guest runs, it is removed.
#[derive(Default)]
pub struct Trial {
    directory: Option<PathBuf>,
    ran: std::cell::Cell<bool>,
}

impl Trial {
    /// Of a machine that this process made.
    pub fn of(held: &Held) -> Trial {
        let directory = Some(held.kept.directory().to_path_buf());
        Trial { directory, ran: std::cell::Cell::new(false) }
    }

    /// What may still be removed.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// The guest runs: what it does to its disk is there to stay.
    pub fn pass(&self) {
        self.ran.set(true);
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.as_deref().filter(|_| !self.ran.get()) {
            remove_files(directory);
        }
    }
}

/// Note why a machine that nobody watches did not run.
pub fn note(directory: &Path, error: &anyhow::Error) {
    // The parent is told as well, if it still listens.
    if let Ok(mut file) = File::options().create(true).append(true).open(directory.join(MESSAGES)) {
        let _ = writeln!(file, "error: {error:#}");
    }
}

/// Tells a waiting parent that the machine runs.
pub struct Ready(Option<File>);

impl Ready {
    /// Keep standard error for the parent; from now on messages go to a file.
    ///
    /// # Errors
    /// When the host refuses the file.
    fn redirect(directory: &Path) -> anyhow::Result<Ready> {
        let path = directory.join(MESSAGES);
        let told = || format!("cannot write {}; make room there", path.display());
        let messages = File::options().create(true).append(true).open(&path).with_context(told)?;
        let parent = rustix::io::dup(rustix::stdio::stderr()).with_context(told)?;
        rustix::stdio::dup2_stderr(&messages).with_context(told)?;
        Ok(Ready(Some(parent.into())))
    }

    /// The machine runs.
    pub fn tell(&mut self, id: &str) {
        if let Some(mut parent) = self.0.take() {
            // A parent that went away needs no word.
            let _ = writeln!(parent, "{READY}{id}");
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // An error on the way is told to the parent too.
        if let Some(parent) = self.0.take() {
            let _ = rustix::stdio::dup2_stderr(&parent);
        }
    }
}

/// The path to start this program by, again and again: an upgrade puts its next
/// version there. Where there is none any more, this version is to be had from the kernel.
fn program(own: &Path) -> &Path {
    if own.exists() { own } else { Path::new("/proc/self/exe") }
}

fn own_path() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find the strata command itself; start it by its path")
}

/// The process of a kept machine, or its supervisor.
fn process(own: &Path, id: &str, turn: &str, supervise: bool) -> Command {
    let mut command = Command::new(program(own));
    command.args(["run", "--kept", id, "--turn", turn]);
    if supervise {
        command.arg("--supervise");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Start a kept machine in a process of its own, and wait until it runs; its
/// identifier, or the status it ended with before.
///
/// # Errors
/// When the process does not start.
pub fn start(held: Held) -> anyhow::Result<Result<String, u8>> {
    let (id, restart) = (held.kept.record.id.to_string(), held.kept.record.restart);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let turn = format!("{}-{}", std::process::id(), since.as_nanos());
    let path = held.kept.directory().join(TURN);
    // First: a supervisor that no longer sees the wish to stop sees this.
    fs::write(&path, &turn).with_context(|| format!("cannot write {}; make room there", path.display()))?;
    let _ = fs::remove_file(held.kept.directory().join(STOP));
    drop(held);
    let mut child = process(&own_path()?, &id, &turn, restart != Restart::No)
        .spawn()
        .context("cannot start a process for the machine")?;
    if follow(&mut child) {
        return Ok(Ok(id));
    }
    let status = child.wait().context("cannot wait for the machine's process")?;
    Ok(Err(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)))
}

/// Pass on what a process says until its machine runs; false when it ended before.
fn follow(child: &mut Child) -> bool {
    let Some(messages) = child.stderr.take() else { return false };
    for line in BufReader::new(messages).split(b'\n') {
        let Ok(line) = line else { break };
        if line.starts_with(READY.as_bytes()) {
            return true;
        }
        // Who listened may have gone; the machine comes all the same.
        let _ = writeln!(std::io::stderr(), "{}", String::from_utf8_lossy(&line));
    }
    false
}

/// Whether no later start has taken a machine over.
fn has_turn(kept: &Kept, turn: &str) -> bool {
    fs::read_to_string(kept.directory().join(TURN)).is_ok_and(|now| now == turn)
}

/// Take a machine to run it, as a process of the start `turn`.
///
/// # Errors
/// When it is gone, another process has it, or a later start has taken it over.
pub fn take(id: &str, turn: &str) -> anyhow::Result<Held> {
    let (store, since) = (MachineStore::open()?, Instant::now());
    loop {
        let kept = store.find(id)?;
        let held = match kept.hold() {
            // Perhaps one of an earlier start, which is about to see that its turn is over.
            Err(KeepError::Runs(_)) if since.elapsed() < GIVE_WAY => {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            held => held?,
        };
        // Looked at while it is held, as it is written.
        anyhow::ensure!(has_turn(&kept, turn), "{id} was started anew meanwhile; see `strata ps`");
        return Ok(held);
    }
}

/// Run a machine's process again and again, as its policy says. One that does not come
/// to run the first time is not started again: who started it is told why.
///
/// # Errors
/// When a process does not start.
pub fn supervise(id: &str, turn: &str) -> anyhow::Result<u8> {
    let (own, store) = (own_path()?, MachineStore::open()?);
    let kept = store.find(id)?;
    let meant_to_end = || kept.directory().join(STOP).exists() || !has_turn(&kept, turn);
    let mut before = 0;
    loop {
        let mut child =
            process(&own, id, turn, false).spawn().context("cannot start a process for the machine")?;
        let ran = follow(&mut child);
        if ran && before == 0 {
            Ready::redirect(kept.directory())?.tell(id);
        }
        let status = child.wait().context("cannot wait for the machine's process")?;
        let status = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
        let first_failed = !ran && before == 0;
        if first_failed || meant_to_end() || !kept.record.restart.again(status, before) {
            return Ok(status);
        }
        std::thread::sleep(PAUSES.0.saturating_mul(1 << before.min(7)).min(PAUSES.1));
        before += 1;
        if meant_to_end() {
            return Ok(status);
        }
    }
}

/// Tell a machine's supervisor, if there is one, that its end is meant.
pub fn mean_to_stop(kept: &Kept) {
    // A full disk keeps nobody from ending a machine.
    let _ = File::create(kept.directory().join(STOP));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_is_started_by_its_path_and_one_that_went_by_the_kernel() {
        let own = own_path().unwrap();
        assert_eq!(program(&own), own);
        assert_eq!(program(Path::new("/usr/bin/strata (deleted)")), Path::new("/proc/self/exe"));
    }

    #[test]
    fn files_for_the_guest_keep_their_mode_and_are_files() {
        let path = std::env::temp_dir().join(format!("strata-file-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        let file = guest_file(&path, "/opt/x").unwrap();
        assert_eq!((file.path.as_str(), file.mode, &file.content[..]), ("/opt/x", 0o750, &b"x"[..]));
        fs::remove_file(&path).unwrap();
        for bad in [path.as_path(), Path::new("/"), Path::new("/dev/null")] {
            let e = guest_file(bad, "/x").unwrap_err();
            assert!(e.is::<InputError>(), "{e:#}");
        }
    }
}
