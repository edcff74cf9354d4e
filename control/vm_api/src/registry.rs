//! The machines in a runtime directory.
//!
//! ```text
//! strata/            0700, its own lock in .lock
//!   3f9a1c2b/        one a machine
//!     lock           held (flock) by the machine's process as long as it lives
//!     machine.json   who it is: identifier, name, process, start
//!     control.sock   where it listens
//!     vsock.sock     the way to its guest's sockets
//! ```
//! A directory whose lock nobody holds belongs to a dead machine, however that
//! died, and is removed by whoever looks next. Registering, removing and looking
//! happen under the directory's own lock, so no one sees half a machine. A name is looked
//! for in all directories of the user's, under the locks of all of them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::identity::{MachineId, MachineName};
use crate::place::{PlaceError, RuntimeDir};

const LOCK: &str = "lock";
const SOCKET: &str = "control.sock";
/// Made by the socket device.
const VSOCK: &str = "vsock.sock";
const CARD: &str = "machine.json";
/// The longest path a socket can have (sun_path of unix(7), with its final zero).
const MAX_SOCKET_PATH: usize = 107;
/// How long another process may hold the directory's own lock, which is held for
/// milliseconds: every machine's process can open it, also one that a guest has taken over.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest card read: a person's name for a machine has at most 63 bytes.
const MAX_CARD: u64 = 4096;

/// Why a machine cannot be registered or found.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No directory.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The host refused a file.
    #[error("{what} {}: {source}; check the runtime directory's free space and mode", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// A process keeps the directory's own lock.
    #[error(
        "another process has held {} for {:.1?}; find it with `fuser -v {}` and end it",
        path.display(), waited, path.display()
    )]
    Busy {
        /// The file that is locked.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The path of the socket would be too long.
    #[error(
        "the control socket's path {} is longer than {MAX_SOCKET_PATH} bytes; set STRATA_RUNTIME_DIR to a shorter one",
        .0.display()
    )]
    LongPath(PathBuf),
    /// The name is in use.
    #[error("a machine named \"{name}\" runs already ({id}); choose another --name or stop that one")]
    NameTaken {
        /// The name.
        name: MachineName,
        /// Who has it.
        id: MachineId,
    },
    /// The machine runs already.
    #[error("machine {0} runs already; stop it first: strata stop {0}")]
    Runs(MachineId),
    /// Nobody has this name or identifier.
    #[error("no machine \"{0}\" runs here; `strata ps` lists those that do")]
    Unknown(String),
    /// Several have this name.
    #[error("{1} machines are named \"{0}\"; give one's identifier, which `strata ps` shows")]
    SameName(String, usize),
    /// Several identifiers begin so.
    #[error("\"{0}\" begins the identifiers of {1} machines; give more of its digits")]
    Ambiguous(String, usize),
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    let path = path.to_path_buf();
    move |source| RegistryError::Io { what, path, source }
}

/// What a machine's directory tells without asking its process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Card {
    id: MachineId,
    name: Option<MachineName>,
    pid: u32,
    /// Seconds since 1970.
    started: u64,
}

/// A machine whose process lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its identifier.
    pub id: MachineId,
    /// The name it was given.
    pub name: Option<MachineName>,
    /// Its process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started: u64,
    dir: PathBuf,
}

impl Found {
    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// The way to its guest's sockets, if it has a socket device.
    pub fn vsock(&self) -> PathBuf {
        self.dir.join(VSOCK)
    }

    /// Whether its process still lives.
    pub fn lives(&self) -> bool {
        is_locked(&self.dir)
    }
}

/// A runtime directory and what is in it.
#[derive(Debug, Clone)]
pub struct Registry {
    place: RuntimeDir,
    /// Others, in which a name may be in use.
    beside: Vec<RuntimeDir>,
}

/// This process's machine in the runtime directory. Dropping it takes it out.
#[derive(Debug)]
pub struct Registration {
    id: MachineId,
    name: Option<MachineName>,
    dir: PathBuf,
    registry: Registry,
    /// Held as long as the process lives.
    _lock: File,
}

impl Registration {
    /// Its identifier.
    pub fn id(&self) -> &MachineId {
        &self.id
    }

    /// Its name.
    pub fn name(&self) -> Option<&MachineName> {
        self.name.as_ref()
    }

    /// Its directory, which goes when the machine does.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// Where the socket device is to listen for the host's programs.
    pub fn vsock_path(&self) -> PathBuf {
        self.dir.join(VSOCK)
    }

