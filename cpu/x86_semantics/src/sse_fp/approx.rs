//! RCPPS and RSQRTPS. Their results are model-specific within a relative error
//! of 1.5 * 2^-12 (SDM volume 2, RCPPS); here they are the correctly rounded
//! result cut to 12 significand bits, to nearest. No exceptions, MXCSR without
//! effect: denormal operands are zeros, denormal results too.

use soft_float::{Class, Env, F32, Float, Operand, Rounding, div, exception, sqrt};

use super::lanes::{from_ps, ps, ss, with_ss};

/// An environment in which nothing traps.
fn quiet() -> Env {
    Env { daz: true, ftz: true, ..Env::sse(u32::from(exception::ALL) << 7) }
}

/// Keep 12 bits of a significand, to nearest even.
fn cut(v: F32) -> F32 {
    const DROPPED: u32 = 12;
    let half = (1 << (DROPPED - 1)) - 1 + (v.0 >> DROPPED & 1);
    F32(v.0.wrapping_add(half) & !((1 << DROPPED) - 1))
}

fn reciprocal(v: F32) -> F32 {
    let mut env = quiet();
    let x = v.unpack();
    let r: F32 = div(Operand::from_i64(1), x, &mut env);
    if x.class == Class::Finite { cut(r) } else { r }
}

fn reciprocal_root(v: F32) -> F32 {
    let mut env = Env { rounding: Rounding::Zero, ..quiet() };
    let x = v.unpack();
    // A binary64 root leaves the 12 bits exact.
    let root: soft_float::F64 = sqrt(x, &mut env);
    let r: F32 = div(Operand::from_i64(1), root.unpack(), &mut env);
    if x.class == Class::Finite && !x.denormal && !x.sign { cut(r) } else { r }
}

/// RCPPS.
pub fn rcpps(b: u128) -> u128 {
    from_ps(ps(b).map(reciprocal))
}

/// RCPSS: the lowest lane of `b`; the others are `a`'s.
pub fn rcpss(a: u128, b: u128) -> u128 {
    with_ss(a, reciprocal(ss(b)))
}

/// RSQRTPS.
pub fn rsqrtps(b: u128) -> u128 {
    from_ps(ps(b).map(reciprocal_root))
}

/// RSQRTSS: the lowest lane of `b`; the others are `a`'s.
pub fn rsqrtss(a: u128, b: u128) -> u128 {
    with_ss(a, reciprocal_root(ss(b)))
}
