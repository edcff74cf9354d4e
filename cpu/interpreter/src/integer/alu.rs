//! Addition, subtraction, comparison and logic.

use iced_x86::{Instruction, Mnemonic};
use x86_semantics::flags::Flags;
use x86_semantics::int::{self, Int};

use super::{Shape, Width, sized, sized_wide};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// A two-operand operation.
trait Binary {
    fn apply<T: Int>(a: T, b: T, f: Flags) -> (T, Flags);
}
/// A one-operand operation.
trait Unary {
    fn apply<T: Int>(a: T, f: Flags) -> (T, Flags);
}

macro_rules! binary {
    ($($name:ident = |$a:ident, $b:ident, $f:ident| $e:expr;)*) => {$(
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<T: Int>($a: T, $b: T, $f: Flags) -> (T, Flags) { $e }
        }
    )*};
}
macro_rules! unary {
    ($($name:ident = |$a:ident, $f:ident| $e:expr;)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<T: Int>($a: T, $f: Flags) -> (T, Flags) { $e }
        }
    )*};
}
binary! {
    Add = |a, b, _f| int::add(a, b);
    Or = |a, b, _f| int::or(a, b);
    Adc = |a, b, f| int::adc(a, b, f);
    Sbb = |a, b, f| int::sbb(a, b, f);
    And = |a, b, _f| int::and(a, b);
    Sub = |a, b, _f| int::sub(a, b);
    Xor = |a, b, _f| int::xor(a, b);
    Adcx = |a, b, f| x86_semantics::bits::adcx(a, b, f);
    Adox = |a, b, f| x86_semantics::bits::adox(a, b, f);
}
unary! {
    Inc = |a, f| int::inc(a, f);
    Dec = |a, f| int::dec(a, f);
    Neg = |a, _f| int::neg(a);
    Not = |a, f| (T::from_u64(!a.to_u64()), f);
}

pub(super) fn handler(i: &Instruction, insn: &Insn, shape: Shape) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Add => binary::<Add>(insn, shape)?,
        Mnemonic::Or => binary::<Or>(insn, shape)?,
        Mnemonic::Adc => binary::<Adc>(insn, shape)?,
        Mnemonic::Sbb => binary::<Sbb>(insn, shape)?,
        Mnemonic::And => binary::<And>(insn, shape)?,
        Mnemonic::Sub => binary::<Sub>(insn, shape)?,
        Mnemonic::Xor => binary::<Xor>(insn, shape)?,
        Mnemonic::Adcx => register_binary::<Adcx>(insn, shape)?,
        Mnemonic::Adox => register_binary::<Adox>(insn, shape)?,
        Mnemonic::Cmp => compare::<Sub>(insn, shape)?,
        Mnemonic::Test => compare::<And>(insn, shape)?,
        Mnemonic::Inc => unary::<Inc>(insn, shape)?,
        Mnemonic::Dec => unary::<Dec>(insn, shape)?,
        Mnemonic::Neg => unary::<Neg>(insn, shape)?,
        Mnemonic::Not => unary::<Not>(insn, shape)?,
        _ => return None,
    })
}

fn binary<O: Binary>(insn: &Insn, shape: Shape) -> Option<Handler> {
    let locked = insn.has(Insn::LOCK);
    Some(match shape {
        Shape::RegReg => sized!(insn.size, reg_reg, O),
        Shape::RegMem => sized!(insn.size, reg_mem, O),
        Shape::RegImm => sized!(insn.size, reg_imm, O),
        Shape::MemReg if locked => sized!(insn.size, mem_reg_locked, O),
        Shape::MemReg => sized!(insn.size, mem_reg, O),
        Shape::MemImm if locked => sized!(insn.size, mem_imm_locked, O),
        Shape::MemImm => sized!(insn.size, mem_imm, O),
        _ => return None,
    })
}

fn register_binary<O: Binary>(insn: &Insn, shape: Shape) -> Option<Handler> {
    Some(match shape {
        Shape::RegReg => sized_wide!(insn.size, reg_reg, O),
        Shape::RegMem => sized_wide!(insn.size, reg_mem, O),
        _ => return None,
    })
}

fn compare<O: Binary>(insn: &Insn, shape: Shape) -> Option<Handler> {
    Some(match shape {
        Shape::RegReg => sized!(insn.size, compare_reg_reg, O),
        Shape::RegMem => sized!(insn.size, compare_reg_mem, O),
        Shape::RegImm => sized!(insn.size, compare_reg_imm, O),
        Shape::MemReg => sized!(insn.size, compare_mem_reg, O),
        Shape::MemImm => sized!(insn.size, compare_mem_imm, O),
        _ => return None,
    })
}

fn unary<O: Unary>(insn: &Insn, shape: Shape) -> Option<Handler> {
    Some(match shape {
        Shape::Reg => sized!(insn.size, unary_reg, O),
        Shape::Mem if insn.has(Insn::LOCK) => sized!(insn.size, unary_mem_locked, O),
        Shape::Mem => sized!(insn.size, unary_mem, O),
        _ => return None,
    })
}

fn reg_reg<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (r, f) = O::apply(T::reg(cpu, i.ops[0]), T::reg(cpu, i.ops[1]), cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn reg_imm<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (r, f) = O::apply(T::reg(cpu, i.ops[0]), T::from_u64(i.imm), cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn reg_mem<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = cpu.load::<T>(i)?;
    let (r, f) = O::apply(T::reg(cpu, i.ops[0]), b, cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn mem_reg<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = T::reg(cpu, i.ops[1]);
    cpu.modify::<T, false>(i, |a, f| O::apply(a, b, f)).map(|_| ())
}

fn mem_reg_locked<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = T::reg(cpu, i.ops[1]);
    cpu.modify::<T, true>(i, |a, f| O::apply(a, b, f)).map(|_| ())
}

fn mem_imm<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = T::from_u64(i.imm);
    cpu.modify::<T, false>(i, |a, f| O::apply(a, b, f)).map(|_| ())
}

fn mem_imm_locked<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = T::from_u64(i.imm);
    cpu.modify::<T, true>(i, |a, f| O::apply(a, b, f)).map(|_| ())
}

fn compare_reg_reg<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.flags = O::apply(T::reg(cpu, i.ops[0]), T::reg(cpu, i.ops[1]), cpu.flags).1;
    Ok(())
}

fn compare_reg_imm<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.flags = O::apply(T::reg(cpu, i.ops[0]), T::from_u64(i.imm), cpu.flags).1;
    Ok(())
}

fn compare_reg_mem<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = cpu.load::<T>(i)?;
    cpu.flags = O::apply(T::reg(cpu, i.ops[0]), b, cpu.flags).1;
    Ok(())
}

fn compare_mem_reg<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let a = cpu.load::<T>(i)?;
    cpu.flags = O::apply(a, T::reg(cpu, i.ops[1]), cpu.flags).1;
    Ok(())
}

fn compare_mem_imm<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let a = cpu.load::<T>(i)?;
    cpu.flags = O::apply(a, T::from_u64(i.imm), cpu.flags).1;
    Ok(())
}

fn unary_reg<O: Unary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (r, f) = O::apply(T::reg(cpu, i.ops[0]), cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn unary_mem<O: Unary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.modify::<T, false>(i, |a, f| O::apply(a, f)).map(|_| ())
}

fn unary_mem_locked<O: Unary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.modify::<T, true>(i, |a, f| O::apply(a, f)).map(|_| ())
}
