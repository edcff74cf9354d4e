//! Windows: several accesses of a block near one address share one look-up.
//!
//! Before a block is emitted, its memory operands are grouped by what their
//! address is made of (the same registers, which change by constants alone in
//! between, or the same constant page). A group that spans little memory is a
//! window: its first access checks that all of it lies in one page, looks that
//! page up, and keeps the host address of the window's start; the others need no
//! check at all.
//! They cannot miss, fault or leave, so nothing can come between them and the
//! look-up but the block's own instructions.
//!
//! A window that straddles two pages at run time sends the guest to a block
//! made without windows, from the instruction on that found it.

use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};

use super::access::{Access, Found, gpr_number};
use super::bits::is_bit_string;
use super::facts::{Facts, Known, Route};
use super::{Builder, MAX_INSTRUCTIONS, Pending, PendingKind};
use crate::emit::Mem;
use crate::layout::{PINNED, WINDOWS, gpr_home, gs, host};

/// Largest span of a window, in bytes. The wider, the more often one straddles.
pub(crate) const SPAN: i32 = 512;

/// Guest RSP.
const RSP: usize = 4;

/// What the addresses of a window have in common: guest registers, as a base and an
/// index with its scale, or a constant page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin(u64);

impl Origin {
    /// In place of a register's number: none.
    const NONE: u8 = 16;

    /// A constant address in this page.
    fn page(page: u64) -> Self {
        Origin(page & !0xfff)
    }

    /// Numbers of a base and an index, or [`Origin::NONE`], and the index's scale as a
    /// power of two.
    fn registers(base: u8, index: u8, scale: u8) -> Self {
        // Odd, which no page is.
        Origin(1 | u64::from(base & 31) << 1 | u64::from(index & 31) << 6 | u64::from(scale & 3) << 11)
    }

    /// The page, if it is one.
    fn as_page(self) -> Option<u64> {
        (self.0 & 1 == 0).then_some(self.0)
    }

    /// The base, if there is one.
    pub fn base(self) -> Option<u8> {
        Some((self.0 >> 1 & 31) as u8).filter(|n| self.0 & 1 != 0 && *n < Self::NONE)
    }

    /// The index, if there is one, and its scale as a power of two.
    pub fn index(self) -> Option<(u8, u8)> {
        let index = ((self.0 >> 6 & 31) as u8, (self.0 >> 11 & 3) as u8);
        Some(index).filter(|(n, _)| self.0 & 1 != 0 && *n < Self::NONE)
    }

    /// RSP alone, whose constant steps are followed.
    fn is_stack(self) -> bool {
        self == STACK
    }

    /// By how much it has changed, when its registers have by so much. `None`: by more
    /// than displacements hold.
    #[inline(always)]
    fn moved(self, by: &Moved) -> Option<i32> {
        if self.as_page().is_some() {
            return Some(0);
        }
        let [base, index, scale] = self.parts();
        i32::try_from(i64::from(by[base as usize]) + (i64::from(by[index as usize]) << scale)).ok()
    }

    /// The registers it is made of, a bit each.
    #[inline(always)]
    fn mask(self) -> u16 {
        let [base, index, _] = self.parts();
        if self.as_page().is_some() { 0 } else { (1_u32 << base | 1 << index) as u16 }
    }

    /// Base and index, each below 32, and scale, unless it is a page.
    #[inline(always)]
    fn parts(self) -> [u32; 3] {
        let all = self.0 as u32;
        [all >> 1 & 31, all >> 6 & 31, all >> 11 & 3]
    }
}

/// By how much registers have changed; [`Origin::NONE`], and beyond, never does.
type Moved = [i32; 32];

/// RSP alone.
const STACK: Origin = Origin(1 | (RSP as u64) << 1 | (Origin::NONE as u64) << 6);

/// A group of accesses: displacements `low..high` from the origin's value when
/// the window was opened.
#[derive(Debug, Clone, Copy)]
struct Window {
    origin: Origin,
    low: i32,
    high: i32,
    access: Access,
    members: u8,
    /// Branches in front of its first access.
    branches: u8,
    /// Its slot, once it has been looked up.
    slot: Option<u8>,
}

/// An access that belongs to a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// Displacement from the origin's value when the window was opened.
    at: i32,
    /// By how much the origin has changed since.
    moved: i32,
    window: u8,
    pub instruction: u8,
    /// Bytes.
    pub size: u8,
}

impl Member {
    /// The displacement in the instruction.
    pub fn disp(&self) -> i32 {
        self.at.wrapping_sub(self.moved)
    }
}

