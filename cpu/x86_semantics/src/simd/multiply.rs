//! Products, sums of products, sums of absolute differences.

use std::array::from_fn;

use super::lanes::{bytes, dwords, qwords, saturate_i16, words};

/// PMULLW: low halves of the products.
#[inline]
pub fn pmullw(a: u128, b: u128) -> u128 {
    words::zip(a, b, u16::wrapping_mul)
}

/// PMULHW: high halves of the signed products.
#[inline]
pub fn pmulhw(a: u128, b: u128) -> u128 {
    words::zip(a, b, |x, y| ((i32::from(x as i16) * i32::from(y as i16)) >> 16) as u16)
}

/// PMULHUW: high halves of the unsigned products.
#[inline]
pub fn pmulhuw(a: u128, b: u128) -> u128 {
    words::zip(a, b, |x, y| ((u32::from(x) * u32::from(y)) >> 16) as u16)
}

/// PMULHRSW: signed products scaled by 2^-15 and rounded.
#[inline]
pub fn pmulhrsw(a: u128, b: u128) -> u128 {
    words::zip(a, b, |x, y| ((((i32::from(x as i16) * i32::from(y as i16)) >> 14) + 1) >> 1) as u16)
}

/// PMULLD: low halves of the products.
#[inline]
pub fn pmulld(a: u128, b: u128) -> u128 {
    dwords::zip(a, b, u32::wrapping_mul)
}

/// PMULUDQ: unsigned products of the even doublewords.
#[inline]
pub fn pmuludq(a: u128, b: u128) -> u128 {
    qwords::zip(a, b, |x, y| u64::from(x as u32) * u64::from(y as u32))
}

/// PMULDQ: signed products of the even doublewords.
#[inline]
pub fn pmuldq(a: u128, b: u128) -> u128 {
    qwords::zip(a, b, |x, y| (i64::from(x as i32) * i64::from(y as i32)) as u64)
}

/// PMADDWD: sums of neighbouring signed products.
#[inline]
pub fn pmaddwd(a: u128, b: u128) -> u128 {
    let (a, b) = (words::split(a), words::split(b));
    let product = |i: usize| i32::from(a[i] as i16) * i32::from(b[i] as i16);
    dwords::join(from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1)) as u32))
}

/// PMADDUBSW: saturated sums of neighbouring products of unsigned bytes of `a`
/// and signed bytes of `b`.
#[inline]
pub fn pmaddubsw(a: u128, b: u128) -> u128 {
    let (a, b) = (bytes::split(a), bytes::split(b));
    let product = |i: usize| i32::from(a[i]) * i32::from(b[i] as i8);
    words::join(from_fn(|i| saturate_i16(product(2 * i) + product(2 * i + 1))))
}

/// PSADBW: sums of absolute byte differences, one a quadword.
#[inline]
pub fn psadbw(a: u128, b: u128) -> u128 {
    let (a, b) = (bytes::split(a), bytes::split(b));
    qwords::join(from_fn(|half| (0..8).map(|i| u64::from(a[8 * half + i].abs_diff(b[8 * half + i]))).sum()))
}

/// MPSADBW: eight sums of absolute differences of four bytes. `imm` bits 1-0
/// select the block of `b`, bit 2 the start in `a`.
pub fn mpsadbw(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (bytes::split(a), bytes::split(b));
    let (start, block) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    words::join(from_fn(|i| (0..4).map(|k| u16::from(a[start + i + k].abs_diff(b[block + k]))).sum()))
}
