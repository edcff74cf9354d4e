//! Where things go in guest memory, and the record of what went there.

use guest_memory::GuestMemory;

use crate::error::{LoadError, Result};
use crate::{Loaded, MemoryRange};

/// Guest-physical places below 640 KiB that the loaders use, before
/// [`Placer::low`] has moved them out of the kernel's way. The kernel copies what
/// it wants of them early and then treats them as free memory.
pub(crate) mod low {
    /// Global descriptor table.
    pub const GDT: u64 = 0x500;
    /// PVH start info, its modules and memory map.
    pub const PVH_INFO: u64 = 0x5000;
    /// Linux `boot_params`, the "zero page".
    pub const BOOT_PARAMS: u64 = 0x7000;
    /// Identity page tables: PML4, PDPT and four page directories.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// Multiboot information, its modules and memory map.
    pub const MULTIBOOT_INFO: u64 = 0x1_0000;
    /// Kernel command line, up to [`CMDLINE_MAX`] bytes and a zero.
    pub const CMDLINE: u64 = 0x2_0000;
    /// Longest command line that fits before [`END`].
    pub const CMDLINE_MAX: usize = 0xffff;
    /// End of what the loaders use.
    pub const END: u64 = 0x3_0000;
    /// How far all of it may be moved, first choice first.
    pub const MOVES: [u64; 3] = [0, END, 2 * END];
    const _: () = assert!(MOVES[2] + END <= 0x9_0000, "the extended BIOS data area must stay free");
}

const PAGE: u64 = 0x1000;
/// RAM below this belongs to the firmware's traditions: nothing large goes there.
const HIGH_START: u64 = 1 << 20;

/// Guest memory, what of it is RAM, and what was put where.
pub(crate) struct Placer<'a> {
    memory: &'a GuestMemory,
    ranges: &'a [MemoryRange],
    loaded: Vec<Loaded>,
    /// How far the places of [`low`] are moved.
    moved: u64,
}

impl<'a> Placer<'a> {
    /// Nothing is placed yet.
    pub fn new(memory: &'a GuestMemory, ranges: &'a [MemoryRange]) -> Self {
        Placer { memory, ranges, loaded: Vec::new(), moved: 0 }
    }

    pub fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    pub fn finish(self) -> Vec<Loaded> {
        self.loaded
    }

    /// End of the run of RAM that holds `address`; `address` itself if it is not RAM.
    pub fn ram_end(&self, address: u64) -> u64 {
        let mut end = address;
        // Ranges may touch and come in any order: each pass can extend the run.
        while let Some(r) = self.ranges.iter().find(|r| r.is_ram() && r.start <= end && end < r.end()) {
            end = r.end();
        }
        end
    }

    /// End of the highest RAM below `limit`, for messages.
    fn top(&self, limit: u64) -> u64 {
        self.ranges
            .iter()
            .filter(|r| r.is_ram() && r.start < limit)
            .map(|r| r.end().min(limit))
            .max()
            .unwrap_or(0)
    }

    /// Refuse unless `[start, start + len)` is RAM.
    pub fn require_ram(&self, what: &'static str, start: u64, len: u64) -> Result<()> {
        let end = start.saturating_add(len);
        let ram_end = self.ram_end(start);
        if ram_end >= end {
            return Ok(());
        }
        let have = if ram_end > start { ram_end } else { self.top(end) };
        Err(LoadError::TooLittleMemory { what, end, have })
    }

    /// Where a place of [`low`] is.
    pub fn low(&self, place: u64) -> u64 {
        self.moved + place
    }

    /// Move the places of [`low`] out of the way of a kernel with these segments
    /// (start and length); to be called before one is used. Refuses a kernel that
    /// leaves them no place.
    pub fn keep_clear(
        &mut self,
        what: &'static str,
        kernel: impl Iterator<Item = (u64, u64)> + Clone,
    ) -> Result<()> {
        let overlapped = |moved: u64| {
            let (from, to) = (moved + low::GDT, moved + low::END);
            kernel.clone().find(|&(start, len)| start < to && start.saturating_add(len) > from)
        };
        match low::MOVES.into_iter().find(|&m| overlapped(m).is_none()) {
            Some(moved) => self.moved = moved,
            None => {
                let value = overlapped(0).map_or(0, |s| s.0);
                let expected =
                    "a kernel that leaves 192 KiB at 0x500, 0x30500 or 0x60500 to the boot data expected";
                return Err(LoadError::Malformed { what, field: "load address", value, expected });
            }
        }
        Ok(())
    }

