//! The driver's registers that every transport has in its own form: status,
//! features, queue set-up (virtio 1.2, section 3.1, 4.1.4.3, 4.2.2).

use guest_memory::GuestMemory;
use saved_state::StateError;
use serde::{Deserialize, Serialize};

use crate::{
    ActivateError, Activation, Doorbell, Interrupt, MAX_QUEUE_SIZE, MAX_QUEUES, Position, Queue,
    QueueAddresses, QueueConfig, VirtioDevice, features,
};

/// Bits of the device status (2.1).
pub mod status {
    /// The driver has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// It knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// It is set up and drives.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u8 = 8;
    /// The device has given up until a reset.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// What the driver has said of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct QueueRegisters {
    size: u16,
    enabled: bool,
    addresses: QueueAddresses,
}

/// Which half or part of a queue's set-up is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueField {
    Size,
    Enable,
    /// Byte offset into descriptor, driver and device addresses, 0-23.
    Address(u8),
}

/// What a status write did, for the transport to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusChange {
    None,
    /// The device works from now on.
    Active,
    /// All is as after power-up.
    Reset,
}

/// Saved registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistersState {
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    positions: Vec<Option<Position>>,
    stopped: bool,
    device: Vec<u8>,
}

/// A device and what its driver has set.
pub(crate) struct Registers {
    // Runtime glue.
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Interrupt,
    inline: bool,
    /// Queues while the device is active and yet must stand still.
    parked: Option<Vec<Option<Queue>>>,
    // Volatile state.
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    /// The right to access memory was taken away: it stands still until it is reset.
    stopped: bool,
}

/// A 32-bit half of a feature word.
fn half(word: u64, select: u32) -> u32 {
    match select {
        0 => word as u32,
        1 => (word >> 32) as u32,
        _ => 0,
    }
}