/// The windows of one block.
pub(super) struct Plan {
    windows: Vec<Window>,
    members: Vec<Member>,
    /// By instruction: the number of its member, from 1 on; 0 for none.
    by_instruction: [u8; MAX_INSTRUCTIONS],
    slots_used: u8,
    /// Windows that are open, a bit each.
    open: u64,
    /// Registers that the addresses of open windows are made of.
    watched: u16,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            windows: Vec::new(),
            members: Vec::new(),
            by_instruction: [0; MAX_INSTRUCTIONS],
            slots_used: 0,
            open: 0,
            watched: 0,
        }
    }
}

/// What an instruction does to memory, for the plan.
struct Operand {
    origin: Origin,
    disp: i32,
    size: i32,
    access: Access,
}

impl Plan {
    /// No windows.
    pub fn clear(&mut self) {
        self.windows.clear();
        self.members.clear();
        self.by_instruction = [0; MAX_INSTRUCTIONS];
        self.slots_used = 0;
        self.open = 0;
        self.watched = 0;
    }

    /// Group the accesses of a block; there are no windows yet. `word`: 8, or 4 in
    /// 32-bit code. No window goes on behind the branch number `turns_at`.
    pub fn make(&mut self, list: &[Instruction], known: &[Known], word: i32, turns_at: Option<usize>) {
        // By how much registers have changed since a time at which no window that is
        // open now was.
        let mut moved: Moved = [0; 32];
        let mut branches = 0_u8;
        let mut rest = known.iter();
        for (n, i) in (0..).zip(list) {
            let Some(known) = rest.next() else { break };
            let facts = &known.facts;
            if facts.windowed
                && let Some(o) = operand(i, facts, word)
                && let Some(moved) = o.origin.moved(&moved)
            {
                self.join(n as u8, &o, moved, branches);
            }
            let mut unknown = known.written & self.watched;
            if unknown != 0 {
                if facts.steps
                    && let Some((register, by)) = step(i, word)
                    && let Some(now) = moved[register].checked_add(by).filter(|m| m.unsigned_abs() <= 1 << 30)
                {
                    moved[register] = now;
                    unknown &= !(1 << register);
                }
                if unknown != 0 {
                    let mut gone = unknown;
                    while gone != 0 {
                        moved[gone.trailing_zeros() as usize] = 0;
                        gone &= gone - 1;
                    }
                    self.close(|o| o.mask() & unknown != 0);
                }
            }
            if !facts.usual {
                branches += u8::from(facts.flow != FlowControl::Next);
                if facts.barrier || is_call(facts) || turns_at == Some(n) {
                    self.close(|_| true);
                }
            }
        }
    }

    fn member(&self, instruction: usize) -> Option<&Member> {
        let n = usize::from(*self.by_instruction.get(instruction)?);
        self.members.get(n.wrapping_sub(1))
    }

    /// Whether an instruction may be the first of a window.
    #[inline(always)]
    pub fn opens(&self, instruction: usize) -> bool {
        let window = self.member(instruction).and_then(|m| self.windows.get(usize::from(m.window)));
        window.is_some_and(|w| w.members > 1 && w.slot.is_none())
    }

    /// Operands with addresses made of registers other than RSP, and what those are,
    /// whose windows hold no more than themselves: they are in one page if they are
    /// multiples of their size.
    pub fn alone(&self) -> impl Iterator<Item = (&Member, Origin)> {
        self.members.iter().filter_map(|m| {
            let w = self.windows.get(usize::from(m.window))?;
            let other = w.origin.as_page().is_none() && !w.origin.is_stack();
            (other && w.high.wrapping_sub(w.low) == i32::from(m.size)).then_some((m, w.origin))
        })
    }

    /// Whether an instruction pushes or pops in a window that is open, and uses RSP for
    /// nothing else.
    pub fn in_open_slot(&self, instruction: usize, i: &Instruction, facts: &Facts) -> bool {
        let window = self.member(instruction).and_then(|m| self.windows.get(usize::from(m.window)));
        facts.stack
            && window.is_some_and(|w| w.members > 1 && w.slot.is_some())
            && gpr_number(i.op0_register()) != Some(RSP)
    }

    /// An instruction looks its operand up by itself.
    pub fn leave_out(&mut self, instruction: usize) {
        if let Some(n) = self.by_instruction.get_mut(instruction) {
            *n = 0;
        }
    }

    fn close(&mut self, of: impl Fn(Origin) -> bool) {
        self.watched = 0;
        let mut open = self.open;
        while open != 0 {
            let n = open.trailing_zeros();
            open &= open - 1;
            let Some(w) = self.windows.get(n as usize) else { break };
            if of(w.origin) {
                self.open &= !(1 << n);
            } else {
                self.watched |= w.origin.mask();
            }
        }
    }

