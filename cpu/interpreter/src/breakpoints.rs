//! Breakpoints of the debug registers (SDM volume 3, 18.2).
//!
//! Instruction breakpoints make the loop go one instruction at a time. Data
//! breakpoints keep their pages out of the TLB's fast tags, so that only
//! accesses to those pages are compared.

use crate::cpu::Cpu;
use crate::insn::REG_RIP;

/// R/W field of DR7: what a breakpoint waits for.
const ON_EXECUTE: u64 = 0;
const ON_WRITE: u64 = 1;
const ON_ACCESS: u64 = 3;

impl Cpu {
    /// Breakpoint `n` as (R/W field, length in bytes), if it is enabled.
    fn breakpoint(&self, n: usize) -> Option<(u64, u64)> {
        if self.dr7 >> (2 * n) & 3 == 0 {
            return None;
        }
        let control = self.dr7 >> (16 + 4 * n) & 15;
        let len = match control >> 2 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        Some((control & 3, len))
    }

    /// To be called after a change of DR0-DR3 or DR7.
    pub fn debug_registers_changed(&mut self) {
        let watched = self.data_breakpoints;
        let kinds =
            |wanted: &[u64]| (0..4).any(|n| self.breakpoint(n).is_some_and(|(k, _)| wanted.contains(&k)));
        let (code, data) = (kinds(&[ON_EXECUTE]), kinds(&[ON_WRITE, ON_ACCESS]));
        self.code_breakpoints = code;
        self.data_breakpoints = data;
        if watched || data {
            self.flush_tlb_all();
        }
        self.leave_at = 0;
    }

    /// DR6 bits of the instruction breakpoints at RIP.
    pub(crate) fn code_breakpoint_hit(&self) -> u64 {
        let base = if self.code_bits == 64 { 0 } else { self.segments[1].base };
        let mut linear = base.wrapping_add(self.regs[REG_RIP as usize]);
        if self.code_bits != 64 {
            linear &= 0xffff_ffff;
        }
        let hit = |n: &usize| {
            self.breakpoint(*n).is_some_and(|(kind, _)| kind == ON_EXECUTE) && self.dr[*n] == linear
        };
        (0..4).filter(hit).fold(0, |bits, n| bits | 1 << n)
    }

    /// Whether a data breakpoint lies in the page of `linear`.
    pub(crate) fn page_is_watched(&self, linear: u64) -> bool {
        (0..4).any(|n| {
            self.breakpoint(n).is_some_and(|(kind, _)| kind != ON_EXECUTE) && (self.dr[n] ^ linear) >> 12 == 0
        })
    }

    /// Compare a data access with the breakpoints; a hit becomes a trap after
    /// the instruction.
    pub(crate) fn note_data_access(&mut self, linear: u64, len: u64, write: bool) {
        for n in 0..4 {
            let Some((kind, size)) = self.breakpoint(n) else { continue };
            let kind_matches = kind == ON_ACCESS || kind == ON_WRITE && write;
            let first = self.dr[n] & !(size - 1);
            let apart = linear.wrapping_sub(first) >= size && first.wrapping_sub(linear) >= len;
            if kind_matches && !apart {
                self.pending_debug |= 1 << n;
                self.leave_at = 0;
            }
        }
    }
}
