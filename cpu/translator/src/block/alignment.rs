//! Operands that are multiples of their size cannot cross a page, so their look-up
//! needs no probe.
//!
//! Before a block is emitted, its operands are looked at for what they would need
//! to be aligned: mostly that registers are multiples of the operand's size when
//! the block begins, as what is added to them on the way is. Where several operands
//! would gain, or the block repeats, the block checks its registers once and relies
//! on it; a block that goes back to its own start need not check again. If a
//! register is not aligned, the guest goes on in a block made without the check.

use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};

use super::access::gpr_number;
use super::copy::checks_alignment;
use super::facts::Known;
use super::few::Few;
use super::windows::{Member, Origin, Plan, is_call};
use super::{Builder, Variant};
use crate::emit::Mem;
use crate::layout::{PINNED, gpr_home, gs, host};

/// Most registers a block checks.
const MOST_CHECKS: usize = 3;
/// Widest operand, in bytes; what is added to registers is known modulo this.
const WIDEST: u8 = 32;
/// Guest RSP, whose slots are checked by themselves.
const RSP: u8 = 4;

/// What is known of a register: the value of one when the block began, plus a
/// constant modulo [`WIDEST`].
type Value = Option<(u8, u8)>;

/// A register that is a multiple of a power of two when the block begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Multiple {
    register: u8,
    of: u8,
}

/// What an operand needs to be aligned: nothing, or one or two registers.
type Needs = Few<Multiple>;

/// What one block checks and what follows.
#[derive(Default)]
pub(super) struct Alignment {
    /// Instructions whose operands may be aligned, in order, their sizes and what they need.
    needs: Vec<(u8, u8, Needs)>,
    checks: Few<Multiple>,
    /// Instructions whose operands are multiples of their size, a bit each.
    aligned: u64,
    /// Instructions that go back to the block's start, where the checks would hold.
    holds: u64,
}

impl Alignment {
    /// Nothing is known.
    pub fn clear(&mut self) {
        self.needs.clear();
        self.checks = Few::default();
        (self.aligned, self.holds) = (0, 0);
    }

    /// Decide for the block at `start`; its windows are known.
    pub fn make(&mut self, list: &[Instruction], known: &[Known], plan: &Plan, start: u64) {
        // Those whose registers would be worth a check: outside loops, wide operands are
        // often aligned to words alone, and what one operand gains is not worth it.
        let (mut candidates, mut gain) = (0, 0);
        for (m, origin) in plan.alone().filter(|(m, o)| may_be_aligned(m, *o)) {
            let registers = origin.base().is_some() || origin.index().is_some_and(|(_, by)| m.size >> by > 1);
            candidates += 1;
            gain += u8::from(m.size <= 8 && registers);
        }
        if candidates == 0 {
            return;
        }
        let jumps = |(i, k): (&Instruction, &Known)| k.facts.flow != FlowControl::Next && goes_to(i, start);
        let repeats = list.iter().zip(known).any(jumps);
        let follows = repeats || gain > 1;
        let mut values = if follows { values_at_start() } else { [None; 16] };
        let mut from = 0;
        for (m, origin) in plan.alone().filter(|(m, o)| may_be_aligned(m, *o)) {
            let n = usize::from(m.instruction);
            let (Some(i), Some(before)) = (list.get(n), list.get(from..n).zip(known.get(from..n))) else {
                break;
            };
            if follows {
                before.0.iter().zip(before.1).for_each(|(i, k)| follow(&mut values, i, k));
                from = n;
            }
            if let Some(needs) = needs(i, m, origin, &values) {
                self.needs.push((m.instruction, m.size, needs));
            }
        }
        if repeats {
            self.choose(true);
            self.look_for_repetition(list, known, start);
            if !self.repeats() {
                self.checks = Few::default();
                self.choose(false);
            }
        } else if follows {
            self.choose(false);
        }
        self.aligned = self
            .needs
            .iter()
            .filter(|(_, _, needs)| self.met(needs))
            .fold(0, |all, (n, ..)| all | 1 << (n & 63));
    }

