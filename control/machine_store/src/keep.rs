//! The directory of machines.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use vm_api::{ENDING, Ending, MachineId, MachineName, STATE_VARIABLE};

use crate::record::{End, Record, VERSION, fresh_id};

const LOCK: &str = "lock";
const RECORD: &str = "machine.json";
const END: &str = "end.json";
/// The longest record read, in bytes: arguments are at most a few dozen.
const MAX_RECORD: u64 = 256 << 10;

/// Why a machine is not kept, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// No environment variable names a place.
    #[error(
        "no place for machines: {STATE_VARIABLE}, XDG_STATE_HOME and HOME are all unset; set {STATE_VARIABLE} to a directory"
    )]
    NoPlace,
    /// The host refused a file.
    #[error("cannot {what} {}: {source}; make it writable with enough free space, or set {STATE_VARIABLE} to a directory that is", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The path it was done on.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The name is in use.
    #[error(
        "there is a machine named \"{name}\" already ({id}); choose another --name, or remove it: strata rm {name}"
    )]
    NameTaken {
        /// The name.
        name: MachineName,
        /// Who has it.
        id: MachineId,
    },
    /// Nobody has this name or identifier.
    #[error("no machine \"{0}\" is kept here; `strata ps -a` lists those that are")]
    Unknown(String),
    /// Several identifiers begin so.
    #[error("\"{0}\" begins the identifiers of {1} machines; give more of its digits")]
    Ambiguous(String, usize),
    /// Its record cannot be read.
    #[error("machine {0} is damaged: its {RECORD} is not a record of this version; remove it: strata rm {0}")]
    Damaged(MachineId),
    /// It runs, and the process cannot be told.
    #[error(
        "machine {0} runs, but its runtime directory is gone and its process is not known or does not end; \
         find it with `ps -ef | grep kept`, and kill it"
    )]
    Unreachable(String),
    /// It runs.
    #[error("machine {0} runs; stop it first: strata stop {0}")]
    Runs(String),
}

pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeepError {
    let path = path.to_path_buf();
    move |source| KeepError::Io { what, path, source }
}

/// A user's machines.
#[derive(Debug, Clone)]
pub struct MachineStore(PathBuf);

/// A machine that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// What it is.
    pub record: Record,
    /// How it ended last.
    pub end: Option<End>,
    /// A process runs it.
    pub runs: bool,
    /// Its record cannot be read, as of one whose host stopped while it was made; what
    /// stands in its place says no more than the identifier. It can only be removed.
    pub damaged: bool,
    directory: PathBuf,
}

/// A machine that this process runs, or makes.
#[derive(Debug)]
pub struct Held {
    /// The machine.
    pub kept: Kept,
    /// Held as long as the process has it. It says who holds it, and behind that in which
    /// runtime directory the machine is found.
    lock: File,
}

impl Held {
    /// Note in which runtime directory the machine is, for those who look in others.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn is_found_in(&self, place: &Path) -> Result<(), KeepError> {
        let path = self.kept.directory.join(LOCK);
        let place = std::path::absolute(place).map_err(failed("find", place))?;
        let own = own_line();
        let written = self.lock.write_all_at(place.as_os_str().as_bytes(), own.len() as u64);
        written.map_err(failed("write", &path))
    }
}

/// The first line of the lock of a machine that this process holds: whom to end.
fn own_line() -> String {
    let own = std::process::id();
    format!("{own} {}\n", process_start(own).unwrap_or(0))
}

impl MachineStore {
    /// Where `STRATA_STATE`, else `$XDG_STATE_HOME/strata`, else
    /// `$HOME/.local/state/strata` is.
    ///
    /// # Errors
    /// When none of the three is set, or it cannot be made.
    pub fn open() -> Result<Self, KeepError> {
        Self::at(&vm_api::state_directory().ok_or(KeepError::NoPlace)?.join("machines"))
    }

