//! The four formats and their common unpacked form.

pub use x86_state::F80;

/// binary16, for conversions only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct F16(pub u16);

/// binary32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct F32(pub u32);

/// binary64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct F64(pub u64);

/// What kind of value an [`Operand`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Plus or minus zero.
    Zero,
    /// Any other finite value, denormals included.
    Finite,
    /// Infinity.
    Infinity,
    /// Quiet NaN.
    Quiet,
    /// Signaling NaN.
    Signaling,
    /// An extended-precision encoding that no processor since the 387 accepts:
    /// unnormal, pseudo-infinity, pseudo-NaN (SDM volume 1, 8.2.2).
    Unsupported,
}

/// A value of any format, unpacked: the operands of every operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// Kind.
    pub class: Class,
    /// True if negative.
    pub sign: bool,
    /// Finite: the value is `significand * 2^(exponent - 63)`.
    pub exponent: i32,
    /// Finite: normalised, bit 63 set. NaN: bit 63 set, payload below it,
    /// left-aligned. Else 0.
    pub significand: u64,
    /// The encoding was a denormal (or pseudo-denormal).
    pub denormal: bool,
}

impl Operand {
    /// Zero.
    pub const fn zero(sign: bool) -> Self {
        Operand { class: Class::Zero, sign, exponent: 0, significand: 0, denormal: false }
    }

    /// Infinity.
    pub const fn infinity(sign: bool) -> Self {
        Operand { class: Class::Infinity, sign, exponent: 0, significand: 0, denormal: false }
    }

    /// Exactly this integer.
    pub fn from_i64(v: i64) -> Self {
        Operand::from_parts(v < 0, 63, v.unsigned_abs())
    }

    /// `significand * 2^(exponent - 63)`, the significand not yet normalised.
    pub fn from_parts(sign: bool, exponent: i32, significand: u64) -> Self {
        if significand == 0 {
            return Operand::zero(sign);
        }
        let shift = significand.leading_zeros();
        Operand {
            class: Class::Finite,
            sign,
            exponent: exponent - shift as i32,
            significand: significand << shift,
            denormal: false,
        }
    }

    fn nan(sign: bool, significand: u64) -> Self {
        let class = if significand & QUIET != 0 { Class::Quiet } else { Class::Signaling };
        Operand { class, sign, exponent: 0, significand: significand | INTEGER, denormal: false }
    }

    /// True for both kinds of NaN.
    #[inline(always)]
    pub fn is_nan(&self) -> bool {
        matches!(self.class, Class::Quiet | Class::Signaling)
    }

    /// True for zeros.
    #[inline(always)]
    pub fn is_zero(&self) -> bool {
        self.class == Class::Zero
    }

    /// True for infinities.
    #[inline(always)]
    pub fn is_infinite(&self) -> bool {
        self.class == Class::Infinity
    }

    /// With the sign inverted.
    #[must_use]
    pub fn negated(self) -> Self {
        Operand { sign: !self.sign, ..self }
    }
}

/// Explicit integer bit of the unpacked significand.
pub(crate) const INTEGER: u64 = 1 << 63;
/// The bit that makes a NaN quiet.
pub(crate) const QUIET: u64 = 1 << 62;

/// A storage format.
pub trait Float: Copy {
    /// Significand bits, the integer bit included.
    const PRECISION: u32;
    /// Exponent of the smallest normal number.
    const EXP_MIN: i32;
    /// Exponent of the largest finite number.
    const EXP_MAX: i32;
    /// The x87's register format, subject to precision control and to biased
    /// results of unmasked overflow and underflow.
    const EXTENDED: bool = false;

    /// To the common form. No exceptions are raised here.
    fn unpack(self) -> Operand;
    /// A finite value: `significand` is normalised (bit 63 set) and `exponent`
    /// in range, or `exponent` is `EXP_MIN` and bit 63 clear (denormal or zero).
    fn pack(sign: bool, exponent: i32, significand: u64) -> Self;
    /// Infinity.
    fn infinity(sign: bool) -> Self;
    /// A quiet NaN with the payload's upper bits.
    fn quiet_nan(sign: bool, significand: u64) -> Self;

