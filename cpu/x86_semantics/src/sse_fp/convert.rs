//! Conversions between formats and integers.

use soft_float::{Env, F16, F32, F64, Float, Operand, Rounding, convert, exception, from_i64, to_signed};

use super::lanes::{from_pd, from_ps, pd, ps, sd, ss, with_sd, with_ss};

/// Integer indefinite of 32 bits.
const INDEFINITE32: u32 = 1 << 31;
/// Integer indefinite of 64 bits.
const INDEFINITE64: u64 = 1 << 63;

fn to_i32<F: Float>(v: F, rounding: Rounding, env: &mut Env) -> u32 {
    to_signed(v.unpack(), 32, rounding, env).map_or(INDEFINITE32, |v| v as u32)
}

fn to_i64<F: Float>(v: F, rounding: Rounding, env: &mut Env) -> u64 {
    to_signed(v.unpack(), 64, rounding, env).map_or(INDEFINITE64, |v| v as u64)
}

/// The four signed 32-bit lanes.
fn dq(v: u128) -> [i64; 4] {
    [0, 32, 64, 96].map(|n| i64::from((v >> n) as i32))
}

fn from_dq(v: [u32; 4]) -> u128 {
    from_ps(v.map(F32))
}

/// CVTPS2PD: the two low binary32 lanes.
pub fn cvtps2pd(b: u128, env: &mut Env) -> u128 {
    let b = ps(b);
    from_pd([convert(b[0].unpack(), env), convert(b[1].unpack(), env)])
}

/// CVTPD2PS: two lanes into the low half; the upper half is zero.
pub fn cvtpd2ps(b: u128, env: &mut Env) -> u128 {
    let b = pd(b);
    let (low, high): (F32, F32) = (convert(b[0].unpack(), env), convert(b[1].unpack(), env));
    from_ps([low, high, F32(0), F32(0)])
}

/// CVTSS2SD.
pub fn cvtss2sd(a: u128, b: u128, env: &mut Env) -> u128 {
    with_sd(a, convert(ss(b).unpack(), env))
}

/// CVTSD2SS.
pub fn cvtsd2ss(a: u128, b: u128, env: &mut Env) -> u128 {
    with_ss(a, convert(sd(b).unpack(), env))
}

/// CVTDQ2PS.
pub fn cvtdq2ps(b: u128, env: &mut Env) -> u128 {
    from_ps(dq(b).map(|v| from_i64(v, env)))
}

/// CVTDQ2PD: the two low integers; exact.
pub fn cvtdq2pd(b: u128) -> u128 {
    let b = dq(b);
    cvtpi2pd((b[0] as u32 as u64) | (b[1] as u64) << 32)
}

/// CVTPS2DQ.
pub fn cvtps2dq(b: u128, env: &mut Env) -> u128 {
    let rounding = env.rounding;
    from_dq(ps(b).map(|v| to_i32(v, rounding, env)))
}

/// CVTTPS2DQ.
pub fn cvttps2dq(b: u128, env: &mut Env) -> u128 {
    from_dq(ps(b).map(|v| to_i32(v, Rounding::Zero, env)))
}

/// CVTPD2DQ: two integers into the low half; the upper half is zero.
pub fn cvtpd2dq(b: u128, env: &mut Env) -> u128 {
    u128::from(cvtpd2pi(b, env))
}

/// CVTTPD2DQ: two integers into the low half; the upper half is zero.
pub fn cvttpd2dq(b: u128, env: &mut Env) -> u128 {
    u128::from(cvttpd2pi(b, env))
}

/// CVTPI2PS: two integers into the low half; the upper half is `a`'s.
pub fn cvtpi2ps(a: u128, b: u64, env: &mut Env) -> u128 {
    let low: F32 = from_i64(i64::from(b as i32), env);
    let high: F32 = from_i64(i64::from((b >> 32) as i32), env);
    a & !u128::from(u64::MAX) | u128::from(low.0) | u128::from(high.0) << 32
}

