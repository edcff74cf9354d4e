//! Reading and writing files and folders.

use std::io::IoSlice;
use std::mem::MaybeUninit;

use rustix::fs::{FallocateFlags, FileType, OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use crate::abi::{In, MAX_ARGUMENTS, MAX_TRANSFER, Out};
use crate::nodes::stat;
use crate::server::{Done, Server, put_entry};

/// Bytes of `struct fuse_dirent` before the name, and of `struct fuse_entry_out`.
const DIRENT: usize = 24;
const ENTRY: usize = 128;
/// How much of a folder is asked of the host at once.
const FOLDER_BUFFER: usize = 32 << 10;

/// In a write: it is the guest's page cache's, not a program's at its own offset.
const WRITE_CACHE: u32 = 1;

/// Flags of an open that the host is told too. Whether a write appends, each write says: a
/// program may change its mind, and the guest's page cache never appends.
fn open_flags(raw: u32) -> OFlags {
    let taken = OFlags::ACCMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC;
    OFlags::from_bits_retain(raw) & taken
}

fn writes(flags: OFlags) -> bool {
    flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC)
}

/// The type of a name in a folder, as the guest is told (readdir(3)).
fn dirent_type(kind: FileType) -> u32 {
    match kind {
        FileType::Fifo => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::RegularFile => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
        FileType::Unknown => 0,
    }
}

impl Server {
    pub(crate) fn open(&mut self, node: u64, input: &mut In<'_>, out: &mut Out) -> Done {
        let flags = open_flags(input.u32()?);
        match self.nodes.kind(node)? {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            // Pipes and devices are the guest's own; a link would be followed.
            _ => return Err(Errno::ACCESS),
        }
        if self.read_only && writes(flags) {
            return Err(Errno::ROFS);
        }
        let handle = self.handles.insert(self.reopen(node, flags)?, false)?;
        out.u64(handle).u32(0).u32(0);
        Ok(())
    }

