//! Moves, extensions, addresses, conditional moves and sets.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic};
use x86_semantics::{bits, int};

use super::{Shape, Width, by_condition, sized, sized_wide};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn, REG_ZERO};

pub(super) fn handler(i: &Instruction, insn: &mut Insn, shape: Shape) -> Option<Handler> {
    let size = insn.size;
    Some(match i.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti => match shape {
            Shape::RegReg => sized!(size, reg_reg),
            Shape::RegMem => sized!(size, reg_mem),
            Shape::RegImm => sized!(size, reg_imm),
            Shape::MemReg => sized!(size, mem_reg),
            Shape::MemImm => sized!(size, mem_imm),
            _ => return None,
        },
        Mnemonic::Movzx => match (source_size(i), shape) {
            (1, Shape::RegReg) => sized_wide!(size, zero_extend_reg, u8),
            (1, _) => sized_wide!(size, zero_extend_mem, u8),
            (_, Shape::RegReg) => sized_wide!(size, zero_extend_reg, u16),
            (_, _) => sized_wide!(size, zero_extend_mem, u16),
        },
        Mnemonic::Movsx | Mnemonic::Movsxd => match (source_size(i), shape) {
            (1, Shape::RegReg) => sized_wide!(size, sign_extend_reg, u8),
            (1, _) => sized_wide!(size, sign_extend_mem, u8),
            (2, Shape::RegReg) => sized_wide!(size, sign_extend_reg, u16),
            (2, _) => sized_wide!(size, sign_extend_mem, u16),
            (_, Shape::RegReg) => sized_wide!(size, sign_extend_reg, u32),
            (_, _) => sized_wide!(size, sign_extend_mem, u32),
        },
        Mnemonic::Lea => sized_wide!(size, lea),
        Mnemonic::Movbe if shape == Shape::RegMem => sized_wide!(size, load_swapped),
        Mnemonic::Movbe => sized_wide!(size, store_swapped),
        Mnemonic::Xlatb => {
            insn.index = REG_ZERO;
            xlat
        }
        _ => return conditional(i, insn, shape),
    })
}

fn source_size(i: &Instruction) -> usize {
    match i.op1_kind() {
        iced_x86::OpKind::Register => i.op1_register().size(),
        _ => i.memory_size().size(),
    }
}

/// The condition number (low opcode bits) of Jcc, SETcc and CMOVcc.
pub(super) fn condition_number(i: &Instruction) -> Option<u8> {
    Some(match i.condition_code() {
        ConditionCode::None => return None,
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    })
}

fn conditional(i: &Instruction, insn: &Insn, shape: Shape) -> Option<Handler> {
    let c = condition_number(i)?;
    let set = insn.size == 1 && matches!(shape, Shape::Reg | Shape::Mem) && !is_loop(i.code());
    Some(match (shape, insn.size) {
        (Shape::Reg, 1) if set => by_condition!(c, set_reg),
        (Shape::Mem, 1) if set => by_condition!(c, set_mem),
        (Shape::RegReg, 2) => by_condition!(c, move_reg, u16),
        (Shape::RegReg, 4) => by_condition!(c, move_reg, u32),
        (Shape::RegReg, 8) => by_condition!(c, move_reg, u64),
        (Shape::RegMem, 2) => by_condition!(c, move_mem, u16),
        (Shape::RegMem, 4) => by_condition!(c, move_mem, u32),
        (Shape::RegMem, 8) => by_condition!(c, move_mem, u64),
        _ => return None,
    })
}

fn is_loop(code: Code) -> bool {
    code.is_loop() || code.is_loopcc()
}

fn reg_reg<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = T::reg(cpu, i.ops[1]);
    T::set_reg(cpu, i.ops[0], v);
    Ok(())
}

fn reg_imm<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    T::set_reg(cpu, i.ops[0], T::from_u64(i.imm));
    Ok(())
}

fn reg_mem<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.load::<T>(i)?;
    T::set_reg(cpu, i.ops[0], v);
    Ok(())
}

fn mem_reg<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.store(i, T::reg(cpu, i.ops[1]))
}

fn mem_imm<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.store(i, T::from_u64(i.imm))
}

fn zero_extend_reg<S: Width, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = S::reg(cpu, i.ops[1]).to_u64();
    T::set_reg(cpu, i.ops[0], T::from_u64(v));
    Ok(())
}

fn zero_extend_mem<S: Width, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.load::<S>(i)?.to_u64();
    T::set_reg(cpu, i.ops[0], T::from_u64(v));
    Ok(())
}

fn sign_extend_reg<S: Width, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = S::reg(cpu, i.ops[1]).sext();
    T::set_reg(cpu, i.ops[0], T::from_u64(v));
    Ok(())
}

fn sign_extend_mem<S: Width, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.load::<S>(i)?.sext();
    T::set_reg(cpu, i.ops[0], T::from_u64(v));
    Ok(())
}

fn lea<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.effective_address(i);
    T::set_reg(cpu, i.ops[0], T::from_u64(v));
    Ok(())
}

fn load_swapped<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.load::<T>(i)?;
    T::set_reg(cpu, i.ops[0], bits::bswap(v));
    Ok(())
}

fn store_swapped<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.store(i, bits::bswap(T::reg(cpu, i.ops[1])))
}

/// The index is AL alone, so the operand's address is not the usual sum.
fn xlat(cpu: &mut Cpu, i: &Insn) -> Step {
    let al = u64::from(u8::reg(cpu, 0));
    let v = cpu.load_at::<u8>(i, al)?;
    u8::set_reg(cpu, 0, v);
    Ok(())
}

fn set_reg<const C: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = u8::from(int::condition(C, cpu.flags));
    u8::set_reg(cpu, i.ops[0], v);
    Ok(())
}

fn set_mem<const C: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.store(i, u8::from(int::condition(C, cpu.flags)))
}

/// A 32-bit destination zero-extends whether or not the condition holds.
fn move_reg<const C: u8, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let from = if int::condition(C, cpu.flags) { i.ops[1] } else { i.ops[0] };
    let v = T::reg(cpu, from);
    T::set_reg(cpu, i.ops[0], v);
    Ok(())
}

fn move_mem<const C: u8, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.load::<T>(i)?;
    let v = if int::condition(C, cpu.flags) { v } else { T::reg(cpu, i.ops[0]) };
    T::set_reg(cpu, i.ops[0], v);
    Ok(())
}
