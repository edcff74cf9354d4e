//! Near jumps, calls, returns and loops. Every one ends its block.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind};
use x86_semantics::int;

use super::moves::condition_number;
use super::{Width, by_condition};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::{Handler, Insn};

const RCX: u8 = 1;

pub(super) fn handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    if let Some(bytes) = return_size(i.code()) {
        insn.size = bytes;
        insn.aux = width_mask(bytes);
        return Some(if bytes == 8 { return_64 } else { return_narrow });
    }
    match i.flow_control() {
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call => {
            if i.op_count() == 0 { None } else { relative(i, insn) }
        }
        FlowControl::IndirectBranch | FlowControl::IndirectCall => indirect(i, insn),
        _ => None,
    }
}

/// Mask of RIP for a 16- or 32-bit operand size; unused for 64 bits.
fn width_mask(bytes: u8) -> u32 {
    if bytes == 2 { 0xffff } else { u32::MAX }
}

fn return_size(code: Code) -> Option<u8> {
    Some(match code {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        Code::Retnq | Code::Retnq_imm16 => 8,
        _ => return None,
    })
}

fn relative(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let bytes = match i.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => return None,
    };
    let long = bytes == 8;
    insn.size = bytes;
    insn.aux = width_mask(bytes);
    Some(match i.mnemonic() {
        Mnemonic::Jmp if long => jump_64,
        Mnemonic::Jmp => jump_narrow,
        Mnemonic::Call if long => call_64,
        Mnemonic::Call => call_narrow,
        Mnemonic::Loop
        | Mnemonic::Loope
        | Mnemonic::Loopne
        | Mnemonic::Jcxz
        | Mnemonic::Jecxz
        | Mnemonic::Jrcxz => {
            insn.address_shift = 64 - counter_bits(i.code());
            match i.mnemonic() {
                Mnemonic::Loop => loop_always,
                Mnemonic::Loope => loop_if::<true>,
                Mnemonic::Loopne => loop_if::<false>,
                _ => jump_if_zero_count,
            }
        }
        _ => {
            let c = condition_number(i)?;
            if long { by_condition!(c, jump_if_64) } else { by_condition!(c, jump_if_narrow) }
        }
    })
}

/// Width of the count register of LOOP and JCXZ.
fn counter_bits(code: Code) -> u8 {
    use Code::*;
    match code {
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX
        | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => 16,
        Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX | Loopne_rel8_16_RCX
        | Loopne_rel8_64_RCX | Jrcxz_rel8_16 | Jrcxz_rel8_64 => 64,
        _ => 32,
    }
}

fn indirect(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let (bytes, call) = match i.code() {
        Code::Jmp_rm16 => (2, false),
        Code::Jmp_rm32 => (4, false),
        Code::Jmp_rm64 => (8, false),
        Code::Call_rm16 => (2, true),
        Code::Call_rm32 => (4, true),
        Code::Call_rm64 => (8, true),
        _ => return None,
    };
    insn.size = bytes;
    Some(match (call, bytes) {
        (false, 2) => jump_indirect::<u16>,
        (false, 4) => jump_indirect::<u32>,
        (false, _) => jump_indirect::<u64>,
        (true, 2) => call_indirect::<u16>,
        (true, 4) => call_indirect::<u32>,
        (true, _) => call_indirect::<u64>,
    })
}

impl Cpu {
    /// #GP(0) unless `target` lies in the code segment, or is canonical.
    #[inline(always)]
    pub(crate) fn check_near_target(&mut self, target: u64) -> Step {
        let ok = if self.code_bits == 64 {
            self.canonical(target)
        } else {
            target <= u64::from(self.segments[1].limit)
        };
        if ok { Ok(()) } else { Err(self.gp(0)) }
    }
}

#[inline(always)]
fn jump_64(cpu: &mut Cpu, i: &Insn) -> Step {
    let target = cpu.rip().wrapping_add(i.imm);
    cpu.check_near_target(target)?;
    cpu.set_rip(target);
    Ok(())
}

fn jump_narrow(cpu: &mut Cpu, i: &Insn) -> Step {
    let target = cpu.rip().wrapping_add(i.imm) & u64::from(i.aux);
    cpu.check_near_target(target)?;
    cpu.set_rip(target);
    Ok(())
}

