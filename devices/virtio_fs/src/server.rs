//! A request's way to its answer.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::abi::{
    INIT_FLAGS, In, MAJOR, MAX_PAGES, MAX_TRANSFER, MIN_MINOR, MINOR, OUT_HEADER, Opcode, Out, Request,
};
use crate::nodes::{Handles, Nodes, stat};

/// How long the guest may keep names and attributes, in seconds: what the host
/// changes is seen that much later.
const VALID: u64 = 1;

/// Serves one folder. Requests and answers are bytes, so that tests and fuzzing
/// need no guest.
#[derive(Debug)]
pub struct Server {
    // Static configuration.
    pub(crate) read_only: bool,
    /// Whether owners can be changed.
    pub(crate) privileged: bool,
    // Volatile state.
    pub(crate) nodes: Nodes,
    pub(crate) handles: Handles,
    ready: bool,
}

/// A result without content.
pub(crate) type Done = Result<(), Errno>;

impl Server {
    /// Serve `folder`.
    ///
    /// # Errors
    /// When it cannot be opened or is no folder.
    pub fn new(folder: &Path, read_only: bool) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty())?;
        Ok(Server {
            read_only,
            privileged: rustix::process::geteuid().is_root(),
            nodes: Nodes::new(root)?,
            handles: Handles::default(),
            ready: false,
        })
    }

    /// Forget what the guest knew.
    pub fn reset(&mut self) {
        self.handles.clear();
        self.ready = false;
        // A descriptor can be had: all others have just been closed.
        if let Ok(root) = self.nodes.root() {
            let _ = self.nodes.reset(root);
        }
    }

    /// Whether the guest has inodes or files that another server would not know.
    pub fn is_in_use(&self) -> bool {
        self.ready
    }

    /// Nodes that the guest knows.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Serve a request. `room` is how long the answer may be. `None`: there is none.
    pub fn serve(&mut self, request: &[u8], room: usize) -> Option<Vec<u8>> {
        let mut input = In(request);
        let header = input.header().ok()?;
        match header.opcode {
            Opcode::FORGET => {
                if let Ok(times) = input.u64() {
                    self.nodes.forget(header.node, times);
                }
                return None;
            }
            Opcode::BATCH_FORGET => {
                // What is cut short has been forgotten up to there.
                let _ = self.forget_many(input);
                return None;
            }
            _ => {}
        }
        let mut out = Out::default();
        out.zeros(OUT_HEADER);
        let room = room.checked_sub(OUT_HEADER)?;
        let result = self.answer(&header, input, room, &mut out);
        let result = result.and(if out.0.len() - OUT_HEADER > room { Err(Errno::INVAL) } else { Ok(()) });
        let error = match result {
            Ok(()) => 0,
            Err(e) => {
                out.0.truncate(OUT_HEADER);
                -e.raw_os_error()
            }
        };
        let len = out.0.len() as u32;
        out.0[0..4].copy_from_slice(&len.to_ne_bytes());
        out.0[4..8].copy_from_slice(&error.to_ne_bytes());
        out.0[8..16].copy_from_slice(&header.unique.to_ne_bytes());
        Some(out.0)
    }

    fn forget_many(&mut self, mut input: In<'_>) -> Done {
        let (count, _) = (input.u32()?, input.u32()?);
        for _ in 0..count {
            let (node, times) = (input.u64()?, input.u64()?);
            self.nodes.forget(node, times);
        }
        Ok(())
    }

    fn answer(&mut self, header: &Request, mut input: In<'_>, room: usize, out: &mut Out) -> Done {
        let node = header.node;
        if header.opcode == Opcode::INIT {
            return self.init(&mut input, out);
        }
        if !self.ready {
            return Err(Errno::IO);
        }
        self.nodes.begin();
        self.nodes.hold(node);
        match header.opcode {
            Opcode::LOOKUP => self.look_up(node, input.name()?, out),
            Opcode::GETATTR => self.get_attributes(node, out),
            Opcode::READLINK => self.read_link(node, out),
            Opcode::OPEN => self.open(node, &mut input, out),
            Opcode::READ => self.read(&mut input, room, out),
            Opcode::OPENDIR => self.open_folder(node, out),
            Opcode::READDIR => self.read_folder(node, false, &mut input, room, out),
            Opcode::READDIRPLUS => self.read_folder(node, true, &mut input, room, out),
            Opcode::RELEASE | Opcode::RELEASEDIR => {
                self.handles.close(input.u64()?);
                Ok(())
            }
            // Closing: what the host would say then it says at each write.
            Opcode::FLUSH => Ok(()),
            // Linux forgets nothing by itself when it unmounts: this says it all.
            Opcode::DESTROY => {
                self.reset();
                Ok(())
            }
            Opcode::FSYNC => self.sync_file(&mut input),
            Opcode::FSYNCDIR => self.sync_folder(&mut input),
            Opcode::SYNCFS => self.sync_all(node),
            Opcode::STATFS => self.statistics(node, out),
            Opcode::LSEEK => self.seek(&mut input, out),
            Opcode::GETXATTR => self.get_attribute(node, &mut input, room, out),
            Opcode::LISTXATTR => self.list_attributes(node, &mut input, room, out),
            _ => self.change(header, input, out),
        }
    }

    /// What changes something.
    fn change(&mut self, header: &Request, mut input: In<'_>, out: &mut Out) -> Done {
        if !header.opcode.changes() {
            return Err(Errno::NOSYS);
        }
        if self.read_only {
            return Err(Errno::ROFS);
        }
        let node = header.node;
        match header.opcode {
            Opcode::SETATTR => self.set_attributes(node, &mut input, out),
            Opcode::SYMLINK => self.make_link(header, &mut input, out),
            Opcode::MKNOD => self.make_node(header, &mut input, out),
            Opcode::MKDIR => self.make_folder(header, &mut input, out),
            Opcode::UNLINK => self.remove(node, input.name()?, false),
            Opcode::RMDIR => self.remove(node, input.name()?, true),
            Opcode::RENAME => self.rename(node, false, &mut input),
            Opcode::RENAME2 => self.rename(node, true, &mut input),
            Opcode::LINK => self.hard_link(node, &mut input, out),
            Opcode::WRITE => self.write(&mut input, out),
            Opcode::CREATE => self.create(header, &mut input, out),
            Opcode::SETXATTR => self.set_attribute(node, &mut input),
            Opcode::REMOVEXATTR => self.remove_attribute(node, &mut input),
            Opcode::FALLOCATE => self.allocate(&mut input),
            _ => self.copy_range(&mut input, out),
        }
    }

    fn init(&mut self, input: &mut In<'_>, out: &mut Out) -> Done {
        let (major, minor, readahead, flags) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        if major < MAJOR || (major == MAJOR && minor < MIN_MINOR) {
            return Err(Errno::PROTO);
        }
        // A guest that has been started again without a reset of the device.
        self.reset();
        self.ready = true;
        out.u32(MAJOR).u32(MINOR).u32(readahead).u32(flags & INIT_FLAGS);
        // Requests in flight: the kernel's own defaults.
        out.u16(0).u16(0);
        out.u32(MAX_TRANSFER as u32).u32(1).u16(MAX_PAGES).u16(0).zeros(32);
        Ok(())
    }

    fn look_up(&mut self, folder: u64, name: &[u8], out: &mut Out) -> Done {
        let (node, about) = self.nodes.look_up(folder, name)?;
        put_entry(out, node, &about);
        Ok(())
    }

    /// Tell of a name that has just been made.
    pub(crate) fn tell(&mut self, folder: u64, name: &[u8], out: &mut Out) -> Done {
        self.look_up(folder, name, out)
    }

    fn get_attributes(&mut self, node: u64, out: &mut Out) -> Done {
        let about = stat(self.nodes.get(node)?)?;
        put_attributes_with_time(out, &about);
        Ok(())
    }

    fn read_link(&mut self, node: u64, out: &mut Out) -> Done {
        let target = rustix::fs::readlinkat(self.nodes.get(node)?, c"", Vec::new())?;
        out.0.extend_from_slice(target.as_bytes());
        Ok(())
    }

    fn statistics(&mut self, node: u64, out: &mut Out) -> Done {
        let s = rustix::fs::fstatvfs(self.nodes.get(node)?)?;
        for value in [s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree] {
            out.u64(value);
        }
        out.u32(s.f_bsize as u32).u32(s.f_namemax as u32).u32(s.f_frsize as u32).zeros(28);
        Ok(())
    }

    /// Open the inode of a node, for what a path descriptor cannot do.
    pub(crate) fn reopen(&self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = crate::nodes::proc_path(self.nodes.get(node)?);
        // Not blocking: only regular files and folders come here, and theirs does not.
        rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())
    }
}

fn put_attributes(out: &mut Out, s: &Stat) {
    for value in [s.st_ino, s.st_size as u64, s.st_blocks as u64] {
        out.u64(value);
    }
    for value in [s.st_atime, s.st_mtime, s.st_ctime] {
        out.u64(value as u64);
    }
    for value in [s.st_atime_nsec, s.st_mtime_nsec, s.st_ctime_nsec] {
        out.u32(value as u32);
    }
    // The device number of a device file has 32 bits here.
    out.u32(s.st_mode).u32(s.st_nlink as u32).u32(s.st_uid).u32(s.st_gid);
    out.u32(s.st_rdev as u32).u32(s.st_blksize as u32).u32(0);
}

/// `struct fuse_attr_out`.
pub(crate) fn put_attributes_with_time(out: &mut Out, about: &Stat) {
    out.u64(VALID).u32(0).u32(0);
    put_attributes(out, about);
}

/// `struct fuse_entry_out`.
pub(crate) fn put_entry(out: &mut Out, node: u64, about: &Stat) {
    // Node numbers are never used twice: one generation.
    out.u64(node).u64(0).u64(VALID).u64(VALID).u32(0).u32(0);
    put_attributes(out, about);
}