    /// The machines in a directory, which is made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn at(directory: &Path) -> Result<Self, KeepError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(failed("create", directory))?;
        Ok(MachineStore(directory.to_path_buf()))
    }

    /// Where the machines are.
    pub fn directory(&self) -> &Path {
        &self.0
    }

    fn guard(&self) -> Result<File, KeepError> {
        let path = self.0.join(".lock");
        locked(&path, FlockOperation::LockExclusive).map_err(failed("lock", &path))
    }

    /// Keep a new machine, held by this process. A name that is taken, or an
    /// identifier that is, is another machine's.
    ///
    /// # Errors
    /// When the name is in use or the host refuses a file; nothing is left then.
    pub fn create(&self, mut record: Record) -> Result<Held, KeepError> {
        let _guard = self.guard()?;
        let others = self.look()?;
        if let Some(name) = &record.name
            && let Some(other) = others.iter().find(|o| o.record.name.as_ref() == Some(name))
        {
            return Err(KeepError::NameTaken { name: name.clone(), id: other.record.id.clone() });
        }
        let directory = loop {
            let directory = self.0.join(record.id.as_str());
            match fs::DirBuilder::new().mode(0o700).create(&directory) {
                Ok(()) => break directory,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => record.id = fresh_id(),
                Err(e) => return Err(failed("create", &directory)(e)),
            }
        };
        let kept = Kept { record, end: None, runs: false, damaged: false, directory };
        let written = kept.write(RECORD, &kept.record).and_then(|()| flush(&self.0));
        written.and_then(|()| kept.hold()).inspect_err(|_| {
            // The error itself is the one to tell.
            let _ = fs::remove_dir_all(&kept.directory);
        })
    }

    /// All machines, oldest first, the damaged ones too. Those that were to go when they ended, and
    /// whose process died, are removed on the way.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Kept>, KeepError> {
        let _guard = self.guard()?;
        self.look()
    }

    fn look(&self) -> Result<Vec<Kept>, KeepError> {
        let mut list = Vec::new();
        for entry in fs::read_dir(&self.0).map_err(failed("read", &self.0))? {
            let entry = entry.map_err(failed("read", &self.0))?;
            let Some(Ok(id)) = entry.file_name().to_str().map(str::parse::<MachineId>) else { continue };
            let kept = Kept::read(entry.path(), &id);
            // One that has not run yet waits for its process.
            let ran = kept.directory.join(END).exists();
            if kept.record.remove_at_end && ran && !kept.runs {
                // Another time, if not now.
                let _ = fs::remove_dir_all(&kept.directory);
            } else {
                list.push(kept);
            }
        }
        list.sort_by(|a, b| (a.record.created, &a.record.id).cmp(&(b.record.created, &b.record.id)));
        Ok(list)
    }

    /// The machine a person means: by name, by identifier, or by the beginning
    /// of one identifier.
    ///
    /// # Errors
    /// When that is no machine, or several.
    pub fn find(&self, wanted: &str) -> Result<Kept, KeepError> {
        let list = self.list()?;
        let named = |k: &Kept| k.record.name.as_ref().is_some_and(|n| n.as_str() == wanted);
        if let Some(at) = list.iter().position(named) {
            return Ok(list[at].clone());
        }
        let begins = |k: &Kept| !wanted.is_empty() && k.record.id.as_str().starts_with(wanted);
        let mut matching: Vec<_> = list.into_iter().filter(begins).collect();
        match (matching.pop(), matching.len()) {
            (Some(only), 0) => Ok(only),
            (Some(_), more) => Err(KeepError::Ambiguous(wanted.to_string(), more + 1)),
            (None, _) => Err(KeepError::Unknown(wanted.to_string())),
        }
    }

    /// Remove a machine with its disks.
    ///
    /// # Errors
    /// When it runs or the host refuses.
    pub fn remove(&self, kept: &Kept) -> Result<(), KeepError> {
        let _guard = self.guard()?;
        let _held = kept.lock()?;
        fs::remove_dir_all(&kept.directory).map_err(failed("remove", &kept.directory))
    }
}

