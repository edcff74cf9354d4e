//! Multiplication and division.

use iced_x86::{Instruction, Mnemonic};
use x86_semantics::muldiv;
use x86_state::vector;

use super::{Shape, Width, sized, sized_wide};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::{Handler, Insn};

const RAX: u8 = 0;
const RDX: u8 = 2;
/// AH in the numbering of [`Insn::ops`].
const AH: u8 = 20;

pub(super) fn handler(i: &Instruction, insn: &Insn, shape: Shape) -> Option<Handler> {
    let size = insn.size;
    Some(match (i.mnemonic(), i.op_count()) {
        (Mnemonic::Mul, 1) => sized!(size, mul),
        (Mnemonic::Imul, 1) => sized!(size, imul),
        (Mnemonic::Imul, 2) => sized_wide!(size, imul_two),
        (Mnemonic::Imul, _) => match shape {
            Shape::RegReg => sized_wide!(size, imul_three_reg),
            _ => sized_wide!(size, imul_three_mem),
        },
        (Mnemonic::Div, _) => sized!(size, div),
        (Mnemonic::Idiv, _) => sized!(size, idiv),
        (Mnemonic::Mulx, _) => sized_wide!(size, mulx),
        _ => return None,
    })
}

/// The register that holds the upper half: AH for bytes, else rDX.
#[inline(always)]
fn upper<T: Width>() -> u8 {
    if T::SIZE == 1 { AH } else { RDX }
}

/// The only operand, register or memory.
#[inline(always)]
fn operand<T: Width>(cpu: &mut Cpu, i: &Insn) -> Result<T, Stop> {
    if i.has(Insn::MEM) { cpu.load::<T>(i) } else { Ok(T::reg(cpu, i.ops[0])) }
}

fn mul<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = operand::<T>(cpu, i)?;
    let (lo, hi, f) = muldiv::mul(T::reg(cpu, RAX), b, cpu.flags);
    T::set_reg(cpu, RAX, lo);
    T::set_reg(cpu, upper::<T>(), hi);
    cpu.flags = f;
    Ok(())
}

fn imul<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = operand::<T>(cpu, i)?;
    let (lo, hi, f) = muldiv::imul(T::reg(cpu, RAX), b, cpu.flags);
    T::set_reg(cpu, RAX, lo);
    T::set_reg(cpu, upper::<T>(), hi);
    cpu.flags = f;
    Ok(())
}

fn imul_two<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = if i.has(Insn::MEM) { cpu.load::<T>(i)? } else { T::reg(cpu, i.ops[1]) };
    let (r, f) = muldiv::imul_truncating(T::reg(cpu, i.ops[0]), b, cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn imul_three_reg<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (r, f) = muldiv::imul_truncating(T::reg(cpu, i.ops[1]), T::from_u64(i.imm), cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn imul_three_mem<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let a = cpu.load::<T>(i)?;
    let (r, f) = muldiv::imul_truncating(a, T::from_u64(i.imm), cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn div<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let d = operand::<T>(cpu, i)?;
    let result = muldiv::div(T::reg(cpu, upper::<T>()), T::reg(cpu, RAX), d);
    quotient(cpu, result)
}

fn idiv<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let d = operand::<T>(cpu, i)?;
    let result = muldiv::idiv(T::reg(cpu, upper::<T>()), T::reg(cpu, RAX), d);
    quotient(cpu, result)
}

fn quotient<T: Width>(cpu: &mut Cpu, result: Option<(T, T)>) -> Step {
    let Some((q, r)) = result else {
        return Err(cpu.raise(vector::DE, None));
    };
    T::set_reg(cpu, RAX, q);
    T::set_reg(cpu, upper::<T>(), r);
    cpu.flags = muldiv::division_flags(cpu.flags);
    Ok(())
}

/// The high half goes to operand 0, the low to operand 1; if they are the same
/// register, the high half stays.
fn mulx<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.vex_defined(i)?;
    let b = if i.has(Insn::MEM) { cpu.load::<T>(i)? } else { T::reg(cpu, i.ops[2]) };
    let (lo, hi) = muldiv::mulx(T::reg(cpu, RDX), b);
    T::set_reg(cpu, i.ops[1], lo);
    T::set_reg(cpu, i.ops[0], hi);
    Ok(())
}
