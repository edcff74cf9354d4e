//! Addition, subtraction, averages, absolute values, signs, horizontal sums.

use std::array::from_fn;

use super::lanes::{bytes, dwords, qwords, saturate_i16, words};

macro_rules! elementwise {
    ($($doc:literal $name:ident $lane:ident $f:expr;)*) => {$(
        #[doc = $doc]
        #[inline]
        pub fn $name(a: u128, b: u128) -> u128 {
            $lane::zip(a, b, $f)
        }
    )*};
}

elementwise! {
    "PADDW." paddw words u16::wrapping_add;
    "PADDD." paddd dwords u32::wrapping_add;
    "PADDQ." paddq qwords u64::wrapping_add;
    "PADDSW." paddsw words |x, y| (x as i16).saturating_add(y as i16) as u16;
    "PADDUSW." paddusw words u16::saturating_add;
    "PSUBW." psubw words u16::wrapping_sub;
    "PSUBD." psubd dwords u32::wrapping_sub;
    "PSUBQ." psubq qwords u64::wrapping_sub;
    "PSUBSW." psubsw words |x, y| (x as i16).saturating_sub(y as i16) as u16;
    "PSUBUSW." psubusw words u16::saturating_sub;
    "PAVGW: rounded average." pavgw words |x, y| ((u32::from(x) + u32::from(y) + 1) >> 1) as u16;
    "PSIGNB: negate, keep or clear by the sign of `b`." psignb bytes
        |x, y| (x as i8).wrapping_mul((y as i8).signum()) as u8;
    "PSIGNW." psignw words |x, y| (x as i16).wrapping_mul((y as i16).signum()) as u16;
    "PSIGND." psignd dwords |x, y| (x as i32).wrapping_mul((y as i32).signum()) as u32;
}

/// PABSB.
#[inline]
pub fn pabsb(a: u128) -> u128 {
    bytes::map(a, |x| (x as i8).unsigned_abs())
}

/// PABSW.
#[inline]
pub fn pabsw(a: u128) -> u128 {
    words::map(a, |x| (x as i16).unsigned_abs())
}

/// PABSD.
#[inline]
pub fn pabsd(a: u128) -> u128 {
    dwords::map(a, |x| (x as i32).unsigned_abs())
}

/// `f` of neighbouring words of `a`, then of `b`.
#[inline(always)]
fn horizontal_words(a: u128, b: u128, f: impl Fn(u16, u16) -> u16) -> u128 {
    let (a, b) = (words::split(a), words::split(b));
    words::join(from_fn(|i| {
        let (v, n) = if i < 4 { (&a, i) } else { (&b, i - 4) };
        f(v[2 * n], v[2 * n + 1])
    }))
}

/// `f` of neighbouring doublewords of `a`, then of `b`.
#[inline(always)]
fn horizontal_dwords(a: u128, b: u128, f: impl Fn(u32, u32) -> u32) -> u128 {
    let (a, b) = (dwords::split(a), dwords::split(b));
    dwords::join([f(a[0], a[1]), f(a[2], a[3]), f(b[0], b[1]), f(b[2], b[3])])
}

/// PHADDW.
pub fn phaddw(a: u128, b: u128) -> u128 {
    horizontal_words(a, b, u16::wrapping_add)
}

/// PHADDD.
pub fn phaddd(a: u128, b: u128) -> u128 {
    horizontal_dwords(a, b, u32::wrapping_add)
}

/// PHADDSW.
pub fn phaddsw(a: u128, b: u128) -> u128 {
    horizontal_words(a, b, |x, y| saturate_i16(i32::from(x as i16) + i32::from(y as i16)))
}

/// PHSUBW.
pub fn phsubw(a: u128, b: u128) -> u128 {
    horizontal_words(a, b, u16::wrapping_sub)
}

/// PHSUBD.
pub fn phsubd(a: u128, b: u128) -> u128 {
    horizontal_dwords(a, b, u32::wrapping_sub)
}

/// PHSUBSW.
pub fn phsubsw(a: u128, b: u128) -> u128 {
    horizontal_words(a, b, |x, y| saturate_i16(i32::from(x as i16) - i32::from(y as i16)))
}