/// CVTPI2PD: exact.
pub fn cvtpi2pd(b: u64) -> u128 {
    let exact = |v: u64| F64(f64::from(v as i32).to_bits());
    from_pd([exact(b), exact(b >> 32)])
}

/// CVTPS2PI: the two low lanes.
pub fn cvtps2pi(b: u128, env: &mut Env) -> u64 {
    pair(ps(b)[0], ps(b)[1], env.rounding, env)
}

/// CVTTPS2PI: the two low lanes.
pub fn cvttps2pi(b: u128, env: &mut Env) -> u64 {
    pair(ps(b)[0], ps(b)[1], Rounding::Zero, env)
}

/// CVTPD2PI.
pub fn cvtpd2pi(b: u128, env: &mut Env) -> u64 {
    pair(pd(b)[0], pd(b)[1], env.rounding, env)
}

/// CVTTPD2PI.
pub fn cvttpd2pi(b: u128, env: &mut Env) -> u64 {
    pair(pd(b)[0], pd(b)[1], Rounding::Zero, env)
}

fn pair<F: Float>(low: F, high: F, rounding: Rounding, env: &mut Env) -> u64 {
    u64::from(to_i32(low, rounding, env)) | u64::from(to_i32(high, rounding, env)) << 32
}

macro_rules! from_integer {
    ($($name:ident $t:ty as $signed:ty => $with:ident;)*) => {$(
        #[doc = concat!("Integer `b` into the lowest lane, rounded as MXCSR says; the rest is `a`'s.")]
        pub fn $name(a: u128, b: $t, env: &mut Env) -> u128 {
            $with(a, from_i64(b as $signed as i64, env))
        }
    )*};
}

from_integer! {
    cvtsi2ss32 u32 as i32 => with_ss;
    cvtsi2ss64 u64 as i64 => with_ss;
    cvtsi2sd32 u32 as i32 => with_sd;
    cvtsi2sd64 u64 as i64 => with_sd;
}

macro_rules! to_integer {
    ($($rounded:ident $truncated:ident $t:ty = $convert:ident($lane:ident);)*) => {$(
        #[doc = "The lowest lane to an integer, rounded as MXCSR says; the integer indefinite if it does not fit."]
        pub fn $rounded(b: u128, env: &mut Env) -> $t {
            $convert($lane(b), env.rounding, env)
        }
        #[doc = "The lowest lane to an integer, truncated; the integer indefinite if it does not fit."]
        pub fn $truncated(b: u128, env: &mut Env) -> $t {
            $convert($lane(b), Rounding::Zero, env)
        }
    )*};
}

to_integer! {
    cvtss2si32 cvttss2si32 u32 = to_i32(ss);
    cvtss2si64 cvttss2si64 u64 = to_i64(ss);
    cvtsd2si32 cvttsd2si32 u32 = to_i32(sd);
    cvtsd2si64 cvttsd2si64 u64 = to_i64(sd);
}

/// VCVTPH2PS: the four low binary16 values. Denormals convert exactly and
/// silently, whatever MXCSR.DAZ.
pub fn cvtph2ps(b: u64, env: &mut Env) -> u128 {
    from_ps([0, 16, 32, 48].map(|n| {
        let v = F16((b >> n) as u16).unpack();
        convert(Operand { denormal: false, ..v }, env)
    }))
}

/// VCVTPS2PH: four lanes into 64 bits. `imm` bits 0-1 give the rounding unless
/// bit 2 leaves it to MXCSR. MXCSR.FTZ has no effect.
pub fn cvtps2ph(b: u128, imm: u8, env: &mut Env) -> u64 {
    let saved = *env;
    env.ftz = false;
    if imm & 4 == 0 {
        env.rounding = Rounding::from_bits(u32::from(imm));
    }
    let lanes: [F16; 4] = ps(b).map(|v| convert(v.unpack(), env));
    *env = Env { flags: env.flags & exception::ALL, ..saved };
    lanes.iter().rev().fold(0, |v, lane| v << 16 | u64::from(lane.0))
}
