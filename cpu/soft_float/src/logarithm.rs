//! FYL2X and FYL2XP1.

use crate::add::Wide;
use crate::env::{Env, exception};
use crate::format::{Float, Operand};
use crate::mul::mul;
use crate::nan::{invalid, propagate2, special};

/// ln 2.
pub(crate) const LN_2: Wide = Wide::new(-1, 0xb17217f7_d1cf79ab_c9e3b398_03f2f6af);
/// log2 e.
const LOG2_E: Wide = Wide::new(0, 0xb8aa3b29_5c17f0bb_be87fed0_691d3e89);
/// The significand of the square root of two.
const SQRT_2: u128 = 0xb504f333_f9de6484_597d89b3_754abe9f;
/// Terms of the series for the area tangent with |z| < 0.172: the rest is below 2^-132.
const TERMS: u32 = 26;

/// `y * log2(x)`.
pub fn y_log2_x<F: Float>(x: Operand, y: Operand, env: &mut Env) -> F {
    if special(&x) || special(&y) {
        return propagate2(x, y, env);
    }
    if x.sign && !x.is_zero() {
        return invalid(env);
    }
    let one = !x.is_zero() && x.exponent == 0 && x.significand == 1 << 63;
    if x.is_zero() && y.is_zero() || x.is_infinite() && y.is_zero() || one && y.is_infinite() {
        return invalid(env);
    }
    if x.is_zero() {
        if !y.is_infinite() {
            env.raise(exception::ZE);
        }
        return F::infinity(!y.sign);
    }
    if x.denormal || y.denormal {
        env.raise(exception::DE);
    }
    if x.is_infinite() {
        return F::infinity(y.sign);
    }
    let below_one = x.exponent < 0;
    if y.is_infinite() {
        return F::infinity(y.sign ^ below_one);
    }
    if y.is_zero() || one {
        return F::zero(y.sign ^ below_one);
    }
    if x.significand == 1 << 63 {
        let y = Operand { denormal: false, ..y };
        let r: F = mul(Operand::from_i64(i64::from(x.exponent)), y, env);
        // Processors report a function's result as inexact even where it is not.
        env.raise(exception::PE);
        if r.unpack().denormal {
            env.raise(exception::UE);
        }
        return r;
    }
    log2(Wide::from_operand(x)).times(Wide::from_operand(y)).round(env)
}

/// `y * log2(x + 1)`. From -1 down, where the instruction is undefined, `x`.
pub fn y_log2_x_plus_1<F: Float>(x: Operand, y: Operand, env: &mut Env) -> F {
    if special(&x) || special(&y) {
        return propagate2(x, y, env);
    }
    if x.is_infinite() && x.sign || x.is_zero() && y.is_infinite() || x.is_infinite() && y.is_zero() {
        return invalid(env);
    }
    if x.denormal || y.denormal {
        env.raise(exception::DE);
    }
    let sign = x.sign ^ y.sign;
    if x.is_infinite() || y.is_infinite() {
        return F::infinity(sign);
    }
    if x.is_zero() || y.is_zero() {
        return F::zero(sign);
    }
    let w = Wide::from_operand(x);
    if x.sign && x.exponent >= 0 {
        env.raise(exception::PE);
        return F::pack(true, x.exponent, x.significand);
    }
    let log = if x.exponent < -2 {
        // Without forming x + 1, which would lose x's low bits.
        area_tangent(w.over(w.plus(Wide::ONE.scaled(1)))).times(LOG2_E).scaled(1)
    } else {
        log2(w.plus(Wide::ONE))
    };
    log.times(Wide::from_operand(y)).round(env)
}

/// log2 of a positive value.
fn log2(x: Wide) -> Wide {
    // x = m * 2^n with m from the root of one half to the root of two.
    let upper = x.significand > SQRT_2;
    let n = x.exponent + i32::from(upper);
    let m = Wide::new(-i32::from(upper), x.significand);
    let z = m.minus(Wide::ONE).over(m.plus(Wide::ONE));
    let fraction = area_tangent(z).times(LOG2_E).scaled(1);
    Wide::from_integer(n.unsigned_abs().into(), 0).negated_if(n < 0).plus(fraction)
}

/// z + z^3/3 + z^5/5 + ...: half of ln((1 + z) / (1 - z)).
fn area_tangent(z: Wide) -> Wide {
    let square = z.times(z);
    let last = Wide::ONE.over_integer(2 * TERMS + 1);
    let sum = (0..TERMS).rev().fold(last, |s, k| Wide::ONE.over_integer(2 * k + 1).plus(square.times(s)));
    z.times(sum)
}
