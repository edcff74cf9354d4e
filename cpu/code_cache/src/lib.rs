//! Memory for generated code, never writable and executable at once: shared
//! memory, mapped twice. The engine writes through the first mapping and the
//! processor executes from the second.
//!
//! It has no name: perf(1) looks for symbols of generated code (perf-PID.map)
//! only where executable memory is anonymous, which a memfd is not.
// UNSAFE: two mappings of one memory and bounds-checked copies into the first.
#![allow(unsafe_code, reason = "the home of generated code's memory")]

use std::ptr::NonNull;

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mprotect, mremap,
    munmap,
};

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
    /// Pages of the write mapping that may be resident, a bit each, and how many.
    touched: Vec<u64>,
    touched_count: usize,
}

// SAFETY: the mappings are owned; `&self` methods only read addresses and the
// write mapping is reached through `&mut self`.
unsafe impl Send for CodeCache {}

const PAGE: usize = 4096;

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
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let write = unsafe { mmap_anonymous(std::ptr::null_mut(), size, access, MapFlags::SHARED) }
            .map_err(fail("mmap"))?;
        let pointer =
            |p: *mut core::ffi::c_void| NonNull::new(p.cast()).expect("mmap never returns null on success");
        let touched = vec![0; size.div_ceil(64 * PAGE)];
        // From here on an error unmaps what there is.
        let mut cache = CodeCache {
            write: pointer(write),
            exec: pointer(write),
            size,
            used: 0,
            touched,
            touched_count: 0,
        };
        // SAFETY: an old size of 0 leaves the shared mapping and makes another of the same memory (mremap(2)).
        let exec = unsafe { mremap(write, 0, size, MremapFlags::MAYMOVE) }.map_err(fail("mremap"))?;
        cache.exec = pointer(exec);
        // SAFETY: the mapping just made, which nothing has looked at.
        unsafe { mprotect(exec, size, MprotectFlags::READ | MprotectFlags::EXEC) }
            .map_err(fail("mprotect"))?;
        Ok(cache)
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
        self.touch(at, code.len());
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
        self.touch(at, 4);
        // SAFETY: at + 4 <= used <= size.
        unsafe { self.write.as_ptr().add(at).cast::<u32>().write_unaligned(value.to_le()) };
    }

    /// Replace one byte of code: an opcode.
    ///
    /// # Panics
    /// As [`CodeCache::patch_u32`].
    pub fn patch_u8(&mut self, at: u32, value: u8) {
        let at = at as usize;
        assert!(at < self.used, "patch at {at:#x} outside {:#x} bytes of code", self.used);
        self.touch(at, 1);
        // SAFETY: at < used <= size.
        unsafe { self.write.as_ptr().add(at).write(value) };
    }

    /// Read one byte of code.
    pub fn read_u8(&self, at: u32) -> Option<u8> {
        // SAFETY: below used, which is at most size.
        ((at as usize) < self.used).then(|| unsafe { self.exec.as_ptr().add(at as usize).read() })
    }

    /// Read four bytes of code.
    pub fn read_u32(&self, at: u32) -> Option<u32> {
        if at as usize + 4 > self.used {
            return None;
        }
        // SAFETY: at + 4 <= used <= size.
        Some(u32::from_le(unsafe { self.exec.as_ptr().add(at as usize).cast::<u32>().read_unaligned() }))
    }

    /// The bytes from `at` on are about to be written.
    fn touch(&mut self, at: usize, len: usize) {
        for page in at / PAGE..(at + len).div_ceil(PAGE) {
            let Some(word) = self.touched.get_mut(page / 64) else { return };
            let bit = 1 << (page % 64);
            self.touched_count += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Once `pages` or more have been written, let the write mapping go: the code stays,
    /// but its pages count as this process's once, not twice. The next write to each
    /// costs a minor fault.
    pub fn release_writes(&mut self, pages: usize) {
        if self.touched_count < pages.max(1) {
            return;
        }
        // SAFETY: the range is the write mapping, of shared memory: its content stays.
        let _ = unsafe { madvise(self.write.as_ptr().cast(), self.size, Advice::LinuxDontNeed) };
        self.touched.fill(0);
        self.touched_count = 0;
    }

    /// Forget everything from `keep` on and give its pages back to the host.
    pub fn truncate(&mut self, keep: usize) {
        let first = keep.next_multiple_of(PAGE);
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
        // One mapping only, where making the second failed.
        let second = (self.exec != self.write).then_some(self.exec);
        for p in std::iter::once(self.write).chain(second) {
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

    /// Resident KiB of the mapping at an address.
    fn resident(at: *mut u8) -> usize {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let begins = format!("{:x}-", at as usize);
        let mapping = smaps.lines().skip_while(|l| !l.starts_with(&begins));
        let rss = mapping.filter_map(|l| l.strip_prefix("Rss:")).next().unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_outlives_the_pages_it_was_written_through() {
        let mut c = CodeCache::new(1 << 20).unwrap();
        // mov eax, 7; ret
        let at = c.append(&[0xb8, 7, 0, 0, 0, 0xc3]).unwrap();
        c.append(&vec![0x90; 40 * PAGE]).unwrap();
        c.release_writes(42);
        assert!(resident(c.write.as_ptr()) >= 160, "too few pages to be worth it");
        c.release_writes(41);
        assert_eq!(resident(c.write.as_ptr()), 0);
        // SAFETY: the bytes are a complete function of this signature.
        let f: extern "C" fn() -> u32 = unsafe { std::mem::transmute(c.exec_base() + u64::from(at)) };
        assert_eq!((f(), c.read_u32(at + 1)), (7, Some(7)));
        c.patch_u32(at + 1, 9);
        assert_eq!((f(), resident(c.write.as_ptr())), (9, 4));
    }

    #[test]
    fn no_mapping_is_writable_and_executable() {
        let c = CodeCache::new(1 << 16).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mapping = |at: *mut u8| {
            let begins = format!("{:x}-", at as usize);
            maps.lines().find(|l| l.starts_with(&begins)).unwrap_or_default()
        };
        let (write, exec) = (mapping(c.write.as_ptr()), mapping(c.exec.as_ptr()));
        assert!(write.contains(" rw-s "), "{write}");
        // perf(1) takes this name for anonymous memory.
        assert!(exec.contains(" r-xs ") && exec.contains("/dev/zero"), "{exec}");
        assert!(!maps.lines().any(|l| l.contains("wx")));
    }
}
