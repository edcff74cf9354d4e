//! Floating point with a 128-bit significand: the working precision of the
//! transcendental functions. Results are truncated, good to about 126 bits.

use crate::add::{Sum, Wide, sum_wide};
use crate::env::{Env, Rounding, exception};
use crate::format::{Float, Operand};
use crate::round::round_pack;

impl Wide {
    /// `significand * 2^(exponent - 127)`, bit 127 set.
    pub const fn new(exponent: i32, significand: u128) -> Self {
        Wide { sign: false, exponent, significand }
    }

    /// 0.
    pub const ZERO: Wide = Wide::new(0, 0);
    /// 1.
    pub const ONE: Wide = Wide::new(0, 1 << 127);

    /// An integer scaled: `v * 2^exponent`.
    pub fn from_integer(v: u128, exponent: i32) -> Self {
        if v == 0 {
            return Wide::ZERO;
        }
        let shift = v.leading_zeros();
        Wide::new(exponent + 127 - shift as i32, v << shift)
    }

    /// Exactly a finite operand.
    pub fn from_operand(v: Operand) -> Self {
        Wide { sign: v.sign, exponent: v.exponent, significand: u128::from(v.significand) << 64 }
    }

    pub fn is_zero(self) -> bool {
        self.significand == 0
    }

    #[must_use]
    pub fn negated_if(self, negate: bool) -> Self {
        Wide { sign: self.sign ^ negate, ..self }
    }

    /// Times `2^by`.
    #[must_use]
    pub fn scaled(self, by: i32) -> Self {
        Wide { exponent: self.exponent + by, ..self }
    }

    pub fn plus(self, other: Self) -> Self {
        match sum_wide(self, other, Rounding::Nearest) {
            Sum::Zero(_) => Wide::ZERO,
            Sum::Finite(w) => w,
        }
    }

    pub fn minus(self, other: Self) -> Self {
        self.plus(other.negated_if(true))
    }

    pub fn times(self, other: Self) -> Self {
        if self.is_zero() || other.is_zero() {
            return Wide::ZERO;
        }
        let (high, low) = multiply(self.significand, other.significand);
        let shift = high.leading_zeros();
        let significand = if shift == 0 { high } else { high << 1 | low >> 127 };
        Wide {
            sign: self.sign ^ other.sign,
            exponent: self.exponent + other.exponent + 1 - shift as i32,
            significand,
        }
    }

    /// The quotient by a value that is not zero.
    pub fn over(self, other: Self) -> Self {
        if self.is_zero() {
            return Wide::ZERO;
        }
        let divisor = other.significand;
        let (mut rest, mut carry, mut q) = (self.significand, false, 0u128);
        for _ in 0..128 {
            q <<= 1;
            if carry || rest >= divisor {
                rest = rest.wrapping_sub(divisor);
                q |= 1;
            }
            carry = rest >> 127 != 0;
            rest <<= 1;
        }
        let shift = q.leading_zeros();
        Wide {
            sign: self.sign ^ other.sign,
            exponent: self.exponent - other.exponent - shift as i32,
            significand: q << shift,
        }
    }

    /// The quotient by a small integer that is not zero.
    pub fn over_integer(self, n: u32) -> Self {
        let n = u128::from(n);
        let (q, r) = (self.significand / n, self.significand % n);
        if q == 0 {
            return Wide::ZERO;
        }
        let shift = q.leading_zeros();
        let significand = (q << shift) + (r << shift) / n;
        Wide { sign: self.sign, exponent: self.exponent - shift as i32, significand }
    }

    /// Round into a format. The value stands for an irrational number nearby, so
    /// the result counts as inexact.
    pub fn round<F: Float>(self, env: &mut Env) -> F {
        if self.is_zero() {
            env.raise(exception::PE);
            return F::zero(self.sign);
        }
        round_pack(self.sign, self.exponent, self.significand | 1, env)
    }
}

/// The 256-bit product, upper half first.
fn multiply(a: u128, b: u128) -> (u128, u128) {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let (low, high) = (a0 * b0, a1 * b1);
    let (x, y) = (a1 * b0, a0 * b1);
    let middle = (low >> 64) + (x & LOW) + (y & LOW);
    (high + (x >> 64) + (y >> 64) + (middle >> 64), middle << 64 | low & LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_good_to_126_bits() {
        for (n, d) in [(1u128, 3u32), (7, 5), (1 << 70, 641), (u128::MAX, 65_537)] {
            let a = Wide::from_integer(n, 0);
            let by_division = a.over(Wide::from_integer(d.into(), 0));
            let back = by_division.times(Wide::from_integer(d.into(), 0)).minus(a);
            assert!(back.is_zero() || back.exponent <= a.exponent - 126, "{n}/{d}");
            let difference = by_division.minus(a.over_integer(d));
            assert!(difference.is_zero() || difference.exponent <= by_division.exponent - 126, "{n}/{d}");
        }
    }
}
