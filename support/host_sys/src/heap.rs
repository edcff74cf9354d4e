//! What the C library's allocator keeps for itself.
// UNSAFE: calls of the C library that take integers only.
#![allow(unsafe_code, reason = "mallopt and malloc_trim have no safe wrapper")]

/// Allocations from this size on, in bytes, are mappings of their own.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Give large allocations back to the host as soon as they are freed, for the life
/// of the process. Otherwise the allocator learns from the first large buffer freed
/// (a kernel image's, say) to keep all smaller ones, and a list that has grown by
/// doubling leaves its former places behind. Does nothing without glibc.
pub fn return_large_allocations() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes integers and is called like any allocation.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Give the host the pages that the allocator holds but nothing uses: worth its
/// time (a millisecond for some ten MiB) after much was freed that is not needed
/// again soon. Does nothing without glibc.
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer and may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
