//! Rounding an exact (or sticky) intermediate result into a format: the one
//! place where overflow, underflow and inexactness are decided.

use crate::env::{Env, Rounding, Unit, exception};
use crate::format::Float;

/// Exponent adjustment of unmasked x87 overflow and underflow
/// (SDM volume 1, 4.9.1.4 and 4.9.1.5).
const BIAS_ADJUST: i32 = 24576;

/// `v >> n` with every bit shifted out ored into bit 0.
#[inline]
pub(crate) fn shift_right_jam(v: u128, n: u32) -> u128 {
    match n {
        0 => v,
        1..=127 => v >> n | u128::from(v << (128 - n) != 0),
        _ => u128::from(v != 0),
    }
}

/// Result of dropping low bits.
struct Rounded {
    kept: u128,
    inexact: bool,
    up: bool,
}

/// Drop the low `drop` (1-127) bits of `v`.
#[inline]
fn drop_bits(v: u128, drop: u32, sign: bool, rounding: Rounding) -> Rounded {
    let kept = v >> drop;
    let rest = v << (128 - drop);
    const HALF: u128 = 1 << 127;
    let up = match rounding {
        Rounding::Nearest => rest > HALF || rest == HALF && kept & 1 != 0,
        Rounding::Down => sign && rest != 0,
        Rounding::Up => !sign && rest != 0,
        Rounding::Zero => false,
    };
    Rounded { kept: kept + u128::from(up), inexact: rest != 0, up }
}

/// Round the low `drop` bits of an integer away; the integer, whether it was
/// inexact, whether it was rounded up.
pub(crate) fn round_integer(v: u128, drop: u32, sign: bool, rounding: Rounding) -> (u128, bool, bool) {
    if drop == 0 {
        return (v, false, false);
    }
    let r = drop_bits(v, drop, sign, rounding);
    (r.kept, r.inexact, r.up)
}

/// Round `significand * 2^(exponent - 127)` into `F`. The significand is
/// normalised (bit 127 set) and exact, or its bit 0 stands for further bits.
pub(crate) fn round_pack<F: Float>(sign: bool, exponent: i32, significand: u128, env: &mut Env) -> F {
    let precision = if F::EXTENDED { env.precision } else { F::PRECISION };
    if exponent < F::EXP_MIN {
        return round_tiny(sign, exponent, significand, precision, env);
    }
    let r = drop_bits(significand, 128 - precision, sign, env.rounding);
    let carry = (r.kept >> precision) as i32;
    let exponent = exponent + carry;
    if exponent > F::EXP_MAX {
        return overflow(sign, exponent, r, precision, env);
    }
    if r.inexact {
        env.inexact(r.up);
    }
    F::pack(sign, exponent, align(r.kept, precision))
}

/// A rounded significand of `precision` bits, or one more after a carry, as the
/// left-aligned form of [`Float::pack`].
fn align(kept: u128, precision: u32) -> u64 {
    if kept >> precision != 0 { 1 << 63 } else { (kept << (64 - precision)) as u64 }
}

#[cold]
fn overflow<F: Float>(sign: bool, exponent: i32, r: Rounded, precision: u32, env: &mut Env) -> F {
    env.raise(exception::OE);
    if F::EXTENDED && env.unmasked(exception::OE) {
        if r.inexact {
            env.inexact(r.up);
        }
        let exponent = exponent - BIAS_ADJUST;
        if exponent > F::EXP_MAX {
            env.inexact(true);
            return F::infinity(sign);
        }
        return F::pack(sign, exponent, align(r.kept, precision));
    }
    if env.unmasked(exception::OE) {
        // Nothing will be written. SSE reports whether rounding to an unbounded
        // exponent is inexact, an x87 store does not get so far.
        if r.inexact && env.unit == Unit::Sse {
            env.inexact(r.up);
        }
        return F::infinity(sign);
    }
    let to_infinity = match env.rounding {
        Rounding::Nearest => true,
        Rounding::Down => sign,
        Rounding::Up => !sign,
        Rounding::Zero => false,
    };
    env.inexact(to_infinity);
    if to_infinity { F::infinity(sign) } else { F::pack(sign, F::EXP_MAX, u64::MAX << (64 - precision)) }
}

#[cold]
fn round_tiny<F: Float>(sign: bool, exponent: i32, significand: u128, precision: u32, env: &mut Env) -> F {
    // Tininess is judged after rounding with an unbounded exponent
    // (SDM volume 1, 4.9.1.5).
    let unbounded = drop_bits(significand, 128 - precision, sign, env.rounding);
    let carry = unbounded.kept >> precision != 0;
    let tiny = !(exponent == F::EXP_MIN - 1 && carry);
    if tiny && env.unmasked(exception::UE) {
        env.raise(exception::UE);
        let adjusted = exponent + BIAS_ADJUST + i32::from(carry);
        if F::EXTENDED && adjusted >= F::EXP_MIN {
            if unbounded.inexact {
                env.inexact(unbounded.up);
            }
            return F::pack(sign, adjusted, align(unbounded.kept, precision));
        }
        // Beyond even the adjusted range of a register; else as with overflow.
        if F::EXTENDED || unbounded.inexact && env.unit == Unit::Sse {
            env.inexact(false);
        }
        return F::zero(sign);
    } else if tiny && env.ftz {
        env.raise(exception::UE);
        env.inexact(false);
        return F::zero(sign);
    }
    let shift = F::EXP_MIN.saturating_sub(exponent) as u32;
    let r = drop_bits(shift_right_jam(significand, shift), 128 - precision, sign, env.rounding);
    if r.inexact {
        if tiny {
            env.raise(exception::UE);
        }
        env.inexact(r.up);
    }
    F::pack(sign, F::EXP_MIN, align(r.kept, precision))
}
