//! binary32 and binary64 arithmetic with a short way for the common case.
//!
//! Rust's `f32` and `f64` are IEEE 754 in round-to-nearest on every host. With
//! that rounding and all exceptions masked, an operation on normal (or zero)
//! operands whose result is normal can show software nothing but its value and
//! PE. So the host may compute it where PE is already recorded, or where it can
//! be told whether the result is exact. All else takes the integer way.

use crate::env::{Env, Rounding, exception};
use crate::format::{F32, F64, Float};
use crate::{add, div, fma, mul, sqrt, sub};

#[inline(always)]
fn nearest_and_masked(env: &Env) -> bool {
    env.rounding == Rounding::Nearest && env.masks == exception::ALL
}

#[inline(always)]
fn inexact_known(env: &Env) -> bool {
    (env.sticky | env.completed | env.flags) & exception::PE != 0
}

macro_rules! short_way {
    ($t:ident, $host:ty, $add:ident $sub:ident $mul:ident $div:ident $sqrt:ident $fma:ident) => {
        impl $t {
            #[inline(always)]
            fn host(self) -> $host {
                <$host>::from_bits(self.0)
            }

            /// Significant bits.
            #[inline(always)]
            fn width(self) -> u32 {
                // The implicit bit ends the count of a power of two.
                Self::PRECISION - (self.0 | 1 << (Self::PRECISION - 1)).trailing_zeros()
            }

            /// The host's sum of `a` and `b`, with PE if it is inexact; `None` if
            /// the integer way has to decide.
            #[inline(always)]
            fn host_sum(a: $host, b: $host, env: &mut Env) -> Option<$t> {
                let r = a + b;
                if !(nearest_and_masked(env) && usable(a) && usable(b) && r.is_normal()) {
                    return None;
                }
                if !inexact_known(env) {
                    // The rounding error itself, exactly (Knuth's two-sum).
                    let b_part = r - a;
                    let error = (a - (r - b_part)) + (b - b_part);
                    if !error.is_finite() {
                        return None;
                    }
                    if error != 0.0 {
                        env.raise(exception::PE);
                    }
                }
                Some($t(r.to_bits()))
            }

            /// `r` if it is clear of overflow and underflow, all being normal.
            #[inline(always)]
            fn host_result(a: $t, b: $t, r: $host, env: &Env) -> Option<$t> {
                let normal = a.host().is_normal() && b.host().is_normal() && r.is_normal();
                let fits = nearest_and_masked(env) && normal && r.abs() > <$host>::MIN_POSITIVE;
                fits.then_some($t(r.to_bits()))
            }
        }

        /// `a + b`.
        #[inline]
        pub fn $add(a: $t, b: $t, env: &mut Env) -> $t {
            match $t::host_sum(a.host(), b.host(), env) {
                Some(r) => r,
                None => add(a.unpack(), b.unpack(), env),
            }
        }

        /// `a - b`.
        #[inline]
        pub fn $sub(a: $t, b: $t, env: &mut Env) -> $t {
            match $t::host_sum(a.host(), -b.host(), env) {
                Some(r) => r,
                None => sub(a.unpack(), b.unpack(), env),
            }
        }

        /// `a * b`.
        #[inline]
        pub fn $mul(a: $t, b: $t, env: &mut Env) -> $t {
            match $t::host_result(a, b, a.host() * b.host(), env) {
                Some(r) if inexact_known(env) || a.width() + b.width() <= $t::PRECISION => r,
                _ => mul(a.unpack(), b.unpack(), env),
            }
        }

        /// `a / b`.
        #[inline]
        pub fn $div(a: $t, b: $t, env: &mut Env) -> $t {
            match $t::host_result(a, b, a.host() / b.host(), env) {
                Some(r) if inexact_known(env) => r,
                _ => div(a.unpack(), b.unpack(), env),
            }
        }

        /// The square root of `a`.
        #[inline]
        pub fn $sqrt(a: $t, env: &mut Env) -> $t {
            let positive = a.host().is_normal() && a.host() > 0.0;
            if positive && nearest_and_masked(env) && inexact_known(env) {
                return $t(a.host().sqrt().to_bits());
            }
            sqrt(a.unpack(), env)
        }

        /// `a * b + c` rounded once, the product and the addend optionally negated
        /// first. A NaN keeps its sign.
        pub fn $fma(a: $t, b: $t, c: $t, negate_product: bool, negate_addend: bool, env: &mut Env) -> $t {
            let (mut x, y, mut z) = (a.unpack(), b.unpack(), c.unpack());
            if !x.is_nan() {
                x.sign ^= negate_product && !y.is_nan();
            }
            if !z.is_nan() {
                z.sign ^= negate_addend;
            }
            fma(x, y, z, env)
        }
    };
}

/// Finite and not a denormal.
#[inline(always)]
fn usable<T: Host>(v: T) -> bool {
    v.normal_or_zero()
}

trait Host {
    fn normal_or_zero(self) -> bool;
}

impl Host for f32 {
    #[inline(always)]
    fn normal_or_zero(self) -> bool {
        self.is_normal() || self == 0.0
    }
}

impl Host for f64 {
    #[inline(always)]
    fn normal_or_zero(self) -> bool {
        self.is_normal() || self == 0.0
    }
}

short_way!(F32, f32, add32 sub32 mul32 div32 sqrt32 fma32);
short_way!(F64, f64, add64 sub64 mul64 div64 sqrt64 fma64);
