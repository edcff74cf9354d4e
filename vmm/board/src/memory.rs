//! The guest-physical memory map.
//!
//! | from | what |
//! | --- | --- |
//! | 0 | RAM, up to 3 GiB |
//! | 0xc000_0000 | 32-bit PCI BARs |
//! | 0xe000_0000 | PCI configuration space (ECAM) |
//! | 0xfec0_0000 | IOAPIC, HPET, local APIC |
//! | 4 GiB − firmware size | firmware, read-only |
//! | 4 GiB | the rest of RAM, at most to 516 GiB |
//! | 768 GiB | 64-bit PCI BARs |

use guest_memory::{GuestMemory, MemoryError, MemoryMap, PAGE_SIZE, Region};

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_LIMIT: u64 = 3 << 30;
/// RAM that does not fit below continues here.
pub const HIGH_RAM_START: u64 = 4 << 30;

/// First and last address for 32-bit PCI BARs.
pub(crate) const PCI_WINDOW_32: (u32, u32) = (0xc000_0000, 0xdfff_ffff);
/// First and last address for 64-bit PCI BARs: the top of the models' 40 bits.
pub(crate) const PCI_WINDOW_64: (u64, u64) = (768 << 30, (1 << 40) - 1);

/// Bytes of RAM below and above 4 GiB.
pub fn split(memory: u64) -> (u64, u64) {
    let below = memory.min(LOW_RAM_LIMIT);
    (below, memory - below)
}

/// Reserve a machine's memory: RAM, and firmware that ends at 4 GiB.
///
/// # Errors
/// When the host refuses.
pub(crate) fn reserve(memory: u64, firmware: Option<u64>) -> Result<GuestMemory, MemoryError> {
    let (below, above) = split(memory);
    let mut regions = vec![Region::ram(0, below)];
    if above > 0 {
        regions.push(Region::ram(HIGH_RAM_START, above));
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
            let m = reserve(memory, Some(0x1_1000)).unwrap();
            assert!(m.translate(below - 1).unwrap().writable);
            assert!(m.translate(below).is_none());
            assert_eq!(m.translate(HIGH_RAM_START + above - 1).is_some_and(|h| h.writable), above > 0);
            assert!(!m.translate(0xffff_fff0).unwrap().writable);
            assert!(m.translate(0xfffe_efff).is_none());
        }
    }
}
