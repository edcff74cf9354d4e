//! The guest-physical memory map.
//!
//! | from | what |
//! | --- | --- |
//! | 0 | RAM, up to 3 GiB |
//! | 0xc000_0000 | 32-bit PCI BARs |
//! | 0xe000_0000 | PCI configuration space (ECAM) |
//! | 0xfeb0_0000 | virtio devices on the MMIO transport |
//! | 0xfec0_0000 | IOAPIC, HPET, local APIC |
//! | 0xfeff_c000 | four pages that KVM may need for itself |
//! | 4 GiB − firmware size | firmware, read-only |
//! | 4 GiB | the rest of RAM, then, from a multiple of 1 GiB, RAM that can be added; at most to 517 GiB |
//! | behind it, from a multiple of 1 GiB each | files of `--pmem` |
//! | 768 GiB | 64-bit PCI BARs |

use chipset::Hotplug;
use guest_memory::{GuestMemory, MemoryError, MemoryMap, PAGE_SIZE, Region};

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_LIMIT: u64 = 3 << 30;
/// RAM that does not fit below continues here.
pub const HIGH_RAM_START: u64 = 4 << 30;

/// First and last address for 32-bit PCI BARs.
pub(crate) const PCI_WINDOW_32: (u32, u32) = (0xc000_0000, 0xdfff_ffff);
/// First and last address for 64-bit PCI BARs: the top of the models' 40 bits.
pub(crate) const PCI_WINDOW_64: (u64, u64) = (768 << 30, (1 << 40) - 1);

/// Where the registers of virtio devices on the MMIO transport are, a window each.
pub(crate) const VIRTIO_MMIO: u64 = 0xfeb0_0000;

/// The least that can be added at once, in bytes: a memory block of Linux.
pub const MIN_PIECE: u64 = 128 << 20;
/// The most pieces that can be added, which bounds their description in the tables.
const MAX_PIECES: u64 = 128;

/// Start and size of each piece of RAM that can be added to a machine that starts
/// with `memory` bytes and can have `more`: equal, one behind another.
pub(crate) fn pieces(memory: u64, more: u64) -> Vec<(u64, u64)> {
    let (_, above) = split(memory);
    let first = (HIGH_RAM_START + above).next_multiple_of(1 << 30);
    let mut size = MIN_PIECE;
    while more / size > MAX_PIECES && more % (2 * size) == 0 {
        size *= 2;
    }
    (0..(more / size).min(Hotplug::MAX_SLOTS as u64)).map(|n| (first + n * size, size)).collect()
}

/// The first address above 4 GiB behind all RAM and what can be added to it.
pub(crate) fn end(memory: u64, more: u64) -> u64 {
    let (_, above) = split(memory);
    pieces(memory, more).last().map_or(HIGH_RAM_START + above, |&(start, size)| start + size)
}

/// Bytes of RAM below and above 4 GiB.
pub fn split(memory: u64) -> (u64, u64) {
    let below = memory.min(LOW_RAM_LIMIT);
    (below, memory - below)
}

/// Reserve a machine's memory: RAM, what can be added, and firmware that ends at
/// 4 GiB. A guest that touches RAM which has not been added yet finds memory: it
/// costs its owner no more than what the owner allowed. `further` regions are
/// behind [`end`].
///
/// # Errors
/// When the host refuses.
pub(crate) fn reserve(
    memory: u64,
    more: u64,
    firmware: Option<u64>,
    further: impl IntoIterator<Item = Region>,
) -> Result<GuestMemory, MemoryError> {
    let (below, above) = split(memory);
    let mut regions = vec![Region::ram(0, below)];
    regions.extend(further);
    if above > 0 {
        regions.push(Region::ram(HIGH_RAM_START, above));
    }
    if let (Some(first), Some(last)) = (pieces(memory, more).first(), pieces(memory, more).last()) {
        regions.push(Region::ram(first.0, last.0 + last.1 - first.0));
    }
    if let Some(size) = firmware {
        let size = size.next_multiple_of(PAGE_SIZE);
        regions.push(Region::rom(HIGH_RAM_START - size, size));
    }
    GuestMemory::new(MemoryMap::new(regions)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_below_four_gibibytes_free() {
        for (memory, below, above) in
            [(2 << 20, 2 << 20, 0), (3 << 30, 3 << 30, 0), (5 << 30, 3 << 30, 2 << 30)]
        {
            assert_eq!(split(memory), (below, above));
            let m = reserve(memory, 0, Some(0x1_1000), []).unwrap();
            assert!(m.translate(below - 1).unwrap().writable);
            assert!(m.translate(below).is_none());
            assert_eq!(m.translate(HIGH_RAM_START + above - 1).is_some_and(|h| h.writable), above > 0);
            assert!(!m.translate(0xffff_fff0).unwrap().writable);
            assert!(m.translate(0xfffe_efff).is_none());
        }
    }

    #[test]
    fn pieces_are_whole_and_reachable() {
        const GIB: u64 = 1 << 30;
        for (memory, more, count, size) in [
            (512 << 20, 0, 0, 0),
            (512 << 20, 512 << 20, 4, MIN_PIECE),
            (5 * GIB, GIB, 8, MIN_PIECE),
            (GIB, 256 * GIB, 128, 2 * GIB),
            // A difference that is no multiple of a larger piece: as much of it as there are slots.
            (GIB, 64 * GIB + MIN_PIECE, 256, MIN_PIECE),
        ] {
            let pieces = pieces(memory, more);
            assert_eq!(pieces.len(), count, "{more:#x} more");
            let m = reserve(memory, more, None, []).unwrap();
            for (start, piece) in pieces {
                assert_eq!(piece, size);
                assert!(start % MIN_PIECE == 0 && m.translate(start + piece - 1).is_some_and(|h| h.writable));
            }
        }
    }
}
