//! Conversion between formats, scaling, extraction.

use crate::env::{Env, exception};
use crate::format::{Class, Float, Operand};
use crate::nan::{flush, invalid, propagate1, propagate2, special};
use crate::round::round_pack;

/// To another format. A denormal operand raises DE; clear
/// [`Operand::denormal`] where the instruction does not.
pub fn convert<F: Float>(mut a: Operand, env: &mut Env) -> F {
    if special(&a) {
        return propagate1(a, env);
    }
    if flush(&mut a, env) {
        env.raise(exception::DE);
    }
    match a.class {
        Class::Zero => F::zero(a.sign),
        Class::Infinity => F::infinity(a.sign),
        _ => round_pack(a.sign, a.exponent, u128::from(a.significand) << 64, env),
    }
}

/// Shift counts beyond this give overflow or underflow from every exponent.
const SCALE_LIMIT: i32 = 0x1_0000;

/// `a * 2^trunc(b)`, as FSCALE.
pub fn scale<F: Float>(a: Operand, b: Operand, env: &mut Env) -> F {
    if special(&a) || special(&b) {
        return propagate2(a, b, env);
    }
    if b.is_infinite() && (if b.sign { a.is_infinite() } else { a.is_zero() }) {
        return invalid(env);
    }
    if a.denormal || b.denormal {
        env.raise(exception::DE);
    }
    if b.is_infinite() {
        return if b.sign { F::zero(a.sign) } else { F::infinity(a.sign) };
    }
    if a.is_infinite() {
        return F::infinity(a.sign);
    }
    if a.is_zero() {
        return F::zero(a.sign);
    }
    let count = match (b.class, b.exponent) {
        (Class::Zero, _) | (_, ..0) => 0,
        (_, 0..16) => (b.significand >> (63 - b.exponent)) as i32,
        _ => SCALE_LIMIT,
    };
    let exponent = a.exponent + if b.sign { -count } else { count };
    round_pack(a.sign, exponent, u128::from(a.significand) << 64, env)
}

/// Exponent and significand of `a` as two values, as FXTRACT.
pub fn extract<F: Float>(a: Operand, env: &mut Env) -> (F, F) {
    if special(&a) {
        let nan = propagate1(a, env);
        return (nan, nan);
    }
    match a.class {
        Class::Zero => {
            env.raise(exception::ZE);
            (F::infinity(true), F::zero(a.sign))
        }
        Class::Infinity => (F::infinity(false), F::infinity(a.sign)),
        _ => {
            if a.denormal {
                env.raise(exception::DE);
            }
            let e = Operand::from_i64(i64::from(a.exponent));
            let exponent =
                if e.is_zero() { F::zero(false) } else { F::pack(e.sign, e.exponent, e.significand) };
            (exponent, F::pack(a.sign, 0, a.significand))
        }
    }
}
