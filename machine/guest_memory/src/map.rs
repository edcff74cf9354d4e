//! The guest-physical layout of memory.

use crate::{Hit, PAGE_SIZE, RamOffset};

/// What a region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Read and write.
    Ram,
    /// Guest writes go to the bus; the machine fills it.
    Rom,
}

/// A run of guest-physical addresses backed by memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address, page-aligned.
    pub start: u64,
    /// Bytes, a whole number of pages.
    pub size: u64,
    /// Kind.
    pub kind: RegionKind,
}

impl Region {
    /// A RAM region.
    pub fn ram(start: u64, size: u64) -> Self {
        Region { start, size, kind: RegionKind::Ram }
    }
    /// A read-only region.
    pub fn rom(start: u64, size: u64) -> Self {
        Region { start, size, kind: RegionKind::Rom }
    }
    fn end(&self) -> u64 {
        self.start + self.size
    }
}

/// Why memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A region is not aligned, empty, or too high.
    #[error("memory region {0:#x}+{1:#x} is not a whole number of pages below 2^52")]
    BadRegion(u64, u64),
    /// Two regions overlap.
    #[error("memory regions at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// The host refused.
    #[error(
        "cannot reserve {size} bytes of guest memory ({what}): {source}; use less --memory or free some on the host"
    )]
    Host {
        /// Bytes wanted.
        size: u64,
        /// The operation.
        what: &'static str,
        /// The host's error.
        source: std::io::Error,
    },
    /// An address range is not memory.
    #[error("guest-physical range {0:#x}+{1:#x} is not all memory")]
    NotMemory(u64, u64),
}

/// Regions in ascending order, packed one after the other in the backing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryMap {
    regions: Vec<(Region, u64)>,
    size: u64,
}

impl MemoryMap {
    /// Lay regions out.
    ///
    /// # Errors
    /// When a region is malformed or two overlap.
    pub fn new(regions: impl IntoIterator<Item = Region>) -> Result<Self, MemoryError> {
        let mut list: Vec<Region> = regions.into_iter().collect();
        list.sort_by_key(|r| r.start);
        let mut placed = Vec::with_capacity(list.len());
        let mut size = 0u64;
        let mut previous: Option<Region> = None;
        for r in list {
            let fits = r.start < 1 << 52 && r.size <= 1 << 51;
            if !fits || r.size == 0 || r.start % PAGE_SIZE != 0 || r.size % PAGE_SIZE != 0 {
                return Err(MemoryError::BadRegion(r.start, r.size));
            }
            if let Some(p) = previous.filter(|p| p.end() > r.start) {
                return Err(MemoryError::Overlap(p.start, r.start));
            }
            placed.push((r, size));
            size += r.size;
            previous = Some(r);
        }
        Ok(MemoryMap { regions: placed, size })
    }

    /// Bytes of backing that hold all regions.
    pub fn backing_size(&self) -> u64 {
        self.size
    }

    /// Regions with their backing offsets, ascending.
    pub fn regions(&self) -> impl Iterator<Item = (Region, RamOffset)> + '_ {
        self.regions.iter().map(|(r, o)| (*r, RamOffset(*o)))
    }

    /// Find a guest-physical address.
    #[inline]
    pub fn translate(&self, address: u64) -> Option<Hit> {
        for (r, at) in &self.regions {
            let within = address.wrapping_sub(r.start);
            if within < r.size {
                return Some(Hit {
                    offset: RamOffset(at + within),
                    len: r.size - within,
                    writable: r.kind == RegionKind::Ram,
                });
            }
        }
        None
    }

    /// The guest-physical address of a backing offset.
    pub fn address_of(&self, offset: RamOffset) -> Option<u64> {
        self.regions.iter().find_map(|(r, at)| {
            let within = offset.0.wrapping_sub(*at);
            (within < r.size).then_some(r.start + within)
        })
    }
}
