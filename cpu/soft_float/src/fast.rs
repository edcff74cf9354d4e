//! binary32 and binary64 arithmetic with a short way for the common case.
//!
//! Rust's `f32` and `f64` are IEEE 754 in round-to-nearest on every host. With
//! that rounding, all exceptions masked and PE already recorded, an operation
//! on normal (or zero) operands whose result is normal cannot show software
//! anything but its value, so the host may compute it. All else takes the
//! integer way.

use crate::env::{Env, Rounding, exception};
use crate::format::{F32, F64, Float};
use crate::{add, div, fma, mul, sqrt, sub};

#[inline(always)]
fn allowed(env: &Env) -> bool {
    env.rounding == Rounding::Nearest && env.masks == exception::ALL && env.sticky & exception::PE != 0
}

macro_rules! short_way {
    ($t:ident, $host:ty, $add:ident $sub:ident $mul:ident $div:ident $sqrt:ident $fma:ident) => {
        impl $t {
            #[inline(always)]
            fn host(self) -> $host {
                <$host>::from_bits(self.0)
            }
        }

        /// `a + b`.
        #[inline]
        pub fn $add(a: $t, b: $t, env: &mut Env) -> $t {
            // A result of zero is left to the integer way, which knows the exact case.
            let r = a.host() + b.host();
            if allowed(env) && usable(a.host()) && usable(b.host()) && r.is_normal() {
                return $t(r.to_bits());
            }
            add(a.unpack(), b.unpack(), env)
        }

        /// `a - b`.
        #[inline]
        pub fn $sub(a: $t, b: $t, env: &mut Env) -> $t {
            let r = a.host() - b.host();
            if allowed(env) && usable(a.host()) && usable(b.host()) && r.is_normal() {
                return $t(r.to_bits());
            }
            sub(a.unpack(), b.unpack(), env)
        }

        /// `a * b`.
        #[inline]
        pub fn $mul(a: $t, b: $t, env: &mut Env) -> $t {
            let r = a.host() * b.host();
            if allowed(env)
                && r.is_normal()
                && r.abs() > <$host>::MIN_POSITIVE
                && a.host().is_normal()
                && b.host().is_normal()
            {
                return $t(r.to_bits());
            }
            mul(a.unpack(), b.unpack(), env)
        }

        /// `a / b`.
        #[inline]
        pub fn $div(a: $t, b: $t, env: &mut Env) -> $t {
            let r = a.host() / b.host();
            if allowed(env)
                && r.is_normal()
                && r.abs() > <$host>::MIN_POSITIVE
                && a.host().is_normal()
                && b.host().is_normal()
            {
                return $t(r.to_bits());
            }
            div(a.unpack(), b.unpack(), env)
        }

        /// The square root of `a`.
        #[inline]
        pub fn $sqrt(a: $t, env: &mut Env) -> $t {
            if allowed(env) && a.host().is_normal() && a.host() > 0.0 {
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
