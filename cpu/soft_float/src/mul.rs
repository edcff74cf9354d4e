//! Multiplication and fused multiply-add.

use crate::add::{Sum, Wide, sum_wide, widen};
use crate::env::{Env, exception};
use crate::format::{Class, Float, Operand};
use crate::nan::{flush, invalid, propagate2, special};
use crate::round::round_pack;

/// `a * b`.
pub fn mul<F: Float>(mut a: Operand, mut b: Operand, env: &mut Env) -> F {
    if special(&a) || special(&b) {
        return propagate2(a, b, env);
    }
    let denormal = flush(&mut a, env) | flush(&mut b, env);
    if a.is_infinite() && b.is_zero() || a.is_zero() && b.is_infinite() {
        return invalid(env);
    }
    if denormal {
        env.raise(exception::DE);
    }
    let sign = a.sign ^ b.sign;
    if a.is_infinite() || b.is_infinite() {
        return F::infinity(sign);
    }
    if a.is_zero() || b.is_zero() {
        return F::zero(sign);
    }
    let p = product(a, b);
    round_pack(p.sign, p.exponent, p.significand, env)
}

/// The exact product of two finite values.
fn product(a: Operand, b: Operand) -> Wide {
    let p = u128::from(a.significand) * u128::from(b.significand);
    let shift = p.leading_zeros();
    Wide {
        sign: a.sign ^ b.sign,
        exponent: a.exponent.wrapping_add(b.exponent) + 1 - shift as i32,
        significand: p << (shift & 1),
    }
}

/// `a * b + c` with one rounding, for binary32 and binary64. NaN operands are
/// preferred in the order a, b, c (SDM volume 1, 14.5.3).
pub fn fma<F: Float>(mut a: Operand, mut b: Operand, mut c: Operand, env: &mut Env) -> F {
    if a.is_nan() || b.is_nan() || c.is_nan() {
        return propagate3(a, b, c, env);
    }
    let denormal = flush(&mut a, env) | flush(&mut b, env) | flush(&mut c, env);
    let infinite = a.is_infinite() || b.is_infinite();
    let sign = a.sign ^ b.sign;
    if infinite && (a.is_zero() || b.is_zero() || c.is_infinite() && c.sign != sign) {
        return invalid(env);
    }
    if denormal {
        env.raise(exception::DE);
    }
    if infinite {
        return F::infinity(sign);
    }
    if c.is_infinite() {
        return F::infinity(c.sign);
    }
    let p =
        if a.is_zero() || b.is_zero() { Wide { sign, exponent: 0, significand: 0 } } else { product(a, b) };
    match sum_wide(p, widen(c), env.rounding) {
        Sum::Zero(sign) => F::zero(sign),
        Sum::Finite(w) => round_pack(w.sign, w.exponent, w.significand, env),
    }
}

#[cold]
fn propagate3<F: Float>(a: Operand, b: Operand, c: Operand, env: &mut Env) -> F {
    if [a, b, c].iter().any(|v| v.class == Class::Signaling) {
        env.raise(exception::IE);
    }
    let chosen = if a.is_nan() {
        a
    } else if b.is_nan() {
        b
    } else {
        c
    };
    F::quiet_nan(chosen.sign, chosen.significand)
}