    /// Zero.
    fn zero(sign: bool) -> Self {
        Self::pack(sign, Self::EXP_MIN, 0)
    }
    /// The quiet NaN that invalid operations produce (SDM volume 1, 4.8.3.7).
    fn default_nan() -> Self {
        Self::quiet_nan(true, INTEGER | QUIET)
    }
}

macro_rules! ieee_format {
    ($t:ident, $bits:ident, $precision:literal, $exp_max:literal) => {
        impl Float for $t {
            const PRECISION: u32 = $precision;
            const EXP_MIN: i32 = 1 - $exp_max;
            const EXP_MAX: i32 = $exp_max;

            #[inline]
            fn unpack(self) -> Operand {
                const FRACTION: u32 = $precision - 1;
                const TOP: i32 = 2 * $exp_max + 1;
                let sign = self.0 >> ($bits::BITS - 1) != 0;
                let biased = (self.0 >> FRACTION) as i32 & TOP;
                let fraction = u64::from(self.0 & ((1 << FRACTION) - 1)) << (64 - $precision);
                match (biased, fraction) {
                    (0, 0) => Operand::zero(sign),
                    (0, _) => {
                        let v = Operand::from_parts(sign, Self::EXP_MIN, fraction);
                        Operand { denormal: true, ..v }
                    }
                    (TOP, 0) => Operand::infinity(sign),
                    (TOP, _) => Operand::nan(sign, fraction),
                    _ => Operand {
                        class: Class::Finite,
                        sign,
                        exponent: biased - $exp_max,
                        significand: INTEGER | fraction,
                        denormal: false,
                    },
                }
            }

            #[inline]
            fn pack(sign: bool, exponent: i32, significand: u64) -> Self {
                let biased = if significand & INTEGER == 0 { 0 } else { (exponent + $exp_max) as $bits };
                let fraction = (significand & !INTEGER) >> (64 - $precision);
                $t($bits::from(sign) << ($bits::BITS - 1) | biased << ($precision - 1) | fraction as $bits)
            }

            fn infinity(sign: bool) -> Self {
                Self::pack(sign, $exp_max + 1, INTEGER)
            }

            fn quiet_nan(sign: bool, significand: u64) -> Self {
                Self::pack(sign, $exp_max + 1, significand | INTEGER | QUIET)
            }
        }
    };
}

ieee_format!(F16, u16, 11, 15);
ieee_format!(F32, u32, 24, 127);
ieee_format!(F64, u64, 53, 1023);

impl Float for F80 {
    const PRECISION: u32 = 64;
    const EXP_MIN: i32 = -16382;
    const EXP_MAX: i32 = 16383;
    const EXTENDED: bool = true;

    fn unpack(self) -> Operand {
        let sign = self.sign_exponent >> 15 != 0;
        let biased = i32::from(self.sign_exponent & 0x7fff);
        let significand = self.significand;
        match biased {
            0 if significand == 0 => Operand::zero(sign),
            0 => Operand { denormal: true, ..Operand::from_parts(sign, Self::EXP_MIN, significand) },
            _ if significand & INTEGER == 0 => {
                Operand { class: Class::Unsupported, sign, exponent: 0, significand, denormal: false }
            }
            0x7fff if significand == INTEGER => Operand::infinity(sign),
            0x7fff => Operand::nan(sign, significand),
            _ => Operand {
                class: Class::Finite,
                sign,
                exponent: biased - Self::EXP_MAX,
                significand,
                denormal: false,
            },
        }
    }

    fn pack(sign: bool, exponent: i32, significand: u64) -> Self {
        let biased = if significand & INTEGER == 0 { 0 } else { (exponent + Self::EXP_MAX) as u16 };
        F80 { significand, sign_exponent: u16::from(sign) << 15 | biased }
    }

    fn infinity(sign: bool) -> Self {
        Self::pack(sign, Self::EXP_MAX + 1, INTEGER)
    }

    fn quiet_nan(sign: bool, significand: u64) -> Self {
        Self::pack(sign, Self::EXP_MAX + 1, significand | INTEGER | QUIET)
    }
}
