//! Nodes that the guest knows, and files it has open.
//!
//! A node is a descriptor that stands for an inode without opening it (O_PATH), so
//! it stays the same whatever is renamed meanwhile. It is found by single names
//! below other nodes, so no path is ever resolved.

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

/// An inode of the host.
#[derive(Debug)]
struct Node {
    fd: OwnedFd,
    kind: FileType,
    key: (u64, u64),
    /// How often the guest was told of it and has not forgotten it.
    lookups: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    by_inode: HashMap<(u64, u64), u64>,
    next: u64,
    most: usize,
}

/// Descriptors the process may have.
fn descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|l| usize::try_from(l).ok()).unwrap_or(usize::MAX)
}

fn most_nodes() -> usize {
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
        let mut nodes =
            Nodes { nodes: HashMap::new(), by_inode: HashMap::new(), next: ROOT, most: most_nodes() };
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
        self.nodes.insert(ROOT, Node { fd: root, kind: FileType::Directory, key, lookups: 1 });
        // Numbers are never used twice: one that is left over finds nothing.
        self.next = self.next.max(ROOT) + 1;
        Ok(())
    }

    /// The shared folder once more, for a reset.
    pub fn root(&self) -> Result<OwnedFd, Errno> {
        rustix::io::fcntl_dupfd_cloexec(self.get(ROOT)?, 0)
    }

    pub fn get(&self, node: u64) -> Result<BorrowedFd<'_>, Errno> {
        self.nodes.get(&node).map(|n| n.fd.as_fd()).ok_or(Errno::STALE)
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
        if let Some(number) = self.by_inode.get(&key).copied()
            && let Some(node) = self.nodes.get_mut(&number)
        {
            node.lookups = node.lookups.saturating_add(1);
            return Ok((number, about));
        }
        if self.nodes.len() >= self.most {
            return Err(Errno::NFILE);
        }
        leaves_reserve(&fd, descriptor_limit())?;
        let number = self.next;
        self.next += 1;
        let kind = FileType::from_raw_mode(about.st_mode);
        self.by_inode.insert(key, number);
        self.nodes.insert(number, Node { fd, kind, key, lookups: 1 });
        Ok((number, about))
    }

    /// The guest forgets a node so many times.
    pub fn forget(&mut self, number: u64, times: u64) {
        let Some(node) = self.nodes.get_mut(&number).filter(|_| number != ROOT) else { return };
        node.lookups = node.lookups.saturating_sub(times);
        if node.lookups == 0 {
            let key = node.key;
            self.nodes.remove(&number);
            self.by_inode.remove(&key);
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
