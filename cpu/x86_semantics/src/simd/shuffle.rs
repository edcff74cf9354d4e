//! Packing, unpacking, shuffles, blends, extensions.

use std::array::from_fn;

use super::lanes::{bytes, dwords, qwords, saturate_i8, saturate_i16, saturate_u8, saturate_u16, words};

/// Words of `a`, then of `b`, narrowed by `f`.
#[inline(always)]
fn pack_words(a: u128, b: u128, f: impl Fn(i16) -> u8) -> u128 {
    let (a, b) = (words::split(a), words::split(b));
    bytes::join(from_fn(|i| f(if i < 8 { a[i] } else { b[i - 8] } as i16)))
}

/// Doublewords of `a`, then of `b`, narrowed by `f`.
#[inline(always)]
fn pack_dwords(a: u128, b: u128, f: impl Fn(i32) -> u16) -> u128 {
    let (a, b) = (dwords::split(a), dwords::split(b));
    words::join(from_fn(|i| f(if i < 4 { a[i] } else { b[i - 4] } as i32)))
}

/// PACKSSWB.
#[inline]
pub fn packsswb(a: u128, b: u128) -> u128 {
    pack_words(a, b, saturate_i8)
}

/// PACKUSWB.
#[inline]
pub fn packuswb(a: u128, b: u128) -> u128 {
    pack_words(a, b, saturate_u8)
}

/// PACKSSDW.
#[inline]
pub fn packssdw(a: u128, b: u128) -> u128 {
    pack_dwords(a, b, saturate_i16)
}

/// PACKUSDW.
#[inline]
pub fn packusdw(a: u128, b: u128) -> u128 {
    pack_dwords(a, b, saturate_u16)
}

macro_rules! unpack {
    ($($doc:literal $name:ident $lane:ident $start:expr;)*) => {$(
        #[doc = $doc]
        #[inline]
        pub fn $name(a: u128, b: u128) -> u128 {
            let (a, b) = ($lane::split(a), $lane::split(b));
            $lane::join(from_fn(|i| if i & 1 == 0 { a[$start + i / 2] } else { b[$start + i / 2] }))
        }
    )*};
}

unpack! {
    "PUNPCKLBW." punpcklbw bytes 0;
    "PUNPCKLWD." punpcklwd words 0;
    "PUNPCKLDQ and UNPCKLPS." punpckldq dwords 0;
    "PUNPCKLQDQ, UNPCKLPD and MOVLHPS." punpcklqdq qwords 0;
    "PUNPCKHBW." punpckhbw bytes 8;
    "PUNPCKHWD." punpckhwd words 4;
    "PUNPCKHDQ and UNPCKHPS." punpckhdq dwords 2;
    "PUNPCKHQDQ and UNPCKHPD." punpckhqdq qwords 1;
}

/// Field `i` of an immediate of two-bit fields.
#[inline(always)]
fn field(imm: u8, i: usize) -> usize {
    usize::from(imm >> (2 * i) & 3)
}

/// PSHUFD, and VPERMILPS with an immediate.
#[inline]
pub fn pshufd(a: u128, imm: u8) -> u128 {
    let a = dwords::split(a);
    dwords::join(from_fn(|i| a[field(imm, i)]))
}

/// PSHUFLW.
#[inline]
pub fn pshuflw(a: u128, imm: u8) -> u128 {
    let a = words::split(a);
    words::join(from_fn(|i| a[if i < 4 { field(imm, i) } else { i }]))
}

/// PSHUFHW.
#[inline]
pub fn pshufhw(a: u128, imm: u8) -> u128 {
    let a = words::split(a);
    words::join(from_fn(|i| a[if i < 4 { i } else { 4 + field(imm, i - 4) }]))
}

/// SHUFPS: two doublewords of `a`, then two of `b`.
#[inline]
pub fn shufps(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (dwords::split(a), dwords::split(b));
    dwords::join(from_fn(|i| if i < 2 { a[field(imm, i)] } else { b[field(imm, i)] }))
}

/// SHUFPD, and with `a` twice VPERMILPD with an immediate: bit 0 of `imm` chooses
/// from `a`, bit 1 from `b`. The upper lane of a 256-bit form uses bits 3-2.
#[inline]
pub fn shufpd(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (qwords::split(a), qwords::split(b));
    qwords::join([a[usize::from(imm & 1)], b[usize::from(imm >> 1 & 1)]])
}

