//! F2XM1.

use crate::add::Wide;
use crate::env::{Env, exception};
use crate::format::{Float, Operand};
use crate::logarithm::LN_2;
use crate::nan::{propagate1, special};

/// Terms of the series for e^y - 1 with |y| <= ln 2: the rest is below 2^-134.
const TERMS: u32 = 33;

/// `2^a - 1`, for `a` from -1 to 1. Outside, where the instruction is undefined,
/// infinities give their limits and other operands are returned as they are.
pub fn exp2_minus_1<F: Float>(a: Operand, env: &mut Env) -> F {
    if special(&a) {
        return propagate1(a, env);
    }
    if a.is_zero() {
        return F::zero(a.sign);
    }
    if a.is_infinite() {
        return if a.sign { F::pack(true, 0, 1 << 63) } else { F::infinity(false) };
    }
    if a.denormal {
        env.raise(exception::DE);
    }
    if a.exponent >= 0 {
        // Processors report the result as inexact even here.
        env.raise(exception::PE);
        let minus_one = a.sign && a.exponent == 0 && a.significand == 1 << 63;
        return F::pack(a.sign, if minus_one { -1 } else { a.exponent }, a.significand);
    }
    let y = Wide::from_operand(a).times(LN_2);
    // y (1 + y/2 (1 + y/3 (...)))
    let sum = (2..=TERMS).rev().fold(Wide::ONE, |s, n| Wide::ONE.plus(y.times(s).over_integer(n)));
    y.times(sum).round(env)
}
