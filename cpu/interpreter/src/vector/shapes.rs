//! Handlers for the shapes of `table`, in three encodings each.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use x86_semantics::simd;
use x86_semantics::sse_fp::Env;

use super::operands::{first, second};
use super::table::{self, Op, Order};
use super::{Encodings, LEGACY, VEX128, VEX256};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// The three encodings of a handler that is generic over them.
macro_rules! encodings {
    ($handler:ident) => {
        [$handler::<LEGACY>, $handler::<VEX128>, $handler::<VEX256>]
    };
}
pub(super) use encodings;

/// The handler and table index of a table instruction.
pub(super) fn handler(i: &Instruction, insn: &mut Insn, encoding: usize) -> Option<Handler> {
    let last = i.op_count().saturating_sub(1);
    let immediate = i.op_kind(last) == OpKind::Immediate8;
    let index = table::find(i.mnemonic(), immediate)?;
    insn.aux = index as u32;
    let handlers: Encodings = match table::row(insn).op {
        Op::Int2(_) => encodings!(integer_binary),
        Op::Int2Imm(..) => encodings!(integer_binary_immediate),
        Op::Int1(_) => encodings!(integer_unary),
        Op::Int1Imm(..) => encodings!(integer_unary_immediate),
        Op::Shift(_) if immediate => encodings!(shift_immediate),
        Op::Shift(_) => encodings!(shift_counted),
        Op::ShiftBytes(_) => encodings!(shift_bytes),
        Op::Extend(..) => encodings!(extend),
        Op::Select(_) => encodings!(select),
        Op::Float2(_) => encodings!(float_binary),
        Op::Float2Imm(_) => encodings!(float_binary_immediate),
        Op::Float1(_) => encodings!(float_unary),
        Op::Float1Imm(_) => encodings!(float_unary_immediate),
        Op::Scalar2(..) => encodings!(scalar_binary),
        Op::Scalar2Imm(..) => encodings!(scalar_binary_immediate),
        Op::Widen(_) => encodings!(float_widen),
        Op::Narrow(_) => encodings!(float_narrow),
        Op::Fused(..) => encodings!(fused),
        Op::FusedScalar(..) => encodings!(fused_scalar),
    };
    Some(handlers[encoding])
}

/// Both halves of `a` and `b` through `f`; the upper ones only for VEX.256.
#[inline(always)]
fn zip<const E: u8>(a: [u128; 2], b: [u128; 2], mut f: impl FnMut(u128, u128) -> u128) -> [u128; 2] {
    [f(a[0], b[0]), if E == VEX256 { f(a[1], b[1]) } else { 0 }]
}

/// `dst = f(first, second)`.
#[inline(always)]
fn binary<const E: u8>(cpu: &mut Cpu, i: &Insn, f: impl Fn(u128, u128) -> u128) -> Step {
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, second::<E>())?;
    let a = cpu.read_ymm(i.ops[first::<E>()]);
    cpu.set_vector::<E>(i.ops[0], zip::<E>(a, b, f));
    Ok(())
}

/// Handlers with the operation compiled in, for what ordinary programs use most.
macro_rules! compiled_in {
    ($f:expr) => {{
        let handlers: Encodings = [
            |cpu, i| binary::<LEGACY>(cpu, i, $f),
            |cpu, i| binary::<VEX128>(cpu, i, $f),
            |cpu, i| binary::<VEX256>(cpu, i, $f),
        ];
        handlers
    }};
}

/// Handlers of the most frequent operations: the same as the table's, without
/// the call through it.
pub(super) fn direct(i: &Instruction, encoding: usize) -> Option<Handler> {
    let handlers = match i.mnemonic() {
        M::Pxor | M::Vpxor | M::Xorps | M::Vxorps | M::Xorpd | M::Vxorpd => compiled_in!(simd::pxor),
        M::Por | M::Vpor | M::Orps | M::Vorps | M::Orpd | M::Vorpd => compiled_in!(simd::por),
        M::Pand | M::Vpand | M::Andps | M::Vandps | M::Andpd | M::Vandpd => compiled_in!(simd::pand),
        M::Pandn | M::Vpandn | M::Andnps | M::Vandnps | M::Andnpd | M::Vandnpd => compiled_in!(simd::pandn),
        M::Pcmpeqb | M::Vpcmpeqb => compiled_in!(simd::pcmpeqb),
        M::Pcmpeqd | M::Vpcmpeqd => compiled_in!(simd::pcmpeqd),
        M::Pcmpgtb | M::Vpcmpgtb => compiled_in!(simd::pcmpgtb),
        M::Pminub | M::Vpminub => compiled_in!(simd::pminub),
        M::Psubb | M::Vpsubb => compiled_in!(simd::psubb),
        M::Paddb | M::Vpaddb => compiled_in!(simd::paddb),
        M::Paddd | M::Vpaddd => compiled_in!(simd::paddd),
        M::Paddq | M::Vpaddq => compiled_in!(simd::paddq),
        M::Psubd | M::Vpsubd => compiled_in!(simd::psubd),
        M::Punpcklbw | M::Vpunpcklbw => compiled_in!(simd::punpcklbw),
        M::Punpcklwd | M::Vpunpcklwd => compiled_in!(simd::punpcklwd),
        M::Punpckldq | M::Vpunpckldq | M::Unpcklps | M::Vunpcklps => compiled_in!(simd::punpckldq),
        M::Punpcklqdq | M::Vpunpcklqdq | M::Unpcklpd | M::Vunpcklpd => compiled_in!(simd::punpcklqdq),
        M::Punpckhqdq | M::Vpunpckhqdq | M::Unpckhpd | M::Vunpckhpd => compiled_in!(simd::punpckhqdq),
        M::Pshufb | M::Vpshufb => compiled_in!(simd::pshufb),
        _ => return None,
    };
    Some(handlers[encoding])
}

