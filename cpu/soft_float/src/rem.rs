//! Partial remainders of the x87.

use crate::env::{Env, exception};
use crate::format::{Float, Operand};
use crate::nan::{invalid, propagate2, special};
use crate::round::round_pack;

/// How FPREM and FPREM1 choose the integer quotient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quotient {
    /// FPREM.
    Truncated,
    /// FPREM1.
    Nearest,
}

/// Result of a partial remainder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remainder<F> {
    /// The (partial) remainder.
    pub value: F,
    /// The three low bits of the quotient; 0 if incomplete. `None` if the result
    /// is a NaN: the condition codes then keep what they had.
    pub quotient: Option<u8>,
    /// The exponents were too far apart: the reduction must be repeated (C2).
    pub incomplete: bool,
}

impl<F> Remainder<F> {
    fn nan(value: F) -> Self {
        Remainder { value, quotient: None, incomplete: false }
    }

    fn unchanged(value: F) -> Self {
        Remainder { value, quotient: Some(0), incomplete: false }
    }
}

/// Exponent differences from here on are reduced in steps.
const MAX_DISTANCE: i32 = 64;

/// `a` reduced by `b`: one step of the x87's exact remainder.
pub fn remainder<F: Float>(a: Operand, b: Operand, mode: Quotient, env: &mut Env) -> Remainder<F> {
    if special(&a) || special(&b) {
        return Remainder::nan(propagate2(a, b, env));
    }
    if a.is_infinite() || b.is_zero() {
        return Remainder::nan(invalid(env));
    }
    if a.denormal || b.denormal {
        env.raise(exception::DE);
    }
    if a.is_zero() {
        return Remainder::unchanged(F::zero(a.sign));
    }
    if b.is_infinite() {
        return Remainder::unchanged(finish(a.sign, a.exponent, u128::from(a.significand), env));
    }
    let distance = a.exponent - b.exponent;
    if distance < -1 {
        return Remainder::unchanged(finish(a.sign, a.exponent, u128::from(a.significand), env));
    }
    if distance >= MAX_DISTANCE {
        // Take off a multiple that leaves the distance smaller by 32 to 63.
        let step = distance % 32 + 32;
        let (_, r) = divide(a.significand, b.significand, step);
        let value = finish(a.sign, a.exponent - step, r, env);
        return Remainder { value, quotient: Some(0), incomplete: true };
    }
    // Work in units of half of b's last bit when a is the smaller one.
    let (mut q, mut r, unit) = if distance < 0 {
        (0, u128::from(a.significand), a.exponent)
    } else {
        let (q, r) = divide(a.significand, b.significand, distance);
        (q, r, b.exponent)
    };
    let mut sign = a.sign;
    if mode == Quotient::Nearest {
        let divisor = u128::from(b.significand) << (b.exponent - unit);
        if r << 1 > divisor || r << 1 == divisor && q & 1 != 0 {
            r = divisor - r;
            q += 1;
            sign = !sign;
        }
    }
    // A remainder of zero keeps the dividend's sign.
    let value = if r == 0 { F::zero(a.sign) } else { finish(sign, unit, r, env) };
    Remainder { value, quotient: Some((q & 7) as u8), incomplete: false }
}

/// Quotient and remainder of `a * 2^shift / b`, shift 0 to 63.
fn divide(a: u64, b: u64, shift: i32) -> (u128, u128) {
    let dividend = u128::from(a) << shift;
    (dividend / u128::from(b), dividend % u128::from(b))
}

/// The exact value `magnitude * 2^(exponent - 63)`.
fn finish<F: Float>(sign: bool, exponent: i32, magnitude: u128, env: &mut Env) -> F {
    if magnitude == 0 {
        return F::zero(sign);
    }
    let shift = magnitude.leading_zeros();
    round_pack(sign, exponent + 64 - shift as i32, magnitude << shift, env)
}