    /// The file that is locked while a directory comes or goes.
    pub fn guard_path(&self) -> PathBuf {
        self.registry.guard_path()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Ok(_guard) = self.registry.guard() {
            remove(&self.dir);
        }
    }
}

/// A file that is locked until it is closed.
fn locked(path: &Path, operation: FlockOperation) -> Result<File, io::Error> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    loop {
        match flock(&file, operation) {
            Err(Errno::INTR) => {}
            result => return Ok(result.map(|()| file)?),
        }
    }
}

/// Whether a process holds the lock of a machine's directory.
fn is_locked(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK)) else { return false };
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// Remove a machine's directory: what is ours in it, and itself if nothing else is.
fn remove(dir: &Path) {
    for name in [SOCKET, VSOCK, CARD, LOCK] {
        let _ = fs::remove_file(dir.join(name));
    }
    let _ = fs::remove_dir(dir);
}

fn read_card(dir: &Path) -> Option<Card> {
    let path = dir.join(CARD);
    let size = fs::symlink_metadata(&path).ok()?.len();
    let bytes = if size <= MAX_CARD { fs::read(path).ok()? } else { return None };
    serde_json::from_slice(&bytes).ok()
}

impl Registry {
    /// The machines in a runtime directory.
    pub fn new(place: RuntimeDir) -> Self {
        Registry { place, beside: Vec::new() }
    }

    /// Names are given once among these directories too.
    #[must_use]
    pub fn beside(self, others: Vec<RuntimeDir>) -> Self {
        Registry { beside: others, ..self }
    }