    /// Choose what to check: the registers that most operands need, as long as more
    /// operands gain than registers are checked, or any in a block that repeats.
    fn choose(&mut self, repeats: bool) {
        let mut wanted = [(0_u8, 1_u8); 16];
        if !repeats {
            self.needs.retain(|(_, size, needs)| *size <= 8 || needs.is_empty());
        }
        for m in self.needs.iter().flat_map(|(_, _, needs)| needs.iter()) {
            let (count, of) = &mut wanted[usize::from(m.register & 15)];
            (*count, *of) = (*count + 1, (*of).max(m.of));
        }
        for _ in 0..MOST_CHECKS {
            let best = (0..16_u8).max_by_key(|r| wanted[usize::from(*r)].0).unwrap_or(0);
            let (count, of) = wanted[usize::from(best)];
            if count == 0 || !self.checks.push(Multiple { register: best, of }) {
                break;
            }
            wanted[usize::from(best)].0 = 0;
        }
        // What no operand gains by is not checked.
        let (mut gaining, mut used) = (0, 0_u16);
        for (_, _, needs) in self.needs.iter().filter(|(_, _, n)| !n.is_empty() && self.met(n)) {
            gaining += 1;
            used |= needs.iter().fold(0, |used, m| used | 1 << (m.register & 15));
        }
        let mut checks: Few<Multiple> = Few::default();
        if repeats || gaining > used.count_ones() {
            for m in self.checks.iter().filter(|m| used >> (m.register & 15) & 1 != 0) {
                let _ = checks.push(*m);
            }
        }
        self.checks = checks;
    }

    /// Whether an operand is aligned if what is checked holds.
    fn met(&self, needs: &Needs) -> bool {
        needs.iter().all(|m| self.checked(m.register) >= m.of)
    }

    fn look_for_repetition(&mut self, list: &[Instruction], known: &[Known], start: u64) {
        if self.checks.is_empty() {
            return;
        }
        let mut values = values_at_start();
        for (n, (i, known)) in list.iter().zip(known).enumerate() {
            let kept = |m: &Multiple| {
                let value = values[usize::from(m.register & 15)];
                value.is_some_and(|(from, plus)| self.checked(from) >= m.of && plus % m.of == 0)
            };
            if known.facts.flow != FlowControl::Next && goes_to(i, start) && self.checks.iter().all(kept) {
                self.holds |= 1 << (n & 63);
            }
            follow(&mut values, i, known);
        }
    }

    /// What a register is known to be a multiple of when the block begins.
    fn checked(&self, register: u8) -> u8 {
        self.checks.iter().find(|m| m.register == register).map_or(1, |m| m.of)
    }

    /// Whether an instruction's operand is a multiple of its size.
    pub fn of(&self, instruction: usize) -> bool {
        self.aligned >> (instruction & 63) & 1 != 0
    }

    /// Whether the block goes back to its start without checking again.
    pub fn repeats(&self) -> bool {
        self.holds != 0
    }

    /// Whether a branch may go back to the start without checking again.
    pub fn holds(&self, instruction: usize) -> bool {
        self.holds >> (instruction & 63) & 1 != 0
    }
}

fn values_at_start() -> [Value; 16] {
    std::array::from_fn(|n| Some((n as u8, 0)))
}

/// Whether an instruction is a branch to this address.
fn goes_to(i: &Instruction, to: u64) -> bool {
    matches!(i.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch)
        && i.op0_kind() == OpKind::NearBranch64
        && i.near_branch_target() == to
}

/// Whether an operand that is all of its window may be known to be aligned.
fn may_be_aligned(m: &Member, origin: Origin) -> bool {
    m.size.is_power_of_two() && (2..=WIDEST).contains(&m.size) && origin.base() != Some(RSP)
}

/// What such a memory operand needs to be aligned; `None` if it needs no probe anyway or
/// cannot be told.
fn needs(i: &Instruction, m: &Member, origin: Origin, values: &[Value; 16]) -> Option<Needs> {
    let size = m.size;
    if checks_alignment(i, size.into()) {
        return None;
    }
    let value = |n: u8| values.get(usize::from(n)).copied().flatten();
    let mut needs = Needs::default();
    let mut constant = m.disp() as u8;
    if let Some(base) = origin.base() {
        let (register, plus) = value(base)?;
        constant = constant.wrapping_add(plus);
        let _ = needs.push(Multiple { register, of: size });
    }
    if constant % size != 0 {
        return None;
    }
    if let Some((index, scale)) = origin.index() {
        let of = size >> scale;
        if of > 1 {
            let (register, plus) = value(index)?;
            if plus % of != 0 {
                return None;
            }
            let _ = needs.push(Multiple { register, of });
        }
    }
    Some(needs)
}

