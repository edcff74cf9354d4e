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

use iced_x86::{Code, FlowControl, Instruction, OpAccess, OpKind, Register};

use super::access::{Access, Found, Place, gpr_number};
use super::bits::is_bit_string;
use super::copy::writes;
use super::facts::{Facts, Route};
use super::{Builder, Pending, PendingKind, Variant};
use crate::emit::Mem;
use crate::layout::{PINNED, WINDOWS, gpr_home, gs, host};

/// Largest span of a window, in bytes. The wider, the more often one straddles.
pub(crate) const SPAN: i32 = 512;

/// Bytes of the widest operand.
const WIDEST_OPERAND: i32 = 32;

/// Guest RSP.
const RSP: usize = 4;

/// An index register and its scale as a power of two.
type Index = Option<(u8, u8)>;

/// What the addresses of a window have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// Guest registers: base, index and its scale as a power of two.
    Registers(Option<u8>, Index),
    /// A constant address in this page.
    Page(u64),
}

impl Origin {
    /// RSP alone, whose constant steps are followed.
    fn is_stack(self) -> bool {
        matches!(self, Origin::Registers(Some(base), None) if usize::from(base) == RSP)
    }

    /// By how much it has changed, when its registers have by so much. `None`: by more
    /// than displacements hold.
    fn moved(self, by: &[i32; 16]) -> Option<i32> {
        let Origin::Registers(base, index) = self else { return Some(0) };
        let base = base.map_or(0, |n| by[usize::from(n & 15)]);
        let index = index.map_or(Some(0), |(n, scale)| by[usize::from(n & 15)].checked_mul(1 << scale));
        base.checked_add(index?)
    }

    /// The registers it is made of, a bit each.
    fn registers(self) -> u16 {
        match self {
            Origin::Registers(base, index) => base.map_or(0, |n| 1 << n) | index.map_or(0, |(n, _)| 1 << n),
            Origin::Page(_) => 0,
        }
    }
}

/// A group of accesses: displacements `low..high` from the origin's value when
/// the window was opened.
#[derive(Debug, Clone, Copy)]
struct Window {
    origin: Origin,
    access: Access,
    low: i32,
    high: i32,
    members: u32,
    open: bool,
    /// Branches in front of its first access.
    branches: u8,
}

/// An access that belongs to a window.
#[derive(Debug, Clone, Copy)]
struct Member {
    window: usize,
    /// Displacement from the origin's value when the window was opened.
    at: i32,
    /// By how much the origin has changed since.
    moved: i32,
}

/// The windows of one block.
#[derive(Default)]
pub(super) struct Plan {
    windows: Vec<Window>,
    /// By instruction.
    members: Vec<Option<Member>>,
    /// Slot of each window that has been looked up.
    slots: Vec<Option<u8>>,
    slots_used: u8,
    /// Registers that the addresses of open windows are made of.
    watched: u16,
}

/// What an instruction does to memory, for the plan.
pub(super) struct Operand {
    origin: Origin,
    pub disp: i32,
    pub size: i32,
    access: Access,
}

impl Operand {
    /// Base, and index with its scale; `None` for a constant address.
    pub fn registers(&self) -> Option<(Option<u8>, Index)> {
        match self.origin {
            Origin::Registers(base, index) => Some((base, index)),
            Origin::Page(_) => None,
        }
    }
}

impl Plan {
    /// No windows.
    pub fn clear(&mut self) {
        self.windows.clear();
        self.members.clear();
        self.slots.clear();
        self.slots_used = 0;
        self.watched = 0;
    }

    /// Group the accesses of a block; there are no windows yet. `word`: 8, or 4 in
    /// 32-bit code.
    pub fn make(&mut self, list: &[Instruction], facts: &[Facts], word: i32) {
        let mut moved = [0_i32; 16];
        let mut branches = 0;
        for (i, facts) in list.iter().zip(facts) {
            let member = operand(i, facts, word).and_then(|o| {
                let moved = o.origin.moved(&moved)?;
                self.join(&o, moved, branches)
            });
            self.members.push(member);
            branches += u8::from(facts.flow != FlowControl::Next);
            let mut unknown = written(i, facts);
            let moves = facts.stack || unknown != 0;
            if let Some((register, by)) = if moves { step(i, word) } else { None } {
                // Beyond what displacements hold, a register is as good as unknown.
                let now = moved[register].checked_add(by).filter(|m| m.unsigned_abs() <= 1 << 30);
                moved[register] = now.unwrap_or(0);
                let bit = 1 << register;
                unknown = if now.is_some() { unknown & !bit } else { unknown | bit };
            }
            if unknown != 0 {
                (0..16).filter(|n| unknown >> n & 1 != 0).for_each(|n| moved[n] = 0);
                if unknown & self.watched != 0 {
                    self.close(|o| o.registers() & unknown != 0);
                }
            }
            if facts.barrier || is_call(facts) {
                self.close(|_| true);
            }
        }
        self.slots.resize(self.windows.len(), None);
    }