    /// All machines of the calling user, oldest first. Directories of dead
    /// machines are removed on the way.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn all() -> Result<Vec<Found>, RegistryError> {
        let mut list = Vec::new();
        for place in RuntimeDir::existing() {
            list.extend(Registry::new(place).list()?);
        }
        list.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
        Ok(list)
    }

    fn guard_path(&self) -> PathBuf {
        self.place.path().join(".lock")
    }

    fn guard(&self) -> Result<File, RegistryError> {
        self.guard_within(PATIENCE)
    }

    /// The guards of this directory and of those beside it, taken in one order by everyone, so
    /// that nobody waits for one who waits for him.
    fn guards(&self) -> Result<Vec<File>, RegistryError> {
        let all = std::iter::once(&self.place).chain(&self.beside);
        let mut all: Vec<_> = all.filter_map(|place| Some((place.inode()?, place))).collect();
        all.sort_by_key(|(inode, _)| *inode);
        all.dedup_by_key(|(inode, _)| *inode);
        all.into_iter().map(|(_, place)| Registry::new(place.clone()).guard()).collect()
    }

    fn guard_within(&self, limit: Duration) -> Result<File, RegistryError> {
        const PAUSE: Duration = Duration::from_millis(10);
        let (path, start) = (self.guard_path(), Instant::now());
        loop {
            match locked(&path, FlockOperation::NonBlockingLockExclusive) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map_err(io_error("cannot lock", &path)),
            }
            let waited = start.elapsed();
            if waited >= limit {
                return Err(RegistryError::Busy { path, waited });
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Take up a machine: a directory, its lock, and the socket to listen on.
    ///
    /// # Errors
    /// When the name is in use or the host refuses a file.
    pub fn register(&self, name: Option<MachineName>) -> Result<(Registration, UnixListener), RegistryError> {
        self.register_as(None, name)
    }

    /// As [`Registry::register`], with an identifier that the machine has already.
    ///
    /// # Errors
    /// As [`Registry::register`]; also when a machine of that identifier runs.
    pub fn register_as(
        &self,
        id: Option<&MachineId>,
        name: Option<MachineName>,
    ) -> Result<(Registration, UnixListener), RegistryError> {
        let _guards = if name.is_some() { self.guards()? } else { vec![self.guard()?] };
        let mut others = self.look()?;
        if let Some(name) = &name {
            for place in &self.beside {
                others.extend(Registry::new(place.clone()).look()?);
            }
            if let Some(other) = others.iter().find(|o| o.name.as_ref() == Some(name)) {
                return Err(RegistryError::NameTaken { name: name.clone(), id: other.id.clone() });
            }
        }
        let (id, dir) = self.fresh_directory(id)?;
        let path = dir.join(LOCK);
        let lock = locked(&path, FlockOperation::NonBlockingLockExclusive)
            .map_err(io_error("cannot lock", &path))?;
        let registration =
            Registration { id: id.clone(), name: name.clone(), dir, registry: self.clone(), _lock: lock };
        let result = Self::furnish(&registration, Card { id, name, pid: std::process::id(), started: now() });
        match result {
            Ok(listener) => Ok((registration, listener)),
            Err(e) => {
                // Its drop would wait for the guard held here.
                remove(&registration.dir);
                std::mem::forget(registration);
                Err(e)
            }
        }
    }

    /// As [`Registry::register_as`], in the first of some places that takes the machine: one on
    /// a file system without sockets does not. A name is given once among those of `beside`.
    ///
    /// # Errors
    /// As [`Registry::register_as`]; the first place's, if none takes it.
    pub fn register_first(
        places: impl IntoIterator<Item = Result<RuntimeDir, PlaceError>>,
        beside: impl Fn() -> Vec<RuntimeDir>,
        id: Option<&MachineId>,
        name: Option<&MachineName>,
    ) -> Result<(Registration, UnixListener), RegistryError> {
        let mut first = None;
        for place in places {
            // It is made before the others are looked for.
            let place = place.map_err(RegistryError::from);
            let registered =
                place.and_then(|place| Registry::new(place).beside(beside()).register_as(id, name.cloned()));
            match registered {
                Err(
                    e @ (RegistryError::Place(_) | RegistryError::Io { .. } | RegistryError::LongPath(_)),
                ) => {
                    first.get_or_insert(e);
                }
                other => return other,
            }
        }
        Err(first.expect("there is always a place to try"))
    }

    fn furnish(registration: &Registration, card: Card) -> Result<UnixListener, RegistryError> {
        let path = registration.dir.join(CARD);
        let bytes = serde_json::to_vec(&card).map_err(|e| io_error("cannot write", &path)(e.into()))?;
        fs::write(&path, bytes).map_err(io_error("cannot write", &path))?;
        let socket = registration.dir.join(SOCKET);
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(RegistryError::LongPath(socket));
        }
        UnixListener::bind(&socket).map_err(io_error("cannot listen on", &socket))
    }

    /// A directory nobody has, of this identifier if there is one.
    fn fresh_directory(&self, wanted: Option<&MachineId>) -> Result<(MachineId, PathBuf), RegistryError> {
        loop {
            let number = host_sys::entropy().unwrap_or_else(|| now() << 20 ^ u64::from(std::process::id()));
            let id = wanted.cloned().unwrap_or_else(|| MachineId::from_number(number));
            let dir = self.place.path().join(id.as_str());
            match fs::DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => return Ok((id, dir)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && wanted.is_none() => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(RegistryError::Runs(id)),
                Err(e) => return Err(io_error("cannot make", &dir)(e)),
            }
        }
    }

    /// The machines whose processes live; the others' directories are removed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Found>, RegistryError> {
        let _guard = self.guard()?;
        self.look()
    }

    /// As [`Registry::list`], with the guard held.
    fn look(&self) -> Result<Vec<Found>, RegistryError> {
        let top = self.place.path();
        let mut list = Vec::new();
        for entry in fs::read_dir(top).map_err(io_error("cannot read", top))? {
            let entry = entry.map_err(io_error("cannot read", top))?;
            let name = entry.file_name();
            let Some(Ok(id)) = name.to_str().map(str::parse::<MachineId>) else { continue };
            let dir = entry.path();
            if !is_locked(&dir) {
                remove(&dir);
            } else if let Some(card) = read_card(&dir).filter(|card| card.id == id) {
                list.push(Found { id, name: card.name, pid: card.pid, started: card.started, dir });
            }
        }
        Ok(list)
    }
}

impl Found {
    /// The machine a person means: by name, by identifier, or by the beginning
    /// of one identifier.
    ///
    /// # Errors
    /// When that is no machine, or several.
    pub fn pick(list: Vec<Found>, wanted: &str) -> Result<Found, RegistryError> {
        pick(list, wanted, |found| (&found.id, found.name.as_ref()))
    }
}

