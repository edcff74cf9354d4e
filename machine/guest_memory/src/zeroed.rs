//! Large tables of zeroes that take no memory until they are written.
// UNSAFE: makes values of memory that the allocator has zeroed.
#![allow(unsafe_code, reason = "the allocator's zeroed pages stay untouched")]

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// # Safety
/// All bits zero is a valid value.
pub(crate) unsafe trait Zeroable {}
// SAFETY: an integer in memory.
unsafe impl Zeroable for AtomicU8 {}
// SAFETY: an integer in memory.
unsafe impl Zeroable for AtomicU32 {}
// SAFETY: an integer in memory.
unsafe impl Zeroable for AtomicU64 {}

/// `n` zeroes. The host gives a large table its pages as they are touched.
pub(crate) fn zeroed<T: Zeroable>(n: u64) -> Box<[T]> {
    let n = usize::try_from(n).expect("a table is smaller than the address space");
    if n == 0 {
        return Box::default();
    }
    let layout = Layout::array::<T>(n).expect("a table is smaller than the address space");
    // SAFETY: the layout's size is not zero.
    let p = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if p.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: `p` is a fresh allocation of exactly this layout by the global
    // allocator, and its zeroes are `n` valid values.
    unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(p, n)) }
}
