//! Properties of the calling thread.
// UNSAFE: one prctl without pointers.
#![allow(unsafe_code, reason = "prctl(PR_SET_TIMERSLACK) has no safe wrapper")]

use std::time::Duration;

/// How late the host may wake this thread's sleeps to save power (default 50 us).
/// A host that refuses leaves it as it is.
pub fn set_thread_timer_slack(slack: Duration) {
    let nanos = slack.as_nanos().clamp(1, u128::from(u32::MAX)) as libc::c_ulong;
    // SAFETY: PR_SET_TIMERSLACK takes one integer.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, nanos, 0, 0, 0) };
}
