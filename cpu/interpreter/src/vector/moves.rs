//! Moves of whole vectors, of halves, of the lowest element.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use x86_semantics::simd;

use super::operands::{first, second};
use super::shapes::encodings;
use super::{Encodings, LEGACY, VEX128, VEX256};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// Low and high quadword masks.
const LOW: u128 = u64::MAX as u128;
const HIGH: u128 = !LOW;

/// The handler of a move.
pub(super) fn handler(i: &Instruction, encoding: usize) -> Option<Handler> {
    let to_memory = i.op0_kind() == OpKind::Memory;
    let from_memory = !to_memory && (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    let handlers: Encodings = match i.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Vmovaps | M::Vmovapd | M::Vmovdqa => {
            whole(to_memory, from_memory, true)
        }
        M::Movntps | M::Movntpd | M::Movntdq | M::Vmovntps | M::Vmovntpd | M::Vmovntdq => {
            encodings!(store_aligned)
        }
        M::Movntdqa | M::Vmovntdqa => encodings!(load_aligned),
        M::Movups | M::Movupd | M::Movdqu | M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Lddqu | M::Vlddqu => {
            whole(to_memory, from_memory, false)
        }
        M::Movss | M::Vmovss => match (to_memory, from_memory) {
            (true, _) => encodings!(store_dword),
            (_, true) => encodings!(load_dword),
            _ => encodings!(merge_dword),
        },
        M::Movsd | M::Vmovsd => match (to_memory, from_memory) {
            (true, _) => encodings!(store_qword),
            (_, true) => encodings!(load_qword),
            _ => encodings!(merge_qword),
        },
        M::Movd | M::Vmovd | M::Movq | M::Vmovq => {
            return Some(element(i, to_memory, from_memory)?[encoding]);
        }
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd if to_memory => encodings!(store_qword),
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => encodings!(load_low),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd if to_memory => encodings!(store_high),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => encodings!(load_high),
        M::Movhlps | M::Vmovhlps => encodings!(high_to_low),
        M::Movlhps | M::Vmovlhps => encodings!(low_to_high),
        M::Movddup | M::Vmovddup => encodings!(duplicate),
        _ => return None,
    };
    Some(handlers[encoding])
}

/// MOVNTI, and hints that do nothing here.
pub(super) fn without_vector(i: &Instruction) -> Option<Handler> {
    let wide = i.op_count() == 2 && i.op1_register().is_gpr64();
    match i.mnemonic() {
        M::Movnti if wide => Some(store_register::<u64>),
        M::Movnti => Some(store_register::<u32>),
        M::Vzeroupper => Some(zero_upper),
        M::Vzeroall => Some(zero_all),
        _ => None,
    }
}

fn whole(to_memory: bool, from_memory: bool, aligned: bool) -> Encodings {
    match (to_memory, from_memory, aligned) {
        (true, _, true) => encodings!(store_aligned),
        (true, _, false) => encodings!(store),
        (_, true, true) => encodings!(load_aligned),
        (_, true, false) => encodings!(load),
        _ => encodings!(copy),
    }
}

/// MOVD and MOVQ, from and to general registers, memory and vectors.
fn element(i: &Instruction, to_memory: bool, from_memory: bool) -> Option<Encodings> {
    let quad = matches!(i.mnemonic(), M::Movq | M::Vmovq);
    let (to, from) = (i.op0_register(), i.op1_register());
    Some(match (quad, to_memory, from_memory) {
        (true, true, _) => encodings!(store_qword),
        (false, true, _) => encodings!(store_dword),
        (true, _, true) => encodings!(load_qword),
        (false, _, true) => encodings!(load_dword),
        (true, ..) if to.is_xmm() && from.is_xmm() => encodings!(copy_qword),
        (true, ..) if to.is_xmm() => encodings!(qword_from_register),
        (false, ..) if to.is_xmm() => encodings!(dword_from_register),
        (true, ..) => encodings!(qword_to_register),
        (false, ..) => encodings!(dword_to_register),
    })
}

fn copy<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.read_ymm(i.ops[1]);
    cpu.set_vector::<E>(i.ops[0], v);
    Ok(())
}

fn load<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.load_vector::<E>(i)?;
    cpu.set_vector::<E>(i.ops[0], v);
    Ok(())
}

fn load_aligned<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    cpu.aligned(i, if E == VEX256 { 32 } else { 16 })?;
    let v = cpu.load_vector::<E>(i)?;
    cpu.set_vector::<E>(i.ops[0], v);
    Ok(())
}

