//! What a virtio device is.

use guest_memory::GuestMemory;
use saved_state::StateError;

use crate::{Doorbell, Interrupt, Queue, RingError};

/// Device IDs (virtio 1.2, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceType(pub u16);

impl DeviceType {
    /// Network card.
    pub const NET: Self = Self(1);
    /// Block device.
    pub const BLOCK: Self = Self(2);
    /// Console.
    pub const CONSOLE: Self = Self(3);
    /// Entropy source.
    pub const RNG: Self = Self(4);
    /// Memory balloon.
    pub const BALLOON: Self = Self(5);
    /// SCSI host.
    pub const SCSI: Self = Self(8);
    /// GPU.
    pub const GPU: Self = Self(16);
    /// Input device.
    pub const INPUT: Self = Self(18);
    /// Socket device.
    pub const VSOCK: Self = Self(19);
    /// File system.
    pub const FS: Self = Self(26);
    /// Persistent memory.
    pub const PMEM: Self = Self(27);
}

/// What a device gets when the driver has set it up, or when it goes on after
/// [`VirtioDevice::quiesce`].
pub struct Activation {
    /// Guest memory, for devices that reach beyond their chains (balloon).
    pub memory: GuestMemory,
    /// Features both sides agreed on, the core's included ([`crate::features`]).
    pub features: u64,
    /// One for each of [`VirtioDevice::queue_sizes`]; `None`: the driver did not
    /// enable it.
    pub queues: Vec<Option<Queue>>,
    /// For configuration changes; queues have a clone of their own.
    pub interrupt: Interrupt,
    /// Start no thread: act within [`VirtioDevice::notify`], so that a run in
    /// virtual time repeats.
    pub inline: bool,
}

impl Activation {
    /// Check that the driver has enabled every queue.
    ///
    /// # Errors
    /// With the first that is missing.
    pub fn needs_all_queues(&self) -> Result<(), ActivateError> {
        let missing = (0u16..).zip(&self.queues).find(|(_, queue)| queue.is_none());
        missing.map_or(Ok(()), |(index, _)| Err(ActivateError::MissingQueue(index)))
    }
}

/// Why a device does not start. It needs a reset then.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue it cannot do without was not enabled.
    #[error("the driver has not enabled queue {0}, which this device needs")]
    MissingQueue(u16),
    /// A ring is misplaced.
    #[error("queue {index}: {error}")]
    Ring {
        /// Which queue.
        index: u16,
        /// What is wrong.
        error: RingError,
    },
    /// The host refused a thread or a file.
    #[error("the host refused {what}: {error}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// The host's answer.
        error: std::io::Error,
    },
}

/// [`VirtioDevice::config_read`] of a configuration at hand: what lies behind its end reads as 0.
pub fn read_config(config: &[u8], offset: u64, to: &mut [u8]) {
    for (at, byte) in (offset..).zip(to) {
        *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
    }
}

/// A virtio device, whatever transport it is behind.
///
/// A transport calls all of this with the device's lock held, most of it on a
/// vCPU's thread, in this order: `activate`, then any number of `notify`, then
/// `quiesce`; after that `activate` again with the same queues, or `reset`.
/// `config_read` and `config_write` come at any time. No method may panic
/// whatever a guest does, and none but `quiesce` may block.
pub trait VirtioDevice: Send {
    /// Short stable name for logs, threads and saved state: `virtio-rng`.
    fn name(&self) -> &'static str;
    /// Its ID.
    fn device_type(&self) -> DeviceType;
    /// Feature bits of the device type (0-23, 50-127 of the standard; here up to
    /// 63). The core adds [`crate::features::CORE`].
    fn features(&self) -> u64;
    /// Largest size of each queue, a power of two of at most
    /// [`crate::MAX_QUEUE_SIZE`]; at most [`crate::MAX_QUEUES`] queues.
    fn queue_sizes(&self) -> &[u16];
    /// Read the device's configuration. What lies behind its end reads as 0.
    fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        let _ = offset;
        to.fill(0);
    }
    /// Write it.
    fn config_write(&mut self, _offset: u64, _from: &[u8]) {}
    /// Begin to work.
    ///
    /// # Errors
    /// When it cannot; the transport then sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// The driver rang the doorbell of a queue: wake a worker, or with
    /// [`Activation::inline`] do the work.
    fn notify(&mut self, queue: u16);
    /// A doorbell that wakes the worker of a queue without the device's lock;
    /// asked for after `activate`. `None`: call `notify`.
    fn doorbell(&self, _queue: u16) -> Option<Doorbell> {
        None
    }
    /// Stop working and give the queues back, each at its place. When it returns,
    /// no thread of the device touches guest memory and every chain taken has been
    /// completed or put back. Not active: an empty list.
    fn quiesce(&mut self) -> Vec<Option<Queue>>;
    /// Return to the state after power-up. Called after `quiesce`.
    fn reset(&mut self);
    /// Volatile state beside queues and configuration the driver did not write,
    /// encoded; taken while quiesced.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Put it back, while not active.
    ///
    /// # Errors
    /// When it is not this device's; nothing has changed then.
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        StateError::check(state.is_empty(), self.name(), "state", state.len() as u64, "no bytes")
    }
}
