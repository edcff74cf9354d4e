//! FSIN, FCOS, FSINCOS, FPTAN.

use crate::add::Wide;
use crate::env::{Env, exception};
use crate::format::{Float, Operand};
use crate::nan::{invalid, propagate1, special};

/// Pi in units of 2^-66: the 66-bit value with which processors reduce operands
/// (SDM volume 1, 8.3.8).
const PI_66: u128 = 0xc_90fd_aa22_168c_234c;
/// Operands from here on are refused: 2^63.
const LIMIT: i32 = 63;
/// Terms of the series for |r| <= pi/4: the rest is below 2^-130.
const TERMS: u32 = 17;

/// Result of a trigonometric instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigonometric<F> {
    /// The operand's magnitude is 2^63 or more: nothing changes but C2.
    OutOfRange,
    /// What replaces ST(0), and what is pushed after that (FSINCOS: the cosine,
    /// FPTAN: 1).
    Done(F, Option<F>),
}
use Trigonometric::{Done, OutOfRange};

/// FSIN.
pub fn sine<F: Float>(a: Operand, env: &mut Env) -> Trigonometric<F> {
    match classify(a, env) {
        Operation::Nan(nan) => Done(nan, None),
        Operation::OutOfRange => OutOfRange,
        Operation::Zero => Done(F::zero(a.sign), None),
        Operation::Reduced(r) => Done(r.sine().round(env), None),
    }
}

/// FCOS.
pub fn cosine<F: Float>(a: Operand, env: &mut Env) -> Trigonometric<F> {
    match classify(a, env) {
        Operation::Nan(nan) => Done(nan, None),
        Operation::OutOfRange => OutOfRange,
        Operation::Zero => Done(one(), None),
        Operation::Reduced(r) => Done(r.cosine().round(env), None),
    }
}

/// FSINCOS.
pub fn sine_cosine<F: Float>(a: Operand, env: &mut Env) -> Trigonometric<F> {
    match classify(a, env) {
        Operation::Nan(nan) => Done(nan, Some(nan)),
        Operation::OutOfRange => OutOfRange,
        Operation::Zero => Done(F::zero(a.sign), Some(one())),
        Operation::Reduced(r) => {
            let s = r.sine().round(env);
            Done(s, Some(r.cosine().round(env)))
        }
    }
}

/// FPTAN.
pub fn tangent<F: Float>(a: Operand, env: &mut Env) -> Trigonometric<F> {
    match classify(a, env) {
        Operation::Nan(nan) => Done(nan, Some(nan)),
        Operation::OutOfRange => OutOfRange,
        Operation::Zero => Done(F::zero(a.sign), Some(one())),
        Operation::Reduced(r) => Done(r.sine().over(r.cosine()).round(env), Some(one())),
    }
}

fn one<F: Float>() -> F {
    F::pack(false, 0, 1 << 63)
}

enum Operation<F> {
    Nan(F),
    OutOfRange,
    Zero,
    Reduced(Reduced),
}

fn classify<F: Float>(a: Operand, env: &mut Env) -> Operation<F> {
    if special(&a) {
        return Operation::Nan(propagate1(a, env));
    }
    if a.is_infinite() {
        return Operation::Nan(invalid(env));
    }
    if a.is_zero() {
        return Operation::Zero;
    }
    if a.exponent >= LIMIT {
        return Operation::OutOfRange;
    }
    if a.denormal {
        env.raise(exception::DE);
    }
    Operation::Reduced(reduce(a))
}

/// `rest + quadrant * pi/2`, the rest from -pi/4 to pi/4.
struct Reduced {
    rest: Wide,
    quadrant: u8,
    negative: bool,
}

fn reduce(a: Operand) -> Reduced {
    let magnitude = Wide::from_operand(Operand { sign: false, ..a });
    if a.exponent < -1 {
        return Reduced { rest: magnitude, quadrant: 0, negative: a.sign };
    }
    // In units of 2^-67, half of PI_66's, the operand is an integer and pi/2 is
    // PI_66: an exact remainder, one bit at a time.
    let (mut rest, mut quotient) = (u128::from(a.significand), 0u8);
    for _ in 0..a.exponent + 4 {
        rest <<= 1;
        quotient = quotient << 1 & 3;
        if rest >= PI_66 {
            rest -= PI_66;
            quotient |= 1;
        }
    }
    let above = rest > PI_66 / 2;
    let distance = if above { PI_66 - rest } else { rest };
    Reduced {
        rest: Wide::from_integer(distance, -67).negated_if(above),
        quadrant: (quotient + u8::from(above)) & 3,
        negative: a.sign,
    }
}

impl Reduced {
    fn sine(&self) -> Wide {
        let v = if self.quadrant & 1 == 0 { sine_series(self.rest) } else { cosine_series(self.rest) };
        v.negated_if(self.negative ^ (self.quadrant & 2 != 0))
    }

    fn cosine(&self) -> Wide {
        let v = if self.quadrant & 1 == 0 { cosine_series(self.rest) } else { sine_series(self.rest) };
        v.negated_if(matches!(self.quadrant, 1 | 2))
    }
}

/// r (1 - r^2/(2*3) (1 - r^2/(4*5) (...)))
fn sine_series(r: Wide) -> Wide {
    let square = r.times(r);
    let sum = (1..=TERMS)
        .rev()
        .fold(Wide::ONE, |s, k| Wide::ONE.minus(square.times(s).over_integer(2 * k * (2 * k + 1))));
    r.times(sum)
}

/// 1 - r^2/(1*2) (1 - r^2/(3*4) (...))
fn cosine_series(r: Wide) -> Wide {
    let square = r.times(r);
    (1..=TERMS)
        .rev()
        .fold(Wide::ONE, |s, k| Wide::ONE.minus(square.times(s).over_integer((2 * k - 1) * 2 * k)))
}
