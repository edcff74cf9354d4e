//! PUSH, POP, PUSHA, POPA, ENTER and LEAVE.

use iced_x86::{Code, Instruction, Mnemonic};

use super::{Shape, Width};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::{Handler, Insn};

const RSP: u8 = 4;
const RBP: u8 = 5;
const SS: u8 = 2;

pub(super) fn handler(i: &Instruction, insn: &mut Insn, shape: Shape) -> Option<Handler> {
    let narrow = |code: Code, word: Code| if code == word { 2 } else { 4 };
    Some(match i.mnemonic() {
        Mnemonic::Push => match shape {
            Shape::Reg => match insn.size {
                2 => push_reg::<u16>,
                4 => push_reg::<u32>,
                _ => push_reg::<u64>,
            },
            Shape::Mem => match insn.size {
                2 => push_mem::<u16>,
                4 => push_mem::<u32>,
                _ => push_mem::<u64>,
            },
            _ => {
                insn.size = match i.code() {
                    Code::Pushw_imm8 | Code::Push_imm16 => 2,
                    Code::Pushd_imm8 | Code::Pushd_imm32 => 4,
                    Code::Pushq_imm8 | Code::Pushq_imm32 => 8,
                    _ => return None,
                };
                push_imm
            }
        },
        Mnemonic::Pop => match (shape, insn.size) {
            (Shape::Reg, 2) => pop_reg::<u16>,
            (Shape::Reg, 4) => pop_reg::<u32>,
            (Shape::Reg, _) => pop_reg::<u64>,
            (Shape::Mem, 2) => pop_mem::<u16>,
            (Shape::Mem, 4) => pop_mem::<u32>,
            (Shape::Mem, _) => pop_mem::<u64>,
            _ => return None,
        },
        Mnemonic::Pusha | Mnemonic::Pushad => {
            insn.size = narrow(i.code(), Code::Pushaw);
            if insn.size == 2 { push_all::<u16> } else { push_all::<u32> }
        }
        Mnemonic::Popa | Mnemonic::Popad => {
            insn.size = narrow(i.code(), Code::Popaw);
            if insn.size == 2 { pop_all::<u16> } else { pop_all::<u32> }
        }
        Mnemonic::Enter => match i.code() {
            Code::Enterw_imm16_imm8 => enter::<u16>,
            Code::Enterd_imm16_imm8 => enter::<u32>,
            _ => enter::<u64>,
        },
        Mnemonic::Leave => match i.code() {
            Code::Leavew => leave::<u16>,
            Code::Leaved => leave::<u32>,
            _ => leave::<u64>,
        },
        _ => return None,
    })
}

/// Push without a branch on the size.
#[inline(always)]
fn push<T: Width>(cpu: &mut Cpu, v: T) -> Step {
    let new = cpu.regs[RSP as usize].wrapping_sub(T::SIZE as u64) & cpu.stack_mask();
    cpu.write_seg(SS, new, v)?;
    cpu.set_stack_pointer(new);
    Ok(())
}

#[inline(always)]
fn pop<T: Width>(cpu: &mut Cpu) -> Result<T, Stop> {
    let at = cpu.regs[RSP as usize] & cpu.stack_mask();
    let v = cpu.read_seg::<T>(SS, at)?;
    cpu.set_stack_pointer(at.wrapping_add(T::SIZE as u64));
    Ok(v)
}

fn push_reg<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    push(cpu, T::reg(cpu, i.ops[0]))
}

fn push_mem<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.load::<T>(i)?;
    push(cpu, v)
}

fn push_imm(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.push(i.size, i.imm)
}

fn pop_reg<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = pop::<T>(cpu)?;
    T::set_reg(cpu, i.ops[0], v);
    Ok(())
}

/// An address that uses RSP uses its value after the pop.
fn pop_mem<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let rsp = cpu.regs[RSP as usize];
    let v = pop::<T>(cpu)?;
    let stored = cpu.store(i, v);
    if stored.is_err() {
        cpu.regs[RSP as usize] = rsp;
    }
    stored
}

fn push_all<T: Width>(cpu: &mut Cpu, _: &Insn) -> Step {
    let (mask, top) = (cpu.stack_mask(), cpu.regs[RSP as usize]);
    let mut at = top;
    for n in 0..8 {
        at = at.wrapping_sub(T::SIZE as u64) & mask;
        cpu.write_seg(SS, at, T::reg(cpu, n))?;
    }
    cpu.set_stack_pointer(at);
    Ok(())
}

fn pop_all<T: Width>(cpu: &mut Cpu, _: &Insn) -> Step {
    let mask = cpu.stack_mask();
    let mut at = cpu.regs[RSP as usize] & mask;
    let mut values = [T::default(); 8];
    for v in values.iter_mut().rev() {
        *v = cpu.read_seg::<T>(SS, at)?;
        at = at.wrapping_add(T::SIZE as u64) & mask;
    }
    for (n, v) in values.into_iter().enumerate() {
        if n != RSP as usize {
            T::set_reg(cpu, n as u8, v);
        }
    }
    cpu.set_stack_pointer(at);
    Ok(())
}

/// SDM volume 2, ENTER. The frame's last byte is probed before anything changes.
fn enter<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let mask = cpu.stack_mask();
    let (size, level) = (i.imm & 0xffff, u64::from(i.aux & 31));
    let step = T::SIZE as u64;
    let (rbp, mut at) = (cpu.regs[RBP as usize], cpu.regs[RSP as usize] & mask);
    at = at.wrapping_sub(step) & mask;
    cpu.write_seg(SS, at, T::reg(cpu, RBP))?;
    // FrameTemp is all of ESP, on a 16-bit stack too.
    let frame = cpu.regs[RSP as usize] & !mask | at;
    for n in 1..level {
        let v = cpu.read_seg::<T>(SS, rbp.wrapping_sub(n * step) & mask)?;
        at = at.wrapping_sub(step) & mask;
        cpu.write_seg(SS, at, v)?;
    }
    if level > 0 {
        at = at.wrapping_sub(step) & mask;
        cpu.write_seg(SS, at, T::from_u64(frame))?;
    }
    at = at.wrapping_sub(size) & mask;
    // The new top of stack must be writable.
    let probe = cpu.segment_address(SS, at, step, true)?;
    cpu.probe_write(probe, step, crate::cpu::Privilege::Current)?;
    T::set_reg(cpu, RBP, T::from_u64(frame));
    cpu.set_stack_pointer(at);
    Ok(())
}

fn leave<T: Width>(cpu: &mut Cpu, _: &Insn) -> Step {
    let at = cpu.regs[RBP as usize] & cpu.stack_mask();
    let v = cpu.read_seg::<T>(SS, at)?;
    cpu.set_stack_pointer(at.wrapping_add(T::SIZE as u64));
    T::set_reg(cpu, RBP, v);
    Ok(())
}