/// The registers' values after an instruction.
fn follow(values: &mut [Value; 16], i: &Instruction, known: &Known) {
    if is_call(&known.facts) {
        *values = [None; 16];
        return;
    }
    let mut gone = known.written;
    if gone == 0 {
        return;
    }
    let moved = if known.facts.steps { moved(i) } else { None };
    let moved = moved.and_then(|(to, from, by)| {
        let (register, plus) = values[from]?;
        Some((to, (register, plus.wrapping_add(by as u8) % WIDEST)))
    });
    while gone != 0 {
        values[gone.trailing_zeros() as usize] = None;
        gone &= gone - 1;
    }
    if let Some((to, value)) = moved {
        values[to] = Some(value);
    }
}

/// `(to, from, by)`: an instruction that does nothing to general registers but set
/// one to another plus a constant, as far as the low bits matter.
fn moved(i: &Instruction) -> Option<(usize, usize, i64)> {
    let register = |n: u32| {
        let r = i.op_register(n);
        if i.op_kind(n) == OpKind::Register && r.size() >= 4 { gpr_number(r) } else { None }
    };
    let plus = |sign: i64| {
        let to = register(0)?;
        Some((to, to, sign * (i.immediate(1) as i64 & 0xff)))
    };
    match i.code() {
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64 | Code::Mov_r32_rm32 | Code::Mov_rm32_r32 => {
            Some((register(0)?, register(1)?, 0))
        }
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_rm32_imm8 | Code::Add_rm32_imm32 => plus(1),
        Code::Add_RAX_imm32 | Code::Add_EAX_imm32 => plus(1),
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_rm32_imm8 | Code::Sub_rm32_imm32 => plus(-1),
        Code::Sub_RAX_imm32 | Code::Sub_EAX_imm32 => plus(-1),
        Code::Inc_rm64 | Code::Inc_rm32 => register(0).map(|to| (to, to, 1)),
        Code::Dec_rm64 | Code::Dec_rm32 => register(0).map(|to| (to, to, -1)),
        Code::Lea_r64_m | Code::Lea_r32_m
            if i.memory_index() == Register::None && i.memory_base().size() == 8 =>
        {
            Some((register(0)?, gpr_number(i.memory_base())?, i.memory_displacement64() as i64 & 0xff))
        }
        _ => None,
    }
}

