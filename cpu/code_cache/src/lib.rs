//! Memory for generated code, never writable and executable at once: one memfd,
//! mapped twice. The engine writes through the first mapping and the processor
//! executes from the second.
// UNSAFE: two mappings of one file and bounds-checked copies into the first.
#![allow(unsafe_code, reason = "the home of generated code's memory")]

use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

/// Why code memory could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot map {size} bytes of code memory ({what}): {source}; the interpreter needs none: --engine interp"
)]
pub struct CodeCacheError {
    size: usize,
    what: &'static str,
    source: std::io::Error,
}

/// A fixed amount of code memory, filled from the front.
pub struct CodeCache {
    write: NonNull<u8>,
    exec: NonNull<u8>,
    size: usize,
    used: usize,
}

// SAFETY: the mappings are owned; `&self` methods only read addresses and the
// write mapping is reached through `&mut self`.
unsafe impl Send for CodeCache {}

/// Code starts on a fetch-block boundary.
const ALIGN: usize = 16;

impl CodeCache {
    /// Reserve `size` bytes (pages are populated when written).
    ///
    /// # Errors
    /// When the host refuses the file or a mapping, e.g. under a policy that
    /// forbids executable memory.
    pub fn new(size: usize) -> Result<Self, CodeCacheError> {
        let fail = |what| move |e: rustix::io::Errno| CodeCacheError { size, what, source: e.into() };
        let file = memfd_create("strata-code", MemfdFlags::CLOEXEC).map_err(fail("memfd_create"))?;
        ftruncate(&file, size as u64).map_err(fail("ftruncate"))?;
        let map = |prot, what| {
            // SAFETY: fresh mappings at addresses of the kernel's choice alias only each other.
            unsafe { mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &file, 0) }.map_err(fail(what))
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE, "mmap for writing")?;
        let exec = map(ProtFlags::READ | ProtFlags::EXEC, "mmap for execution")?;
        let pointer =
            |p: *mut core::ffi::c_void| NonNull::new(p.cast()).expect("mmap never returns null on success");
        Ok(CodeCache { write: pointer(write), exec: pointer(exec), size, used: 0 })
    }

    /// Address at which offset 0 executes.
    pub fn exec_base(&self) -> u64 {
        self.exec.as_ptr() as u64
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes in all.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Offset of an execution address, if it lies in the cache.
    pub fn offset_of(&self, address: u64) -> Option<u32> {
        let at = address.wrapping_sub(self.exec_base());
        (at < self.size as u64).then_some(at as u32)
    }

    /// The offset the next [`CodeCache::append`] will use.
    pub fn next_offset(&self) -> u32 {
        self.used.next_multiple_of(ALIGN) as u32
    }

    /// Add code; its offset, or `None` when it does not fit.
    pub fn append(&mut self, code: &[u8]) -> Option<u32> {
        let at = self.used.next_multiple_of(ALIGN);
        if code.len() > self.size.checked_sub(at)? {
            return None;
        }
        // SAFETY: at + len <= size, the extent of the write mapping.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.as_ptr().add(at), code.len()) };
        self.used = at + code.len();
        Some(at as u32)
    }

    /// Replace four bytes of code by one aligned or cache-line-contained store:
    /// a branch displacement.
    ///
    /// # Panics
    /// When the bytes lie outside what was appended: a bug of the caller.
    pub fn patch_u32(&mut self, at: u32, value: u32) {
        let at = at as usize;
        assert!(at + 4 <= self.used, "patch at {at:#x} outside {:#x} bytes of code", self.used);
        // SAFETY: at + 4 <= used <= size.
        unsafe { self.write.as_ptr().add(at).cast::<u32>().write_unaligned(value.to_le()) };
    }

    /// Read four bytes of code.
    pub fn read_u32(&self, at: u32) -> Option<u32> {
        if at as usize + 4 > self.used {
            return None;
        }
        // SAFETY: at + 4 <= used <= size.
        Some(u32::from_le(unsafe { self.write.as_ptr().add(at as usize).cast::<u32>().read_unaligned() }))
    }

    /// Forget everything from `keep` on and give its pages back to the host.
    pub fn truncate(&mut self, keep: usize) {
        let first = keep.next_multiple_of(4096);
        if self.used > first {
            // SAFETY: the range lies within the write mapping; its content is no longer needed.
            let _ = unsafe {
                madvise(self.write.as_ptr().add(first).cast(), self.used - first, Advice::LinuxRemove)
            };
        }
        self.used = self.used.min(keep);
    }
}

impl Drop for CodeCache {
    fn drop(&mut self) {
        for p in [self.write, self.exec] {
            // SAFETY: both mappings have this size and no user once the cache is dropped.
            let _ = unsafe { munmap(p.as_ptr().cast(), self.size) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appended_code_runs_and_patches_take_effect() {
        let mut c = CodeCache::new(1 << 16).unwrap();
        // mov eax, 7; ret
        let at = c.append(&[0xb8, 7, 0, 0, 0, 0xc3]).unwrap();
        // SAFETY: the bytes are a complete function of this signature.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(c.exec_base() + u64::from(at)) };
        assert_eq!(f(), 7);
        c.patch_u32(at + 1, 9);
        assert_eq!(f(), 9);
        assert!(c.append(&vec![0; 1 << 17]).is_none());
    }

    #[test]
    fn no_mapping_is_writable_and_executable() {
        let _c = CodeCache::new(1 << 16).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.lines().any(|l| l.contains("strata-code") && l.contains("r-xs")));
        assert!(!maps.lines().any(|l| l.contains("wx")));
    }
}
