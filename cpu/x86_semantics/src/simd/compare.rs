//! Logic, comparisons, minima and maxima, tests and sign masks.

use super::lanes::{dwords, qwords, words};
use crate::flags::Flags;

/// PAND, ANDPS, ANDPD.
#[inline(always)]
pub fn pand(a: u128, b: u128) -> u128 {
    a & b
}

/// PANDN, ANDNPS, ANDNPD: `!a & b`.
#[inline(always)]
pub fn pandn(a: u128, b: u128) -> u128 {
    !a & b
}

/// POR, ORPS, ORPD.
#[inline(always)]
pub fn por(a: u128, b: u128) -> u128 {
    a | b
}

/// PXOR, XORPS, XORPD.
#[inline(always)]
pub fn pxor(a: u128, b: u128) -> u128 {
    a ^ b
}

macro_rules! elementwise {
    ($($doc:literal $name:ident $lane:ident $t:ty, $f:expr;)*) => {$(
        #[doc = $doc]
        #[inline]
        pub fn $name(a: u128, b: u128) -> u128 {
            $lane::zip(a, b, |x, y| $f(x as $t, y as $t) as _)
        }
    )*};
}

/// All ones if `x` compares true.
macro_rules! mask {
    ($t:ty, $op:tt) => {
        |x: $t, y: $t| if x $op y { -1i64 } else { 0 }
    };
}

elementwise! {
    "PCMPEQW." pcmpeqw words u16, mask!(u16, ==);
    "PCMPEQD." pcmpeqd dwords u32, mask!(u32, ==);
    "PCMPEQQ." pcmpeqq qwords u64, mask!(u64, ==);
    "PCMPGTW." pcmpgtw words i16, mask!(i16, >);
    "PCMPGTD." pcmpgtd dwords i32, mask!(i32, >);
    "PCMPGTQ." pcmpgtq qwords i64, mask!(i64, >);
    "PMINUW." pminuw words u16, u16::min;
    "PMINUD." pminud dwords u32, u32::min;
    "PMINSW." pminsw words i16, i16::min;
    "PMINSD." pminsd dwords i32, i32::min;
    "PMAXUW." pmaxuw words u16, u16::max;
    "PMAXUD." pmaxud dwords u32, u32::max;
    "PMAXSW." pmaxsw words i16, i16::max;
    "PMAXSD." pmaxsd dwords i32, i32::max;
}

/// PHMINPOSUW: the least unsigned word and, in bits 18-16, where it stands first.
pub fn phminposuw(a: u128) -> u128 {
    let mut least = (u16::MAX, 0);
    for (i, w) in words::split(a).into_iter().enumerate() {
        if w < least.0 {
            least = (w, i);
        }
    }
    u128::from(least.0) | (least.1 as u128) << 16
}

/// MOVMSKPS: the top bits of the doublewords.
#[inline]
pub fn movmskps(a: u128) -> u32 {
    dwords::split(a).into_iter().enumerate().fold(0, |m, (i, x)| m | x >> 31 << i)
}

/// MOVMSKPD: the top bits of the quadwords.
#[inline]
pub fn movmskpd(a: u128) -> u32 {
    (a >> 63) as u32 & 1 | (a >> 126) as u32 & 2
}

/// ZF and CF as given, the other status flags clear.
#[inline(always)]
fn zero_carry(zf: bool, cf: bool) -> Flags {
    // 1 has odd parity; so has 0 once bit 8 of `aux` corrects it.
    Flags { result: u64::from(!zf), aux: (u32::from(zf) << 8) | (u32::from(cf) * 0xc000_0000) }
}

/// PTEST of the pairs of lanes of `a` (first operand) and `b`: ZF if no common
/// bit is set, CF if `b` has no bit that `a` lacks.
#[inline]
pub fn ptest<const N: usize>(a: [u128; N], b: [u128; N]) -> Flags {
    test_under(a, b, u128::MAX)
}

/// VTESTPS: as [`ptest`], on the sign bits of doublewords.
pub fn vtestps<const N: usize>(a: [u128; N], b: [u128; N]) -> Flags {
    test_under(a, b, 0x8000_0000_8000_0000_8000_0000_8000_0000)
}

/// VTESTPD: as [`ptest`], on the sign bits of quadwords.
pub fn vtestpd<const N: usize>(a: [u128; N], b: [u128; N]) -> Flags {
    test_under(a, b, 0x8000_0000_0000_0000_8000_0000_0000_0000)
}

#[inline(always)]
fn test_under<const N: usize>(a: [u128; N], b: [u128; N], mask: u128) -> Flags {
    let (mut common, mut lacking) = (0, 0);
    for (a, b) in a.into_iter().zip(b) {
        common |= a & b & mask;
        lacking |= !a & b & mask;
    }
    zero_carry(common == 0, lacking == 0)
}
