//! Conversions between vectors and general registers, from memory integers, and
//! to half precision. Those with an MMX register are `fpu`'s.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use x86_semantics::sse_fp::{self as fp, Env};
use x86_state::{cr0, vector};

use super::operands::{first, second};
use super::shapes::encodings;
use super::{Encodings, LEGACY, VEX128, VEX256};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// x87 status word: error summary.
const ERROR_SUMMARY: u16 = 1 << 7;
/// x87 status word: top of stack.
const TOP: u16 = 7 << 11;

/// The handler of a conversion.
pub(super) fn handler(i: &Instruction, insn: &mut Insn, encoding: usize) -> Option<Handler> {
    let last = i.op_count().saturating_sub(1);
    let last_is_memory = i.op_kind(last) == OpKind::Memory;
    let wide = match i.op_kind(last) {
        OpKind::Memory => i.memory_size().size() == 8,
        _ => i.op_register(last).is_gpr64(),
    };
    let wide_result = i.op0_kind() == OpKind::Register && i.op0_register().is_gpr64();
    let handlers: Encodings = match i.mnemonic() {
        M::Cvtsi2ss | M::Vcvtsi2ss if wide => encodings!(cvtsi2ss64),
        M::Cvtsi2ss | M::Vcvtsi2ss => encodings!(cvtsi2ss32),
        M::Cvtsi2sd | M::Vcvtsi2sd if wide => encodings!(cvtsi2sd64),
        M::Cvtsi2sd | M::Vcvtsi2sd => encodings!(cvtsi2sd32),
        M::Cvtss2si | M::Vcvtss2si if wide_result => encodings!(cvtss2si64),
        M::Cvtss2si | M::Vcvtss2si => encodings!(cvtss2si32),
        M::Cvttss2si | M::Vcvttss2si if wide_result => encodings!(cvttss2si64),
        M::Cvttss2si | M::Vcvttss2si => encodings!(cvttss2si32),
        M::Cvtsd2si | M::Vcvtsd2si if wide_result => encodings!(cvtsd2si64),
        M::Cvtsd2si | M::Vcvtsd2si => encodings!(cvtsd2si32),
        M::Cvttsd2si | M::Vcvttsd2si if wide_result => encodings!(cvttsd2si64),
        M::Cvttsd2si | M::Vcvttsd2si => encodings!(cvttsd2si32),
        M::Vcvtps2ph => {
            let wide = i.op1_register().is_ymm();
            insn.size = if wide { 32 } else { 16 };
            return Some(if wide { half_precision::<VEX256> } else { half_precision::<VEX128> });
        }
        M::Cvtpi2ps if last_is_memory => return Some(cvtpi2ps),
        M::Cvtpi2pd if last_is_memory => return Some(cvtpi2pd),
        _ => return None,
    };
    Some(handlers[encoding])
}

macro_rules! from_integer {
    ($($name:ident $t:ty;)*) => {$(
        fn $name<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
            cpu.ready::<E>()?;
            let n = second::<E>();
            let b = if i.has(Insn::MEM) { cpu.load::<$t>(i)? } else { cpu.regs[usize::from(i.ops[n] & 15)] as $t };
            let mut env = Env::sse(cpu.fpu.mxcsr);
            let r = fp::$name(cpu.read_xmm(i.ops[first::<E>()]), b, &mut env);
            cpu.commit_float(&env)?;
            cpu.set_vector::<E>(i.ops[0], [r, 0]);
            Ok(())
        }
    )*};
}

from_integer! {
    cvtsi2ss32 u32;
    cvtsi2ss64 u64;
    cvtsi2sd32 u32;
    cvtsi2sd64 u64;
}

macro_rules! to_integer {
    ($($name:ident $width:literal;)*) => {$(
        fn $name<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
            cpu.ready::<E>()?;
            let b = cpu.narrow_source::<E>(i, 1, $width)?;
            let mut env = Env::sse(cpu.fpu.mxcsr);
            let r = fp::$name(b, &mut env);
            cpu.commit_float(&env)?;
            cpu.regs[usize::from(i.ops[0] & 15)] = r.into();
            Ok(())
        }
    )*};
}

to_integer! {
    cvtss2si32 4;
    cvtss2si64 4;
    cvttss2si32 4;
    cvttss2si64 4;
    cvtsd2si32 8;
    cvtsd2si64 8;
    cvttsd2si32 8;
    cvttsd2si64 8;
}

/// VCVTPS2PH: half as many bytes to a register or memory.
fn half_precision<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.read_ymm(i.ops[1]);
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let mut narrow = |v: u128| u128::from(fp::cvtps2ph(v, i.imm as u8, &mut env));
    let mut r = narrow(v[0]);
    if E == VEX256 {
        r |= narrow(v[1]) << 64;
    }
    // A destination that faults must leave MXCSR alone, and the other way round.
    let mut mxcsr = cpu.fpu.mxcsr;
    if fp::commit(&env, &mut mxcsr) {
        return cpu.commit_float(&env);
    }
    match (i.has(Insn::MEM), E) {
        (true, VEX256) => cpu.store(i, r)?,
        (true, _) => cpu.store(i, r as u64)?,
        _ => cpu.write_ymm(i.ops[0], [r, 0]),
    }
    cpu.fpu.mxcsr = mxcsr;
    Ok(())
}

/// CVTPI2PS from memory: two integers into the low half. The x87 enters MMX
/// operation as with a register operand.
fn cvtpi2ps(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<LEGACY>()?;
    if cpu.fpu.fsw & ERROR_SUMMARY != 0 && cpu.cr0 & cr0::NE != 0 {
        return Err(cpu.raise(vector::MF, None));
    }
    let b = cpu.load::<u64>(i)?;
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let r = fp::cvtpi2ps(cpu.read_xmm(i.ops[0]), b, &mut env);
    cpu.commit_float(&env)?;
    cpu.fpu.fsw &= !TOP;
    cpu.fpu.ftw = 0xff;
    cpu.write_xmm(i.ops[0], r);
    Ok(())
}

/// CVTPI2PD from memory: exact, and the x87 stays as it is.
fn cvtpi2pd(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<LEGACY>()?;
    let b = cpu.load::<u64>(i)?;
    cpu.write_xmm(i.ops[0], fp::cvtpi2pd(b));
    Ok(())
}
