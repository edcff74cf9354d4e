//! Between memory formats and registers.

use soft_float::{
    BCD_INDEFINITE, Class, Env, F80, Float, Operand, Rounding, convert, exception, from_bcd, to_bcd,
    to_signed,
};

/// FLD m32 and m64: exact. Raises DE and, for a signaling NaN, IE.
pub fn load<F: Float>(v: F, env: &mut Env) -> F80 {
    env.precision = 64;
    convert(v.unpack(), env)
}

/// FILD: exact.
pub fn load_integer(v: i64) -> F80 {
    exact(Operand::from_i64(v))
}

/// FBLD: exact.
pub fn load_bcd(bytes: [u8; 10]) -> F80 {
    exact(from_bcd(bytes))
}

fn exact(v: Operand) -> F80 {
    match v.class {
        Class::Zero => F80::zero(v.sign),
        _ => F80::pack(v.sign, v.exponent, v.significand),
    }
}

/// FST m32 and m64. A denormal in the register raises no DE (SDM volume 2, FST).
pub fn store_real<F: Float>(v: F80, env: &mut Env) -> F {
    convert(Operand { denormal: false, ..v.unpack() }, env)
}

/// FIST and FISTTP: the integer of `bits` (16, 32, 64) bits, in the low bits;
/// the integer indefinite, with IE raised, if it does not fit.
pub fn store_integer(v: F80, bits: u32, rounding: Rounding, env: &mut Env) -> u64 {
    match to_signed(v.unpack(), bits, rounding, env) {
        Some(v) => v as u64,
        None => 1 << (bits - 1),
    }
}

/// FBSTP.
pub fn store_bcd(v: F80, env: &mut Env) -> [u8; 10] {
    let a = v.unpack();
    if a.class == Class::Unsupported {
        env.raise(exception::IE);
        return BCD_INDEFINITE;
    }
    to_bcd(a, env.rounding, env).unwrap_or(BCD_INDEFINITE)
}
