//! Process-wide memory barriers.
// UNSAFE: one raw system call without pointers.
#![allow(unsafe_code, reason = "membarrier has no safe wrapper")]

use std::sync::OnceLock;
use std::sync::atomic::{Ordering, fence};

const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: membarrier takes integers only and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

/// Every thread of this process passes a full memory barrier before this
/// returns (membarrier(2), private expedited). On a host that refuses the call
/// this is only the caller's own barrier; see docs for what that weakens.
pub fn process_memory_barrier() {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    fence(Ordering::SeqCst);
    if *REGISTERED.get_or_init(|| membarrier(REGISTER_PRIVATE_EXPEDITED)) {
        membarrier(PRIVATE_EXPEDITED);
    }
}
