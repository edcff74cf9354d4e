//! Fused multiply-add. `x` and `y` are the factors and `z` the addend, in the
//! order of the instruction form: 132 multiplies operands 1 and 3, 213 operands
//! 2 and 1, 231 operands 2 and 3. The order decides which NaN is kept.

use soft_float::{Env, F32, F64, fast};

use super::lanes::{from_pd, from_ps, pd, ps, sd, ss, with_sd, with_ss};

/// Sign changes of product and addend.
type Signs = (bool, bool);
const ADD: Signs = (false, false);
const SUB: Signs = (false, true);
const NEGATED_ADD: Signs = (true, false);
const NEGATED_SUB: Signs = (true, true);

fn lanes_ps(x: u128, y: u128, z: u128, signs: [Signs; 2], env: &mut Env) -> u128 {
    let (x, y, z) = (ps(x), ps(y), ps(z));
    from_ps([0, 1, 2, 3].map(|i| one32(x[i], y[i], z[i], signs[i & 1], env)))
}

fn lanes_pd(x: u128, y: u128, z: u128, signs: [Signs; 2], env: &mut Env) -> u128 {
    let (x, y, z) = (pd(x), pd(y), pd(z));
    from_pd([0, 1].map(|i| one64(x[i], y[i], z[i], signs[i], env)))
}

fn one32(x: F32, y: F32, z: F32, signs: Signs, env: &mut Env) -> F32 {
    fast::fma32(x, y, z, signs.0, signs.1, env)
}

fn one64(x: F64, y: F64, z: F64, signs: Signs, env: &mut Env) -> F64 {
    fast::fma64(x, y, z, signs.0, signs.1, env)
}

macro_rules! fused {
    ($($what:literal $signs:ident => $ps:ident $pd:ident $ss:ident $sd:ident;)*) => {$(
        #[doc = concat!("`", $what, "` of four binary32 lanes.")]
        pub fn $ps(x: u128, y: u128, z: u128, env: &mut Env) -> u128 {
            lanes_ps(x, y, z, [$signs; 2], env)
        }
        #[doc = concat!("`", $what, "` of two binary64 lanes.")]
        pub fn $pd(x: u128, y: u128, z: u128, env: &mut Env) -> u128 {
            lanes_pd(x, y, z, [$signs; 2], env)
        }
        #[doc = concat!("`", $what, "` of the lowest binary32 lane; the others are `upper`'s.")]
        pub fn $ss(upper: u128, x: u128, y: u128, z: u128, env: &mut Env) -> u128 {
            with_ss(upper, one32(ss(x), ss(y), ss(z), $signs, env))
        }
        #[doc = concat!("`", $what, "` of the lowest binary64 lane; the other is `upper`'s.")]
        pub fn $sd(upper: u128, x: u128, y: u128, z: u128, env: &mut Env) -> u128 {
            with_sd(upper, one64(sd(x), sd(y), sd(z), $signs, env))
        }
    )*};
}

fused! {
    "x*y+z" ADD => fmaddps fmaddpd fmaddss fmaddsd;
    "x*y-z" SUB => fmsubps fmsubpd fmsubss fmsubsd;
    "-(x*y)+z" NEGATED_ADD => fnmaddps fnmaddpd fnmaddss fnmaddsd;
    "-(x*y)-z" NEGATED_SUB => fnmsubps fnmsubpd fnmsubss fnmsubsd;
}

macro_rules! alternating {
    ($($what:literal $even:ident $odd:ident => $ps:ident $pd:ident;)*) => {$(
        #[doc = concat!($what, " binary32 lanes.")]
        pub fn $ps(x: u128, y: u128, z: u128, env: &mut Env) -> u128 {
            lanes_ps(x, y, z, [$even, $odd], env)
        }
        #[doc = concat!($what, " binary64 lanes.")]
        pub fn $pd(x: u128, y: u128, z: u128, env: &mut Env) -> u128 {
            lanes_pd(x, y, z, [$even, $odd], env)
        }
    )*};
}

alternating! {
    "`x*y-z` in even, `x*y+z` in odd" SUB ADD => fmaddsubps fmaddsubpd;
    "`x*y+z` in even, `x*y-z` in odd" ADD SUB => fmsubaddps fmsubaddpd;
}
