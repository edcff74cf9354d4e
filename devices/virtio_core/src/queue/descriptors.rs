//! From descriptors to validated pieces: each is read once and judged once.

use guest_memory::{GuestMemory, RamOffset};

use crate::chain::{Chain, Piece};
use crate::{MAX_CHAIN_BYTES, MAX_CHAIN_DESCRIPTORS, RingError};

/// Bytes of a descriptor, in both formats.
pub(super) const DESCRIPTOR: u64 = 16;

/// The chain goes on.
pub(super) const NEXT: u16 = 1;
/// The device writes the buffer.
pub(super) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;

/// A descriptor as it was read. In a split ring (2.7.5) `a` is the flags and `b`
/// the next index; in a packed one (2.8.13) `a` is the buffer ID and `b` the flags.
#[derive(Debug, Clone, Copy)]
pub(super) struct Raw {
    pub address: u64,
    pub len: u32,
    pub a: u16,
    pub b: u16,
}

impl Raw {
    /// Read one descriptor of a table.
    pub fn read(memory: &GuestMemory, table: RamOffset, index: u16) -> Self {
        let v: u128 = memory.read(RamOffset(table.0 + DESCRIPTOR * u64::from(index)));
        Raw { address: v as u64, len: (v >> 64) as u32, a: (v >> 96) as u16, b: (v >> 112) as u16 }
    }
}

/// A table of descriptors in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub at: RamOffset,
    pub len: u16,
}

/// `len` bytes of one region at a guest-physical address.
pub(super) fn contiguous(memory: &GuestMemory, address: u64, len: u64) -> Option<(RamOffset, bool)> {
    let hit = memory.translate(address)?;
    (hit.len >= len).then_some((hit.offset, hit.writable))
}

/// The indirect table that a descriptor names (2.7.5.3, 2.8.7).
pub(super) fn indirect_table(memory: &GuestMemory, d: &Raw) -> Result<Table, RingError> {
    let error = RingError::Indirect { address: d.address, len: d.len };
    let (bytes, most) = (u64::from(d.len), u64::from(MAX_CHAIN_DESCRIPTORS));
    let good = bytes > 0 && bytes % DESCRIPTOR == 0 && bytes / DESCRIPTOR <= most;
    let at = good.then(|| contiguous(memory, d.address, bytes)).flatten().ok_or(error)?.0;
    Ok(Table { at, len: (bytes / DESCRIPTOR) as u16 })
}

/// Collects the buffers of one chain.
pub(super) struct Builder<'a> {
    memory: &'a GuestMemory,
    pieces: Vec<Piece>,
    readable: usize,
    descriptors: u32,
    bytes: u64,
    writable_seen: bool,
}

impl<'a> Builder<'a> {
    /// `pieces` is an empty list to fill.
    pub fn new(memory: &'a GuestMemory, pieces: Vec<Piece>) -> Self {
        Builder { memory, pieces, readable: 0, descriptors: 0, bytes: 0, writable_seen: false }
    }

    /// Add a descriptor's buffer. Empty ones add nothing.
    pub fn add(&mut self, address: u64, len: u32, writable: bool) -> Result<(), RingError> {
        self.descriptors += 1;
        if self.descriptors > u32::from(MAX_CHAIN_DESCRIPTORS) {
            return Err(RingError::TooLong(MAX_CHAIN_DESCRIPTORS.into()));
        }
        self.bytes += u64::from(len);
        if self.bytes > MAX_CHAIN_BYTES {
            return Err(RingError::TooManyBytes);
        }
        if self.writable_seen && !writable {
            return Err(RingError::Order(address));
        }
        self.writable_seen |= writable;
        let error = RingError::Buffer { address, len };
        let (mut at, mut left) = (address, u64::from(len));
        while left > 0 {
            let hit = self.memory.translate(at).filter(|h| h.writable || !writable).ok_or(error)?;
            let n = hit.len.min(left);
            self.pieces.push((hit.offset, n as usize));
            at = at.checked_add(n).ok_or(error)?;
            left -= n;
        }
        if !writable {
            self.readable = self.pieces.len();
        }
        Ok(())
    }

    pub fn finish(self, id: u16, slots: u16) -> Chain {
        let Builder { memory, pieces, readable, .. } = self;
        Chain { memory: memory.clone(), id, slots, pieces, readable }
    }
}