    /// The last open window that an access to `low..high` from its origin may join.
    fn joined(&mut self, o: &Operand, low: i32, high: i32, branches: u8) -> Option<u8> {
        let mut open = self.open;
        while open != 0 {
            let n = open.ilog2();
            open &= !(1 << n);
            let w = self.windows.get_mut(n as usize)?;
            if w.origin != o.origin {
                continue;
            }
            // What may be written may be read; what will be written for certain is looked
            // up for that at once.
            let access = w.access == o.access || w.access == Access::Store || w.branches == branches;
            let (low, high) = (w.low.min(low), w.high.max(high));
            let near = i64::from(high) - i64::from(low) <= i64::from(SPAN) || o.origin.as_page().is_some();
            if access && near {
                (w.low, w.high) = (low, high);
                w.members += 1;
                if o.access == Access::Store {
                    w.access = Access::Store;
                }
                return Some(n as u8);
            }
        }
        None
    }

    /// Add an access to an open window, or open one for it.
    /// `moved`: by how much its origin has changed so far. `branches`: how many are in
    /// front of it.
    fn join(&mut self, instruction: u8, o: &Operand, moved: i32, branches: u8) -> Option<()> {
        // Displacements that leave room for the stack's movement both ways.
        let at = o.disp.checked_add(moved).filter(|at| at.unsigned_abs() < 1 << 30)?;
        let (low, high) = match o.origin.as_page() {
            Some(_) => (0, 0x1000),
            None => (at, at.checked_add(o.size)?),
        };
        let window = match self.joined(o, low, high, branches) {
            Some(n) => n,
            None => {
                let n = self.windows.len() as u8;
                self.watched |= o.origin.mask();
                self.open |= 1 << (n & 63);
                let (origin, access) = (o.origin, o.access);
                self.windows.push(Window { origin, low, high, access, members: 1, branches, slot: None });
                n
            }
        };
        self.members.push(Member { at, moved, window, instruction, size: o.size as u8 });
        *self.by_instruction.get_mut(usize::from(instruction))? = self.members.len() as u8;
        Some(())
    }
}

/// The memory operand of an instruction, if a window may hold it.
#[inline(always)]
fn operand(i: &Instruction, facts: &Facts, word: i32) -> Option<Operand> {
    if facts.stack {
        return slot(i, word);
    }
    facts.memory(i)?;
    let access = facts.accessed?;
    if facts.route == Route::Other && is_bit_string(i) {
        return None;
    }
    // Through CS nothing may be written, and not always read.
    let flat = !matches!(i.segment_prefix(), Register::FS | Register::GS)
        && (word == 8 || i.segment_prefix() != Register::CS);
    if !flat {
        return None;
    }
    let size = i32::from(facts.size);
    let (base, index) = (i.memory_base(), i.memory_index());
    if base == Register::RIP || base == Register::None && index == Register::None {
        let linear = i.memory_displacement64();
        let disp = (linear & 0xfff) as i32;
        let origin = Origin::page(linear);
        return (disp + size <= 0x1000).then_some(Operand { origin, disp, size, access });
    }
    let (base, index) = (number(base, word)?, number(index, word)?);
    let scale = if index == Origin::NONE { 0 } else { i.memory_index_scale().trailing_zeros() as u8 };
    let disp = displacement(i, word)?;
    Some(Operand { origin: Origin::registers(base, index, scale), disp, size, access })
}

/// The number of a base or index register of this size; `None` for others.
#[inline(always)]
fn number(r: Register, word: i32) -> Option<u8> {
    let first = if word == 8 { Register::RAX } else { Register::EAX };
    match (r as u8).wrapping_sub(first as u8) {
        _ if r == Register::None => Some(Origin::NONE),
        n => Some(n).filter(|n| *n < 16),
    }
}

/// The slot that an instruction pushes to or pops from, if that is all it does.
fn slot(i: &Instruction, word: i32) -> Option<Operand> {
    let (disp, access) = match i.code() {
        Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Call_rel32_64 => (-word, Access::Store),
        Code::Pop_r64 | Code::Retnq | Code::Retnq_imm16 => (0, Access::Load),
        _ => return None,
    };
    Some(Operand { origin: STACK, disp, size: word, access })
}

/// The displacement of a memory operand; of 32-bit code modulo 2^32.
fn displacement(i: &Instruction, word: i32) -> Option<i32> {
    if word == 4 {
        return Some(i.memory_displacement32() as i32);
    }
    i32::try_from(i.memory_displacement64() as i64).ok()
}