    /// Whether an instruction may be the first of a window.
    pub fn opens(&self, instruction: usize) -> bool {
        let member = self.members.get(instruction).copied().flatten();
        member.is_some_and(|m| self.windows[m.window].members > 1 && self.slots[m.window].is_none())
    }

    /// Whether an instruction pushes or pops in a window that is open, and uses RSP for
    /// nothing else.
    pub fn in_open_slot(&self, instruction: usize, i: &Instruction, facts: &Facts) -> bool {
        let open = |m: Member| self.windows[m.window].members > 1 && self.slots[m.window].is_some();
        facts.stack
            && self.members.get(instruction).copied().flatten().is_some_and(open)
            && gpr_number(i.op0_register()) != Some(RSP)
    }

    /// Bytes of the window that holds an instruction's operand, whose address is made of
    /// registers other than RSP. They are all in one page if the operand is as large, and
    /// a multiple of its size.
    pub fn span(&self, instruction: usize) -> Option<i32> {
        let member = self.members.get(instruction).copied().flatten()?;
        let w = self.windows[member.window];
        let other = matches!(w.origin, Origin::Registers(..)) && !w.origin.is_stack();
        other.then_some(w.high - w.low).filter(|span| *span <= WIDEST_OPERAND)
    }

    /// An instruction looks its operand up by itself.
    pub fn leave_out(&mut self, instruction: usize) {
        if let Some(m) = self.members.get_mut(instruction) {
            *m = None;
        }
    }

    fn close(&mut self, of: impl Fn(Origin) -> bool) {
        self.watched = 0;
        for w in self.windows.iter_mut().filter(|w| w.open) {
            w.open = !of(w.origin);
            if w.open {
                self.watched |= w.origin.registers();
            }
        }
    }

    /// Add an access to an open window, or open one for it.
    /// `moved`: by how much its origin has changed so far. `branches`: how many are in
    /// front of it.
    fn join(&mut self, o: &Operand, moved: i32, branches: u8) -> Option<Member> {
        // Displacements that leave room for the stack's movement both ways.
        let at = o.disp.checked_add(moved).filter(|at| at.unsigned_abs() < 1 << 30)?;
        let (low, high) = match o.origin {
            Origin::Page(_) => (0, 0x1000),
            Origin::Registers(..) => (at, at.checked_add(o.size)?),
        };
        // What may be written may be read; what will be written for certain is looked up
        // for that at once.
        let found = self.windows.iter_mut().enumerate().rev().find(|(_, w)| {
            w.open
                && w.origin == o.origin
                && (w.access == o.access || w.access == Access::Store || w.branches == branches)
                && (matches!(o.origin, Origin::Page(_))
                    || i64::from(w.high.max(high)) - i64::from(w.low.min(low)) <= i64::from(SPAN))
        });
        let window = match found {
            Some((n, w)) => {
                (w.low, w.high) = (w.low.min(low), w.high.max(high));
                w.members += 1;
                if o.access == Access::Store {
                    w.access = Access::Store;
                }
                n
            }
            None => {
                self.watched |= o.origin.registers();
                self.windows.push(Window {
                    origin: o.origin,
                    access: o.access,
                    low,
                    high,
                    members: 1,
                    open: true,
                    branches,
                });
                self.windows.len() - 1
            }
        };
        Some(Member { window, at, moved })
    }
}

/// The memory operand of an instruction, if a window may hold it.
pub(super) fn operand(i: &Instruction, facts: &Facts, word: i32) -> Option<Operand> {
    if facts.stack {
        return slot(i, word);
    }
    if matches!(facts.route, Route::Hint | Route::Lea) {
        return None;
    }
    let n = facts.memory(i)?;
    if facts.flow != FlowControl::Next || facts.string || facts.route == Route::Other && is_bit_string(i) {
        return None;
    }
    // Through CS nothing may be written, and not always read.
    let flat = !matches!(i.segment_prefix(), Register::FS | Register::GS)
        && (word == 8 || i.segment_prefix() != Register::CS);
    if !flat {
        return None;
    }
    let access = match facts.access[n as usize] {
        OpAccess::Read | OpAccess::CondRead => Access::Load,
        OpAccess::None | OpAccess::NoMemAccess => return None,
        _ => Access::Store,
    };
    let size = Some(i32::from(facts.size)).filter(|size| *size != 0)?;
    let (base, index) = (i.memory_base(), i.memory_index());
    if base == Register::RIP || base == Register::None && index == Register::None {
        let linear = i.memory_displacement64();
        let disp = (linear & 0xfff) as i32;
        let origin = Origin::Page(linear & !0xfff);
        return (disp + size <= 0x1000).then_some(Operand { origin, disp, size, access });
    }
    let other = |r: Register| r != Register::None && r.size() != word as usize;
    if other(base) || other(index) {
        return None;
    }
    let number =
        |r: Register| if r == Register::None { Some(None) } else { gpr_number(r).map(|n| Some(n as u8)) };
    let index = number(index)?.map(|n| (n, i.memory_index_scale().trailing_zeros() as u8));
    let disp = displacement(i, word)?;
    Some(Operand { origin: Origin::Registers(number(base)?, index), disp, size, access })
}

