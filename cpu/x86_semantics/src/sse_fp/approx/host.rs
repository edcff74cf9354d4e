//! The host's own approximations.
#![allow(unsafe_code, reason = "intrinsics that name a target feature")]

use core::arch::x86_64::{
    __m128, _mm_castps_si128, _mm_castsi128_ps, _mm_cvtsi128_si64, _mm_rcp_ps, _mm_rsqrt_ps, _mm_set_epi64x,
    _mm_unpackhi_epi64,
};

/// `f` of the four lanes.
#[inline]
#[target_feature(enable = "sse2")]
fn apply(b: u128, f: impl FnOnce(__m128) -> __m128) -> u128 {
    let x = _mm_castsi128_ps(_mm_set_epi64x((b >> 64) as i64, b as i64));
    let r = _mm_castps_si128(f(x));
    let (low, high) = (_mm_cvtsi128_si64(r), _mm_cvtsi128_si64(_mm_unpackhi_epi64(r, r)));
    u128::from(high as u64) << 64 | u128::from(low as u64)
}

/// RCPPS.
pub(super) fn rcpps(b: u128) -> u128 {
    // SAFETY: every x86-64 processor has SSE2; the instruction depends on no
    // state and raises no exception, whatever MXCSR holds.
    unsafe { apply(b, |x| _mm_rcp_ps(x)) }
}

/// RSQRTPS.
pub(super) fn rsqrtps(b: u128) -> u128 {
    // SAFETY: as for `rcpps`.
    unsafe { apply(b, |x| _mm_rsqrt_ps(x)) }
}
