//! Addition and subtraction.

use crate::env::{Env, Rounding, exception};
use crate::format::{Float, Operand};
use crate::nan::{flush, invalid, propagate2, special};
use crate::round::{round_pack, shift_right_jam};

/// `a + b`.
pub fn add<F: Float>(a: Operand, b: Operand, env: &mut Env) -> F {
    sum(a, b, false, env)
}

/// `a - b`.
pub fn sub<F: Float>(a: Operand, b: Operand, env: &mut Env) -> F {
    sum(a, b, true, env)
}

fn sum<F: Float>(mut a: Operand, mut b: Operand, subtract: bool, env: &mut Env) -> F {
    if special(&a) || special(&b) {
        return propagate2(a, b, env);
    }
    b.sign ^= subtract;
    if flush(&mut a, env) | flush(&mut b, env) {
        env.raise(exception::DE);
    }
    match (a.is_infinite(), b.is_infinite()) {
        (true, true) if a.sign != b.sign => return invalid(env),
        (true, _) => return F::infinity(a.sign),
        (_, true) => return F::infinity(b.sign),
        _ => {}
    }
    match sum_wide(widen(a), widen(b), env.rounding) {
        Sum::Zero(sign) => F::zero(sign),
        Sum::Finite(w) => round_pack(w.sign, w.exponent, w.significand, env),
    }
}

/// A finite value with a 128-bit significand: `significand * 2^(exponent - 127)`,
/// bit 127 set unless zero; bit 0 may be sticky.
#[derive(Clone, Copy)]
pub(crate) struct Wide {
    pub sign: bool,
    pub exponent: i32,
    pub significand: u128,
}

pub(crate) enum Sum {
    Zero(bool),
    Finite(Wide),
}

pub(crate) fn widen(v: Operand) -> Wide {
    Wide { sign: v.sign, exponent: v.exponent, significand: u128::from(v.significand) << 64 }
}

/// Exact up to stickiness, provided that each significand has its low 20 bits
/// clear or the exponents differ by at least two.
pub(crate) fn sum_wide(a: Wide, b: Wide, rounding: Rounding) -> Sum {
    match (a.significand == 0, b.significand == 0) {
        (true, true) if a.sign == b.sign => return Sum::Zero(a.sign),
        (true, true) => return Sum::Zero(rounding == Rounding::Down),
        (true, false) => return Sum::Finite(b),
        (false, true) => return Sum::Finite(a),
        _ => {}
    }
    let (hi, lo) = if a.exponent >= b.exponent { (a, b) } else { (b, a) };
    let distance = hi.exponent.wrapping_sub(lo.exponent) as u32;
    // One bit of headroom for the carry.
    let x = shift_right_jam(hi.significand, 1);
    let y = shift_right_jam(lo.significand, distance.saturating_add(1));
    let exponent = hi.exponent + 1;
    let (sign, s) = if hi.sign == lo.sign {
        (hi.sign, x + y)
    } else if x == y {
        return Sum::Zero(rounding == Rounding::Down);
    } else if x > y {
        (hi.sign, x - y)
    } else {
        (lo.sign, y - x)
    };
    let shift = s.leading_zeros();
    Sum::Finite(Wide { sign, exponent: exponent - shift as i32, significand: s << shift })
}
