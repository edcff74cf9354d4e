//! The guest-physical memory map.
//!
//! | from | what |
//! | --- | --- |
//! | 0 | RAM, up to 3 GiB |
//! | 0xb000_0000 | PCI configuration space (ECAM), when RAM ends below |
//! | 0xc000_0000 | device memory, IOAPIC, HPET, local APIC |
//! | 4 GiB − firmware size | firmware, read-only |
//! | 4 GiB | the rest of RAM |

use guest_memory::{GuestMemory, MemoryError, MemoryMap, PAGE_SIZE, Region};

/// RAM below 4 GiB ends here at the latest.
pub const LOW_RAM_LIMIT: u64 = 3 << 30;
/// RAM that does not fit below continues here.
pub const HIGH_RAM_START: u64 = 4 << 30;

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
