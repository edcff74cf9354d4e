//! Keeping a second writer out.
//!
//! Byte-range locks of the open file description (`F_OFD_SETLK`), on the bytes that
//! QEMU and its tools use (QEMU `docs/system/images.rst`, `block/file-posix.c`):
//! a shared lock on byte 100 + n says "I use permission n", one on byte 200 + n
//! says "I do not share permission n". So `qemu-img` refuses an image that a
//! machine writes to, and a machine refuses an image that QEMU has open. The locks
//! go with the process, whatever its end.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use host_sys::file_lock;

use crate::OpenError;

/// First byte of the permissions in use.
const USED: u64 = 100;
/// First byte of the permissions not shared.
const UNSHARED: u64 = 200;
/// QEMU's permissions: consistent read, write, resize.
const READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;
/// What others must not do meanwhile: a reader needs blocks that stay.
const NEVER_SHARED: [u64; 2] = [WRITE, RESIZE];

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading; others may read, nobody may write.
    Read,
    /// Reading and writing; others may do neither.
    Write,
}

/// An image's lock, held until it is dropped.
#[derive(Debug)]
pub struct ImageLock(File);

impl ImageLock {
    /// Bytes that the image's file system has left, as [`crate::room`].
    pub fn room(&self) -> Option<u64> {
        crate::room(&self.0)
    }

    /// Lock an image. On file systems without locks (some network ones) there is
    /// nothing to hold and the image is not protected.
    ///
    /// # Errors
    /// [`OpenError::Locked`] when another process uses it.
    pub fn take(path: &Path, access: Access) -> Result<Self, OpenError> {
        let file = File::open(path).map_err(|e| OpenError::open(path, e))?;
        Self::on(path, file, access)
    }

    /// Lock an image that is open to be read; `path` is for messages.
    ///
    /// # Errors
    /// As [`ImageLock::take`].
    pub fn on(path: &Path, file: File, access: Access) -> Result<Self, OpenError> {
        let used: &[u64] = if access == Access::Write { &[READ, WRITE, RESIZE] } else { &[READ] };
        let bytes = used.iter().map(|n| USED + n).chain(NEVER_SHARED.iter().map(|n| UNSHARED + n));
        let lock = ImageLock(file);
        let file = &lock.0;
        for byte in bytes {
            if file_lock::share(file.as_fd(), byte).is_err() {
                return Ok(lock);
            }
        }
        // First one's own locks, then the look at others': of two at once at least
        // one sees the other.
        let conflict = used
            .iter()
            .map(|n| UNSHARED + n)
            .chain(NEVER_SHARED.iter().map(|n| USED + n))
            .any(|byte| file_lock::held_by_other(file.as_fd(), byte).unwrap_or(false));
        if conflict {
            let use_ = if access == Access::Write { "used" } else { "written" };
            return Err(OpenError::Locked { path: path.to_path_buf(), use_ });
        }
        Ok(lock)
    }
}

impl Drop for ImageLock {
    fn drop(&mut self) {
        // Where that fails there are no locks.
        let _ = file_lock::release(self.0.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writer_or_many_readers() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let take = |access| ImageLock::take(file.path(), access);
        use Access::{Read, Write};
        // Held, wanted, granted.
        for (held, wanted, granted) in
            [(Read, Read, true), (Read, Write, false), (Write, Read, false), (Write, Write, false)]
        {
            let first = take(held).expect("nobody else");
            assert_eq!(take(wanted).is_ok(), granted, "{held:?} then {wanted:?}");
            // As a process that was forked and has not executed yet has one.
            let copy = first.0.try_clone().expect("a descriptor");
            drop(first);
            take(wanted).expect("released with its holder");
            drop(copy);
        }
    }
}
