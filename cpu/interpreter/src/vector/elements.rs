//! Single elements: insertion, extraction, sign masks.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use x86_semantics::simd;

use super::operands::{first, second};
use super::shapes::encodings;
use super::{Encodings, LEGACY, VEX128, VEX256};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// The handler of an insertion, extraction or mask instruction. `aux` becomes the
/// element width in bytes.
pub(super) fn handler(i: &Instruction, insn: &mut Insn, encoding: usize) -> Option<Handler> {
    let to_memory = i.op0_kind() == OpKind::Memory;
    let (width, handlers): (u32, Encodings) = match i.mnemonic() {
        M::Pinsrb | M::Vpinsrb => (1, encodings!(insert)),
        M::Pinsrw | M::Vpinsrw => (2, encodings!(insert)),
        M::Pinsrd | M::Vpinsrd => (4, encodings!(insert)),
        M::Pinsrq | M::Vpinsrq => (8, encodings!(insert)),
        M::Pextrb | M::Vpextrb => (1, extraction(to_memory)),
        M::Pextrw | M::Vpextrw => (2, extraction(to_memory)),
        M::Pextrd | M::Vpextrd | M::Extractps | M::Vextractps => (4, extraction(to_memory)),
        M::Pextrq | M::Vpextrq => (8, extraction(to_memory)),
        M::Insertps | M::Vinsertps => (4, encodings!(insert_single)),
        M::Pmovmskb | M::Vpmovmskb => (1, encodings!(byte_signs)),
        M::Movmskps | M::Vmovmskps => (4, encodings!(single_signs)),
        M::Movmskpd | M::Vmovmskpd => (8, encodings!(double_signs)),
        _ => return None,
    };
    insn.aux = width;
    Some(handlers[encoding])
}

fn extraction(to_memory: bool) -> Encodings {
    if to_memory { encodings!(extract_to_memory) } else { encodings!(extract) }
}

/// Bit position of the element `imm` selects, which wraps at the vector's end.
fn position(i: &Insn) -> u32 {
    let width = i.aux & 15;
    (i.imm as u32).wrapping_mul(width) % 16 * 8
}

fn insert<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let mask = u128::MAX >> (128 - 8 * (i.aux & 15));
    let value = if i.has(Insn::MEM) {
        cpu.narrow_source::<E>(i, second::<E>(), i.aux as u8)?
    } else {
        u128::from(cpu.regs[usize::from(i.ops[second::<E>()] & 15)]) & mask
    };
    let at = position(i);
    let a = cpu.read_xmm(i.ops[first::<E>()]);
    cpu.set_vector::<E>(i.ops[0], [a & !(mask << at) | value << at, 0]);
    Ok(())
}

fn extract<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let mask = u128::MAX >> (128 - 8 * (i.aux & 15));
    cpu.regs[usize::from(i.ops[0] & 15)] = (cpu.read_xmm(i.ops[1]) >> position(i) & mask) as u64;
    Ok(())
}

fn extract_to_memory<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.read_xmm(i.ops[1]) >> position(i);
    match i.aux {
        1 => cpu.store(i, v as u8),
        2 => cpu.store(i, v as u16),
        4 => cpu.store(i, v as u32),
        _ => cpu.store(i, v as u64),
    }
}

fn insert_single<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let imm = i.imm as u8;
    let b = cpu.narrow_source::<E>(i, second::<E>(), 4)?;
    // A memory operand is the element; a register's is chosen by bits 7-6.
    let from = if i.has(Insn::MEM) { 0 } else { u32::from(imm >> 6) * 32 };
    let a = cpu.read_xmm(i.ops[first::<E>()]);
    cpu.set_vector::<E>(i.ops[0], [simd::insertps(a, (b >> from) as u32, imm), 0]);
    Ok(())
}

/// Sign bits of both halves; the upper one's start at bit `count`.
#[inline(always)]
fn signs<const E: u8>(cpu: &mut Cpu, i: &Insn, count: u32, f: impl Fn(u128) -> u32) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.read_ymm(i.ops[1]);
    let high = if E == VEX256 { f(v[1]) << count } else { 0 };
    cpu.regs[usize::from(i.ops[0] & 15)] = (f(v[0]) | high).into();
    Ok(())
}

fn byte_signs<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    signs::<E>(cpu, i, 16, simd::pmovmskb)
}

fn single_signs<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    signs::<E>(cpu, i, 4, simd::movmskps)
}

fn double_signs<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    signs::<E>(cpu, i, 2, simd::movmskpd)
}
