//! The call stack: while translated code runs, the host's stack pointer is in a
//! region of its own that holds nothing but host return addresses. A guest CALL
//! is a host CALL and a guest RET a host RET, so that the processor predicts
//! where it goes; the code behind the call checks that the guest's return
//! address is the one expected. Nothing depends on the content being right: a
//! return that finds no call, or another's, looks its target up.
//!
//! Below the stack pointer a jump or return notes where it is, in case its target
//! turns out not to be canonical: see [`note`].
// UNSAFE: maps the region.
#![allow(unsafe_code, reason = "the home of the call stack's mapping")]

use std::ptr::NonNull;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// Bytes of return addresses: 8,192 calls deep. Deeper, the stack is emptied.
const SIZE: usize = 64 << 10;
/// Below the addresses a page that faults.
pub(crate) const GUARD: usize = 4096;

/// What a jump or return notes before it goes to an address that it has not checked. Its
/// target is known to be canonical wherever a table knows it, and where none does, the
/// engine looks, and needs to know who branched: it is the branch that faults.
pub(crate) mod note {
    /// Where the note is, from the stack pointer that the target finds. (Signals that
    /// arrive here leave 128 bytes alone.)
    pub const AT: i32 = -16;
    const POPPED: u32 = 1 << 31;

    /// Of a branch at a cache offset; a return has `popped` its target.
    pub fn new(place: u32, popped: bool) -> u32 {
        place | if popped { POPPED } else { 0 }
    }

    pub fn place(note: u32) -> u32 {
        note & !POPPED
    }

    pub fn popped(note: u32) -> bool {
        note & POPPED != 0
    }
}

/// One vCPU's call stack.
pub(crate) struct CallStack(NonNull<u8>);

// SAFETY: the mapping is owned, and used by the vCPU's translated code alone.
unsafe impl Send for CallStack {}

impl CallStack {
    /// Empty. `bottom`: the host address that a return without a call reaches.
    pub fn new(bottom: u64) -> rustix::io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let p = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                GUARD + SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let s = CallStack(NonNull::new(p.cast()).expect("mmap never returns null on success"));
        // SAFETY: the first page of the mapping just made.
        unsafe { mprotect(p, GUARD, MprotectFlags::empty()) }?;
        // SAFETY: eight bytes at the end of the mapping.
        unsafe { (s.empty() as *mut u64).write(bottom) };
        Ok(s)
    }

    /// The stack pointer when no call is outstanding: at the bottom entry.
    pub fn empty(&self) -> u64 {
        self.0.as_ptr() as u64 + (GUARD + SIZE - 16) as u64
    }

    /// Address of the page that faults when the stack is full.
    pub fn guard(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

impl Drop for CallStack {
    fn drop(&mut self) {
        // SAFETY: nothing uses the mapping once its owner is dropped.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), GUARD + SIZE) };
    }
}
