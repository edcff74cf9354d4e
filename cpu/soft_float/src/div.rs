//! Division and square root.

use crate::env::{Env, exception};
use crate::format::{Float, Operand};
use crate::nan::{flush, invalid, propagate1, propagate2, special};
use crate::round::round_pack;

/// `a / b`.
pub fn div<F: Float>(mut a: Operand, mut b: Operand, env: &mut Env) -> F {
    if special(&a) || special(&b) {
        return propagate2(a, b, env);
    }
    let denormal = flush(&mut a, env) | flush(&mut b, env);
    if a.is_infinite() && b.is_infinite() || a.is_zero() && b.is_zero() {
        return invalid(env);
    }
    let sign = a.sign ^ b.sign;
    if b.is_zero() && !a.is_infinite() {
        env.raise(exception::ZE);
        return F::infinity(sign);
    }
    if denormal {
        env.raise(exception::DE);
    }
    if a.is_infinite() {
        return F::infinity(sign);
    }
    if b.is_infinite() || a.is_zero() {
        return F::zero(sign);
    }
    // 65 quotient bits and a remainder: enough for 64 and a round bit.
    let divisor = u128::from(b.significand);
    let dividend = u128::from(a.significand) << 64;
    let (q, r) = (dividend / divisor, dividend % divisor);
    let q = q << 2 | u128::from(r << 1 >= divisor) << 1 | u128::from(r != 0 && r << 1 != divisor);
    let shift = q.leading_zeros();
    // q is the ratio of the significands times 2^66.
    let exponent = a.exponent.wrapping_sub(b.exponent) + 61 - shift as i32;
    round_pack(sign, exponent, q << shift, env)
}

/// The square root of `a`.
pub fn sqrt<F: Float>(mut a: Operand, env: &mut Env) -> F {
    if special(&a) {
        return propagate1(a, env);
    }
    let denormal = flush(&mut a, env);
    if a.is_zero() {
        return F::zero(a.sign);
    }
    if a.sign {
        return invalid(env);
    }
    if denormal {
        env.raise(exception::DE);
    }
    if a.is_infinite() {
        return F::infinity(false);
    }
    // Radicand with an even exponent and its top bit at 127 or 126, so that the
    // root has 64 bits; the remainder gives the next bit and the sticky bit.
    let odd = a.exponent & 1 != 0;
    let n = u128::from(a.significand) << if odd { 64 } else { 63 };
    let root = n.isqrt();
    let remainder = n - root * root;
    let q = root << 2 | u128::from(remainder > root) << 1 | u128::from(remainder != 0);
    round_pack(false, a.exponent >> 1, q << 62, env)
}
