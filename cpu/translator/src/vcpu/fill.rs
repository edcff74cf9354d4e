//! What happens where translated code finds no table entry, or not the one it foresaw.

use std::time::Instant;

use guest_memory::RamOffset;

use super::{PAGE, TranslatorVcpu};
use crate::foresight;
use crate::modes;
use crate::tables::Fill;

impl TranslatorVcpu {
    /// The next stores to a page with code may go on beside it.
    fn let_beside(&mut self, va: u64, at: RamOffset, kind: modes::Kind) {
        let memory = self.interp.cpu().memory.clone();
        let Some(lines) = memory.marks().code_lines(at) else { return };
        let state = self.state.clone();
        let Ok(view) = self.spaces.view(kind, &state) else { return };
        let (_, table) = view.addresses();
        let host = Self::host_page(self.interp.cpu(), at.0 / PAGE);
        let addend = host.wrapping_sub(va & !(PAGE - 1));
        self.state().allow_beside(va, table, addend, std::ptr::from_ref(lines) as u64);
    }

    /// The entries of `va` were looked at, with or without success. Where that is more
    /// than the view may have, it starts again.
    fn touch(&mut self, va: u64, kind: modes::Kind) {
        let state = self.state.clone();
        let Ok(view) = self.spaces.view(kind, &state) else { return };
        if !view.touch(va) {
            view.renew(&state);
            view.touch(va);
            // It knows views by their tables.
            self.state().forbid_beside();
        }
    }

    /// Enter a page into the tables. False: the access has no direct path, or would
    /// set accessed or dirty flags, which it must not if its instruction faults for
    /// another reason: the interpreter executes it, and the next one enters the page.
    pub(super) fn fill(&mut self, va: u64, write: bool) -> bool {
        let kind = modes::kind(self.interp.cpu());
        self.touch(va, kind);
        let cpu = self.interp.cpu();
        // The tables are indexed without the uppermost bits.
        if !cpu.canonical(va) {
            return false;
        }
        let access = Self::access(cpu, write, false);
        let Some(t) = x86_mmu::walk_marked(&cpu.memory, &cpu.paging_params(), va, access) else {
            return false;
        };
        let Some(hit) = cpu.memory.translate(t.physical) else { return false };
        let page = hit.offset.0 / PAGE;
        let plain = hit.writable && t.writable && cpu.memory.marks().is_plain(hit.offset);
        if write && !plain {
            if hit.writable && t.writable && cpu.topology.cpus == 1 {
                self.let_beside(va, hit.offset, kind);
            }
            return false;
        }
        let fill = Fill {
            linear: va,
            host: Self::host_page(cpu, page),
            page: page as u32,
            global: t.global,
            page_shift: t.page_shift,
            store: write && plain,
        };
        let state = self.state.clone();
        let Ok(view) = self.spaces.view(kind, &state) else { return false };
        view.fill(fill);
        self.counters.fills += 1;
        true
    }

    /// Whether the page of `va` has a load entry.
    pub(super) fn is_entered(&mut self, va: u64) -> bool {
        self.load_entry(va) != 0
    }

    fn load_entry(&mut self, va: u64) -> u64 {
        let kind = modes::kind(self.interp.cpu());
        let state = self.state.clone();
        self.spaces.view(kind, &state).map_or(0, |view| view.load_entry(va))
    }

    /// The load that is instruction `index` of block `id` foresaw another addend than
    /// that of the page of `va`, which has an entry now; if that was so before, the
    /// guess was wrong. False: too often, and the block is dropped.
    pub(super) fn foresee(&mut self, id: u32, index: usize, va: u64, wrong: bool) -> bool {
        let at = self.blocks.linear(id, index);
        let addend = self.load_entry(va);
        let slot = &mut self.state().foreseen[foresight::slot(at)];
        *slot = if addend == 0 { foresight::UNKNOWN } else { addend };
        let goes_on = !wrong || self.blocks.foresight.wrong(at, Instant::now());
        if !goes_on {
            self.blocks.kill(id);
        }
        goes_on
    }
}
