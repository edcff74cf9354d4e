//! ROUNDPS and its kin.

use soft_float::{Env, Float, Rounding, exception, round_to_integral};

use super::lanes::{from_pd, from_ps, pd, ps, sd, ss, with_sd, with_ss};

/// `imm` bits 0-1 give the rounding unless bit 2 leaves it to MXCSR; bit 3
/// suppresses the precision exception.
fn round<F: Float>(v: F, imm: u8, env: &mut Env) -> F {
    let rounding = if imm & 4 != 0 { env.rounding } else { Rounding::from_bits(u32::from(imm)) };
    let before = env.flags;
    let r = round_to_integral(v.unpack(), rounding, env);
    if imm & 8 != 0 {
        env.flags = before | env.flags & !exception::PE;
    }
    r
}

/// ROUNDPS.
pub fn roundps(b: u128, imm: u8, env: &mut Env) -> u128 {
    from_ps(ps(b).map(|v| round(v, imm, env)))
}

/// ROUNDPD.
pub fn roundpd(b: u128, imm: u8, env: &mut Env) -> u128 {
    from_pd(pd(b).map(|v| round(v, imm, env)))
}

/// ROUNDSS.
pub fn roundss(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
    with_ss(a, round(ss(b), imm, env))
}

/// ROUNDSD.
pub fn roundsd(a: u128, b: u128, imm: u8, env: &mut Env) -> u128 {
    with_sd(a, round(sd(b), imm, env))
}