impl Kept {
    fn read(directory: PathBuf, id: &MachineId) -> Kept {
        let record = read_json(&directory.join(RECORD));
        let record = record.filter(|r: &Record| r.id == *id && r.version == VERSION);
        let end = read_json(&directory.join(END));
        let (runs, damaged) = (is_locked(&directory), record.is_none());
        let record = record.unwrap_or_else(|| Record {
            id: id.clone(),
            created: fs::metadata(&directory).map_or(0, |m| m.mtime().try_into().unwrap_or(0)),
            ..Record::new(Vec::new(), "/".into())
        });
        Kept { record, end, runs, damaged, directory }
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its name, else its identifier.
    pub fn label(&self) -> String {
        self.record.name.as_ref().map_or_else(|| self.record.id.to_string(), ToString::to_string)
    }

    /// Take it: nobody else runs or removes it meanwhile.
    ///
    /// # Errors
    /// When it is damaged or another process has it.
    pub fn hold(&self) -> Result<Held, KeepError> {
        if self.damaged { Err(KeepError::Damaged(self.record.id.clone())) } else { self.lock() }
    }

    fn lock(&self) -> Result<Held, KeepError> {
        let path = self.directory.join(LOCK);
        match locked(&path, FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => {
                // For `end`; a full disk keeps nobody from removing a machine.
                let _ = lock.set_len(0).and_then(|()| lock.write_all_at(own_line().as_bytes(), 0));
                Ok(Held { kept: self.clone(), lock })
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(KeepError::Runs(self.label())),
            Err(e) => Err(failed("lock", &path)(e)),
        }
    }

    /// Who holds it, and in which runtime directory it says that it is.
    fn holder(&self) -> Option<(String, Option<PathBuf>)> {
        let bytes = fs::read(self.directory.join(LOCK)).ok()?;
        let end = bytes.iter().position(|b| *b == b'\n')?;
        let place = Some(&bytes[end + 1..]).filter(|place| !place.is_empty());
        let place = place.map(|place| PathBuf::from(std::ffi::OsString::from_vec(place.to_vec())));
        Some((String::from_utf8(bytes[..end].to_vec()).ok()?, place))
    }

    /// The runtime directory that it was registered in, while it runs.
    pub fn place(&self) -> Option<PathBuf> {
        if self.runs { self.holder()?.1 } else { None }
    }

    /// End the process that runs it, whom no socket reaches, and wait until it has gone: by
    /// the signal at which it flushes its disks, then by force.
    ///
    /// # Errors
    /// When it is not known for sure, or survives.
    pub fn end_process(&self) -> Result<Ending, KeepError> {
        self.end_within(ENDING)
    }

    fn end_within(&self, ending: Duration) -> Result<Ending, KeepError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let unreachable = || KeepError::Unreachable(self.label());
        let (holder, _) = self.holder().ok_or_else(unreachable)?;
        let (pid, started) = holder.split_once(' ').ok_or_else(unreachable)?;
        let pid = pid.parse::<i32>().ok().filter(|p| *p > 0).ok_or_else(unreachable)?;
        let process = Pid::from_raw(pid).and_then(|p| pidfd_open(p, PidfdFlags::empty()).ok());
        let process = process.ok_or_else(unreachable)?;
        // Looked at with the process in hand: it is the one that wrote this, and none that
        // got its number later.
        let start = process_start(pid.unsigned_abs());
        if !is_locked(&self.directory) || start.is_none() || started.parse().ok() != start {
            return Err(unreachable());
        }
        let ways = [(Signal::TERM, ending, Ending::Ended), (Signal::KILL, PATIENCE, Ending::Killed)];
        for (signal, limit, how) in ways {
            // One that went meanwhile cannot be told.
            let told = pidfd_send_signal(&process, signal);
            if self.goes_within(if told.is_ok() { limit } else { Duration::ZERO }) {
                return Ok(how);
            }
        }
        Err(unreachable())
    }

    fn goes_within(&self, limit: Duration) -> bool {
        let since = Instant::now();
        while is_locked(&self.directory) {
            if since.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Where its end is written, open before the sandbox closes.
    ///
    /// # Errors
    /// When the host refuses the file.
    pub fn end_file(&self) -> Result<File, KeepError> {
        let path = self.directory.join(END);
        File::options().create(true).truncate(true).write(true).open(&path).map_err(failed("write", &path))
    }

    fn write(&self, name: &str, value: &impl serde::Serialize) -> Result<(), KeepError> {
        let (path, staged) = (self.directory.join(name), self.directory.join("new"));
        let bytes = serde_json::to_vec_pretty(value).map_err(|e| failed("write", &staged)(e.into()))?;
        fs::write(&staged, bytes).map_err(failed("write", &staged))?;
        flush(&staged)?;
        fs::rename(&staged, &path).map_err(failed("rename into place", &path))?;
        flush(&self.directory)
    }
}

/// What a file or directory holds is there after the host stops.
pub(crate) fn flush(path: &Path) -> Result<(), KeepError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("flush", path))
}

/// A file that is locked until it is closed.
pub(crate) fn locked(path: &Path, operation: FlockOperation) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    loop {
        match flock(&file, operation) {
            Err(Errno::INTR) => {}
            result => return Ok(result.map(|()| file)?),
        }
    }
}

