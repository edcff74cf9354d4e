//! Shifts by one count, by a count an element, and by bytes.

use super::lanes::{dwords, qwords, words};

macro_rules! logical {
    ($($doc:literal $name:ident $lane:ident $t:ty, $shift:ident;)*) => {$(
        #[doc = $doc]
        /// A count of the element width or more gives zero.
        #[inline]
        pub fn $name(a: u128, count: u64) -> u128 {
            if count >= u64::from(<$t>::BITS) {
                return 0;
            }
            $lane::map(a, |x| x.$shift(count as u32))
        }
    )*};
}

logical! {
    "PSLLW." psllw words u16, wrapping_shl;
    "PSLLD." pslld dwords u32, wrapping_shl;
    "PSLLQ." psllq qwords u64, wrapping_shl;
    "PSRLW." psrlw words u16, wrapping_shr;
    "PSRLD." psrld dwords u32, wrapping_shr;
    "PSRLQ." psrlq qwords u64, wrapping_shr;
}

/// PSRAW. A count above 15 fills with the sign.
#[inline]
pub fn psraw(a: u128, count: u64) -> u128 {
    let n = count.min(15) as u32;
    words::map(a, |x| (x as i16).wrapping_shr(n) as u16)
}

/// PSRAD. A count above 31 fills with the sign.
#[inline]
pub fn psrad(a: u128, count: u64) -> u128 {
    let n = count.min(31) as u32;
    dwords::map(a, |x| (x as i32).wrapping_shr(n) as u32)
}

/// PSLLDQ: by bytes.
#[inline]
pub fn pslldq(a: u128, imm: u8) -> u128 {
    a.checked_shl(u32::from(imm) * 8).unwrap_or(0)
}

/// PSRLDQ: by bytes.
#[inline]
pub fn psrldq(a: u128, imm: u8) -> u128 {
    a.checked_shr(u32::from(imm) * 8).unwrap_or(0)
}

/// VPSLLVD: each element by its own count.
pub fn vpsllvd(a: u128, counts: u128) -> u128 {
    dwords::zip(a, counts, |x, n| x.checked_shl(n).unwrap_or(0))
}

/// VPSLLVQ.
pub fn vpsllvq(a: u128, counts: u128) -> u128 {
    qwords::zip(a, counts, |x, n| if n < 64 { x << n } else { 0 })
}

/// VPSRLVD.
pub fn vpsrlvd(a: u128, counts: u128) -> u128 {
    dwords::zip(a, counts, |x, n| x.checked_shr(n).unwrap_or(0))
}

/// VPSRLVQ.
pub fn vpsrlvq(a: u128, counts: u128) -> u128 {
    qwords::zip(a, counts, |x, n| if n < 64 { x >> n } else { 0 })
}

/// VPSRAVD.
pub fn vpsravd(a: u128, counts: u128) -> u128 {
    dwords::zip(a, counts, |x, n| ((x as i32) >> n.min(31)) as u32)
}