    pub(crate) fn open_folder(&mut self, node: u64, out: &mut Out) -> Done {
        if self.nodes.kind(node)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let fd = self.reopen(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = self.handles.insert(fd, true)?;
        out.u64(handle).u32(0).u32(0);
        Ok(())
    }

    pub(crate) fn read(&mut self, input: &mut In<'_>, room: usize, out: &mut Out) -> Done {
        let (handle, offset, size) = (input.u64()?, input.u64()?, input.u32()? as usize);
        let file = self.handles.file(handle)?;
        let start = out.0.len();
        let size = size.min(room).min(MAX_TRANSFER);
        out.zeros(size);
        let mut done = 0;
        while done < size {
            let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            match rustix::io::pread(file, &mut out.0[start + done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        out.0.truncate(start + done);
        Ok(())
    }

    pub(crate) fn write(&mut self, input: &mut In<'_>, out: &mut Out) -> Done {
        let (handle, offset, size) = (input.u64()?, input.u64()?, input.u32()? as usize);
        let (write_flags, _lock_owner, flags, _padding) =
            (input.u32()?, input.u64()?, input.u32()?, input.u32()?);
        let bytes = input.bytes(size)?;
        let file = self.handles.file(handle)?;
        let appends =
            write_flags & WRITE_CACHE == 0 && OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        let mut done = 0;
        while done < bytes.len() {
            let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            let written = if appends {
                rustix::io::pwritev2(file, &[IoSlice::new(&bytes[done..])], at, ReadWriteFlags::APPEND)
            } else {
                rustix::io::pwrite(file, &bytes[done..], at)
            };
            match written {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                // What is written is written; the next write tells.
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            }
        }
        out.u32(done as u32).u32(0);
        Ok(())
    }

    pub(crate) fn read_folder(
        &mut self,
        node: u64,
        plus: bool,
        input: &mut In<'_>,
        room: usize,
        out: &mut Out,
    ) -> Done {
        let (handle, offset, size) = (input.u64()?, input.u64()?, input.u32()? as usize);
        let end = out.0.len() + size.min(room).min(MAX_TRANSFER);
        // Its own descriptor: the entries are read while nodes change.
        let folder = rustix::io::fcntl_dupfd_cloexec(self.handles.folder(handle)?, 0)?;
        rustix::fs::seek(&folder, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); FOLDER_BUFFER];
        let mut entries = RawDir::new(&folder, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let length = DIRENT + name.len().next_multiple_of(8) + if plus { ENTRY } else { 0 };
            if out.0.len() + length > end {
                return Ok(());
            }
            if plus {
                let is_name = name != b"." && name != b"..";
                match if is_name { self.nodes.look_up(node, name) } else { Err(Errno::NOENT) } {
                    Ok((number, about)) => put_entry(out, number, &about),
                    // Node 0: a name without attributes, which the guest looks up itself.
                    Err(_) => drop(out.zeros(ENTRY)),
                }
            }
            out.u64(entry.ino()).u64(entry.next_entry_cookie());
            out.u32(name.len() as u32).u32(dirent_type(entry.file_type()));
            out.0.extend_from_slice(name);
            out.zeros(name.len().next_multiple_of(8) - name.len());
        }
        Ok(())
    }

    pub(crate) fn sync_file(&mut self, input: &mut In<'_>) -> Done {
        let (handle, flags) = (input.u64()?, input.u32()?);
        let file = self.handles.file(handle)?;
        if flags & 1 != 0 { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub(crate) fn sync_folder(&mut self, input: &mut In<'_>) -> Done {
        rustix::fs::fsync(self.handles.folder(input.u64()?)?)
    }

    pub(crate) fn sync_all(&mut self, node: u64) -> Done {
        let folder = self.reopen(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::syncfs(folder)
    }

    pub(crate) fn seek(&mut self, input: &mut In<'_>, out: &mut Out) -> Done {
        let (handle, offset, whence) = (input.u64()?, input.u64()?, input.u32()?);
        let file = self.handles.file(handle)?;
        // Others are answered by the guest itself.
        let from = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        if offset > stat_size(self, handle)? {
            return Err(Errno::NXIO);
        }
        out.u64(rustix::fs::seek(file, from)?);
        Ok(())
    }

    pub(crate) fn allocate(&mut self, input: &mut In<'_>) -> Done {
        let (handle, offset, length, mode) = (input.u64()?, input.u64()?, input.u64()?, input.u32()?);
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        let end = offset.checked_add(length).ok_or(Errno::FBIG)?;
        if end > i64::MAX as u64 {
            return Err(Errno::FBIG);
        }
        rustix::fs::fallocate(self.handles.file(handle)?, mode, offset, length)
    }

    pub(crate) fn copy_range(&mut self, input: &mut In<'_>, out: &mut Out) -> Done {
        let (from, mut from_at, _node) = (input.u64()?, input.u64()?, input.u64()?);
        let (to, mut to_at, length) = (input.u64()?, input.u64()?, input.u64()?);
        let (from, to) = (self.handles.file(from)?, self.handles.file(to)?);
        let limit = i64::MAX as u64;
        if from_at > limit || to_at > limit {
            return Err(Errno::INVAL);
        }
        // The answer has 32 bits; the guest asks again for the rest. Bounded, so that
        // one request does not hold the others up for long.
        let most = usize::try_from(length).unwrap_or(usize::MAX).min(64 << 20);
        let done = rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), most)?;
        out.u32(done as u32).u32(0);
        Ok(())
    }

    pub(crate) fn get_attribute(
        &mut self,
        node: u64,
        input: &mut In<'_>,
        room: usize,
        out: &mut Out,
    ) -> Done {
        let (size, _) = (input.u32()? as usize, input.u32()?);
        let name = input.text()?;
        let path = crate::nodes::proc_path(self.nodes.get(node)?);
        sized(size, room, out, |buffer| rustix::fs::getxattr(&path, name, buffer))
    }

    pub(crate) fn list_attributes(
        &mut self,
        node: u64,
        input: &mut In<'_>,
        room: usize,
        out: &mut Out,
    ) -> Done {
        let size = input.u32()? as usize;
        let path = crate::nodes::proc_path(self.nodes.get(node)?);
        sized(size, room, out, |buffer| rustix::fs::listxattr(&path, buffer))
    }
}

fn stat_size(server: &Server, handle: u64) -> Result<u64, Errno> {
    Ok(stat(server.handles.file(handle)?)?.st_size as u64)
}

/// Answer an extended attribute, or how long it is.
fn sized(
    size: usize,
    room: usize,
    out: &mut Out,
    get: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> Done {
    // Asked for the length alone: an empty buffer would not say it.
    let most = if size == 0 { MAX_ARGUMENTS } else { size.min(room).min(MAX_ARGUMENTS) };
    let mut buffer = vec![0; most];
    let length = get(&mut buffer)?;
    match size {
        0 => drop(out.u32(length as u32).u32(0)),
        _ => out.0.extend_from_slice(&buffer[..length]),
    }
    Ok(())
}
