//! SSE, AVX, AVX2, FMA, F16C, AES, SHA; MXCSR, FXSAVE and XSAVE.
//!
//! Most instructions are a row of `table`: a mnemonic pair (legacy and VEX), a
//! shape and a function of `x86_semantics`. A handler of `shapes` serves each
//! shape in three encodings: legacy SSE (destructive, upper half of YMM kept),
//! VEX.128 (upper half zeroed) and VEX.256. What moves data or has a form of its
//! own stands in the other files.

mod compare;
mod convert;
mod elements;
mod gather;
mod lanes;
mod masked;
mod moves;
mod operands;
mod save;
mod shapes;
mod table;
mod xsave;

use iced_x86::{Instruction, OpKind};

use crate::insn::{Handler, Insn};

/// Legacy SSE encoding.
const LEGACY: u8 = 0;
/// VEX with 128-bit vectors.
const VEX128: u8 = 1;
/// VEX with 256-bit vectors.
const VEX256: u8 = 2;

/// A handler for each encoding.
type Encodings = [Handler; 3];

/// Which encoding an instruction has.
fn encoding(i: &Instruction, insn: &Insn) -> usize {
    // Narrowing conversions have a 256-bit operand only in memory.
    let wide = i.memory_size().size() == 32
        || (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_ymm());
    match (insn.has(Insn::VEX), wide) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    }
}

/// True if an operand is a vector register.
fn is_vector(i: &Instruction) -> bool {
    (0..i.op_count()).any(|n| {
        let r = i.op_register(n);
        i.op_kind(n) == OpKind::Register && (r.is_xmm() || r.is_ymm())
    })
}

/// The handler of a vector instruction.
pub(crate) fn handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let e = encoding(i, insn);
    if !is_vector(i) {
        return save::handler(i, insn)
            .or_else(|| moves::without_vector(i))
            .or_else(|| convert::handler(i, insn, e));
    }
    insn.size = if e == 2 { 32 } else { 16 };
    moves::handler(i, e)
        .or_else(|| shapes::direct(i, e))
        .or_else(|| shapes::handler(i, insn, e))
        .or_else(|| elements::handler(i, insn, e))
        .or_else(|| convert::handler(i, insn, e))
        .or_else(|| compare::handler(i, e))
        .or_else(|| lanes::handler(i, insn, e))
        .or_else(|| masked::handler(i, e))
        .or_else(|| gather::handler(i))
}
