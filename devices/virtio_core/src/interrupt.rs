//! How a device speaks up.

use std::fmt::Display;
use std::sync::Arc;

use rate_log::RateLog;

/// The transport's side of [`Interrupt`]. Called on any thread, with the
/// device's lock held or not: implementations take no lock that is held while
/// they wait for a device.
pub trait InterruptSink: Send + Sync {
    /// A queue has used buffers that the driver wants to hear of.
    fn queue_used(&self, queue: u16);
    /// The configuration has changed: a new generation.
    fn config_changed(&self);
    /// Set DEVICE_NEEDS_RESET and say so (virtio 1.2, 2.1.2).
    fn needs_reset(&self);
}

/// A device's way to its driver. Clones are the same.
#[derive(Clone)]
pub struct Interrupt {
    sink: Arc<dyn InterruptSink>,
    log: Arc<RateLog>,
}

impl Interrupt {
    /// The interrupt of the device `name`.
    pub fn new(name: &'static str, sink: Arc<dyn InterruptSink>) -> Self {
        Interrupt { sink, log: Arc::new(RateLog::new(name)) }
    }

    /// Say that a queue has used buffers. Devices call [`crate::Queue::signal`],
    /// which asks whether the driver wants to hear it.
    pub(crate) fn queue_used(&self, queue: u16) {
        self.sink.queue_used(queue);
    }

    /// Say that the device's configuration has changed.
    pub fn config_changed(&self) {
        self.sink.config_changed();
    }

    /// The driver has broken the protocol: only a reset helps. Logged, at a limited rate.
    pub fn fail(&self, why: &dyn Display) {
        self.log.report(|| format!("{why}; the device waits for a reset by its driver"));
        self.sink.needs_reset();
    }

    /// Log what the guest did, at a limited rate.
    pub fn report(&self, make: impl FnOnce() -> String) {
        self.log.report(make);
    }
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt").field("log", &self.log).finish_non_exhaustive()
    }
}
