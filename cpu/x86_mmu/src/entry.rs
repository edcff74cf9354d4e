//! Paging-structure entries: their bits, and how they are read and marked.

use guest_memory::{GuestMemory, RamOffset};
use x86_state::PhysicalBits;

pub(crate) const PRESENT: u64 = 1 << 0;
pub(crate) const READ_WRITE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
pub(crate) const PAGE_SIZE: u64 = 1 << 7;
pub(crate) const GLOBAL: u64 = 1 << 8;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;

/// Address bits of a 64-bit entry, down to bit 12.
pub(crate) const ADDRESS: u64 = ((1 << PhysicalBits::MAX) - 1) & !0xfff;
/// Bits 51:MAXPHYADDR, reserved in every 64-bit entry.
pub(crate) const ABOVE_ADDRESS: u64 = ((1 << 52) - 1) & !((1 << PhysicalBits::MAX) - 1);

/// An entry as it was read, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub value: u64,
    /// Where to set A and D; `None` when it cannot be written (not RAM).
    place: Option<RamOffset>,
    wide: bool,
}

impl Entry {
    /// Read the entry at a guest-physical address. What is not memory reads as
    /// all ones, as an unclaimed bus does.
    pub(crate) fn read(memory: &GuestMemory, address: u64, wide: bool) -> Entry {
        let size = if wide { 8 } else { 4 };
        let ones = if wide { u64::MAX } else { u64::from(u32::MAX) };
        match memory.translate(address).filter(|hit| hit.len >= size) {
            Some(hit) => Entry {
                value: if wide { memory.read(hit.offset) } else { u64::from(memory.read::<u32>(hit.offset)) },
                place: hit.writable.then_some(hit.offset),
                wide,
            },
            None => Entry { value: ones, place: None, wide },
        }
    }

    pub(crate) fn has(&self, bits: u64) -> bool {
        self.value & bits == bits
    }

    /// Set `bits` in memory with a locked operation. False: the entry has
    /// changed since it was read and the walk must start again.
    pub(crate) fn mark(&self, memory: &GuestMemory, bits: u64) -> bool {
        let Some(place) = self.place.filter(|_| !self.has(bits)) else { return true };
        let new = self.value | bits;
        if self.wide {
            memory.compare_exchange::<u64>(place, self.value, new) == self.value
        } else {
            u64::from(memory.compare_exchange::<u32>(place, self.value as u32, new as u32)) == self.value
        }
    }
}
