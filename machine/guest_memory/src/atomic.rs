//! Locked read-modify-write operations.
// UNSAFE: dereferences pointers that `Mapping::at` has bounds-checked.
#![allow(unsafe_code, reason = "guest memory access")]

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{GuestMemory, RamOffset, Scalar};

/// Serialises locked operations that the host cannot do in one instruction: on two
/// pages that do not follow each other in the backing, on 16 bytes where it lacks
/// CMPXCHG16B, and misaligned ones where it is not an x86-64 or ends processes for them.
/// They are atomic against each other only.
static SPLIT_LOCK: Mutex<()> = Mutex::new(());

/// Bytes of a cache line, which a locked instruction had better not cross.
const CACHE_LINE: usize = 64;

/// Keep out all other locked operations that the host cannot do in one instruction.
pub fn split_lock() -> MutexGuard<'static, ()> {
    SPLIT_LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GuestMemory {
    /// Compare and exchange: if memory equals `old`, store `new`. Returns what
    /// was there. Atomic against all vCPUs, when naturally aligned or on an x86-64.
    #[inline]
    pub fn compare_exchange<T: Lockable>(&self, offset: RamOffset, old: T, new: T) -> T {
        let p = self.0.mapping.at(offset.0, T::SIZE);
        let found = if (p as usize) % T::SIZE == 0 {
            // SAFETY: checked by `at`, aligned by the test.
            unsafe { T::cmpxchg(p, old, new) }
        } else {
            // Where the host ends who does that, it is atomic against its like alone.
            let split = (p as usize) % CACHE_LINE + T::SIZE > CACHE_LINE;
            // SAFETY: checked by `at`.
            unsafe {
                if split && host_sys::split_locks_are_fatal() {
                    T::cmpxchg_alone(p, old, new)
                } else {
                    T::cmpxchg_misaligned(p, old, new)
                }
            }
        };
        if found == old {
            self.0.marks.written(offset.0, T::SIZE as u64);
        }
        found
    }

    /// Locked update: replace the value by `f(value)`, which may run more than
    /// once. Returns the old value.
    #[inline]
    pub fn update<T: Lockable>(&self, offset: RamOffset, mut f: impl FnMut(T) -> T) -> T {
        let mut old: T = self.read(offset);
        loop {
            let found = self.compare_exchange(offset, old, f(old));
            if found == old {
                return old;
            }
            old = found;
        }
    }
}

/// Scalars with a host compare-exchange.
pub trait Lockable: Scalar + PartialEq + Into<u128> {
    #[doc(hidden)]
    /// # Safety
    /// `p` is valid for SIZE bytes and SIZE-aligned.
    unsafe fn cmpxchg(p: *mut u8, old: Self, new: Self) -> Self;
    #[doc(hidden)]
    /// # Safety
    /// `p` is valid for SIZE bytes.
    unsafe fn cmpxchg_misaligned(p: *mut u8, old: Self, new: Self) -> Self {
        // SAFETY: valid by contract.
        unsafe { Self::cmpxchg_alone(p, old, new) }
    }
    #[doc(hidden)]
    /// # Safety
    /// `p` is valid for SIZE bytes.
    unsafe fn cmpxchg_alone(p: *mut u8, old: Self, new: Self) -> Self {
        let _alone = split_lock();
        // SAFETY: valid by contract.
        unsafe {
            let found = Self::load(p);
            if found == old {
                Self::store(p, new);
            }
            found
        }
    }
}

macro_rules! lockable {
    ($t:ty, $a:ty $(, $misaligned:literal)?) => {
        impl Lockable for $t {
            #[inline(always)]
            unsafe fn cmpxchg(p: *mut u8, old: Self, new: Self) -> Self {
                // SAFETY: valid and aligned by contract.
                let a = unsafe { <$a>::from_ptr(p.cast()) };
                let r = a.compare_exchange(old.to_le(), new.to_le(), Ordering::SeqCst, Ordering::SeqCst);
                <$t>::from_le(r.unwrap_or_else(|e| e))
            }
            $(
                /// The processor's own, which excludes aligned ones and plain stores, too, as
                /// the guest's would (SDM volume 3, 9.1.2.2).
                #[cfg(target_arch = "x86_64")]
                #[inline]
                unsafe fn cmpxchg_misaligned(p: *mut u8, old: Self, new: Self) -> Self {
                    let mut found = old;
                    // SAFETY: valid by contract; the instruction asks for no alignment.
                    unsafe {
                        std::arch::asm!(
                            $misaligned,
                            p = in(reg) p,
                            new = in(reg) new,
                            inout("rax") found,
                            options(nostack),
                        );
                    }
                    found
                }
            )?
        }
    };
}

