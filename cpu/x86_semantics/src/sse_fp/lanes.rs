//! Lane access within 128 bits.

use soft_float::{F32, F64};

/// The four binary32 lanes, lowest first.
#[inline(always)]
pub(super) fn ps(v: u128) -> [F32; 4] {
    [F32(v as u32), F32((v >> 32) as u32), F32((v >> 64) as u32), F32((v >> 96) as u32)]
}

/// The two binary64 lanes, lowest first.
#[inline(always)]
pub(super) fn pd(v: u128) -> [F64; 2] {
    [F64(v as u64), F64((v >> 64) as u64)]
}

/// Four binary32 lanes to 128 bits.
#[inline(always)]
pub(super) fn from_ps(v: [F32; 4]) -> u128 {
    u128::from(v[0].0) | u128::from(v[1].0) << 32 | u128::from(v[2].0) << 64 | u128::from(v[3].0) << 96
}

/// Two binary64 lanes to 128 bits.
#[inline(always)]
pub(super) fn from_pd(v: [F64; 2]) -> u128 {
    u128::from(v[0].0) | u128::from(v[1].0) << 64
}

/// `upper` with its lowest binary32 lane replaced.
#[inline(always)]
pub(super) fn with_ss(upper: u128, v: F32) -> u128 {
    upper & !0xffff_ffff | u128::from(v.0)
}

/// `upper` with its lowest binary64 lane replaced.
#[inline(always)]
pub(super) fn with_sd(upper: u128, v: F64) -> u128 {
    upper & !u128::from(u64::MAX) | u128::from(v.0)
}

/// The lowest binary32 lane.
#[inline(always)]
pub(super) fn ss(v: u128) -> F32 {
    F32(v as u32)
}

/// The lowest binary64 lane.
#[inline(always)]
pub(super) fn sd(v: u128) -> F64 {
    F64(v as u64)
}

/// Combine corresponding binary32 lanes.
#[inline(always)]
pub(super) fn map_ps(a: u128, b: u128, mut f: impl FnMut(F32, F32) -> F32) -> u128 {
    let (a, b) = (ps(a), ps(b));
    from_ps([f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])])
}

/// Combine corresponding binary64 lanes.
#[inline(always)]
pub(super) fn map_pd(a: u128, b: u128, mut f: impl FnMut(F64, F64) -> F64) -> u128 {
    let (a, b) = (pd(a), pd(b));
    from_pd([f(a[0], b[0]), f(a[1], b[1])])
}
