//! How the rest of the machine gets a vCPU's attention: one path for
//! interrupts, wake-ups and stop requests.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bits of an [`Attention`] word.
pub mod attention_bits {
    /// The local APIC or PIC has a deliverable interrupt. A level: the interrupt
    /// controller raises and clears it; engines never clear it.
    pub const INTERRUPT: u32 = 1 << 0;
    /// An NMI has arrived. The engine takes it.
    pub const NMI: u32 = 1 << 1;
    /// INIT has arrived. The vCPU's owner takes it.
    pub const INIT: u32 = 1 << 2;
    /// A startup IPI has arrived. The vCPU's owner takes it.
    pub const STARTUP: u32 = 1 << 3;
    /// The owner wants the vCPU back. The owner takes it.
    pub const STOP: u32 = 1 << 4;
    /// What makes `run` return.
    pub const RETURNING: u32 = INIT | STARTUP | STOP;
}

/// Called, with no lock of the caller's held that a vCPU could want, to make an
/// engine that is blind to the word (hardware assist) look at it.
type Kick = Box<dyn Fn() + Send + Sync>;

/// The attention word of one vCPU. Engines poll [`Attention::bits`] at block
/// boundaries (one relaxed load); a parked vCPU thread sleeps in
/// [`Attention::wait`].
#[derive(Default)]
pub struct Attention {
    bits: AtomicU32,
    startup_vector: AtomicU8,
    /// Protects the sleep: true while the vCPU thread waits.
    parked: Mutex<bool>,
    wake: Condvar,
    kicks: Mutex<Kicks>,
}

/// Kicks in force, each with the number its guard knows it by.
#[derive(Default)]
struct Kicks {
    list: Vec<(u64, Kick)>,
    next: u64,
}

/// Keeps a kick installed; dropping it removes that kick and no other. While a
/// machine changes engines the vCPUs of both exist, and each has its own.
pub struct KickGuard {
    attention: Arc<Attention>,
    number: u64,
}

impl Drop for KickGuard {
    fn drop(&mut self) {
        self.attention.kicks().list.retain(|k| k.0 != self.number);
    }
}

impl Attention {
    /// No bit raised, no kick.
    pub fn new() -> Self {
        Self::default()
    }

    /// The raised bits. One load; ordering is acquire so that what the raiser
    /// wrote before is visible.
    #[inline(always)]
    pub fn bits(&self) -> u32 {
        self.bits.load(Ordering::Acquire)
    }

    /// Raise bits, wake the vCPU if it is parked, kick its engine if one asked for it.
    pub fn raise(&self, bits: u32) {
        let before = self.bits.fetch_or(bits, Ordering::SeqCst);
        if before & bits == bits {
            return;
        }
        let parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if *parked {
            self.wake.notify_one();
            return;
        }
        drop(parked);
        self.kicks().list.iter().for_each(|(_, kick)| kick());
    }

    fn kicks(&self) -> std::sync::MutexGuard<'_, Kicks> {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clear bits without taking them (an interrupt request went away).
    pub fn clear(&self, bits: u32) {
        self.bits.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Take those of `mask` that are raised.
    pub fn take(&self, mask: u32) -> u32 {
        self.bits.fetch_and(!mask, Ordering::SeqCst) & mask
    }

    /// A startup IPI with this vector.
    pub fn startup(&self, vector: u8) {
        self.startup_vector.store(vector, Ordering::SeqCst);
        self.raise(attention_bits::STARTUP);
    }

    /// The vector of the last startup IPI.
    pub fn startup_vector(&self) -> u8 {
        self.startup_vector.load(Ordering::SeqCst)
    }

    /// Call `kick` on every raise that finds the vCPU awake, until the guard is dropped.
    #[must_use = "dropping the guard removes the kick"]
    pub fn on_raise(self: &Arc<Self>, kick: Kick) -> KickGuard {
        let mut kicks = self.kicks();
        let number = kicks.next;
        kicks.next += 1;
        kicks.list.push((number, kick));
        KickGuard { attention: self.clone(), number }
    }

    /// Sleep until one of `mask` is raised or `deadline` passes. Returns the raised bits.
    pub fn wait(&self, mask: u32, deadline: Option<Instant>) -> u32 {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            *parked = true;
            let bits = self.bits.load(Ordering::SeqCst);
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if bits & mask != 0 || left == Some(Duration::ZERO) {
                *parked = false;
                return bits;
            }
            parked = match left {
                Some(left) => self.wake.wait_timeout(parked, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(parked).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl std::fmt::Debug for Attention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attention").field("bits", &self.bits()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_goes_with_its_guard_and_leaves_the_others() {
        let attention = Arc::new(Attention::new());
        let counts: [Arc<AtomicU32>; 2] = Default::default();
        let kick = |n: usize| {
            let count = counts[n].clone();
            attention.on_raise(Box::new(move || {
                count.fetch_add(1, Ordering::SeqCst);
            }))
        };
        let raise = || {
            attention.raise(attention_bits::STOP);
            attention.take(attention_bits::STOP);
        };
        let seen = || counts.each_ref().map(|c| c.swap(0, Ordering::SeqCst));
        let (old, new) = (kick(0), kick(1));
        raise();
        assert_eq!(seen(), [1, 1]);
        drop(old);
        raise();
        assert_eq!(seen(), [0, 1]);
        drop(new);
        raise();
        assert_eq!(seen(), [0, 0]);
    }
}
