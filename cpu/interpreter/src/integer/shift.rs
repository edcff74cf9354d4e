//! Shifts and rotates.

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86_semantics::flags::Flags;
use x86_semantics::int::Int;
use x86_semantics::{bits, shift};

use super::{Shape, Width, sized, sized_wide};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// Register number of CL.
const CL: u8 = 1;

trait Shift {
    fn apply<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags);
}
/// SHLD or SHRD.
trait DoubleShift {
    fn apply<T: Int>(a: T, b: T, count: u8, f: Flags) -> (T, Flags);
}

macro_rules! shifts {
    ($($name:ident $f:ident;)*) => {$(
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags) { shift::$f(a, count, f) }
        }
    )*};
}
shifts! { Shl shl; Shr shr; Sar sar; Rol rol; Ror ror; Rcl rcl; Rcr rcr; }

struct Shld;
impl DoubleShift for Shld {
    #[inline(always)]
    fn apply<T: Int>(a: T, b: T, count: u8, f: Flags) -> (T, Flags) {
        shift::shld(a, b, count, f)
    }
}
struct Shrd;
impl DoubleShift for Shrd {
    #[inline(always)]
    fn apply<T: Int>(a: T, b: T, count: u8, f: Flags) -> (T, Flags) {
        shift::shrd(a, b, count, f)
    }
}

pub(super) fn handler(i: &Instruction, insn: &Insn, shape: Shape) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => single::<Shl>(insn, shape)?,
        Mnemonic::Shr => single::<Shr>(insn, shape)?,
        Mnemonic::Sar => single::<Sar>(insn, shape)?,
        Mnemonic::Rol => single::<Rol>(insn, shape)?,
        Mnemonic::Ror => single::<Ror>(insn, shape)?,
        Mnemonic::Rcl => single::<Rcl>(insn, shape)?,
        Mnemonic::Rcr => single::<Rcr>(insn, shape)?,
        Mnemonic::Shld => double::<Shld>(i, insn, shape)?,
        Mnemonic::Shrd => double::<Shrd>(i, insn, shape)?,
        Mnemonic::Shlx => by_register::<Shlx>(insn),
        Mnemonic::Shrx => by_register::<Shrx>(insn),
        Mnemonic::Sarx => by_register::<Sarx>(insn),
        Mnemonic::Rorx => sized_wide!(insn.size, rorx),
        _ => return None,
    })
}

fn single<O: Shift>(insn: &Insn, shape: Shape) -> Option<Handler> {
    Some(match shape {
        Shape::RegImm => sized!(insn.size, reg_imm, O),
        Shape::RegReg => sized!(insn.size, reg_cl, O),
        Shape::MemImm => sized!(insn.size, mem_imm, O),
        Shape::MemReg => sized!(insn.size, mem_cl, O),
        _ => return None,
    })
}

fn double<O: DoubleShift>(i: &Instruction, insn: &Insn, shape: Shape) -> Option<Handler> {
    let by_cl = i.op2_kind() == OpKind::Register;
    Some(match (shape, by_cl) {
        (Shape::RegReg, true) => sized_wide!(insn.size, double_reg, O, true),
        (Shape::RegReg, false) => sized_wide!(insn.size, double_reg, O, false),
        (Shape::MemReg, true) => sized_wide!(insn.size, double_mem, O, true),
        (Shape::MemReg, false) => sized_wide!(insn.size, double_mem, O, false),
        _ => return None,
    })
}

fn reg_imm<O: Shift, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (r, f) = O::apply(T::reg(cpu, i.ops[0]), i.imm as u8, cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn reg_cl<O: Shift, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let count = u8::reg(cpu, CL);
    let (r, f) = O::apply(T::reg(cpu, i.ops[0]), count, cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn mem_imm<O: Shift, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.modify::<T, false>(i, |a, f| O::apply(a, i.imm as u8, f)).map(|_| ())
}

fn mem_cl<O: Shift, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let count = u8::reg(cpu, CL);
    cpu.modify::<T, false>(i, |a, f| O::apply(a, count, f)).map(|_| ())
}

#[inline(always)]
fn double_count<const BY_CL: bool>(cpu: &Cpu, i: &Insn) -> u8 {
    if BY_CL { u8::reg(cpu, CL) } else { i.imm as u8 }
}

fn double_reg<O: DoubleShift, const BY_CL: bool, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let count = double_count::<BY_CL>(cpu, i);
    let (r, f) = O::apply(T::reg(cpu, i.ops[0]), T::reg(cpu, i.ops[1]), count, cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn double_mem<O: DoubleShift, const BY_CL: bool, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let count = double_count::<BY_CL>(cpu, i);
    let b = T::reg(cpu, i.ops[1]);
    cpu.modify::<T, false>(i, |a, f| O::apply(a, b, count, f)).map(|_| ())
}

/// SHLX, SHRX, SARX: no flags.
trait Flagless {
    fn apply<T: Int>(a: T, count: T) -> T;
}
macro_rules! flagless {
    ($($name:ident $f:ident;)*) => {$(
        struct $name;
        impl Flagless for $name {
            #[inline(always)]
            fn apply<T: Int>(a: T, count: T) -> T { bits::$f(a, count) }
        }
    )*};
}
flagless! { Shlx shlx; Shrx shrx; Sarx sarx; }

fn by_register<O: Flagless>(insn: &Insn) -> Handler {
    sized_wide!(insn.size, shift_by_register, O)
}

fn shift_by_register<O: Flagless, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.vex_defined(i)?;
    let a = if i.has(Insn::MEM) { cpu.load::<T>(i)? } else { T::reg(cpu, i.ops[1]) };
    let r = O::apply(a, T::reg(cpu, i.ops[2]));
    T::set_reg(cpu, i.ops[0], r);
    Ok(())
}

fn rorx<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.vex_defined(i)?;
    let a = if i.has(Insn::MEM) { cpu.load::<T>(i)? } else { T::reg(cpu, i.ops[1]) };
    T::set_reg(cpu, i.ops[0], bits::rorx(a, i.imm as u8));
    Ok(())
}
