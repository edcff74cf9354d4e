//! An interrupt sink that counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::InterruptSink;

/// What a device has signalled.
#[derive(Debug, Default)]
pub struct SeenInterrupts {
    queues: [AtomicU64; 16],
    config: AtomicU64,
    needs_reset: AtomicBool,
}

impl SeenInterrupts {
    /// Interrupts of a queue (those from 16 on count as 15's) since the last call.
    pub fn take_queue(&self, queue: u16) -> u64 {
        self.queues[usize::from(queue).min(15)].swap(0, Ordering::SeqCst)
    }

    /// Configuration changes since the last call.
    pub fn take_config(&self) -> u64 {
        self.config.swap(0, Ordering::SeqCst)
    }

    /// Whether the device has given up on the driver.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }
}

impl InterruptSink for SeenInterrupts {
    fn queue_used(&self, queue: u16) {
        self.queues[usize::from(queue).min(15)].fetch_add(1, Ordering::SeqCst);
    }
    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }
}
