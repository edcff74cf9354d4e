//! The one host mapping of guest memory.
// UNSAFE: maps and dereferences guest memory; every access is bounds-checked here.
#![allow(unsafe_code, reason = "the home of guest memory's mapping")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::MemoryError;

/// A shared mapping of a memfd.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: u64,
    file: OwnedFd,
}

// SAFETY: the mapping is plain shared memory, valid until drop; all access is by
// atomic or volatile operations that tolerate concurrent change.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(len: u64) -> Result<Self, MemoryError> {
        let fail = |what| move |e: rustix::io::Errno| MemoryError::Host { size: len, what, source: e.into() };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("strata-ram", flags).map_err(fail("memfd_create"))?;
        ftruncate(&file, len).map_err(fail("ftruncate"))?;
        // A process that it is shared with could take pages away under our accesses (SIGBUS).
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(fail("F_ADD_SEALS"))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                0,
            )
        }
        .map_err(fail("mmap"))?;
        let base = NonNull::new(base.cast()).expect("mmap never returns null on success");
        Ok(Mapping { base, len, file })
    }

    /// Put `len` bytes of a file's start over those at `offset`; both whole pages.
    /// `shared`: writes reach the file, else they stay here.
    pub(crate) fn overlay(
        &self,
        offset: u64,
        len: u64,
        file: BorrowedFd<'_>,
        shared: bool,
    ) -> io::Result<()> {
        let at = self.at(offset, usize::try_from(len).map_err(io::Error::other)?);
        let kind = if shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // SAFETY: `at` checked the range, which is the mapping's own and stays mapped
        // throughout; its bytes may change at any time, as all of guest memory.
        unsafe {
            mmap(
                at.cast(),
                len as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                kind | MapFlags::FIXED | MapFlags::NORESERVE,
                file,
                0,
            )
        }?;
        Ok(())
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A pointer to `size` bytes at `offset`.
    ///
    /// # Panics
    /// When the range leaves the mapping: offsets come from `translate`, so this
    /// is a bug of the caller, never a guest's doing.
    #[inline(always)]
    pub(crate) fn at(&self, offset: u64, size: usize) -> *mut u8 {
        if offset > self.len || self.len - offset < size as u64 {
            out_of_range(offset, size, self.len);
        }
        // SAFETY: offset + size <= len, checked above.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }
}

#[cold]
#[inline(never)]
fn out_of_range(offset: u64, size: usize, len: u64) -> ! {
    panic!("access of {size} bytes at backing offset {offset:#x} leaves guest memory of {len:#x} bytes")
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are those of the mapping made in `new`; nothing
        // keeps pointers into it beyond a borrow of self.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_holder_of_the_file_changes_its_size() {
        let mapping = Mapping::new(0x4000).unwrap();
        for size in [0, 0x3000, 0x5000] {
            assert_eq!(ftruncate(mapping.file(), size), Err(rustix::io::Errno::PERM), "{size:#x}");
        }
        assert_eq!(
            fcntl_add_seals(mapping.file(), SealFlags::FUTURE_WRITE),
            Err(rustix::io::Errno::PERM),
            "nor what may be done to it"
        );
    }
}
