//! Loads, stores and copies.
// UNSAFE: dereferences pointers that `Mapping::at` has bounds-checked.
#![allow(unsafe_code, reason = "guest memory access")]

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::{GuestMemory, MemoryError, RamOffset};

/// A value that guest memory can hold: u8, u16, u32, u64, u128.
pub trait Scalar: Copy + Default + Send + 'static + private::Sealed {
    /// Bytes.
    const SIZE: usize = size_of::<Self>();
    /// Zero-extended.
    fn widen(self) -> u128;
    /// The low bytes of `v`.
    fn truncate(v: u128) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// `p` is valid for SIZE bytes.
    unsafe fn load(p: *const u8) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// `p` is valid for SIZE bytes.
    unsafe fn store(p: *mut u8, v: Self);
}

mod private {
    pub trait Sealed {}
}

macro_rules! scalar {
    ($t:ty, $a:ty) => {
        impl private::Sealed for $t {}
        impl Scalar for $t {
            #[inline(always)]
            fn widen(self) -> u128 {
                self.into()
            }
            #[inline(always)]
            fn truncate(v: u128) -> Self {
                v as $t
            }
            #[inline(always)]
            unsafe fn load(p: *const u8) -> Self {
                if (p as usize) % size_of::<$t>() == 0 {
                    // SAFETY: valid by contract and aligned by the test.
                    <$t>::from_le(unsafe { <$a>::from_ptr(p.cast_mut().cast()) }.load(Ordering::Acquire))
                } else {
                    // SAFETY: valid by contract; volatile on a packed type needs no alignment.
                    <$t>::from_le(unsafe { p.cast::<Packed<$t>>().read_volatile() }.0)
                }
            }
            #[inline(always)]
            unsafe fn store(p: *mut u8, v: Self) {
                if (p as usize) % size_of::<$t>() == 0 {
                    // SAFETY: valid by contract and aligned by the test.
                    unsafe { <$a>::from_ptr(p.cast()) }.store(v.to_le(), Ordering::Release)
                } else {
                    // SAFETY: valid by contract; volatile on a packed type needs no alignment.
                    unsafe { p.cast::<Packed<$t>>().write_volatile(Packed(v.to_le())) }
                }
            }
        }
    };
}

#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Packed<T>(T);

scalar!(u8, AtomicU8);
scalar!(u16, AtomicU16);
scalar!(u32, AtomicU32);
scalar!(u64, AtomicU64);

impl private::Sealed for u128 {}
impl Scalar for u128 {
    #[inline(always)]
    fn widen(self) -> u128 {
        self
    }
    #[inline(always)]
    fn truncate(v: u128) -> Self {
        v
    }
    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self {
        // SAFETY: both halves are within the 16 valid bytes.
        let (lo, hi) = unsafe { (u64::load(p), u64::load(p.add(8))) };
        u128::from(lo) | u128::from(hi) << 64
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: Self) {
        // SAFETY: both halves are within the 16 valid bytes.
        unsafe {
            u64::store(p, v as u64);
            u64::store(p.add(8), (v >> 64) as u64);
        }
    }
}

/// Make every thread of the process pass a full memory barrier (membarrier,
/// private expedited), so that writers need only compiler order.
pub(crate) fn heavy_barrier() {
    host_sys::process_memory_barrier();
    fence(Ordering::SeqCst);
}

impl GuestMemory {
    /// Load a value. See the crate's documentation for bounds and order.
    #[inline(always)]
    pub fn read<T: Scalar>(&self, offset: RamOffset) -> T {
        let p = self.0.mapping.at(offset.0, T::SIZE);
        // SAFETY: `at` checked T::SIZE bytes.
        unsafe { T::load(p) }
    }

    /// Store a value, then look at the page's marks. True if cached code was hit.
    #[inline(always)]
    pub fn write<T: Scalar>(&self, offset: RamOffset, value: T) -> bool {
        let p = self.0.mapping.at(offset.0, T::SIZE);
        // SAFETY: `at` checked T::SIZE bytes.
        unsafe { T::store(p, value) };
        self.0.marks.written(offset.0, T::SIZE as u64)
    }

    /// Copy out of memory.
    pub fn read_bytes(&self, offset: RamOffset, to: &mut [u8]) {
        let p = self.0.mapping.at(offset.0, to.len());
        // SAFETY: `at` checked the length; `to` is the process's own memory and cannot overlap.
        // Concurrent guest writes can tear bytes, which is what hardware does too.
        unsafe { std::ptr::copy_nonoverlapping(p.cast_const(), to.as_mut_ptr(), to.len()) };
    }

    /// Copy into memory. True if cached code was hit.
    pub fn write_bytes(&self, offset: RamOffset, from: &[u8]) -> bool {
        if from.is_empty() {
            return false;
        }
        let p = self.0.mapping.at(offset.0, from.len());
        // SAFETY: as for `read_bytes`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), p, from.len()) };
        self.0.marks.written(offset.0, from.len() as u64)
    }

    /// Copy within memory, lowest address first when the ranges overlap or not
    /// (both are handled as `memmove` does). True if cached code was hit.
    pub fn copy_within(&self, from: RamOffset, to: RamOffset, len: usize) -> bool {
        if len == 0 {
            return false;
        }
        let (s, d) = (self.0.mapping.at(from.0, len), self.0.mapping.at(to.0, len));
        // SAFETY: both ranges were checked; `copy` allows overlap.
        unsafe { std::ptr::copy(s.cast_const(), d, len) };
        self.0.marks.written(to.0, len as u64)
    }

    /// Fill `count` elements with a value. True if cached code was hit.
    pub fn fill<T: Scalar>(&self, to: RamOffset, value: T, count: usize) -> bool {
        if count == 0 {
            return false;
        }
        let p = self.0.mapping.at(to.0, count * T::SIZE);
        for i in 0..count {
            // SAFETY: `at` checked count * SIZE bytes.
            unsafe { T::store(p.add(i * T::SIZE), value) };
        }
        self.0.marks.written(to.0, (count * T::SIZE) as u64)
    }

    /// Copy out by guest-physical address; the range may span adjacent regions.
    ///
    /// # Errors
    /// When a byte of the range is not memory; nothing useful is in `to` then.
    pub fn load(&self, mut address: u64, mut to: &mut [u8]) -> Result<(), MemoryError> {
        while !to.is_empty() {
            let hit = self.translate(address).ok_or(MemoryError::NotMemory(address, to.len() as u64))?;
            let n = hit.len.min(to.len() as u64) as usize;
            let (head, rest) = to.split_at_mut(n);
            self.read_bytes(hit.offset, head);
            address += n as u64;
            to = rest;
        }
        Ok(())
    }

    /// Copy in by guest-physical address, read-only regions included: this is
    /// the machine's own access (loaders, device DMA checks `writable` itself).
    ///
    /// # Errors
    /// When a byte of the range is not memory; what comes before it is written.
    pub fn store(&self, mut address: u64, mut from: &[u8]) -> Result<(), MemoryError> {
        while !from.is_empty() {
            let hit = self.translate(address).ok_or(MemoryError::NotMemory(address, from.len() as u64))?;
            let n = hit.len.min(from.len() as u64) as usize;
            self.write_bytes(hit.offset, &from[..n]);
            address += n as u64;
            from = &from[n..];
        }
        Ok(())
    }
}