/// The payload of this instruction's row, or #UD should the row be of another shape.
macro_rules! payload {
    ($cpu:ident, $i:ident, $pattern:pat => $value:expr) => {
        match table::row($i).op {
            $pattern => $value,
            _ => return Err($cpu.ud()),
        }
    };
}

fn integer_binary<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Int2(f) => f);
    binary::<E>(cpu, i, f)
}

fn integer_binary_immediate<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (f, upper) = payload!(cpu, i, Op::Int2Imm(f, upper) => (f, upper));
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, second::<E>())?;
    let a = cpu.read_ymm(i.ops[first::<E>()]);
    let imm = i.imm as u8;
    let high = if E == VEX256 { f(a[1], b[1], imm >> (upper & 7)) } else { 0 };
    cpu.set_vector::<E>(i.ops[0], [f(a[0], b[0], imm), high]);
    Ok(())
}

fn integer_unary<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Int1(f) => f);
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, 1)?;
    cpu.set_vector::<E>(i.ops[0], zip::<E>(b, b, |x, _| f(x)));
    Ok(())
}

fn integer_unary_immediate<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (f, upper) = payload!(cpu, i, Op::Int1Imm(f, upper) => (f, upper));
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, 1)?;
    let imm = i.imm as u8;
    let high = if E == VEX256 { f(b[1], imm >> (upper & 7)) } else { 0 };
    cpu.set_vector::<E>(i.ops[0], [f(b[0], imm), high]);
    Ok(())
}

/// Shift by the low quadword of a 128-bit operand, whatever the vector length.
fn shift_counted<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Shift(f) => f);
    cpu.ready::<E>()?;
    let count = cpu.narrow_source::<E>(i, second::<E>(), 16)? as u64;
    let a = cpu.read_ymm(i.ops[first::<E>()]);
    cpu.set_vector::<E>(i.ops[0], zip::<E>(a, a, |x, _| f(x, count)));
    Ok(())
}

fn shift_immediate<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Shift(f) => f);
    cpu.ready::<E>()?;
    let count = u64::from(i.imm as u8);
    let a = cpu.read_ymm(i.ops[first::<E>()]);
    cpu.set_vector::<E>(i.ops[0], zip::<E>(a, a, |x, _| f(x, count)));
    Ok(())
}

fn shift_bytes<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::ShiftBytes(f) => f);
    cpu.ready::<E>()?;
    let a = cpu.read_ymm(i.ops[first::<E>()]);
    cpu.set_vector::<E>(i.ops[0], zip::<E>(a, a, |x, _| f(x, i.imm as u8)));
    Ok(())
}

/// PMOVSX and PMOVZX: `width` source bytes for each 128-bit lane.
fn extend<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (f, width) = payload!(cpu, i, Op::Extend(f, width) => (f, width));
    cpu.ready::<E>()?;
    let total = if E == VEX256 { 2 * width } else { width };
    // The legacy forms read at most eight bytes: never an aligned operand.
    let b = cpu.narrow_source::<E>(i, 1, total)?;
    let high = if E == VEX256 { f(b >> (u32::from(width & 15) * 8)) } else { 0 };
    cpu.set_vector::<E>(i.ops[0], [f(b), high]);
    Ok(())
}

/// Blends by a mask register: XMM0 in legacy encoding, the fourth operand in VEX.
fn select<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Select(f) => f);
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, second::<E>())?;
    let a = cpu.read_ymm(i.ops[first::<E>()]);
    let mask = cpu.read_ymm(if E == LEGACY { 0 } else { i.ops[3] });
    let high = if E == VEX256 { f(a[1], b[1], mask[1]) } else { 0 };
    cpu.set_vector::<E>(i.ops[0], [f(a[0], b[0], mask[0]), high]);
    Ok(())
}