lockable!(u8, AtomicU8);
lockable!(u16, AtomicU16, "lock cmpxchg word ptr [{p}], {new:x}");
lockable!(u32, AtomicU32, "lock cmpxchg dword ptr [{p}], {new:e}");
lockable!(u64, AtomicU64, "lock cmpxchg qword ptr [{p}], {new:r}");

impl Lockable for u128 {
    #[inline]
    unsafe fn cmpxchg(p: *mut u8, old: Self, new: Self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("cmpxchg16b") {
            // SAFETY: the feature is present; valid and 16-byte aligned by contract.
            return unsafe { cmpxchg16b(p.cast(), old, new) };
        }
        // SAFETY: valid by contract.
        unsafe { Self::cmpxchg_alone(p, old, new) }
    }
}

/// # Safety
/// The host has CMPXCHG16B; `p` is valid and 16-byte aligned.
#[cfg(target_arch = "x86_64")]
unsafe fn cmpxchg16b(p: *mut u128, old: u128, new: u128) -> u128 {
    let (mut lo, mut hi) = (old as u64, (old >> 64) as u64);
    // SAFETY: valid and aligned by contract. RBX is reserved by the compiler, so
    // it is exchanged in and out around the instruction.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {new_lo}",
            "lock cmpxchg16b [{p}]",
            "mov rbx, {new_lo}",
            p = in(reg) p,
            new_lo = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") lo,
            inout("rdx") hi,
            options(nostack),
        );
    }
    u128::from(lo) | u128::from(hi) << 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_updates_from_two_threads_lose_nothing() {
        let m = GuestMemory::flat(0x2000).unwrap();
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..50_000 {
                        m.update::<u32>(RamOffset(0x10), |v| v.wrapping_add(1));
                        m.update::<u128>(RamOffset(0x20), |v| v + (1 << 64));
                        m.update::<u32>(RamOffset(0xfff), |v| v.wrapping_add(1));
                    }
                });
            }
        });
        assert_eq!(m.read::<u32>(RamOffset(0x10)), 100_000);
        assert_eq!(m.read::<u128>(RamOffset(0x20)), 100_000 << 64);
        assert_eq!(m.read::<u32>(RamOffset(0xfff)), 100_000);
    }

    /// A misaligned locked operation and plain stores into its upper half: on an x86-64 no
    /// store is lost between the operation's load and store.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn misaligned_locked_updates_lose_no_store_of_others() {
        let m = GuestMemory::flat(0x2000).unwrap();
        const AT: u64 = 0x3c;
        std::thread::scope(|s| {
            s.spawn(|| {
                for _ in 0..200_000 {
                    m.update::<u64>(RamOffset(AT), |v| v & !0xffff_ffff | u64::from(v as u32 + 1));
                }
            });
            for n in 1..=200_000u32 {
                m.write(RamOffset(AT + 4), n);
                assert_eq!(m.read::<u32>(RamOffset(AT + 4)), n);
            }
        });
        assert_eq!(m.read::<u32>(RamOffset(AT)), 200_000);
    }

    #[test]
    fn writes_into_code_lines_change_the_generation_and_others_do_not() {
        let m = GuestMemory::flat(0x2000).unwrap();
        let g = m.marks().mark_code(RamOffset(0x1040), 16);
        m.write::<u8>(RamOffset(0x1000), 1);
        assert_eq!(m.marks().code_generation(RamOffset(0x1000)), g);
        m.write::<u32>(RamOffset(0x103e), 1);
        assert_ne!(m.marks().code_generation(RamOffset(0x1000)), g);
    }

    #[test]
    fn dirty_log_reports_each_written_page_once() {
        let m = GuestMemory::flat(0x8000).unwrap();
        m.marks().set_dirty_logging(true);
        m.write::<u64>(RamOffset(0x2ffc), 1);
        m.write_bytes(RamOffset(0x5000), &[1, 2]);
        assert_eq!(m.marks().take_dirty(), [2, 3, 5]);
        assert!(m.marks().take_dirty().is_empty());
        m.write::<u8>(RamOffset(0x2000), 1);
        assert_eq!(m.marks().take_dirty(), [2]);
    }
}
