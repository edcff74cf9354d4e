//! Making, removing and changing names and attributes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use crate::abi::{In, Out, Request, set};
use crate::nodes::{open_node, proc_path, stat};
use crate::server::{Done, Server, put_attributes_with_time};

/// Permission bits, with those that change identity.
const MODES: u32 = 0o7777;

fn mode(raw: u32) -> Mode {
    Mode::from_raw_mode(raw & MODES)
}

/// What SETATTR asks for.
struct Attributes {
    valid: u32,
    handle: u64,
    size: u64,
    times: [(u64, u32); 2],
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Attributes {
    fn read(input: &mut In<'_>) -> Result<Self, Errno> {
        let (valid, _padding) = (input.u32()?, input.u32()?);
        let (handle, size, _lock_owner) = (input.u64()?, input.u64()?, input.u64()?);
        let (atime, mtime, _ctime) = (input.u64()?, input.u64()?, input.u64()?);
        let (atime_ns, mtime_ns, _ctime_ns) = (input.u32()?, input.u32()?, input.u32()?);
        let (mode, _unused, uid, gid) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        let times = [(atime, atime_ns), (mtime, mtime_ns)];
        Ok(Attributes { valid, handle, size, times, mode, uid, gid })
    }

    fn has(&self, bits: u32) -> bool {
        self.valid & bits != 0
    }

    fn time(&self, index: usize, set: u32, now: u32) -> Timespec {
        let (seconds, nanos) = self.times[index];
        let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        if self.has(now) {
            special(UTIME_NOW)
        } else if self.has(set) {
            Timespec { tv_sec: seconds as i64, tv_nsec: nanos.into() }
        } else {
            special(UTIME_OMIT)
        }
    }
}

impl Server {
    pub(crate) fn set_attributes(&mut self, node: u64, input: &mut In<'_>, out: &mut Out) -> Done {
        let a = Attributes::read(input)?;
        let kind = self.nodes.kind(node)?;
        let path = proc_path(self.nodes.get(node)?);
        if a.has(set::UID | set::GID) {
            let about = stat(self.nodes.get(node)?)?;
            let uid = a.has(set::UID).then_some(a.uid).filter(|u| *u != about.st_uid);
            let gid = a.has(set::GID).then_some(a.gid).filter(|g| *g != about.st_gid);
            // Setting what it is asks for no privilege.
            if uid.is_some() || gid.is_some() {
                own(self.nodes.get(node)?, uid, gid)?;
            }
        }
        // After the owner, whose change takes bits away.
        if a.has(set::MODE) {
            rustix::fs::chmodat(CWD, &path, mode(a.mode), AtFlags::empty())?;
        }
        if a.has(set::SIZE) {
            if kind != FileType::RegularFile {
                return Err(Errno::INVAL);
            }
            if i64::try_from(a.size).is_err() {
                return Err(Errno::FBIG);
            }
            match a.has(set::FH) {
                true => rustix::fs::ftruncate(self.handles.file(a.handle)?, a.size)?,
                false => rustix::fs::ftruncate(self.reopen(node, OFlags::WRONLY)?, a.size)?,
            }
        }
        if a.has(set::ATIME | set::MTIME | set::ATIME_NOW | set::MTIME_NOW) {
            let times = Timestamps {
                last_access: a.time(0, set::ATIME, set::ATIME_NOW),
                last_modification: a.time(1, set::MTIME, set::MTIME_NOW),
            };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
        }
        let about = stat(self.nodes.get(node)?)?;
        put_attributes_with_time(out, &about);
        Ok(())
    }

    /// Give what has just been made to whom the guest says, with exactly this mode:
    /// the process's own file mode mask is not the guest's.
    fn furnish(&self, fd: BorrowedFd<'_>, header: &Request, wanted: Option<u32>) -> Done {
        if self.privileged {
            let about = stat(fd)?;
            // A folder with the set-group-ID bit passes its group on, as do some file systems.
            let folder = stat(self.nodes.get(header.node)?)?;
            let inherits =
                folder.st_mode & 0o2000 != 0 || about.st_gid != rustix::process::getegid().as_raw();
            own(fd, Some(header.uid), (!inherits).then_some(header.gid))?;
        }
        match wanted {
            Some(wanted) => {
                let inherited = stat(fd)?.st_mode & 0o2000;
                rustix::fs::chmodat(CWD, proc_path(fd), mode(wanted | inherited), AtFlags::empty())
            }
            None => Ok(()),
        }
    }

    /// As [`Server::furnish`], by name; what cannot be furnished is removed again.
    fn finish(&mut self, header: &Request, name: &[u8], wanted: Option<u32>, out: &mut Out) -> Done {
        let folder = self.nodes.get(header.node)?;
        let fd = open_node(folder, name)?;
        if let Err(e) = self.furnish(fd.as_fd(), header, wanted) {
            let is_folder =
                stat(fd.as_fd()).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
            let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            let _ = rustix::fs::unlinkat(folder, name, flags);
            return Err(e);
        }
        self.tell(header.node, name, out)
    }

    pub(crate) fn make_folder(&mut self, header: &Request, input: &mut In<'_>, out: &mut Out) -> Done {
        let (wanted, _umask, name) = (input.u32()?, input.u32()?, input.name()?);
        rustix::fs::mkdirat(self.nodes.get(header.node)?, name, Mode::RWXU)?;
        self.finish(header, name, Some(wanted), out)
    }