fn float_binary<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Float2(f) => f);
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, second::<E>())?;
    let a = cpu.read_ymm(i.ops[first::<E>()]);
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let r = zip::<E>(a, b, |x, y| f(x, y, &mut env));
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], r);
    Ok(())
}

fn float_binary_immediate<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Float2Imm(f) => f);
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, second::<E>())?;
    let a = cpu.read_ymm(i.ops[first::<E>()]);
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let r = zip::<E>(a, b, |x, y| f(x, y, predicate::<E>(i), &mut env));
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], r);
    Ok(())
}

/// The immediate; legacy compares know eight predicates, VEX 32. Dot products
/// use all eight bits, which legacy compares reserve.
#[inline(always)]
fn predicate<const E: u8>(i: &Insn) -> u8 {
    let imm = i.imm as u8;
    let compare = table::row(i).legacy != M::Dpps && table::row(i).legacy != M::Dppd;
    match (compare, E) {
        (false, _) => imm,
        (true, LEGACY) => imm & 7,
        (true, _) => imm & 31,
    }
}

fn float_unary<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Float1(f) => f);
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, 1)?;
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let r = zip::<E>(b, b, |x, _| f(x, &mut env));
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], r);
    Ok(())
}

fn float_unary_immediate<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Float1Imm(f) => f);
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, 1)?;
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let r = zip::<E>(b, b, |x, _| f(x, i.imm as u8, &mut env));
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], r);
    Ok(())
}

/// The lowest lane of the second source, the rest of the first.
fn scalar_binary<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (f, width) = payload!(cpu, i, Op::Scalar2(f, width) => (f, width));
    cpu.ready::<E>()?;
    let b = cpu.narrow_source::<E>(i, second::<E>(), width)?;
    let a = cpu.read_xmm(i.ops[first::<E>()]);
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let r = f(a, b, &mut env);
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], [r, 0]);
    Ok(())
}

fn scalar_binary_immediate<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (f, width) = payload!(cpu, i, Op::Scalar2Imm(f, width) => (f, width));
    cpu.ready::<E>()?;
    let b = cpu.narrow_source::<E>(i, second::<E>(), width)?;
    let a = cpu.read_xmm(i.ops[first::<E>()]);
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let round = matches!(table::row(i).legacy, M::Roundss | M::Roundsd);
    let imm = if round { i.imm as u8 } else { predicate::<E>(i) };
    let r = f(a, b, imm, &mut env);
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], [r, 0]);
    Ok(())
}

/// CVTPS2PD, CVTDQ2PD: 64 source bits for each 128-bit lane.
fn float_widen<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Widen(f) => f);
    cpu.ready::<E>()?;
    // 16 bytes are read by VEX.256 only, which asks for no alignment.
    let b = cpu.narrow_source::<E>(i, 1, if E == VEX256 { 16 } else { 8 })?;
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let low = f(b, &mut env);
    let high = if E == VEX256 { f(b >> 64, &mut env) } else { 0 };
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], [low, high]);
    Ok(())
}

/// CVTPD2PS, CVTPD2DQ, CVTTPD2DQ: 64 result bits for each 128-bit lane.
fn float_narrow<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let f = payload!(cpu, i, Op::Narrow(f) => f);
    cpu.ready::<E>()?;
    let b = cpu.source::<E>(i, 1)?;
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let r = zip::<E>(b, b, |x, _| f(x, &mut env));
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], [r[0] | r[1] << 64, 0]);
    Ok(())
}

/// Factors and addend of operands `(a, b, c)`.
#[inline(always)]
fn arrange(order: Order, a: u128, b: u128, c: u128) -> (u128, u128, u128) {
    match order {
        Order::F132 => (a, c, b),
        Order::F213 => (b, a, c),
        Order::F231 => (b, c, a),
    }
}

fn fused<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (f, order) = payload!(cpu, i, Op::Fused(f, order) => (f, order));
    cpu.ready::<E>()?;
    let c = cpu.source::<E>(i, 2)?;
    let (a, b) = (cpu.read_ymm(i.ops[0]), cpu.read_ymm(i.ops[1]));
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let mut lane = |n: usize| {
        let (x, y, z) = arrange(order, a[n], b[n], c[n]);
        f(x, y, z, &mut env)
    };
    let r = [lane(0), if E == VEX256 { lane(1) } else { 0 }];
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], r);
    Ok(())
}

fn fused_scalar<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (f, order, width) = payload!(cpu, i, Op::FusedScalar(f, order, width) => (f, order, width));
    cpu.ready::<E>()?;
    let c = cpu.narrow_source::<E>(i, 2, width)?;
    let (a, b) = (cpu.read_xmm(i.ops[0]), cpu.read_xmm(i.ops[1]));
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let (x, y, z) = arrange(order, a, b, c);
    let r = f(a, x, y, z, &mut env);
    cpu.commit_float(&env)?;
    cpu.set_vector::<E>(i.ops[0], [r, 0]);
    Ok(())
}