/// When a process started, in the host's ticks since it did (`starttime` of proc(5)).
fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The 22nd field; the second, a name in parentheses, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn is_locked(directory: &Path) -> bool {
    let Ok(file) = File::open(directory.join(LOCK)) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// A small file of JSON; nothing if it is not that.
fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let size = fs::symlink_metadata(path).ok()?.len();
    let bytes = if size <= MAX_RECORD { fs::read(path).ok()? } else { return None };
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            Scratch(std::env::temp_dir().join(format!("strata-keep-{}-{n}", std::process::id())))
        }
        fn store(&self) -> MachineStore {
            MachineStore::at(&self.0.join("machines")).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn record(name: Option<&str>) -> Record {
        let mut record = Record::new(vec!["debian".into()], "/".into());
        record.name = name.map(|n| n.parse().unwrap());
        record
    }

    #[test]
    fn a_machine_is_kept_until_it_is_removed_which_a_running_one_is_not() {
        let scratch = Scratch::new();
        let store = scratch.store();
        let held = store.create(record(Some("web"))).unwrap();
        let other = store.create(record(None)).unwrap();
        let web = store.find("web").unwrap();
        assert!(web.runs && web.end.is_none());
        assert!(matches!(store.remove(&web), Err(KeepError::Runs(_))));
        assert!(matches!(web.hold(), Err(KeepError::Runs(_))));
        fs::write(web.directory().join("disk"), "data").unwrap();
        let end = End::now("power-off", 0);
        web.end_file().unwrap().write_all(&serde_json::to_vec(&end).unwrap()).unwrap();
        drop(held);
        let web = store.find(&web.record.id.as_str()[..6]).unwrap();
        assert_eq!((web.runs, web.end.as_ref()), (false, Some(&end)));
        store.remove(&web).unwrap();
        assert!(matches!(store.find("web"), Err(KeepError::Unknown(_))));
        assert_eq!(store.list().unwrap().len(), 1);
        drop(other);
    }

    #[test]
    fn the_process_that_holds_a_machine_is_ended_and_none_that_got_its_number() {
        let scratch = Scratch::new();
        let held = scratch.store().create(record(None)).unwrap();
        let kept = held.kept.clone();
        let lock = kept.directory().join(LOCK);
        let own = fs::read_to_string(&lock).unwrap();
        assert!(own.starts_with(&format!("{} ", std::process::id())), "{own}");
        let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let start = process_start(other.id()).unwrap();
        for text in ["", "x y\n", "0 0\n", "-1 0\n", &format!("{} {}\n", other.id(), start + 1)] {
            fs::write(&lock, text).unwrap();
            assert!(matches!(kept.end_process(), Err(KeepError::Unreachable(_))), "{text}");
        }
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        drop(held);
        assert!(matches!(kept.end_process(), Err(KeepError::Unreachable(_))), "nobody holds it");
    }

    /// What ends a process that holds a machine, and how.
    fn ended(script: &str, limit: Duration) -> (Option<i32>, Ending) {
        use std::os::unix::process::ExitStatusExt;
        let scratch = Scratch::new();
        let held = scratch.store().create(record(None)).unwrap();
        let kept = held.kept.clone();
        let mut shell = std::process::Command::new("sh");
        let mut child = shell.args(["-c", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        // It says when it has set up its signals.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let line = format!("{} {}\n/run/somewhere", child.id(), process_start(child.id()).unwrap());
        fs::write(kept.directory().join(LOCK), line).unwrap();
        std::thread::scope(|scope| {
            let end = scope.spawn(move || {
                let status = child.wait().unwrap();
                drop(held);
                status
            });
            let how = kept.end_within(limit).unwrap();
            (end.join().unwrap().signal(), how)
        })
    }

    #[test]
    fn a_process_may_end_by_itself_before_it_is_killed() {
        const LONG: Duration = Duration::from_secs(60);
        let obeys = "trap 'exit 0' TERM; echo; while :; do sleep 0.01; done";
        assert_eq!(ended(obeys, LONG), (None, Ending::Ended));
        let stays = "trap '' TERM; echo; while :; do sleep 0.01; done";
        assert_eq!(ended(stays, Duration::from_millis(50)), (Some(9), Ending::Killed));
    }

    #[test]
    fn where_a_machine_is_registered_is_known_while_it_runs() {
        let scratch = Scratch::new();
        let store = scratch.store();
        let held = store.create(record(Some("web"))).unwrap();
        assert_eq!(store.find("web").unwrap().place(), None);
        held.is_found_in(Path::new("/run/a\nb")).unwrap();
        assert_eq!(store.find("web").unwrap().place(), Some("/run/a\nb".into()));
        drop(held);
        let web = store.find("web").unwrap();
        assert_eq!(web.place(), None);
        let _held = web.hold().unwrap();
        assert_eq!(store.find("web").unwrap().place(), None, "not that of the run before");
    }

    #[test]
    fn a_name_is_given_once_and_an_identifier_too() {
        let scratch = Scratch::new();
        let store = scratch.store();
        let first = store.create(record(Some("web"))).unwrap();
        let e = store.create(record(Some("web"))).unwrap_err();
        assert!(matches!(&e, KeepError::NameTaken { id, .. } if *id == first.kept.record.id), "{e}");
        let twin = Record { id: first.kept.record.id.clone(), ..record(None) };
        assert_ne!(store.create(twin).unwrap().kept.record.id, first.kept.record.id);
    }

    #[test]
    fn one_that_was_to_go_goes_when_its_process_has() {
        let scratch = Scratch::new();
        let store = scratch.store();
        let held = store.create(Record { remove_at_end: true, ..record(None) }).unwrap();
        let directory = held.kept.directory().to_path_buf();
        drop(held);
        let kept = store.list().unwrap().remove(0);
        let held = kept.hold().unwrap();
        kept.end_file().unwrap();
        assert_eq!(store.list().unwrap().len(), 1);
        drop(held);
        assert!(store.list().unwrap().is_empty() && !directory.exists());
    }

    #[test]
    fn damaged_records_hide_no_other_machine_and_are_removed_by_their_identifier() {
        let scratch = Scratch::new();
        let store = scratch.store();
        let good = store.create(record(None)).unwrap();
        let bad = store.create(record(None)).unwrap();
        let (id, directory) = (bad.kept.record.id.clone(), bad.kept.directory().to_path_buf());
        drop(bad);
        let other_version = fs::read_to_string(directory.join(RECORD)).unwrap().replace(": 1,", ": 2,");
        for text in ["", "[]", "{\"version\":1}", &other_version, &" ".repeat(300_000)] {
            fs::write(directory.join(RECORD), text).unwrap();
            let list = store.list().unwrap();
            let found: Vec<_> = list.iter().map(|k| (&k.record.id, k.damaged)).collect();
            let expect = [(&good.kept.record.id, false), (&id, true)];
            assert!(found.len() == 2 && expect.iter().all(|e| found.contains(e)), "{text:.20}: {found:?}");
            assert!(matches!(store.find(id.as_str()).unwrap().hold(), Err(KeepError::Damaged(_))));
        }
        // The host stopped between the directory and its record.
        fs::remove_file(directory.join(RECORD)).unwrap();
        store.remove(&store.find(&id.as_str()[..7]).unwrap()).unwrap();
        assert!(!directory.exists() && store.list().unwrap().len() == 1);
    }
}
