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
    /// An NMI has arrived. The engine takes it; the bit stays while another waits.
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

/// A second NMI waits. Two at once are one that is handled and one that is latched
/// meanwhile (SDM volume 3, 7.7.1), whether or not the first has been taken yet.
const SECOND_NMI: u32 = 1 << 31;

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

    /// An NMI arrives. A third one is lost.
    pub fn nmi(&self) {
        let second = |bits: u32| (bits & attention_bits::NMI != 0).then_some(bits | SECOND_NMI);
        if self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, second).is_err() {
            self.raise(attention_bits::NMI);
        }
    }

    /// The handler of an NMI ends: only one can have been latched meanwhile.
    pub fn nmi_handled(&self) {
        self.bits.fetch_and(!SECOND_NMI, Ordering::SeqCst);
    }

    /// Clear bits without taking them (an interrupt request went away).
    pub fn clear(&self, bits: u32) {
        let second = if bits & attention_bits::NMI != 0 { SECOND_NMI } else { 0 };
        self.bits.fetch_and(!(bits | second), Ordering::SeqCst);
    }

    /// Take those of `mask` that are raised; of two NMIs one.
    pub fn take(&self, mask: u32) -> u32 {
        let mask = mask & !SECOND_NMI;
        let rest = |bits: u32| {
            let latched = if bits & mask & attention_bits::NMI != 0 { bits & SECOND_NMI } else { 0 };
            let next = if latched != 0 { attention_bits::NMI } else { 0 };
            Some(bits & !mask & !latched | next)
        };
        // It always answers Some.
        let (Ok(before) | Err(before)) = self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, rest);
        before & mask
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
    use super::attention_bits::{INIT, NMI};
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

    /// So many arrive, then so many can be taken.
    fn check(arrive: u32, handled: bool, taken: u32) {
        let attention = Attention::new();
        (0..arrive).for_each(|_| attention.nmi());
        if handled {
            attention.nmi_handled();
        }
        attention.raise(INIT);
        for n in 0..taken {
            assert_eq!(attention.take(NMI), NMI, "{arrive} arrived, {n} taken");
        }
        assert_eq!(attention.take(NMI), 0, "{arrive} arrived");
        assert_eq!(attention.take(!NMI), INIT);
        assert_eq!(attention.bits(), 0);
    }

    #[test]
    fn two_nmis_are_kept_and_no_third() {
        for (arrive, taken) in [(0, 0), (1, 1), (2, 2), (3, 2)] {
            check(arrive, false, taken);
            check(arrive, true, taken.min(1));
        }
    }

    #[test]
    fn a_latched_nmi_survives_other_bits_and_goes_with_its_own() {
        let attention = Attention::new();
        attention.nmi();
        attention.nmi();
        // What a state that is loaded does.
        attention.raise(NMI);
        assert_eq!(attention.take(!NMI), 0);
        assert_eq!(attention.take(NMI), NMI);
        assert_eq!(attention.bits(), NMI);
        attention.nmi();
        attention.clear(NMI);
        assert_eq!(attention.bits(), 0);
    }
}