    /// Refuse unless the places of [`low`] are RAM.
    pub fn require_low(&self) -> Result<()> {
        self.require_ram("boot data in low memory", self.low(low::GDT), low::END - low::GDT)
    }

    /// Store bytes and remember them.
    pub fn put(&mut self, what: &'static str, address: u64, bytes: &[u8]) -> Result<()> {
        self.require_ram(what, address, bytes.len() as u64)?;
        self.memory.store(address, bytes)?;
        self.record(what, address, bytes.len() as u64);
        Ok(())
    }

    /// Clear a range; the caller has checked that it is RAM.
    pub fn zero(&self, mut address: u64, mut len: u64) -> Result<()> {
        static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
        while len > 0 {
            let n = len.min(ZEROES.len() as u64) as usize;
            self.memory.store(address, &ZEROES[..n])?;
            address += n as u64;
            len -= n as u64;
        }
        Ok(())
    }

    pub fn record(&mut self, what: &'static str, address: u64, size: u64) {
        self.loaded.push(Loaded { what, address, size });
    }

    /// Store the command line with its closing zero in its low place.
    pub fn put_cmdline(&mut self, cmdline: &str, max: usize) -> Result<()> {
        let max = max.min(low::CMDLINE_MAX);
        if cmdline.len() > max {
            return Err(LoadError::CmdlineTooLong { len: cmdline.len(), max });
        }
        if let Some(at) = cmdline.bytes().position(|b| b == 0) {
            return Err(LoadError::CmdlineHasNul { at });
        }
        let mut bytes = cmdline.as_bytes().to_vec();
        bytes.push(0);
        self.put("command line", self.low(low::CMDLINE), &bytes)
    }

    /// Put a Multiboot module on the first page behind the kernel, where loaders
    /// have always put it. Returns its address.
    pub fn put_module(&mut self, module: &[u8], kernel_end: u64) -> Result<u32> {
        let size = module.len() as u64;
        let at = kernel_end.max(HIGH_START).next_multiple_of(PAGE);
        let room = self.ram_end(at).min(1 << 32).saturating_sub(at);
        if size > room {
            let wanted = at.saturating_add(size);
            return Err(LoadError::InitrdDoesNotFit { size, limit: 1 << 32, room, wanted });
        }
        self.put("module", at, module)?;
        // Below 4 GiB, or there would have been no room; an empty one may end there.
        Ok(at.min(u32::MAX.into()) as u32)
    }

    /// Put an initrd as high as possible below `limit`, clear of `[kernel.0,
    /// kernel.1)`, page-aligned. Returns its address.
    pub fn put_initrd(&mut self, initrd: &[u8], limit: u64, kernel: (u64, u64)) -> Result<u64> {
        let size = initrd.len() as u64;
        let mut room = 0;
        let mut best: Option<u64> = None;
        for r in self.ranges.iter().filter(|r| r.is_ram()) {
            let (start, end) = (r.start.max(HIGH_START), r.end().min(limit));
            for (from, to) in [(start, end.min(kernel.0)), (start.max(kernel.1), end)] {
                let from = from.next_multiple_of(PAGE);
                room = room.max(to.saturating_sub(from));
                let at = to.saturating_sub(size) & !(PAGE - 1);
                if to > from && to - from >= size && at >= from {
                    best = best.max(Some(at));
                }
            }
        }
        let at = best.ok_or_else(|| LoadError::InitrdDoesNotFit {
            size,
            limit,
            room,
            wanted: kernel.1.saturating_add(size).saturating_add(PAGE),
        })?;
        self.put("initrd", at, initrd)?;
        Ok(at)
    }
}
