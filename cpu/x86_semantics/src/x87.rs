//! x87 operations on values: no register stack, no memory.
//!
//! Functions take an [`Env`] made from the control word ([`Env::x87`]) and leave
//! exceptions there; [`commit`] records them in the status word and tells
//! whether the result may be written. Memory operands enter as [`Operand`]s in
//! their own format, so that denormals and signaling NaNs of that format are seen.

mod constant;
mod store;
mod transcendental;

pub use soft_float::{
    BCD_INDEFINITE, Class, Env, F32, F64, F80, Float, Operand, Quotient, Relation, Remainder, Rounding,
    exception, from_bcd,
};

pub use constant::{Constant, constant};
pub use store::{load, load_bcd, load_integer, store_bcd, store_integer, store_real};
pub use transcendental::{
    Trigonometric, arctangent, cosine, exp2_minus_1, sine, sine_cosine, tangent, y_log2_x, y_log2_x_plus_1,
};

use crate::flags::Flags;

/// Status-word bits (SDM volume 1, figure 8-4).
pub mod status {
    /// Stack fault.
    pub const SF: u16 = 1 << 6;
    /// Error summary.
    pub const ES: u16 = 1 << 7;
    /// Condition code 0.
    pub const C0: u16 = 1 << 8;
    /// Condition code 1.
    pub const C1: u16 = 1 << 9;
    /// Condition code 2.
    pub const C2: u16 = 1 << 10;
    /// TOP, three bits.
    pub const TOP: u16 = 7 << 11;
    /// Position of TOP.
    pub const TOP_SHIFT: u32 = 11;
    /// Condition code 3.
    pub const C3: u16 = 1 << 14;
    /// Busy; equals ES on every processor since the 387.
    pub const B: u16 = 1 << 15;
}
use status::{C0, C1, C2, C3};

/// What an instruction may still write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything.
    Complete,
    /// The register result, but nothing to memory: an unmasked overflow or
    /// underflow was found (SDM volume 1, 8.5.4 and 8.5.5).
    NoStore,
    /// Nothing: an unmasked invalid, denormal or zero-divide exception was found.
    Nothing,
}

/// Record in the status word what the operation raised, with C1 telling whether
/// the result was rounded up.
pub fn commit(env: &Env, fsw: &mut u16) -> Outcome {
    let reported = env.reported();
    *fsw = *fsw & !C1 | u16::from(reported);
    if reported & exception::PE != 0 && env.rounded_up {
        *fsw |= C1;
    }
    let unmasked = reported & !env.masks;
    if unmasked != 0 {
        *fsw |= status::ES | status::B;
    }
    if unmasked & exception::BEFORE != 0 {
        Outcome::Nothing
    } else if unmasked & (exception::OE | exception::UE) != 0 {
        Outcome::NoStore
    } else {
        Outcome::Complete
    }
}

/// [`commit`] for FLD m32 and m64, which push their (exact) value even when a
/// denormal-operand exception is unmasked. Returns true if the value is to be pushed.
pub fn commit_load(env: &Env, fsw: &mut u16) -> bool {
    commit(env, fsw);
    !env.unmasked(env.flags & exception::IE)
}

/// The dyadic operations, numbered as the reg field of opcode D8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arith {
    /// a + b.
    Add,
    /// a * b.
    Mul,
    /// a - b.
    Sub,
    /// b - a.
    SubReversed,
    /// a / b.
    Div,
    /// b / a.
    DivReversed,
}

/// One dyadic operation, rounded as precision control says.
pub fn arith(op: Arith, a: Operand, b: Operand, env: &mut Env) -> F80 {
    match op {
        Arith::Add => soft_float::add(a, b, env),
        Arith::Mul => soft_float::mul(a, b, env),
        Arith::Sub => soft_float::sub(a, b, env),
        Arith::SubReversed => soft_float::sub(b, a, env),
        Arith::Div => soft_float::div(a, b, env),
        Arith::DivReversed => soft_float::div(b, a, env),
    }
}