/// The register that an instruction moves by a constant, and by how much, if that is all
/// it does to it: any in 64-bit code, ESP in 32-bit code.
fn step(i: &Instruction, word: i32) -> Option<(usize, i32)> {
    if let Some(by) = stack_change(i, word) {
        return Some((RSP, by));
    }
    if word != 8 || i.op_count() == 0 || i.op0_kind() != OpKind::Register {
        return None;
    }
    let register = gpr_number(i.op0_register())?;
    let by = match i.code() {
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32 => i.immediate(1) as i64,
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_RAX_imm32 => {
            (i.immediate(1) as i64).checked_neg()?
        }
        Code::Inc_rm64 => 1,
        Code::Dec_rm64 => -1,
        Code::Lea_r64_m if i.memory_base() == i.op0_register() && i.memory_index() == Register::None => {
            i.memory_displacement64() as i64
        }
        _ => return None,
    };
    Some((register, i32::try_from(by).ok()?))
}

/// By how much an instruction moves RSP (ESP in 32-bit code), if that is known and
/// all it does to it.
fn stack_change(i: &Instruction, word: i32) -> Option<i32> {
    use OpKind as K;
    let sp = if word == 4 { Register::ESP } else { Register::RSP };
    let constant = |sign: i64| {
        let kinds = [K::Immediate8to64, K::Immediate32to64, K::Immediate8to32, K::Immediate32];
        let by = sign * i64::from(i.immediate(1) as i32);
        (kinds.contains(&i.op1_kind()) && i.op0_register() == sp).then(|| i32::try_from(by).ok())?
    };
    match i.code() {
        Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 => Some(-word),
        Code::Pop_r64 if i.op0_register() != sp => Some(word),
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_rm32_imm8 | Code::Add_rm32_imm32
            if i.op0_kind() == OpKind::Register =>
        {
            constant(1)
        }
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_rm32_imm8 | Code::Sub_rm32_imm32
            if i.op0_kind() == OpKind::Register =>
        {
            constant(-1)
        }
        Code::Lea_r64_m | Code::Lea_r32_m
            if i.op0_register() == sp && i.memory_base() == sp && i.memory_index() == Register::None =>
        {
            displacement(i, word)
        }
        _ => None,
    }
}

/// An instruction that may change what memory is where, or who may reach it.
pub(super) fn is_barrier(i: &Instruction) -> bool {
    use iced_x86::Mnemonic as M;
    i.is_privileged() || matches!(i.mnemonic(), M::Stac | M::Clac | M::Popfq | M::Popf | M::Swapgs)
}

/// Behind a call, when it returns, nothing is known.
pub(super) fn is_call(facts: &Facts) -> bool {
    matches!(facts.flow, FlowControl::Call | FlowControl::IndirectCall)
}

