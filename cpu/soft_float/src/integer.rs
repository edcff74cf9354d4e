//! Integers and integral values.

use crate::env::{Env, Rounding, exception};
use crate::format::{Class, Float, Operand};
use crate::nan::{flush, propagate1, special};
use crate::round::{round_integer, round_pack, shift_right_jam};

/// Magnitude rounded to an integer, whether that was inexact and upwards.
/// `None` if the magnitude has more than 64 bits.
fn rounded_magnitude(a: &Operand, rounding: Rounding) -> Option<(u64, bool, bool)> {
    if a.exponent > 63 {
        return None;
    }
    // Bits 127-64 are the integer part after the shift.
    let fixed = shift_right_jam(u128::from(a.significand) << 64, (63 - a.exponent) as u32);
    let (v, inexact, up) = round_integer(fixed, 64, a.sign, rounding);
    u64::try_from(v).ok().map(|v| (v, inexact, up))
}

/// To a two's-complement integer of `bits` (16, 32 or 64) bits. `None`, with IE
/// raised, if the value does not fit: the caller stores the integer indefinite.
pub fn to_signed(mut a: Operand, bits: u32, rounding: Rounding, env: &mut Env) -> Option<i64> {
    flush(&mut a, env);
    let converted = match a.class {
        Class::Zero => return Some(0),
        Class::Finite => rounded_magnitude(&a, rounding),
        _ => None,
    };
    let limit = (1u64 << (bits - 1)) - u64::from(!a.sign);
    match converted {
        Some((v, inexact, up)) if v <= limit => {
            if inexact {
                env.inexact(up);
            }
            let v = v as i64;
            Some(if a.sign { v.wrapping_neg() } else { v })
        }
        _ => {
            env.raise(exception::IE);
            None
        }
    }
}

/// To an unsigned integer of `bits` (32 or 64) bits. `None`, with IE raised, if
/// the value does not fit.
pub fn to_unsigned(mut a: Operand, bits: u32, rounding: Rounding, env: &mut Env) -> Option<u64> {
    flush(&mut a, env);
    let converted = match a.class {
        Class::Zero => return Some(0),
        Class::Finite => rounded_magnitude(&a, rounding),
        _ => None,
    };
    match converted {
        Some((v, inexact, up)) if v <= u64::MAX >> (64 - bits) && (v == 0 || !a.sign) => {
            if inexact {
                env.inexact(up);
            }
            Some(v)
        }
        _ => {
            env.raise(exception::IE);
            None
        }
    }
}

/// Round to an integral value in the same format. Raises PE if that changes the
/// value, never DE.
pub fn round_to_integral<F: Float>(mut a: Operand, rounding: Rounding, env: &mut Env) -> F {
    if special(&a) {
        return propagate1(a, env);
    }
    flush(&mut a, env);
    if a.is_infinite() {
        return F::infinity(a.sign);
    }
    if a.is_zero() {
        return F::zero(a.sign);
    }
    if a.exponent >= F::PRECISION as i32 - 1 {
        return F::pack(a.sign, a.exponent, a.significand);
    }
    // The exponent is below 63, so the magnitude fits.
    let (v, inexact, up) = rounded_magnitude(&a, rounding).unwrap_or_default();
    if inexact {
        env.inexact(up);
    }
    let r = Operand::from_parts(a.sign, 63, v);
    if r.is_zero() { F::zero(a.sign) } else { F::pack(a.sign, r.exponent, r.significand) }
}

/// A signed integer to the nearest value of the format.
pub fn from_i64<F: Float>(v: i64, env: &mut Env) -> F {
    round_operand(Operand::from_i64(v), env)
}

/// An unsigned integer to the nearest value of the format.
pub fn from_u64<F: Float>(v: u64, env: &mut Env) -> F {
    round_operand(Operand::from_parts(false, 63, v), env)
}

fn round_operand<F: Float>(v: Operand, env: &mut Env) -> F {
    if v.is_zero() {
        return F::zero(false);
    }
    round_pack(v.sign, v.exponent, u128::from(v.significand) << 64, env)
}