/// The slot that an instruction pushes to or pops from, if that is all it does.
fn slot(i: &Instruction, word: i32) -> Option<Operand> {
    let (disp, access) = match i.code() {
        Code::Push_r64 | Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Call_rel32_64 => (-word, Access::Store),
        Code::Pop_r64 | Code::Retnq | Code::Retnq_imm16 => (0, Access::Load),
        _ => return None,
    };
    Some(Operand { origin: Origin::Registers(Some(RSP as u8), None), disp, size: word, access })
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

/// General registers an instruction writes, by number.
pub(super) fn written(i: &Instruction, facts: &Facts) -> u16 {
    (0..i.op_count())
        .filter(|n| i.op_kind(*n) == OpKind::Register && writes(facts.access[*n as usize]))
        .filter_map(|n| gpr_number(i.op_register(n)))
        .fold(facts.written, |mask, n| mask | 1 << n)
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
        if self.r.mode.variant == Variant::Plain {
            return None;
        }
        let m = (*self.plan.members.get(usize::from(self.index))?)?;
        let w = self.plan.windows[m.window];
        if w.members < 2 {
            return None;
        }
        match self.plan.slots[m.window] {
            Some(slot) => {
                if self.held != Some(m.window) {
                    self.e.load(host::TEMP, Mem::gs(gs!(windows) + 8 * i32::from(slot)));
                }
            }
            None if usize::from(self.plan.slots_used) == WINDOWS => return None,
            None => {
                let slot = self.plan.slots_used;
                self.open_window(&w, w.low.checked_sub(m.moved)?);
                self.e.store(Mem::gs(gs!(windows) + 8 * i32::from(slot)), host::TEMP);
                self.plan.slots[m.window] = Some(slot);
                self.plan.slots_used += 1;
            }
        }
        self.now_held = Some(m.window);
        Some(Found::at_temp(m.at - w.low))
    }

    /// TEMP = the host address of a window whose start is `lead` bytes from what
    /// its origin is now; or leave.
    fn open_window(&mut self, w: &Window, lead: i32) {
        match w.origin {
            Origin::Page(page) => self.e.mov_imm(host::ADDRESS, page),
            Origin::Registers(base, index) => {
                let mut place = |n: u8, scratch: u8| {
                    PINNED[usize::from(n)].unwrap_or_else(|| {
                        self.e.load(scratch, Mem::gs(gpr_home(usize::from(n))));
                        scratch
                    })
                };
                let base = base.map(|n| place(n, host::ADDRESS));
                let index = index.map(|(n, scale)| (place(n, host::TEMP), scale));
                let m = Mem { gs: false, base, index, disp: lead };
                if self.r.mode.narrow {
                    self.e.lea32(host::ADDRESS, m);
                } else {
                    self.e.lea(host::ADDRESS, m);
                }
                if !self.alignment.of(usize::from(self.index)) {
                    self.e.pext_gs(host::TEMP, host::ADDRESS, gs!(page_offset_mask));
                    let last = gs!(within_page) + (w.high - w.low - 1);
                    self.e.load_byte(
                        host::TEMP,
                        Mem { gs: true, base: Some(host::TEMP), index: None, disp: last },
                    );
                    let at = self.e.jrcxz();
                    self.pend(Pending { at, kind: PendingKind::Plain(self.ip) });
                }
            }
        }
        self.e.pext(host::TEMP, host::ADDRESS, host::PAGE_MASK);
        let entry = Mem::indexed(host::TABLE, host::TEMP, 3);
        self.load_entry(w.access, entry, Place::Register(host::ADDRESS, 0), false);
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
    fn check(build: Build, expected: &[(i32, i32, Access, u32)]) {
        let mut a = CodeAssembler::new(64).unwrap();
        build(&mut a).unwrap();
        let code = a.assemble(0x40_1000).unwrap();
        let list: Vec<Instruction> =
            Decoder::with_ip(64, &code, 0x40_1000, DecoderOptions::NONE).into_iter().collect();
        let mut plan = Plan::default();
        let mut table = FactTable::new(HostFeatures::detect());
        let facts: Vec<Facts> = list.iter().map(|i| table.of(i)).collect();
        plan.make(&list, &facts, 8);
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