/// PALIGNR: bytes `imm` and up of `a:b`.
#[inline]
pub fn palignr(a: u128, b: u128, imm: u8) -> u128 {
    match u32::from(imm) * 8 {
        0 => b,
        n @ 1..128 => b >> n | a << (128 - n),
        n => a.checked_shr(n - 128).unwrap_or(0),
    }
}

/// Elements of `b` where `f(i)`, else of `a`.
macro_rules! blend {
    ($lane:ident, $a:expr, $b:expr, $f:expr) => {{
        let (a, b) = ($lane::split($a), $lane::split($b));
        $lane::join(from_fn(|i| if $f(i) { b[i] } else { a[i] }))
    }};
}

/// PBLENDW: words of `b` where the bit of `imm` is set.
pub fn pblendw(a: u128, b: u128, imm: u8) -> u128 {
    blend!(words, a, b, |i| imm >> i & 1 != 0)
}

/// BLENDPS and VPBLENDD; the upper lane of a 256-bit form uses bits 7-4.
pub fn blendps(a: u128, b: u128, imm: u8) -> u128 {
    blend!(dwords, a, b, |i| imm >> i & 1 != 0)
}

/// BLENDPD; the upper lane of a 256-bit form uses bits 3-2.
pub fn blendpd(a: u128, b: u128, imm: u8) -> u128 {
    blend!(qwords, a, b, |i| imm >> i & 1 != 0)
}

/// PBLENDVB: bytes of `b` where `mask` has the top bit.
pub fn pblendvb(a: u128, b: u128, mask: u128) -> u128 {
    let mask = bytes::split(mask);
    blend!(bytes, a, b, |i: usize| mask[i] >> 7 != 0)
}

/// BLENDVPS.
pub fn blendvps(a: u128, b: u128, mask: u128) -> u128 {
    let mask = dwords::split(mask);
    blend!(dwords, a, b, |i: usize| mask[i] >> 31 != 0)
}

/// BLENDVPD.
pub fn blendvpd(a: u128, b: u128, mask: u128) -> u128 {
    let mask = qwords::split(mask);
    blend!(qwords, a, b, |i: usize| mask[i] >> 63 != 0)
}

/// INSERTPS: doubleword `value` into position bits 5-4 of `imm`; positions in
/// bits 3-0 become zero. Bits 7-6 choose the source element of a register form,
/// which is the caller's to do.
pub fn insertps(a: u128, value: u32, imm: u8) -> u128 {
    let mut v = dwords::split(a);
    v[usize::from(imm >> 4 & 3)] = value;
    dwords::join(from_fn(|i| if imm >> i & 1 != 0 { 0 } else { v[i] }))
}

/// MOVDDUP: the low quadword twice.
#[inline]
pub fn movddup(a: u128) -> u128 {
    punpcklqdq(a, a)
}

/// MOVSLDUP: even doublewords twice.
#[inline]
pub fn movsldup(a: u128) -> u128 {
    pshufd(a, 0b10_10_00_00)
}

/// MOVSHDUP: odd doublewords twice.
#[inline]
pub fn movshdup(a: u128) -> u128 {
    pshufd(a, 0b11_11_01_01)
}

macro_rules! extend {
    ($($doc:literal $name:ident $from:ident as $t:ty, $to:ident as $u:ty;)*) => {$(
        #[doc = $doc]
        #[inline]
        pub fn $name(a: u128) -> u128 {
            let a = $from::split(a);
            $to::join(from_fn(|i| a[i] as $t as $u as _))
        }
    )*};
}

extend! {
    "PMOVSXBW: the low bytes sign-extended." pmovsxbw bytes as i8, words as i16;
    "PMOVSXBD." pmovsxbd bytes as i8, dwords as i32;
    "PMOVSXBQ." pmovsxbq bytes as i8, qwords as i64;
    "PMOVSXWD." pmovsxwd words as i16, dwords as i32;
    "PMOVSXWQ." pmovsxwq words as i16, qwords as i64;
    "PMOVSXDQ." pmovsxdq dwords as i32, qwords as i64;
    "PMOVZXBW: the low bytes zero-extended." pmovzxbw bytes as u8, words as u16;
    "PMOVZXBD." pmovzxbd bytes as u8, dwords as u32;
    "PMOVZXBQ." pmovzxbq bytes as u8, qwords as u64;
    "PMOVZXWD." pmovzxwd words as u16, dwords as u32;
    "PMOVZXWQ." pmovzxwq words as u16, qwords as u64;
    "PMOVZXDQ." pmovzxdq dwords as u32, qwords as u64;
}