/// As [`Found::pick`], of anything that has an identifier and may have a name.
///
/// # Errors
/// When that is none, or several.
pub fn pick<T>(
    mut list: Vec<T>,
    wanted: &str,
    known: impl Fn(&T) -> (&MachineId, Option<&MachineName>),
) -> Result<T, RegistryError> {
    let named = |one: &T| known(one).1.is_some_and(|name| name.as_str() == wanted);
    let begins = |one: &T| !wanted.is_empty() && known(one).0.as_str().starts_with(wanted);
    let by_name = list.iter().any(named);
    list.retain(|one| if by_name { named(one) } else { begins(one) });
    match (list.pop(), list.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), more) if by_name => Err(RegistryError::SameName(wanted.to_string(), more + 1)),
        (Some(_), more) => Err(RegistryError::Ambiguous(wanted.to_string(), more + 1)),
        (None, _) => Err(RegistryError::Unknown(wanted.to_string())),
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            Dir(std::env::temp_dir().join(format!("strata-reg-{}-{n}", std::process::id())))
        }
        fn registry(&self) -> Registry {
            let uid = rustix::process::geteuid().as_raw();
            Registry::new(RuntimeDir::make_at(&self.0, uid).unwrap())
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_lock_that_is_kept_is_not_waited_for_without_end() {
        const LONG: Duration = Duration::from_secs(60);
        let dir = Dir::new();
        let registry = dir.registry();
        let holder = locked(&registry.guard_path(), FlockOperation::LockExclusive).unwrap();
        let limit = Duration::from_millis(50);
        let error = registry.guard_within(limit).unwrap_err();
        assert!(matches!(error, RegistryError::Busy { waited, .. } if waited >= limit), "{error}");
        // One that lets go meanwhile is waited for.
        let waiting = std::thread::spawn(move || registry.guard_within(LONG).map(drop));
        std::thread::sleep(limit);
        assert!(!waiting.is_finished());
        drop(holder);
        waiting.join().unwrap().unwrap();
        // The way of every command.
        let registry = dir.registry();
        let _holder = locked(&registry.guard_path(), FlockOperation::LockExclusive).unwrap();
        assert!(matches!(registry.list(), Err(RegistryError::Busy { .. })));
    }

    fn name(text: &str) -> Option<MachineName> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_machine_is_found_as_long_as_it_is_registered() {
        let dir = Dir::new();
        let registry = dir.registry();
        let (first, _listener) = registry.register(name("web")).unwrap();
        let (second, listener) = registry.register(None).unwrap();
        let list = registry.list().unwrap();
        assert_eq!(list.len(), 2);
        let web = Found::pick(list.clone(), "web").unwrap();
        assert_eq!((&web.id, web.pid, web.lives()), (first.id(), std::process::id(), true));
        let by_id = Found::pick(list, second.id().as_str()).unwrap();
        assert_eq!((by_id.name.as_ref(), &by_id.id), (None, second.id()));
        assert!(std::os::unix::net::UnixStream::connect(by_id.socket()).is_ok());
        drop((second, listener));
        assert!(!by_id.lives());
        assert_eq!(registry.list().unwrap().len(), 1);
        drop(first);
        assert!(registry.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1, "only the directory's own lock is left");
    }

    #[test]
    fn a_name_is_given_once() {
        let dir = Dir::new();
        let registry = dir.registry();
        let (web, _listener) = registry.register(name("web")).unwrap();
        let e = registry.register(name("web")).unwrap_err();
        assert!(matches!(&e, RegistryError::NameTaken { id, .. } if id == web.id()), "{e}");
        let e = registry.register_as(Some(web.id()), None).unwrap_err();
        assert!(matches!(&e, RegistryError::Runs(id) if id == web.id()), "{e}");
        let id = web.id().clone();
        drop(web);
        let (web, _listener) = registry.register_as(Some(&id), name("web")).unwrap();
        assert_eq!(web.id(), &id);
    }

    #[test]
    fn a_name_is_given_once_among_all_places() {
        let (session, lasting) = (Dir::new(), Dir::new());
        let places = || vec![session.registry().place, lasting.registry().place];
        let (web, _listener) = session.registry().register(name("web")).unwrap();
        let registry = lasting.registry().beside(places());
        let e = registry.register(name("web")).unwrap_err();
        assert!(matches!(&e, RegistryError::NameTaken { id, .. } if id == web.id()), "{e}");
        drop(web);
        // Both at once, each in a place of its own: one gets it, whoever comes first.
        let registries = [session.registry().beside(places()), registry];
        let got = std::thread::scope(|scope| {
            let both = registries.each_ref().map(|r| scope.spawn(|| r.register(name("web"))));
            both.map(|thread| thread.join().unwrap())
        });
        assert_eq!(got.iter().filter(|r| r.is_ok()).count(), 1, "{got:?}");
        assert!(got.iter().all(|r| matches!(r, Ok(_) | Err(RegistryError::NameTaken { .. }))), "{got:?}");
        // One directory by two paths is locked once.
        let link = session.0.join("link");
        std::os::unix::fs::symlink(&lasting.0, &link).unwrap();
        let twice = RuntimeDir::make_at(&link.join("."), rustix::process::geteuid().as_raw()).unwrap();
        lasting.registry().beside(vec![twice]).register(name("other")).unwrap();
    }

    #[test]
    fn what_the_dead_left_is_removed_and_nothing_else() {
        let dir = Dir::new();
        let registry = dir.registry();
        let dead = dir.0.join("0badcafe");
        let half_made = dir.0.join("00000001");
        let full = dir.0.join("00000002");
        let strange = dir.0.join("notes");
        for d in [&dead, &half_made, &full, &strange] {
            fs::create_dir(d).unwrap();
        }
        fs::write(dead.join(LOCK), "").unwrap();
        fs::write(dead.join(CARD), "{}").unwrap();
        fs::write(dead.join(SOCKET), "").unwrap();
        fs::write(full.join("mine"), "").unwrap();
        assert!(registry.list().unwrap().is_empty());
        assert!(!dead.exists() && !half_made.exists());
        assert!(full.join("mine").exists() && strange.exists());
    }

    #[test]
    fn cards_that_are_damaged_do_not_hide_other_machines() {
        let dir = Dir::new();
        let registry = dir.registry();
        let (damaged, _a) = registry.register(None).unwrap();
        let (good, _b) = registry.register(None).unwrap();
        for card in ["", "[]", "{\"id\":\"zzz\"}", &"x".repeat(5000)] {
            fs::write(dir.0.join(damaged.id().as_str()).join(CARD), card).unwrap();
            let list = registry.list().unwrap();
            assert_eq!(list.iter().map(|f| &f.id).collect::<Vec<_>>(), [good.id()], "{card:.20}");
        }
    }

    #[test]
    fn a_machine_goes_where_there_can_be_sockets() {
        let uid = rustix::process::geteuid().as_raw();
        let (long, closed, good) = (Dir(std::env::temp_dir().join("y".repeat(120))), Dir::new(), Dir::new());
        // Stands for a file system that does not lock.
        fs::create_dir(closed.registry().guard_path()).unwrap();
        let places =
            |dirs: &[&Dir]| dirs.iter().map(|dir| RuntimeDir::make_at(&dir.0, uid)).collect::<Vec<_>>();
        let beside = || places(&[&good]).into_iter().flatten().collect();
        let register = |dirs: &[&Dir], named: &str| {
            Registry::register_first(places(dirs), beside, None, name(named).as_ref())
        };
        let unmade = Dir(good.0.join("a/b"));
        let (web, _listener) = register(&[&unmade, &long, &closed, &good], "web").unwrap();
        assert_eq!(web.directory().parent(), Some(good.0.as_path()));
        assert_eq!(fs::read_dir(&long.0).unwrap().count(), 1, "only its own lock");
        // Who has the name is told, not evaded; of places that do not serve, the first.
        assert!(matches!(register(&[&long, &good], "web"), Err(RegistryError::NameTaken { .. })));
        assert!(matches!(register(&[&long, &closed], "db"), Err(RegistryError::LongPath(_))));
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_told_and_leaves_nothing() {
        let dir = Dir(std::env::temp_dir().join("x".repeat(120)));
        let registry = dir.registry();
        assert!(matches!(registry.register(None), Err(RegistryError::LongPath(_))));
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
    }

    #[test]
    fn a_machine_is_meant_by_name_identifier_or_its_beginning() {
        let found = |id: &str, named: Option<&str>| Found {
            id: id.parse().unwrap(),
            name: named.map(|n| n.parse().unwrap()),
            pid: 1,
            started: 0,
            dir: PathBuf::new(),
        };
        let list =
            vec![found("ab000001", None), found("ab000002", Some("ab")), found("cd000003", Some("web"))];
        for (wanted, id) in
            [("ab", "ab000002"), ("ab000001", "ab000001"), ("c", "cd000003"), ("web", "cd000003")]
        {
            assert_eq!(Found::pick(list.clone(), wanted).unwrap().id.as_str(), id, "{wanted}");
        }
        assert!(matches!(Found::pick(list.clone(), "ab0"), Err(RegistryError::Ambiguous(_, 2))));
        let twice = [list.clone(), vec![found("ef000004", Some("web"))]].concat();
        assert!(matches!(Found::pick(twice, "web"), Err(RegistryError::SameName(_, 2))));
        for unknown in ["", "x", "we", "cd0000031"] {
            assert!(
                matches!(Found::pick(list.clone(), unknown), Err(RegistryError::Unknown(_))),
                "{unknown}"
            );
        }
    }
}
