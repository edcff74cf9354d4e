//! FLD1 to FLDZ: rounded as rounding control says (SDM volume 2, FLD1).

use soft_float::{F80, Rounding};

/// The seven constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Constant {
    /// 1.
    One,
    /// log2(10).
    Log2Of10,
    /// log2(e).
    Log2OfE,
    /// Pi.
    Pi,
    /// log10(2).
    Log10Of2,
    /// ln(2).
    LnOf2,
    /// 0.
    Zero,
}

/// The constant in double extended precision. No exceptions, no effect on C1.
pub fn constant(which: Constant, rounding: Rounding) -> F80 {
    // Sign and exponent, significand rounded down, and whether the rest is
    // above one half.
    let (sign_exponent, truncated, above_half): (u16, u64, bool) = match which {
        Constant::One => return F80 { sign_exponent: 0x3fff, significand: 1 << 63 },
        Constant::Zero => return F80::default(),
        Constant::Log2Of10 => (0x4000, 0xd49a_784b_cd1b_8afe, false),
        Constant::Log2OfE => (0x3fff, 0xb8aa_3b29_5c17_f0bb, true),
        Constant::Pi => (0x4000, 0xc90f_daa2_2168_c234, true),
        Constant::Log10Of2 => (0x3ffd, 0x9a20_9a84_fbcf_f798, true),
        Constant::LnOf2 => (0x3ffe, 0xb172_17f7_d1cf_79ab, true),
    };
    let up = match rounding {
        Rounding::Nearest => above_half,
        Rounding::Up => true,
        Rounding::Down | Rounding::Zero => false,
    };
    F80 { sign_exponent, significand: truncated + u64::from(up) }
}
