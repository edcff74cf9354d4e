//! Nodes that the guest knows, and files it has open.
//!
//! A node is a descriptor that stands for an inode without opening it (O_PATH), so
//! it stays the same whatever is renamed meanwhile. It is found by single names
//! below other nodes, so no path is ever resolved.
//!
//! A guest keeps every file in mind that it has seen, a process has fewer
//! descriptors: those of files not used for longest are let go. Such a file is found
//! again by the name it had last, if that is still the same inode; one that is about
//! to lose a name is held from then on. Folders are never let go.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::abi::ROOT;

/// Open files and folders at once.
pub(crate) const MAX_HANDLES: usize = 1 << 16;
/// Descriptors left for the rest of the process.
const RESERVE: usize = 256;
/// Nodes at once, whatever the limit on descriptors.
const MAX_NODES: usize = 1 << 20;
/// Descriptors that one request may take beyond the limit, until the next lets others go.
const SLACK: usize = 64;

/// An inode of the host.
#[derive(Debug)]
struct Node {
    /// `None`: let go.
    fd: Option<OwnedFd>,
    kind: FileType,
    key: (u64, u64),
    /// How often the guest was told of it and has not forgotten it.
    lookups: u64,
    /// Where it was seen last: a folder's node, and a name in it.
    place: (u64, Box<[u8]>),
    /// It may have lost that name.
    pinned: bool,
    /// When it was used last, in requests.
    used: u64,
}

impl Node {
    fn may_go(&self) -> bool {
        self.fd.is_some() && !self.pinned && self.kind != FileType::Directory
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_inode: HashMap<(u64, u64), u64>,
    next: u64,
    /// Descriptors at once, and how many there are.
    most: usize,
    held: usize,
    /// Requests so far.
    now: u64,
    /// Until then none are let go: there were hardly any that may go.
    quiet_until: u64,
}

/// Descriptors the process may have.
fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|l| usize::try_from(l).ok()).unwrap_or(usize::MAX)
}

fn most_held() -> usize {
    (descriptor_limit() / 2).saturating_sub(RESERVE).clamp(RESERVE, MAX_NODES)
}

/// Whether the rest of the process, other shares included, has descriptors left:
/// each new one is the lowest that is free, so its number tells.
fn leaves_reserve(fd: &OwnedFd, limit: usize) -> Result<(), Errno> {
    let number = usize::try_from(fd.as_raw_fd()).unwrap_or(usize::MAX);
    if number < limit.saturating_sub(RESERVE) { Ok(()) } else { Err(Errno::NFILE) }
}

/// Open what a name stands for in a folder, without following or opening it.
pub(crate) fn open_node(folder: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve) {
        // One name that is neither "." nor "..": openat does the same.
        Err(Errno::NOSYS) => rustix::fs::openat(folder, name, flags, Mode::empty()),
        other => other,
    }
}

/// Attributes of a node's inode.
pub(crate) fn stat(fd: BorrowedFd<'_>) -> Result<Stat, Errno> {
    rustix::fs::statat(fd, c"", rustix::fs::AtFlags::EMPTY_PATH)
}

/// The path by which an inode that is held can be opened or changed.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

impl Nodes {
    pub fn new(root: OwnedFd) -> Result<Self, Errno> {
        let (nodes, by_inode) = (HashMap::new(), HashMap::new());
        let mut nodes =
            Nodes { nodes, by_inode, next: ROOT, most: most_held(), held: 0, now: 0, quiet_until: 0 };
        nodes.reset(root)?;
        Ok(nodes)
    }

    /// Forget all but the shared folder.
    pub fn reset(&mut self, root: OwnedFd) -> Result<(), Errno> {
        let about = stat(root.as_fd())?;
        self.nodes.clear();
        self.by_inode.clear();
        let key = (about.st_dev, about.st_ino);
        self.by_inode.insert(key, ROOT);
        let place = (ROOT, Box::default());
        let (kind, used) = (FileType::Directory, self.now);
        let root = Node { fd: Some(root), kind, key, lookups: 1, place, pinned: true, used };
        self.nodes.insert(ROOT, root);
        self.held = 1;
        // Numbers are never used twice: one that is left over finds nothing.
        self.next = self.next.max(ROOT) + 1;
        Ok(())
    }

    /// The shared folder once more, for a reset.
    pub fn root(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(self.get(ROOT)?, 0)
    }

