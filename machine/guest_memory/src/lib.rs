//! Guest RAM: the only crate that dereferences guest memory.
//!
//! All RAM (and read-only memory such as firmware) lives in one memfd, mapped
//! once and linearly; files can be laid over parts of it. A [`MemoryMap`] places pieces of it in guest-physical
//! space. Engines translate a guest-physical address to a [`RamOffset`] once,
//! cache that, and access by offset: every access is bounds-checked against the
//! mapping, so no value a guest can make reaches other memory of the process.
//!
//! Every write goes through one test of the page's mark byte. A page that holds
//! cached code or whose dirtiness is being logged takes a slow path; see
//! [`marks`](crate::PageMarks).
//!
//! Memory order: aligned accesses up to 8 bytes are single host accesses with
//! acquire/release order, which is x86's own order on an x86 host.

mod access;
mod atomic;
mod map;
mod mapping;
mod marks;
mod transfer;
mod writers;
mod zeroed;

use std::sync::Arc;

pub use access::Scalar;
pub use atomic::{Lockable, split_lock};
pub use map::{MemoryError, MemoryMap, Region, RegionKind};
pub use marks::{CodeEvent, PageMarks};
pub use writers::DirectWriter;

/// Bytes in a page of marks and of every smallest guest page.
pub const PAGE_SIZE: u64 = 4096;

/// A byte offset into guest memory's linear backing. Not a guest-physical
/// address: obtain it from [`GuestMemory::translate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RamOffset(pub u64);

/// Where a guest-physical address lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// Its place in the backing.
    pub offset: RamOffset,
    /// Bytes from it to the end of its region.
    pub len: u64,
    /// False for read-only memory: writes go to the bus.
    pub writable: bool,
}

/// A machine's memory. Clones are the same memory.
#[derive(Clone)]
pub struct GuestMemory(Arc<Inner>);

struct Inner {
    mapping: mapping::Mapping,
    map: MemoryMap,
    marks: PageMarks,
}

impl GuestMemory {
    /// Reserve memory for a map; pages are populated when first touched.
    ///
    /// # Errors
    /// When the host refuses the memory file or the mapping.
    pub fn new(map: MemoryMap) -> Result<Self, MemoryError> {
        // Asked now: a sandbox may keep the answer out later.
        host_sys::split_locks_are_fatal();
        let size = map.backing_size();
        let mapping = mapping::Mapping::new(size)?;
        Ok(GuestMemory(Arc::new(Inner { mapping, marks: PageMarks::new(size), map })))
    }

    /// `size` bytes of RAM from guest-physical 0, for tests and small machines.
    ///
    /// # Errors
    /// As [`GuestMemory::new`].
    pub fn flat(size: u64) -> Result<Self, MemoryError> {
        Self::new(MemoryMap::new([Region::ram(0, size)])?)
    }

    /// The guest-physical layout.
    pub fn map(&self) -> &MemoryMap {
        &self.0.map
    }

    /// Bytes of backing.
    pub fn backing_size(&self) -> u64 {
        self.0.mapping.len()
    }

    /// Bytes of the backing that the host holds in memory: pages touched so far.
    pub fn resident(&self) -> u64 {
        /// Unit of `st_blocks` (stat(2)).
        const BLOCK: u64 = 512;
        rustix::fs::fstat(self.0.mapping.file()).map_or(0, |s| s.st_blocks.unsigned_abs() * BLOCK)
    }

    /// The host address and file of the backing, for engines that map it into
    /// hardware's second-level tables. Never dereference it.
    pub fn host_mapping(&self) -> (usize, std::os::fd::BorrowedFd<'_>) {
        (self.0.mapping.address(), self.0.mapping.file())
    }

    /// Let a file's first `len` bytes, rounded up to whole pages, take the place of
    /// the memory at `offset`. `shared`: what is written there reaches the file, else
    /// it stays with this machine. Only while nothing is cached of that memory.
    ///
    /// Nobody may shorten the file meanwhile: an access behind its end would be the
    /// process's end (SIGBUS). [`GuestMemory::discard`] does not reach it.
    ///
    /// # Errors
    /// What the host says.
    ///
    /// # Panics
    /// When the range leaves the backing.
    pub fn overlay_file(
        &self,
        offset: RamOffset,
        file: impl std::os::fd::AsFd,
        len: u64,
        shared: bool,
    ) -> std::io::Result<()> {
        let len = len.next_multiple_of(PAGE_SIZE);
        self.0.mapping.overlay(offset.0, len, file.as_fd(), shared)
    }

    /// Code and dirty marks.
    #[inline(always)]
    pub fn marks(&self) -> &PageMarks {
        &self.0.marks
    }

    /// Find a guest-physical address. `None`: it is not memory.
    #[inline]
    pub fn translate(&self, address: u64) -> Option<Hit> {
        self.0.map.translate(address)
    }
}

impl std::fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMemory").field("map", &self.0.map).finish_non_exhaustive()
    }
}
