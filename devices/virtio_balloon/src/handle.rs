//! The owner's side of a balloon.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_memory::PAGE_SIZE;
use virtio_core::{Doorbell, Interrupt};

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a guest says of its memory (5.5.6.4), in bytes or counts; `None`: it does
/// not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BalloonStats {
    /// Bytes swapped in since boot.
    pub swap_in: Option<u64>,
    /// Bytes swapped out since boot.
    pub swap_out: Option<u64>,
    /// Page faults that needed input or output.
    pub major_faults: Option<u64>,
    /// All page faults.
    pub minor_faults: Option<u64>,
    /// Bytes that nothing uses.
    pub free: Option<u64>,
    /// Bytes there are.
    pub total: Option<u64>,
    /// Bytes that programs could have without swapping.
    pub available: Option<u64>,
    /// Bytes of disk caches.
    pub caches: Option<u64>,
}

impl BalloonStats {
    /// Note a statistic by its tag; unknown ones are passed over.
    pub(crate) fn set(&mut self, tag: u16, value: u64) {
        let field = match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            _ => return,
        };
        // All ones: the driver does not know.
        *field = (value != u64::MAX).then_some(value);
    }
}

/// What device and owner share. Its locks are held for moments only, and none
/// while another is taken.
#[derive(Default)]
pub(crate) struct Shared {
    /// Pages the owner wants in the balloon.
    target: AtomicU32,
    /// Pages the driver says are in it.
    actual: AtomicU32,
    /// Bytes given back to the host, in all.
    given: AtomicU64,
    pub stats: Mutex<Option<BalloonStats>>,
    interrupt: Mutex<Option<Interrupt>>,
    ask: Mutex<Option<Doorbell>>,
}

impl Shared {
    pub fn target(&self) -> u32 {
        self.target.load(Ordering::Relaxed)
    }
    pub fn actual(&self) -> u32 {
        self.actual.load(Ordering::Relaxed)
    }
    pub fn set_actual(&self, pages: u32) {
        self.actual.store(pages, Ordering::Relaxed);
    }
    pub fn gave_back(&self, bytes: u64) {
        self.given.fetch_add(bytes, Ordering::Relaxed);
    }
    pub fn connect(&self, interrupt: Option<Interrupt>, ask: Option<Doorbell>) {
        *lock(&self.interrupt) = interrupt;
        *lock(&self.ask) = ask;
    }
    /// The guest starts anew; what the owner wants stays.
    pub fn reset(&self) {
        self.set_actual(0);
        *lock(&self.stats) = None;
    }
    pub fn restore(&self, target: u32, actual: u32) {
        self.target.store(target, Ordering::Relaxed);
        self.set_actual(actual);
    }
}

/// The owner's side: sets the balloon's size, reads what the guest says. Clones
/// are the same balloon.
#[derive(Clone)]
pub struct BalloonHandle(pub(crate) Arc<Shared>);

impl BalloonHandle {
    /// Ask the guest to give up so many bytes, rounded down to pages of 4 KiB.
    /// It does as far as it can, or not at all.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX);
        self.0.target.store(pages, Ordering::Relaxed);
        let interrupt = lock(&self.0.interrupt).clone();
        if let Some(interrupt) = interrupt {
            interrupt.config_changed();
        }
    }

    /// Bytes that the owner wants in the balloon.
    pub fn target(&self) -> u64 {
        u64::from(self.0.target()) * PAGE_SIZE
    }

    /// Bytes that the driver says are in the balloon.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual()) * PAGE_SIZE
    }

    /// Bytes given back to the host so far, by the balloon and by reports; a page
    /// counts each time.
    pub fn given_back(&self) -> u64 {
        self.0.given.load(Ordering::Relaxed)
    }

    /// What the guest last said of its memory. It says it when asked.
    pub fn stats(&self) -> Option<BalloonStats> {
        *lock(&self.0.stats)
    }

    /// Ask the guest for new statistics; they come when it gets to it.
    pub fn ask_for_stats(&self) {
        if let Some(bell) = &*lock(&self.0.ask) {
            bell.ring();
        }
    }
}