impl Registers {
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: Interrupt,
        inline: bool,
    ) -> Self {
        let sizes = device.queue_sizes();
        assert!(sizes.len() <= usize::from(MAX_QUEUES), "{} queues", sizes.len());
        for &size in sizes {
            assert!(size.is_power_of_two() && size <= MAX_QUEUE_SIZE, "a queue of {size}");
        }
        let mut r = Registers {
            device,
            memory,
            interrupt,
            inline,
            parked: None,
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: Vec::new(),
            stopped: false,
        };
        r.queues = r.fresh_queues();
        r
    }

    fn fresh_queues(&self) -> Vec<QueueRegisters> {
        let fresh = |&size| QueueRegisters { size, enabled: false, addresses: QueueAddresses::default() };
        self.device.queue_sizes().iter().map(fresh).collect()
    }

    pub fn name(&self) -> &'static str {
        self.device.name()
    }

    pub fn queue_count(&self) -> u16 {
        self.queues.len() as u16
    }

    fn offered(&self) -> u64 {
        self.device.features() | features::CORE
    }

    pub fn device_features(&self) -> u32 {
        half(self.offered(), self.device_feature_select)
    }

    pub fn driver_features(&self) -> u32 {
        half(self.driver_features, self.driver_feature_select)
    }

    /// The driver accepts features; without effect once agreed on (3.1.1).
    pub fn set_driver_features(&mut self, value: u32) {
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.status & status::FEATURES_OK == 0 {
            self.driver_features = self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
        }
    }

    pub fn device_feature_select(&self) -> u32 {
        self.device_feature_select
    }

    pub fn set_device_feature_select(&mut self, value: u32) {
        self.device_feature_select = value;
    }

    pub fn driver_feature_select(&self) -> u32 {
        self.driver_feature_select
    }

    pub fn set_driver_feature_select(&mut self, value: u32) {
        self.driver_feature_select = value;
    }

    pub fn queue_select(&self) -> u16 {
        self.queue_select
    }

    pub fn set_queue_select(&mut self, value: u16) {
        self.queue_select = value;
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// A field of the selected queue; 0 where there is none. An address's `size`
    /// bytes are those from its offset on.
    pub fn queue(&self, field: QueueField, size: u8) -> u64 {
        let Some(q) = self.selected() else { return 0 };
        match field {
            QueueField::Size => q.size.into(),
            QueueField::Enable => q.enabled.into(),
            QueueField::Address(at) => {
                let QueueAddresses { descriptors, driver, device } = q.addresses;
                let word = [descriptors, driver, device].get(usize::from(at / 8)).copied().unwrap_or(0);
                let value = word >> (8 * u32::from(at % 8));
                if size >= 8 { value } else { value & 0xffff_ffff }
            }
        }
    }

    /// Largest size of the selected queue; 0: there is none.
    pub fn queue_max_size(&self) -> u16 {
        self.device.queue_sizes().get(usize::from(self.queue_select)).copied().unwrap_or(0)
    }

    /// The driver sets a field of the selected queue up; without effect while the
    /// queue is in use (4.1.4.3.2). Addresses come in words of 4 or 8 bytes.
    pub fn set_queue(&mut self, field: QueueField, size: u8, value: u64) {
        let active = self.status & status::DRIVER_OK != 0;
        let most = self.queue_max_size();
        let Some(q) = self.queues.get_mut(usize::from(self.queue_select)).filter(|q| !active && !q.enabled)
        else {
            return;
        };
        match field {
            // A larger size than offered is no size; the queue refuses 0 later.
            QueueField::Size => q.size = u16::try_from(value).ok().filter(|&s| s <= most).unwrap_or(0),
            QueueField::Enable => q.enabled = value & 1 != 0,
            QueueField::Address(at) => {
                let a = &mut q.addresses;
                let word = match at / 8 {
                    0 => &mut a.descriptors,
                    1 => &mut a.driver,
                    _ => &mut a.device,
                };
                *word = match (at % 8, size) {
                    (0, 8) => value,
                    (0, 4) => *word & !0xffff_ffff | value & 0xffff_ffff,
                    (4, 4) => *word & 0xffff_ffff | value << 32,
                    _ => return,
                };
            }
        }
    }

    /// MMIO transport: disable the selected queue (4.2.2).
    pub fn disable_queue(&mut self) {
        let active = self.status & status::DRIVER_OK != 0;
        if let Some(q) = self.queues.get_mut(usize::from(self.queue_select)).filter(|_| !active) {
            q.enabled = false;
        }
    }

    /// The status, but for DEVICE_NEEDS_RESET, which the transport keeps.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// The driver writes the status: bits are only ever added, 0 resets.
    pub fn set_status(&mut self, value: u8) -> StatusChange {
        if value == 0 {
            self.reset();
            return StatusChange::Reset;
        }
        let mut new = (value & !status::DEVICE_NEEDS_RESET | self.status) & !self.status;
        let agreed =
            self.driver_features & !self.offered() == 0 && self.driver_features & features::VERSION_1 != 0;
        if new & status::FEATURES_OK != 0 && !agreed {
            // The driver reads it back and sees that it is not set (2.2.2).
            new &= !status::FEATURES_OK;
        }
        if new & status::DRIVER_OK != 0 && (self.status | new) & status::FEATURES_OK == 0 {
            new &= !status::DRIVER_OK;
        }
        self.status |= new;
        if new & status::DRIVER_OK == 0 {
            return StatusChange::None;
        }
        let fresh = vec![None; self.queues.len()];
        match self.make_queues(&fresh).and_then(|queues| self.activate(queues)) {
            Ok(()) => StatusChange::Active,
            Err(e) => {
                self.interrupt.fail(&e);
                StatusChange::None
            }
        }
    }

    fn make_queues(&self, positions: &[Option<Position>]) -> Result<Vec<Option<Queue>>, ActivateError> {
        let mut list = Vec::new();
        for ((index, q), position) in (0u16..).zip(&self.queues).zip(positions) {
            let config =
                QueueConfig { index, size: q.size, addresses: q.addresses, features: self.driver_features };
            let make = || Queue::new(self.memory.clone(), config, self.interrupt.clone(), position.as_ref());
            let queue = q.enabled.then(make).transpose();
            list.push(queue.map_err(|error| ActivateError::Ring { index, error })?);
        }
        Ok(list)
    }

    fn activate(&mut self, queues: Vec<Option<Queue>>) -> Result<(), ActivateError> {
        self.device.activate(Activation {
            memory: self.memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
            inline: self.inline,
        })
    }

    /// Doorbells of all queues, for the transport to ring by itself.
    pub fn doorbells(&self) -> Vec<Option<Doorbell>> {
        (0..self.queue_count()).map(|q| self.device.doorbell(q)).collect()
    }

    /// A doorbell rang that has no [`Doorbell`].
    pub fn notify(&mut self, queue: u16) {
        if self.is_active() && self.parked.is_none() && queue < self.queue_count() {
            self.device.notify(queue);
        }
    }

    fn is_active(&self) -> bool {
        self.status & status::DRIVER_OK != 0
    }

    pub fn config_read(&mut self, offset: u64, to: &mut [u8]) {
        self.device.config_read(offset, to);
    }

    pub fn config_write(&mut self, offset: u64, from: &[u8]) {
        self.device.config_write(offset, from);
    }

    /// As after power-up.
    pub fn reset(&mut self) {
        drop(self.device.quiesce());
        self.device.reset();
        self.parked = None;
        self.status = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.queues = self.fresh_queues();
        self.stopped = false;
    }

    /// Make the device stand still for good: until it is reset.
    pub fn stop(&mut self) {
        self.quiesce();
        self.stopped = self.is_active();
    }

    /// Make the device stand still: afterwards no thread of it touches guest memory.
    pub fn quiesce(&mut self) {
        if self.is_active() && self.parked.is_none() {
            self.parked = Some(self.device.quiesce());
        }
    }

    /// Let a device that stands still go on. Answers whether it did.
    pub fn resume(&mut self) -> bool {
        if self.stopped {
            return false;
        }
        let Some(queues) = self.parked.take() else { return false };
        // A device that failed has no queues to go on with.
        if queues.len() != self.queues.len() {
            return false;
        }
        match self.activate(queues) {
            Ok(()) => true,
            Err(e) => {
                self.interrupt.fail(&e);
                false
            }
        }
    }

    /// The state; the device stands still or is not active.
    pub fn save(&self) -> RegistersState {
        let Registers {
            device,
            memory: _,
            interrupt: _,
            inline: _,
            parked,
            status,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            stopped,
        } = self;
        let parked = parked.as_deref().unwrap_or(&[]);
        RegistersState {
            status: *status,
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            driver_features: *driver_features,
            queue_select: *queue_select,
            queues: queues.clone(),
            positions: parked.iter().map(|q| q.as_ref().map(Queue::position)).collect(),
            stopped: *stopped,
            device: device.save(),
        }
    }

    /// Put a state back; the device stands still afterwards, if it is active.
    pub fn restore(&mut self, state: &RegistersState) -> Result<(), StateError> {
        let RegistersState {
            status: new_status,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            positions,
            stopped,
            device,
        } = state;
        let name = self.name();
        let same = queues.len() == self.queues.len();
        StateError::check(same, name, "queues", queues.len() as u64, "the device's queues")?;
        for (q, most) in queues.iter().zip(self.device.queue_sizes()) {
            StateError::check(q.size <= *most, name, "queue size", q.size, "at most the device's")?;
        }
        let known = driver_features & !self.offered() == 0;
        let agreed = new_status & status::FEATURES_OK == 0 || known;
        StateError::check(agreed, name, "features", *driver_features, "what the device offers")?;
        let active = new_status & status::DRIVER_OK != 0;
        let complete = !active || positions.is_empty() || positions.len() == queues.len();
        StateError::check(complete, name, "positions", positions.len() as u64, "one for each queue")?;
        let before = (self.driver_features, std::mem::replace(&mut self.queues, queues.clone()));
        self.driver_features = *driver_features;
        let made = if active { self.make_queues(positions) } else { Ok(Vec::new()) };
        let made = made.map_err(|_| StateError::OutOfRange {
            device: name,
            field: "queue",
            value: positions.len() as u64,
            allowed: "rings in guest memory and positions in them",
        });
        let made = made.and_then(|made| {
            drop(self.device.quiesce());
            self.device.restore(device).map(|()| made)
        });
        match made {
            Ok(made) => {
                self.parked = active.then_some(made);
                self.status = *new_status;
                self.device_feature_select = *device_feature_select;
                self.driver_feature_select = *driver_feature_select;
                self.queue_select = *queue_select;
                self.stopped = *stopped && active;
                Ok(())
            }
            Err(e) => {
                (self.driver_features, self.queues) = before;
                Err(e)
            }
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        drop(self.device.quiesce());
    }
}