fn store<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.read_ymm(i.ops[1]);
    cpu.store_vector::<E>(i, v)
}

fn store_aligned<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    cpu.aligned(i, if E == VEX256 { 32 } else { 16 })?;
    let v = cpu.read_ymm(i.ops[1]);
    cpu.store_vector::<E>(i, v)
}

fn load_dword<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.load::<u32>(i)?;
    cpu.set_vector::<E>(i.ops[0], [v.into(), 0]);
    Ok(())
}

fn load_qword<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.load::<u64>(i)?;
    cpu.set_vector::<E>(i.ops[0], [v.into(), 0]);
    Ok(())
}

fn store_dword<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.read_xmm(i.ops[1]) as u32;
    cpu.store(i, v)
}

fn store_qword<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.read_xmm(i.ops[1]) as u64;
    cpu.store(i, v)
}

fn store_high<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = (cpu.read_xmm(i.ops[1]) >> 64) as u64;
    cpu.store(i, v)
}

/// The lowest element of the second source, the rest of the first, by `mask`.
#[inline(always)]
fn merge<const E: u8>(cpu: &mut Cpu, i: &Insn, mask: u128) -> Step {
    cpu.ready::<E>()?;
    let (a, b) = (cpu.read_xmm(i.ops[first::<E>()]), cpu.read_xmm(i.ops[second::<E>()]));
    cpu.set_vector::<E>(i.ops[0], [a & !mask | b & mask, 0]);
    Ok(())
}

fn merge_dword<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    merge::<E>(cpu, i, u128::from(u32::MAX))
}

fn merge_qword<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    merge::<E>(cpu, i, LOW)
}

fn copy_qword<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.read_xmm(i.ops[1]) & LOW;
    cpu.set_vector::<E>(i.ops[0], [v, 0]);
    Ok(())
}

fn dword_from_register<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.regs[usize::from(i.ops[1] & 15)] as u32;
    cpu.set_vector::<E>(i.ops[0], [v.into(), 0]);
    Ok(())
}

fn qword_from_register<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.regs[usize::from(i.ops[1] & 15)];
    cpu.set_vector::<E>(i.ops[0], [v.into(), 0]);
    Ok(())
}

fn dword_to_register<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    cpu.regs[usize::from(i.ops[0] & 15)] = cpu.read_xmm(i.ops[1]) as u32 as u64;
    Ok(())
}

fn qword_to_register<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    cpu.regs[usize::from(i.ops[0] & 15)] = cpu.read_xmm(i.ops[1]) as u64;
    Ok(())
}

fn load_low<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.load::<u64>(i)?;
    let a = cpu.read_xmm(i.ops[first::<E>()]);
    cpu.set_vector::<E>(i.ops[0], [a & HIGH | u128::from(v), 0]);
    Ok(())
}

fn load_high<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.load::<u64>(i)?;
    let a = cpu.read_xmm(i.ops[first::<E>()]);
    cpu.set_vector::<E>(i.ops[0], [a & LOW | u128::from(v) << 64, 0]);
    Ok(())
}

fn high_to_low<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let (a, b) = (cpu.read_xmm(i.ops[first::<E>()]), cpu.read_xmm(i.ops[second::<E>()]));
    cpu.set_vector::<E>(i.ops[0], [a & HIGH | b >> 64, 0]);
    Ok(())
}

fn low_to_high<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let (a, b) = (cpu.read_xmm(i.ops[first::<E>()]), cpu.read_xmm(i.ops[second::<E>()]));
    cpu.set_vector::<E>(i.ops[0], [a & LOW | b << 64, 0]);
    Ok(())
}

/// MOVDDUP: the 128-bit forms read eight bytes.
fn duplicate<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = if E == VEX256 { cpu.source::<E>(i, 1)? } else { [cpu.narrow_source::<E>(i, 1, 8)?, 0] };
    cpu.set_vector::<E>(i.ops[0], v.map(simd::movddup));
    Ok(())
}

fn store_register<T: guest_memory::Scalar>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.regs[usize::from(i.ops[1] & 15)];
    cpu.store(i, T::truncate(v.into()))
}

fn zero_upper(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.ready::<VEX128>()?;
    let registers = if cpu.long64() { 16 } else { 8 };
    for y in &mut cpu.fpu.ymm[..registers] {
        (y[2], y[3]) = (0, 0);
    }
    Ok(())
}

fn zero_all(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.ready::<VEX128>()?;
    let registers = if cpu.long64() { 16 } else { 8 };
    cpu.fpu.ymm[..registers].fill([0; 4]);
    Ok(())
}