fn jump_if_64<const C: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    if int::condition(C, cpu.flags) { jump_64(cpu, i) } else { Ok(()) }
}

fn jump_if_narrow<const C: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    if int::condition(C, cpu.flags) { jump_narrow(cpu, i) } else { Ok(()) }
}

/// A taken LOOP or JCXZ.
fn jump(cpu: &mut Cpu, i: &Insn) -> Step {
    if i.size == 8 { jump_64(cpu, i) } else { jump_narrow(cpu, i) }
}

/// Count down and jump unless the count is zero or `also` is false. A jump that
/// faults has not counted.
fn count_and_jump(cpu: &mut Cpu, i: &Insn, also: bool) -> Step {
    let rcx = cpu.regs[RCX as usize];
    let mask = u64::MAX >> (i.address_shift & 63);
    let count = rcx.wrapping_sub(1) & mask;
    if count != 0 && also {
        jump(cpu, i)?;
    }
    match i.address_shift {
        0 => u64::set_reg(cpu, RCX, count),
        32 => u32::set_reg(cpu, RCX, count as u32),
        _ => u16::set_reg(cpu, RCX, count as u16),
    }
    Ok(())
}

fn loop_always(cpu: &mut Cpu, i: &Insn) -> Step {
    count_and_jump(cpu, i, true)
}

fn loop_if<const ZF: bool>(cpu: &mut Cpu, i: &Insn) -> Step {
    let also = cpu.flags.zf() == ZF;
    count_and_jump(cpu, i, also)
}

fn jump_if_zero_count(cpu: &mut Cpu, i: &Insn) -> Step {
    let mask = u64::MAX >> (i.address_shift & 63);
    if cpu.regs[RCX as usize] & mask == 0 { jump(cpu, i) } else { Ok(()) }
}

fn call_64(cpu: &mut Cpu, i: &Insn) -> Step {
    let next = cpu.rip();
    let target = next.wrapping_add(i.imm);
    cpu.check_near_target(target)?;
    cpu.push(8, next)?;
    cpu.set_rip(target);
    Ok(())
}

fn call_narrow(cpu: &mut Cpu, i: &Insn) -> Step {
    let next = cpu.rip();
    let target = next.wrapping_add(i.imm) & u64::from(i.aux);
    cpu.check_near_target(target)?;
    cpu.push(i.size, next)?;
    cpu.set_rip(target);
    Ok(())
}

#[inline(always)]
fn target<T: Width>(cpu: &mut Cpu, i: &Insn) -> Result<u64, Stop> {
    let t = if i.has(Insn::MEM) { cpu.load::<T>(i)? } else { T::reg(cpu, i.ops[0]) };
    let t = t.to_u64();
    cpu.check_near_target(t)?;
    Ok(t)
}

fn jump_indirect<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let t = target::<T>(cpu, i)?;
    cpu.set_rip(t);
    Ok(())
}

fn call_indirect<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let t = target::<T>(cpu, i)?;
    let next = cpu.rip();
    cpu.push(T::SIZE as u8, next)?;
    cpu.set_rip(t);
    Ok(())
}

fn return_64(cpu: &mut Cpu, i: &Insn) -> Step {
    let at = cpu.regs[4];
    let t = cpu.read_seg::<u64>(2, at)?;
    cpu.check_near_target(t)?;
    cpu.regs[4] = at.wrapping_add(8 + (i.imm & 0xffff));
    cpu.set_rip(t);
    Ok(())
}

fn return_narrow(cpu: &mut Cpu, i: &Insn) -> Step {
    let at = cpu.regs[4] & cpu.stack_mask();
    let t = match i.size {
        2 => u64::from(cpu.read_seg::<u16>(2, at)?),
        _ => u64::from(cpu.read_seg::<u32>(2, at)?),
    };
    cpu.check_near_target(t)?;
    cpu.set_stack_pointer(at.wrapping_add(u64::from(i.size)).wrapping_add(i.imm & 0xffff));
    cpu.set_rip(t);
    Ok(())
}
