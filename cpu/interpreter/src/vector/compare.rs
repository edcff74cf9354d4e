//! Instructions whose result is in the status flags, and string comparisons.

use iced_x86::{Instruction, Mnemonic as M};
use x86_semantics::flags::Flags;
use x86_semantics::simd;
use x86_semantics::sse_fp::{self as fp, Env};
use x86_state::reg;

use super::shapes::encodings;
use super::{Encodings, LEGACY, VEX128, VEX256};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::{Handler, Insn};

/// The handler of a comparison.
pub(super) fn handler(i: &Instruction, encoding: usize) -> Option<Handler> {
    let handlers: Encodings = match i.mnemonic() {
        M::Ptest | M::Vptest => encodings!(test),
        M::Vtestps => encodings!(test_singles),
        M::Vtestpd => encodings!(test_doubles),
        M::Comiss | M::Vcomiss => encodings!(comiss),
        M::Comisd | M::Vcomisd => encodings!(comisd),
        M::Ucomiss | M::Vucomiss => encodings!(ucomiss),
        M::Ucomisd | M::Vucomisd => encodings!(ucomisd),
        M::Pcmpistri | M::Vpcmpistri => encodings!(implicit_index),
        M::Pcmpistrm | M::Vpcmpistrm => encodings!(implicit_mask),
        M::Pcmpestri | M::Vpcmpestri => encodings!(explicit_index),
        M::Pcmpestri64 | M::Vpcmpestri64 => encodings!(explicit_index_64),
        M::Pcmpestrm | M::Vpcmpestrm => encodings!(explicit_mask),
        M::Pcmpestrm64 | M::Vpcmpestrm64 => encodings!(explicit_mask_64),
        _ => return None,
    };
    Some(handlers[encoding])
}

#[inline(always)]
fn test_with<const E: u8>(
    cpu: &mut Cpu,
    i: &Insn,
    narrow: fn([u128; 1], [u128; 1]) -> Flags,
    wide: fn([u128; 2], [u128; 2]) -> Flags,
) -> Step {
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, 1)?;
    let a = cpu.read_ymm(i.ops[0]);
    cpu.flags = if E == VEX256 { wide(a, b) } else { narrow([a[0]], [b[0]]) };
    Ok(())
}

fn test<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    test_with::<E>(cpu, i, simd::ptest, simd::ptest)
}

fn test_singles<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    test_with::<E>(cpu, i, simd::vtestps, simd::vtestps)
}

fn test_doubles<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    test_with::<E>(cpu, i, simd::vtestpd, simd::vtestpd)
}

#[inline(always)]
fn ordered<const E: u8>(cpu: &mut Cpu, i: &Insn, width: u8, f: fn(u128, u128, &mut Env) -> Flags) -> Step {
    cpu.ready::<E>()?;
    let b = cpu.narrow_source::<E>(i, 1, width)?;
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let flags = f(cpu.read_xmm(i.ops[0]), b, &mut env);
    cpu.commit_float(&env)?;
    cpu.flags = flags;
    Ok(())
}

fn comiss<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    ordered::<E>(cpu, i, 4, fp::comiss)
}

fn comisd<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    ordered::<E>(cpu, i, 8, fp::comisd)
}

fn ucomiss<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    ordered::<E>(cpu, i, 4, fp::ucomiss)
}

fn ucomisd<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    ordered::<E>(cpu, i, 8, fp::ucomisd)
}

/// The operands of a string comparison; memory need not be aligned.
#[inline(always)]
fn strings<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Result<(u128, u128), Stop> {
    cpu.ready::<E>()?;
    let b = if i.has(Insn::MEM) { cpu.load::<u128>(i)? } else { cpu.read_xmm(i.ops[1]) };
    Ok((cpu.read_xmm(i.ops[0]), b))
}

/// String lengths: EAX and EDX, or RAX and RDX.
fn lengths<const WIDE: bool>(cpu: &Cpu) -> (i64, i64) {
    let (a, d) = (cpu.regs[reg::RAX], cpu.regs[reg::RDX]);
    if WIDE { (a as i64, d as i64) } else { ((a as i32).into(), (d as i32).into()) }
}

/// Leave the index in ECX and the flags.
fn finish_index(cpu: &mut Cpu, i: &Insn, c: simd::strings::Compared) -> Step {
    cpu.regs[reg::RCX] = c.index(i.imm as u8).into();
    cpu.flags = c.flags;
    Ok(())
}

/// Leave the mask in XMM0 and the flags.
fn finish_mask<const E: u8>(cpu: &mut Cpu, i: &Insn, c: simd::strings::Compared) -> Step {
    cpu.set_vector::<E>(0, [c.mask(i.imm as u8), 0]);
    cpu.flags = c.flags;
    Ok(())
}

fn implicit_index<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (a, b) = strings::<E>(cpu, i)?;
    finish_index(cpu, i, simd::strings::implicit(a, b, i.imm as u8))
}

fn implicit_mask<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (a, b) = strings::<E>(cpu, i)?;
    finish_mask::<E>(cpu, i, simd::strings::implicit(a, b, i.imm as u8))
}

fn explicit<const E: u8, const WIDE: bool>(cpu: &mut Cpu, i: &Insn) -> Result<simd::strings::Compared, Stop> {
    let (a, b) = strings::<E>(cpu, i)?;
    let (len_a, len_b) = lengths::<WIDE>(cpu);
    Ok(simd::strings::explicit(a, len_a, b, len_b, i.imm as u8))
}

fn explicit_index<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let c = explicit::<E, false>(cpu, i)?;
    finish_index(cpu, i, c)
}

fn explicit_index_64<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let c = explicit::<E, true>(cpu, i)?;
    finish_index(cpu, i, c)
}

fn explicit_mask<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let c = explicit::<E, false>(cpu, i)?;
    finish_mask::<E>(cpu, i, c)
}

fn explicit_mask_64<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let c = explicit::<E, true>(cpu, i)?;
    finish_mask::<E>(cpu, i, c)
}