impl Builder<'_> {
    /// The current instruction's operand, if it belongs to a window.
    pub(super) fn windowed(&mut self) -> Option<Found> {
        let plan = &self.s.plan;
        let m = plan.member(usize::from(self.index))?;
        let w = plan.windows.get(usize::from(m.window))?;
        if w.members < 2 {
            return None;
        }
        let (window, disp) = (m.window, m.at.wrapping_sub(w.low));
        match w.slot {
            Some(_) if self.held == Some(window) => {}
            Some(slot) => self.e.load(host::TEMP, Mem::gs(gs!(windows) + 8 * i32::from(slot))),
            None => {
                let slot = Some(plan.slots_used).filter(|n| usize::from(*n) < WINDOWS)?;
                let (w, lead) = (*w, w.low.checked_sub(m.moved)?);
                self.open_window(&w, lead);
                self.e.store(Mem::gs(gs!(windows) + 8 * i32::from(slot)), host::TEMP);
                self.s.plan.windows[usize::from(window)].slot = Some(slot);
                self.s.plan.slots_used += 1;
            }
        }
        self.now_held = Some(window);
        Some(Found::at_temp(disp))
    }

    /// TEMP = the host address of a window whose start is `lead` bytes from what
    /// its origin is now; or leave.
    fn open_window(&mut self, w: &Window, lead: i32) {
        if let Some(page) = w.origin.as_page() {
            self.e.mov_imm(host::ADDRESS, page);
        } else {
            let mut place = |n: u8, scratch: u8| {
                PINNED[usize::from(n)].unwrap_or_else(|| {
                    self.e.load(scratch, Mem::gs(gpr_home(usize::from(n))));
                    scratch
                })
            };
            let base = w.origin.base().map(|n| place(n, host::ADDRESS));
            let index = w.origin.index().map(|(n, scale)| (place(n, host::TEMP), scale));
            let m = Mem { gs: false, base, index, disp: lead };
            if self.r.mode.narrow {
                self.e.lea32(host::ADDRESS, m);
            } else {
                self.e.lea(host::ADDRESS, m);
            }
            if !self.s.alignment.of(usize::from(self.index)) {
                self.e.pext_gs(host::TEMP, host::ADDRESS, gs!(page_offset_mask));
                let last = gs!(within_page) + (w.high - w.low - 1);
                let m = Mem { gs: true, base: Some(host::TEMP), index: None, disp: last };
                self.e.load_byte(host::TEMP, m);
                let at = self.e.jrcxz();
                self.pend(Pending { at, kind: PendingKind::Plain(self.ip) });
            }
        }
        self.look_up_page(w.access, host::ADDRESS, false);
        self.e.lea(host::TEMP, Mem::indexed(host::TEMP, host::ADDRESS, 0));
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;
    use iced_x86::{Decoder, DecoderOptions};

    use super::super::classify::HostFeatures;
    use super::super::facts::FactTable;
    use super::Access::{Load, Store};
    use super::*;

    type Build = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

    /// The windows' spans, from what their registers are at first, accesses and members.
    fn check(build: Build, expected: &[(i32, i32, Access, u8)]) {
        let mut a = CodeAssembler::new(64).unwrap();
        build(&mut a).unwrap();
        let code = a.assemble(0x40_1000).unwrap();
        let list: Vec<Instruction> =
            Decoder::with_ip(64, &code, 0x40_1000, DecoderOptions::NONE).into_iter().collect();
        let mut plan = Plan::default();
        let mut table = FactTable::new(HostFeatures::detect());
        let known: Vec<Known> = list.iter().map(|i| Known::of(i, table.of(i))).collect();
        plan.make(&list, &known, 8, None);
        let found: Vec<_> = plan.windows.iter().map(|w| (w.low, w.high, w.access, w.members)).collect();
        let text = list.iter().map(|i| format!("{i}\n")).collect::<String>();
        assert_eq!(found, expected, "windows of\n{text}");
    }

    #[test]
    fn constant_steps_are_followed() {
        check(
            |a| {
                a.mov(ecx, dword_ptr(rdx + 4))?;
                a.add(rdx, 4)?;
                a.mov(esi, dword_ptr(rdx + 0x20))?;
                a.dec(rdx)?;
                a.lea(rdx, rdx - 3)?;
                a.add(ecx, dword_ptr(rdx + 8))
            },
            &[(4, 0x28, Load, 3)],
        );
        // A scaled index, which steps by its elements.
        check(
            |a| {
                a.mov(rax, qword_ptr(rbx + rsi * 8))?;
                a.inc(rsi)?;
                a.mov(rdx, qword_ptr(rbx + rsi * 8))?;
                a.sub(rbx, 0x10)?;
                a.mov(rdi, qword_ptr(rbx + rsi * 8))
            },
            &[(-8, 16, Load, 3)],
        );
        // A step of 32 bits clears the rest; a register added is not known.
        check(
            |a| {
                a.mov(rax, qword_ptr(rbx))?;
                a.add(ebx, 8)?;
                a.mov(rax, qword_ptr(rbx))?;
                a.add(rbx, rcx)?;
                a.mov(rax, qword_ptr(rbx))
            },
            &[(0, 8, Load, 1), (0, 8, Load, 1), (0, 8, Load, 1)],
        );
        // What was pushed is popped into a register that a window uses.
        check(
            |a| {
                a.mov(rax, qword_ptr(rbx))?;
                a.push(rax)?;
                a.pop(rbx)?;
                a.mov(rax, qword_ptr(rbx))
            },
            &[(0, 8, Load, 1), (-8, 0, Store, 2), (0, 8, Load, 1)],
        );
    }

    #[test]
    fn a_store_joins_loads_that_it_follows_for_certain() {
        check(
            |a| {
                a.mov(rax, qword_ptr(rbx))?;
                a.inc(rax)?;
                a.mov(qword_ptr(rbx), rax)
            },
            &[(0, 8, Store, 2)],
        );
        check(
            |a| {
                let mut over = a.create_label();
                a.mov(rax, qword_ptr(rbx))?;
                a.test(rax, rax)?;
                a.jne(over)?;
                a.mov(qword_ptr(rbx), rcx)?;
                a.set_label(&mut over)?;
                a.nop()
            },
            &[(0, 8, Load, 1), (0, 8, Store, 1)],
        );
    }
}