impl Builder<'_> {
    /// Go on in a block that checks nothing unless the registers are as this one
    /// needs them.
    pub(super) fn check_alignment(&mut self) {
        let checks = self.s.alignment.checks;
        for (n, m) in checks.iter().enumerate() {
            let guest = usize::from(m.register);
            let to = if n == 0 { host::TEMP } else { host::ADDRESS };
            let from = PINNED[guest].unwrap_or_else(|| {
                self.e.load(to, Mem::gs(gpr_home(guest)));
                to
            });
            let mask = match m.of {
                8 => gs!(qword_offset_mask),
                of => gs!(alignment_masks) + 8 * of.trailing_zeros() as i32,
            };
            self.e.pext_gs(to, from, mask);
            if n > 0 {
                self.e.lea(host::TEMP, Mem::indexed(host::TEMP, host::ADDRESS, 0));
            }
        }
        if !checks.is_empty() {
            let aligned = self.e.jrcxz();
            self.leave_to_variant(self.r.va, Variant::Probing);
            let reached = self.e.land_short(aligned);
            debug_assert!(reached, "a link within a page is short");
        }
    }

    /// Where a branch of this block goes back to, if it leads to the block's start and
    /// what was checked there holds.
    pub(super) fn again(&self, target: u64) -> Option<usize> {
        let back = target == self.r.va && self.s.alignment.holds(usize::from(self.index));
        self.again.filter(|_| back)
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;
    use iced_x86::{Decoder, DecoderOptions};

    use super::super::classify::HostFeatures;
    use super::super::facts::FactTable;
    use super::*;

    const START: u64 = 0x40_1000;

    type Build = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

    /// What is checked at the start, which instructions' operands are aligned then, and
    /// which go back to the start without checking again.
    fn check(build: Build, checks: &[(u8, u8)], aligned: &[usize], holds: &[usize]) {
        let mut a = CodeAssembler::new(64).unwrap();
        build(&mut a).unwrap();
        let code = a.assemble(START).unwrap();
        let list: Vec<Instruction> =
            Decoder::with_ip(64, &code, START, DecoderOptions::NONE).into_iter().collect();
        let mut table = FactTable::new(HostFeatures::detect());
        let known: Vec<Known> = list.iter().map(|i| Known::of(i, table.of(i))).collect();
        let (mut plan, mut found) = (Plan::default(), Alignment::default());
        plan.make(&list, &known, 8, None);
        found.make(&list, &known, &plan, START);
        let text = list.iter().map(|i| format!("{i}\n")).collect::<String>();
        let mut checked: Vec<_> = found.checks.iter().map(|m| (m.register, m.of)).collect();
        checked.sort_unstable();
        let all = |of: &dyn Fn(usize) -> bool| (0..list.len()).filter(|n| of(*n)).collect::<Vec<_>>();
        assert_eq!(checked, checks, "checks of\n{text}");
        assert_eq!(all(&|n| found.of(n)), aligned, "aligned in\n{text}");
        assert_eq!(all(&|n| found.holds(n)), holds, "holds in\n{text}");
    }

    #[test]
    fn a_loop_checks_what_its_steps_keep() {
        check(
            |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.mov(rax, qword_ptr(rsi))?;
                a.adc(rax, qword_ptr(rdi + rcx * 8))?;
                a.lea(rsi, rsi + 8)?;
                a.inc(rcx)?;
                a.cmp(rcx, rdx)?;
                a.jne(top)
            },
            &[(6, 8), (7, 8)],
            &[0, 1],
            &[5],
        );
        // Bytes at odd steps keep nothing; they need nothing either.
        check(
            |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.movzx(eax, byte_ptr(rsi))?;
                a.mov(dword_ptr(rdi), eax)?;
                a.inc(rsi)?;
                a.add(rdi, 4)?;
                a.jmp(top)
            },
            &[(7, 4)],
            &[1],
            &[4],
        );
        // A step that does not keep it.
        check(
            |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.mov(rax, qword_ptr(rsi))?;
                a.add(rsi, 12)?;
                a.jmp(top)
            },
            &[],
            &[],
            &[],
        );
        // The next pointer comes from memory.
        check(
            |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.mov(rsi, qword_ptr(rsi))?;
                a.jmp(top)
            },
            &[],
            &[],
            &[],
        );
    }

    #[test]
    fn what_an_operand_needs() {
        // One operand is not worth a check outside loops, two are.
        check(
            |a| {
                a.mov(rax, qword_ptr(rsi + rcx * 8 + 16))?;
                a.ret()
            },
            &[],
            &[],
            &[],
        );
        check(
            |a| {
                a.mov(rax, qword_ptr(rsi + rcx * 8 + 16))?;
                a.add(rsi, 8)?;
                a.mov(rdx, rsi)?;
                a.mov(qword_ptr(rdx - 8), rax)?;
                a.ret()
            },
            &[(6, 8)],
            &[0, 3],
            &[],
        );
        // Three registers for two operands are too many.
        check(
            |a| {
                a.mov(rax, qword_ptr(rsi + rcx))?;
                a.mov(qword_ptr(rdi + rcx), rax)?;
                a.ret()
            },
            &[],
            &[],
            &[],
        );
        // Displacements and steps that misalign an aligned register; partial writes.
        check(
            |a| {
                a.mov(rax, qword_ptr(rsi + rcx * 8 + 4))?;
                a.add(rsi, 2)?;
                a.mov(rdx, qword_ptr(rsi + rcx * 8))?;
                a.mov(dl, 1)?;
                a.mov(rax, qword_ptr(rdx))?;
                a.ret()
            },
            &[],
            &[],
            &[],
        );
        // Tables at constant addresses need nothing but a scale that fits.
        check(
            |a| {
                a.mov(eax, dword_ptr(rax * 4 + 0x1000))?;
                a.mov(edx, dword_ptr(rdx * 4 + 0x1002))?;
                a.mov(rdx, qword_ptr(rdx * 4 + 0x1000))?;
                a.ret()
            },
            &[],
            &[0],
            &[],
        );
    }

    #[test]
    fn wide_operands_are_checked_in_loops_only() {
        check(
            |a| {
                a.movdqu(xmm0, xmmword_ptr(rsi))?;
                a.add(rsi, rcx)?;
                a.movdqu(xmm1, xmmword_ptr(rdi))?;
                a.ret()
            },
            &[],
            &[],
            &[],
        );
        check(
            |a| {
                let mut top = a.create_label();
                a.set_label(&mut top)?;
                a.movups(xmm0, xmmword_ptr(rsi + rax))?;
                a.movups(xmmword_ptr(rdi + rax), xmm0)?;
                a.add(rax, 16)?;
                a.cmp(rax, rdx)?;
                a.jne(top)
            },
            &[(0, 16), (6, 16), (7, 16)],
            &[0, 1],
            &[4],
        );
    }
}
