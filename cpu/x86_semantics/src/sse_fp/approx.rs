//! RCPPS and RSQRTPS. Their results are model-specific within a relative error
//! of 1.5 * 2^-12 (SDM volume 2, RCPPS); no exceptions, MXCSR without effect.
//!
//! On an x86-64 host they are the host's own bits: translated code and hardware
//! assist execute the host's instruction, and engines must agree. Other hosts
//! compute them ([`portable`]).

#[cfg(target_arch = "x86_64")]
mod host;
#[cfg(any(test, not(target_arch = "x86_64")))]
mod portable;

#[cfg(target_arch = "x86_64")]
use host as chosen;
#[cfg(not(target_arch = "x86_64"))]
use portable as chosen;

use super::lanes::{ss, with_ss};

/// RCPPS.
pub fn rcpps(b: u128) -> u128 {
    chosen::rcpps(b)
}

/// RCPSS: the lowest lane of `b`; the others are `a`'s.
pub fn rcpss(a: u128, b: u128) -> u128 {
    with_ss(a, ss(chosen::rcpps(b)))
}

/// RSQRTPS.
pub fn rsqrtps(b: u128) -> u128 {
    chosen::rsqrtps(b)
}

/// RSQRTSS: the lowest lane of `b`; the others are `a`'s.
pub fn rsqrtss(a: u128, b: u128) -> u128 {
    with_ss(a, ss(chosen::rsqrtps(b)))
}
