//! An image's file, in which second-level tables come to the medium before they are named.
//!
//! The library writes a new table, or a copy of a snapshot's, and then its entry in the first
//! level, both to the host's cache. A host that ended between would leave an entry for what
//! was in that cluster before: nothing, or what a guest had written there.

// UNSAFE: the library's way to say that a request must be aligned.
#![allow(unsafe_code, reason = "imago's trait Storage has unsafe functions, which are passed on")]

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use imago::Storage;
use imago::file::File;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::drivers::CommonStorageHelper;

/// A file, and where the table is whose entries are written behind a sync.
#[derive(Debug)]
pub(crate) struct Ordered {
    file: File,
    first_level: Range<u64>,
}

impl Ordered {
    /// `first_level`: the bytes that the first-level table has; empty for a file that is only
    /// read, or is never synced.
    pub fn new(file: File, first_level: Range<u64>) -> Self {
        Ordered { file, first_level }
    }
}

impl fmt::Display for Ordered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Storage for Ordered {
    fn mem_align(&self) -> usize {
        self.file.mem_align()
    }

    fn req_align(&self) -> usize {
        self.file.req_align()
    }

    fn zero_align(&self) -> usize {
        self.file.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.file.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.file.get_filename()
    }

    unsafe fn pure_readv(&self, to: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the same contract.
        unsafe { self.file.pure_readv(to, offset) }
    }

    unsafe fn pure_writev(&self, from: IoVector<'_>, offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(from.len());
        if offset < self.first_level.end && end > self.first_level.start {
            self.sync()?;
        }
        // SAFETY: the caller keeps the same contract.
        unsafe { self.file.pure_writev(from, offset) }
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the same contract.
        unsafe { self.file.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the same contract.
        unsafe { self.file.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: the caller keeps the same contract.
        unsafe { self.file.pure_discard(offset, length) }
    }

    fn flush(&self) -> io::Result<()> {
        self.file.flush()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()?;
        #[cfg(test)]
        crate::image::tests::synced();
        Ok(())
    }

    fn settle_writes(&self) -> io::Result<()> {
        self.file.settle_writes()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        // SAFETY: the caller keeps the same contract.
        unsafe { self.file.invalidate_cache() }
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.file.get_storage_helper()
    }

    fn resize(&self, new_size: u64, mode: imago::storage::PreallocateMode) -> io::Result<()> {
        self.file.resize(new_size, mode)
    }
}