/// FSQRT.
pub fn sqrt(a: F80, env: &mut Env) -> F80 {
    soft_float::sqrt(a.unpack(), env)
}

/// FRNDINT.
pub fn round_to_integral(a: F80, env: &mut Env) -> F80 {
    let a = a.unpack();
    if a.denormal {
        env.raise(exception::DE);
    }
    soft_float::round_to_integral(a, env.rounding, env)
}

/// FSCALE: `a * 2^trunc(b)`. Precision control has no effect.
pub fn scale(a: F80, b: F80, env: &mut Env) -> F80 {
    env.precision = 64;
    soft_float::scale(a.unpack(), b.unpack(), env)
}

/// FXTRACT: exponent and significand.
pub fn extract(a: F80, env: &mut Env) -> (F80, F80) {
    soft_float::extract(a.unpack(), env)
}

/// FPREM and FPREM1: the value and the condition codes C0, C1, C2, C3 that
/// replace the old ones; `None` if only C1 and C2 are cleared.
pub fn remainder(a: F80, b: F80, mode: Quotient, env: &mut Env) -> (F80, Option<u16>) {
    env.precision = 64;
    let r: Remainder<F80> = soft_float::remainder(a.unpack(), b.unpack(), mode, env);
    let codes = r.quotient.map(|q| {
        let bit = |n: u8, c: u16| if q >> n & 1 != 0 { c } else { 0 };
        bit(2, C0) | bit(1, C3) | bit(0, C1) | if r.incomplete { C2 } else { 0 }
    });
    (r.value, codes)
}

/// FCHS.
pub fn change_sign(a: F80) -> F80 {
    F80 { sign_exponent: a.sign_exponent ^ 0x8000, ..a }
}

/// FABS.
pub fn absolute(a: F80) -> F80 {
    F80 { sign_exponent: a.sign_exponent & 0x7fff, ..a }
}

/// FCOM (signaling) and FUCOM (quiet).
pub fn compare(a: Operand, b: Operand, signaling: bool, env: &mut Env) -> Relation {
    soft_float::compare(a, b, signaling, env)
}

/// A relation as C3, C2, C0 (SDM volume 1, table 8-6).
pub fn relation_codes(r: Relation) -> u16 {
    match r {
        Relation::Greater => 0,
        Relation::Less => C0,
        Relation::Equal => C3,
        Relation::Unordered => C3 | C2 | C0,
    }
}

/// A relation as ZF, PF, CF: FCOMI.
pub fn relation_flags(r: Relation) -> Flags {
    crate::sse_fp::relation_flags(r)
}

/// FXAM: C3, C2, C0 for the class and C1 for the sign (SDM volume 2, table 3-29).
pub fn examine(v: F80, empty: bool) -> u16 {
    let sign = if v.sign_exponent >> 15 != 0 { C1 } else { 0 };
    if empty {
        return sign | C3 | C0;
    }
    let v = v.unpack();
    sign | match v.class {
        Class::Unsupported => 0,
        Class::Quiet | Class::Signaling => C0,
        Class::Infinity => C2 | C0,
        Class::Zero => C3,
        Class::Finite if v.denormal => C3 | C2,
        Class::Finite => C2,
    }
}

/// The two-bit tag FNSTENV stores for a register: 0 valid, 1 zero, 2 special,
/// 3 empty (SDM volume 1, 8.1.7).
pub fn full_tag(v: F80, empty: bool) -> u16 {
    if empty {
        return 3;
    }
    match v.sign_exponent & 0x7fff {
        0 if v.significand == 0 => 1,
        0 | 0x7fff => 2,
        _ if v.significand >> 63 == 0 => 2,
        _ => 0,
    }
}

/// The default NaN: the masked response to invalid operations.
pub fn indefinite() -> F80 {
    F80::default_nan()
}