    /// A node that is held: the one a request is about is ([`Nodes::hold`]), as are folders.
    pub fn get(&self, node: u64) -> Result<BorrowedFd<'_>, Errno> {
        self.nodes.get(&node).and_then(|n| n.fd.as_ref()).map(AsFd::as_fd).ok_or(Errno::STALE)
    }

    /// A request begins: let some go if too many are held.
    pub fn begin(&mut self) {
        self.now += 1;
        if self.held <= self.most || self.now < self.quiet_until {
            return;
        }
        let mut oldest: Vec<(u64, u64)> =
            self.nodes.iter().filter(|(_, n)| n.may_go()).map(|(number, n)| (n.used, *number)).collect();
        // Half of them at once, so that this is seldom.
        let middle = oldest.len() / 2;
        if middle < SLACK {
            // Folders and names that are gone fill the limit: looking again at once is idle.
            self.quiet_until = self.now + 4 * SLACK as u64;
        }
        if oldest.is_empty() {
            return;
        }
        oldest.select_nth_unstable(middle);
        for (_, number) in oldest.drain(..=middle) {
            if let Some(node) = self.nodes.get_mut(&number) {
                node.fd = None;
                self.held -= 1;
            }
        }
    }

    /// Whether there is no room for this descriptor.
    fn is_full(&mut self, fd: &OwnedFd) -> bool {
        if leaves_reserve(fd, descriptor_limit()).is_err() {
            // Others have more than their half: so many are let go that they have room.
            self.most = self.most.min(self.held - self.held / 4);
            return true;
        }
        self.held >= self.most + SLACK
    }

    /// Hold a node for the rest of the request, if it can be found.
    pub fn hold(&mut self, number: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.used = self.now;
        if node.fd.is_some() {
            return;
        }
        let (folder, name) = node.place.clone();
        let Ok(fd) = self.get(folder).and_then(|folder| open_node(folder, &name)) else { return };
        let Ok(about) = stat(fd.as_fd()) else { return };
        if self.is_full(&fd) {
            return;
        }
        let (key, kind) = ((about.st_dev, about.st_ino), FileType::from_raw_mode(about.st_mode));
        if let Some(node) = self.nodes.get_mut(&number).filter(|n| n.key == key && n.kind == kind) {
            node.fd = Some(fd);
            self.held += 1;
        }
    }

    /// Hold what a name stands for until the guest forgets it: the name is about to go.
    pub fn pin(&mut self, folder: u64, name: &[u8]) {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let about = self.get(folder).and_then(|folder| rustix::fs::statat(folder, name, flags));
        let number = about.ok().and_then(|a| self.by_inode.get(&(a.st_dev, a.st_ino)).copied());
        let Some(number) = number else { return };
        self.hold(number);
        if let Some(node) = self.nodes.get_mut(&number) {
            node.pinned = true;
        }
    }

    /// Note where a node is that has just been given this name.
    pub fn moved(&mut self, folder: u64, name: &[u8]) {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let about = self.get(folder).and_then(|folder| rustix::fs::statat(folder, name, flags));
        let number = about.ok().and_then(|a| self.by_inode.get(&(a.st_dev, a.st_ino)).copied());
        if let Some(node) = number.and_then(|n| self.nodes.get_mut(&n)) {
            node.place = (folder, name.into());
            node.pinned = false;
        }
    }

    pub fn kind(&self, node: u64) -> Result<FileType, Errno> {
        self.nodes.get(&node).map(|n| n.kind).ok_or(Errno::STALE)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Look a name up; the guest knows the node once more.
    pub fn look_up(&mut self, folder: u64, name: &[u8]) -> Result<(u64, Stat), Errno> {
        let fd = open_node(self.get(folder)?, name)?;
        let about = stat(fd.as_fd())?;
        let key = (about.st_dev, about.st_ino);
        let kind = FileType::from_raw_mode(about.st_mode);
        let full = self.is_full(&fd);
        // The number of an inode that was let go may be another's by now.
        if let Some(number) = self.by_inode.get(&key).copied()
            && let Some(node) = self.nodes.get_mut(&number).filter(|n| n.kind == kind)
        {
            node.lookups = node.lookups.saturating_add(1);
            node.place = (folder, name.into());
            (node.pinned, node.used) = (false, self.now);
            if node.fd.is_none() && !full {
                node.fd = Some(fd);
                self.held += 1;
            }
            return Ok((number, about));
        }
        if self.nodes.len() >= MAX_NODES || (full && kind == FileType::Directory) {
            return Err(Errno::NFILE);
        }
        let fd = Some(fd).filter(|_| !full);
        self.held += usize::from(fd.is_some());
        let number = self.next;
        self.next += 1;
        let place = (folder, name.into());
        self.by_inode.insert(key, number);
        self.nodes.insert(number, Node { fd, kind, key, lookups: 1, place, pinned: false, used: self.now });
        Ok((number, about))
    }

    /// The guest forgets a node so many times.
    pub fn forget(&mut self, number: u64, times: u64) {
        let Some(node) = self.nodes.get_mut(&number).filter(|_| number != ROOT) else { return };
        node.lookups = node.lookups.saturating_sub(times);
        if node.lookups == 0 {
            let key = node.key;
            self.held -= usize::from(node.fd.is_some());
            self.nodes.remove(&number);
            if self.by_inode.get(&key) == Some(&number) {
                self.by_inode.remove(&key);
            }
        }
    }
}

/// Open files and folders.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    open: BTreeMap<u64, (OwnedFd, bool)>,
    next: u64,
}

impl Handles {
    /// Keep an open file, or a folder.
    pub fn insert(&mut self, fd: OwnedFd, folder: bool) -> Result<u64, Errno> {
        if self.open.len() >= MAX_HANDLES {
            return Err(Errno::NFILE);
        }
        leaves_reserve(&fd, descriptor_limit())?;
        self.next += 1;
        self.open.insert(self.next, (fd, folder));
        Ok(self.next)
    }

    fn get(&self, handle: u64, folder: bool) -> Result<BorrowedFd<'_>, Errno> {
        let (fd, is_folder) = self.open.get(&handle).ok_or(Errno::BADF)?;
        if *is_folder == folder { Ok(fd.as_fd()) } else { Err(Errno::BADF) }
    }

    pub fn file(&self, handle: u64) -> Result<BorrowedFd<'_>, Errno> {
        self.get(handle, false)
    }

    pub fn folder(&self, handle: u64) -> Result<BorrowedFd<'_>, Errno> {
        self.get(handle, true)
    }

    pub fn close(&mut self, handle: u64) {
        self.open.remove(&handle);
    }

    pub fn clear(&mut self) {
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_for_others() {
        let fd = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let number = fd.as_raw_fd() as usize;
        assert_eq!(leaves_reserve(&fd, number + RESERVE + 1), Ok(()));
        for limit in [number + RESERVE, number + 1, 0] {
            assert_eq!(leaves_reserve(&fd, limit), Err(Errno::NFILE), "{limit}");
        }
    }
}