    pub(crate) fn make_node(&mut self, header: &Request, input: &mut In<'_>, out: &mut Out) -> Done {
        let (wanted, _rdev, _umask, _padding) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        let name = input.name()?;
        let kind = match FileType::from_raw_mode(wanted) {
            kind @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => kind,
            // A device of the host behind a name the guest chose.
            _ => return Err(Errno::PERM),
        };
        rustix::fs::mknodat(self.nodes.get(header.node)?, name, kind, Mode::RUSR | Mode::WUSR, 0)?;
        self.finish(header, name, Some(wanted), out)
    }

    pub(crate) fn make_link(&mut self, header: &Request, input: &mut In<'_>, out: &mut Out) -> Done {
        let (name, target) = (input.name()?, input.text()?);
        rustix::fs::symlinkat(target, self.nodes.get(header.node)?, name)?;
        self.finish(header, name, None, out)
    }

    pub(crate) fn hard_link(&mut self, folder: u64, input: &mut In<'_>, out: &mut Out) -> Done {
        let (old, name) = (input.u64()?, input.name()?);
        self.nodes.hold(old);
        let path = proc_path(self.nodes.get(old)?);
        rustix::fs::linkat(CWD, path, self.nodes.get(folder)?, name, AtFlags::SYMLINK_FOLLOW)?;
        self.tell(folder, name, out)
    }

    pub(crate) fn create(&mut self, header: &Request, input: &mut In<'_>, out: &mut Out) -> Done {
        let (flags, wanted, _umask, _open_flags) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        let name = input.name()?;
        let flags = OFlags::from_bits_retain(flags);
        let kept = flags & (OFlags::ACCMODE | OFlags::TRUNC | OFlags::EXCL);
        let own = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let folder = self.nodes.get(header.node)?;
        // Exclusive first: whether it was made here decides whose it is.
        let private = Mode::RUSR | Mode::WUSR;
        let made = rustix::fs::openat(folder, name, kept | own | OFlags::EXCL, private);
        let (fd, is_new) = match made {
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => (None, false),
            other => (Some(other?), true),
        };
        if let Some(fd) = fd.as_ref().filter(|_| is_new)
            && let Err(e) = self.furnish(fd.as_fd(), header, Some(wanted))
        {
            let _ = rustix::fs::unlinkat(folder, name, AtFlags::empty());
            return Err(e);
        }
        let start = out.0.len();
        self.tell(header.node, name, out)?;
        let node = u64::from_ne_bytes(out.0[start..start + 8].try_into().map_err(|_| Errno::IO)?);
        let opened = match fd {
            Some(fd) => self.handles.insert(fd, false),
            // It was there: as it is opened by its node, its kind has been looked at.
            None => match self.nodes.kind(node)? {
                FileType::RegularFile => {
                    let fd = self.reopen(node, kept & !OFlags::EXCL);
                    fd.and_then(|fd| self.handles.insert(fd, false))
                }
                FileType::Directory => Err(Errno::ISDIR),
                _ => Err(Errno::ACCESS),
            },
        };
        match opened {
            Ok(handle) => {
                out.u64(handle).u32(0).u32(0);
                Ok(())
            }
            Err(e) => {
                // The guest is not told of the node.
                self.nodes.forget(node, 1);
                Err(e)
            }
        }
    }

    pub(crate) fn remove(&mut self, folder: u64, name: &[u8], is_folder: bool) -> Done {
        let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        self.nodes.pin(folder, name);
        rustix::fs::unlinkat(self.nodes.get(folder)?, name, flags)
    }

    pub(crate) fn rename(&mut self, from: u64, has_flags: bool, input: &mut In<'_>) -> Done {
        let to = input.u64()?;
        let flags = if has_flags {
            let flags = input.u32()?;
            let _padding = input.u32()?;
            // Not WHITEOUT, which makes a device node.
            let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
            RenameFlags::from_bits(flags).filter(|f| known.contains(*f)).ok_or(Errno::INVAL)?
        } else {
            RenameFlags::empty()
        };
        let (old, new) = (input.name()?, input.name()?);
        self.nodes.pin(from, old);
        self.nodes.pin(to, new);
        rustix::fs::renameat_with(self.nodes.get(from)?, old, self.nodes.get(to)?, new, flags)?;
        self.nodes.moved(to, new);
        if flags.contains(RenameFlags::EXCHANGE) {
            self.nodes.moved(from, old);
        }
        Ok(())
    }

    pub(crate) fn set_attribute(&mut self, node: u64, input: &mut In<'_>) -> Done {
        let (size, flags) = (input.u32()? as usize, input.u32()?);
        let (name, value) = (attribute_name(input)?, input.bytes(size)?);
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::setxattr(proc_path(self.nodes.get(node)?), name, value, flags)
    }

    pub(crate) fn remove_attribute(&mut self, node: u64, input: &mut In<'_>) -> Done {
        let name = attribute_name(input)?;
        rustix::fs::removexattr(proc_path(self.nodes.get(node)?), name)
    }
}

/// The name of an attribute that the guest may change: its users' own. Others give
/// files capabilities and labels on the host.
fn attribute_name<'a>(input: &mut In<'a>) -> Result<&'a [u8], Errno> {
    match input.text()? {
        name if name.starts_with(b"user.") => Ok(name),
        _ => Err(Errno::OPNOTSUPP),
    }
}

fn own(fd: BorrowedFd<'_>, uid: Option<u32>, gid: Option<u32>) -> Done {
    // -1 stands for no change and is nobody's number.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(Errno::INVAL);
    }
    rustix::fs::chownat(fd, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
}
