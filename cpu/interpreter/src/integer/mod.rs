//! Handlers of the general-purpose instructions (SDM volume 1, 5.1): thin and
//! monomorphic. What an instruction computes is in `x86_semantics`.

mod alu;
mod bits;
mod branch;
mod decimal;
mod exchange;
mod flag_ops;
mod misc;
mod moves;
mod muldiv;
mod shift;
mod stack;
mod string;
mod width;

use iced_x86::{Instruction, OpKind, Register};

use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

pub(crate) use width::Width;

impl Cpu {
    /// #UD for a VEX prefix in real-address and virtual-8086 mode (SDM volume 2, 2.6,
    /// exception class 13 and table 2-29).
    #[inline(always)]
    fn vex_defined(&mut self, i: &Insn) -> Step {
        let long_or_legacy = i.has(Insn::LONG) || !i.has(Insn::VEX);
        if long_or_legacy || self.protected() && !self.v86() { Ok(()) } else { Err(self.ud()) }
    }
}

/// A generic handler at the width of `size` bytes.
macro_rules! sized {
    ($size:expr, $f:ident) => {
        match $size {
            1 => $f::<u8> as Handler,
            2 => $f::<u16> as Handler,
            4 => $f::<u32> as Handler,
            _ => $f::<u64> as Handler,
        }
    };
    ($size:expr, $f:ident, $($g:tt),+) => {
        match $size {
            1 => $f::<$($g),+, u8> as Handler,
            2 => $f::<$($g),+, u16> as Handler,
            4 => $f::<$($g),+, u32> as Handler,
            _ => $f::<$($g),+, u64> as Handler,
        }
    };
}
/// As `sized`, for instructions without an 8-bit form.
macro_rules! sized_wide {
    ($size:expr, $f:ident) => {
        match $size {
            2 => $f::<u16> as Handler,
            4 => $f::<u32> as Handler,
            _ => $f::<u64> as Handler,
        }
    };
    ($size:expr, $f:ident, $($g:tt),+) => {
        match $size {
            2 => $f::<$($g),+, u16> as Handler,
            4 => $f::<$($g),+, u32> as Handler,
            _ => $f::<$($g),+, u64> as Handler,
        }
    };
}
/// `f::<0>` to `f::<15>` by a condition code.
macro_rules! by_condition {
    ($c:expr, $f:ident $(, $g:ty)*) => {
        match $c & 15 {
            0 => $f::<0 $(, $g)*> as Handler,
            1 => $f::<1 $(, $g)*> as Handler,
            2 => $f::<2 $(, $g)*> as Handler,
            3 => $f::<3 $(, $g)*> as Handler,
            4 => $f::<4 $(, $g)*> as Handler,
            5 => $f::<5 $(, $g)*> as Handler,
            6 => $f::<6 $(, $g)*> as Handler,
            7 => $f::<7 $(, $g)*> as Handler,
            8 => $f::<8 $(, $g)*> as Handler,
            9 => $f::<9 $(, $g)*> as Handler,
            10 => $f::<10 $(, $g)*> as Handler,
            11 => $f::<11 $(, $g)*> as Handler,
            12 => $f::<12 $(, $g)*> as Handler,
            13 => $f::<13 $(, $g)*> as Handler,
            14 => $f::<14 $(, $g)*> as Handler,
            _ => $f::<15 $(, $g)*> as Handler,
        }
    };
}
pub(crate) use {by_condition, sized, sized_wide};

/// Shapes of the first two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    RegReg,
    RegMem,
    RegImm,
    MemReg,
    MemImm,
    /// One operand only, or none.
    Reg,
    Mem,
    Other,
}

fn shape(i: &Instruction) -> Shape {
    let immediate = |n: u32| {
        !matches!(i.op_kind(n), OpKind::Register | OpKind::Memory)
            && matches!(
                i.op_kind(n),
                OpKind::Immediate8
                    | OpKind::Immediate16
                    | OpKind::Immediate32
                    | OpKind::Immediate64
                    | OpKind::Immediate8to16
                    | OpKind::Immediate8to32
                    | OpKind::Immediate8to64
                    | OpKind::Immediate32to64
            )
    };
    match (i.op_count(), (i.op_count() > 0).then(|| i.op0_kind())) {
        (1, Some(OpKind::Register)) => Shape::Reg,
        (1, Some(OpKind::Memory)) => Shape::Mem,
        (0 | 1, _) => Shape::Other,
        (_, Some(OpKind::Register)) => match i.op1_kind() {
            OpKind::Register => Shape::RegReg,
            OpKind::Memory => Shape::RegMem,
            _ if immediate(1) => Shape::RegImm,
            _ => Shape::Other,
        },
        (_, Some(OpKind::Memory)) => match i.op1_kind() {
            OpKind::Register => Shape::MemReg,
            _ if immediate(1) => Shape::MemImm,
            _ => Shape::Other,
        },
        _ => Shape::Other,
    }
}

/// True when a register operand is none of the general registers: segment,
/// control and debug registers belong to another group.
fn special_register(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && !general(i.op_register(n)))
}

fn general(r: Register) -> bool {
    r.is_gpr()
}

/// The group's hook for decoding.
pub(crate) fn handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    if special_register(i) {
        return None;
    }
    let shape = shape(i);
    alu::handler(i, insn, shape)
        .or_else(|| moves::handler(i, insn, shape))
        .or_else(|| branch::handler(i, insn))
        .or_else(|| stack::handler(i, insn, shape))
        .or_else(|| shift::handler(i, insn, shape))
        .or_else(|| bits::handler(i, insn, shape))
        .or_else(|| muldiv::handler(i, insn, shape))
        .or_else(|| exchange::handler(i, insn, shape))
        .or_else(|| string::handler(i, insn))
        .or_else(|| flag_ops::handler(i))
        .or_else(|| decimal::handler(i))
        .or_else(|| misc::handler(i, insn))
}

/// NOP, and hints of features that are not there.
pub(crate) fn nop(_: &mut Cpu, _: &Insn) -> Step {
    Ok(())
}
