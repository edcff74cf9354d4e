//! The MMIO transport (virtio 1.2, section 4.2), version 2 only.
//!
//! A [`device_model::Device`] of one page and one interrupt line, which is held
//! until the driver has acknowledged every cause: lines can be shared.
//!
//! Locks, outermost first: device · registers · doorbells · signals · interrupt
//! controllers.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::{Device, IrqLine, Mmio};
use guest_memory::GuestMemory;
use saved_state::StateError;
use serde::{Deserialize, Serialize};

use crate::front::{Front, TransportSignals, VirtioHandle};
use crate::registers::{QueueField, Registers, status};
use crate::{Interrupt, InterruptSink, VirtioDevice};

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Devices without the legacy interface.
const VERSION: u32 = 2;
/// Red Hat's PCI vendor ID, as the PCI transport has it.
const VENDOR: u32 = 0x1af4;
/// Device configuration begins here.
const CONFIG: u64 = 0x100;

/// Registers (4.2.2).
mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const SHM_LEN: std::ops::RangeInclusive<u64> = 0x0b0..=0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;

    /// Byte offset into the three addresses of a queue's register for one half.
    pub fn address(at: u64) -> Option<u8> {
        match at {
            0x080 | 0x084 => Some((at - 0x080) as u8),
            0x090 | 0x094 => Some((at - 0x090) as u8 + 8),
            0x0a0 | 0x0a4 => Some((at - 0x0a0) as u8 + 16),
            _ => None,
        }
    }
}

/// Interrupt status: a queue has used buffers.
const CAUSE_QUEUE: u32 = 1;
/// Interrupt status: the configuration has changed.
const CAUSE_CONFIG: u32 = 2;

/// What a device's threads signal with. Its lock is taken last and held while the
/// line is driven, so that levels arrive in the order of events.
pub(crate) struct LineSignals {
    // Runtime glue.
    line: IrqLine,
    // Volatile state.
    needs_reset: AtomicBool,
    generation: AtomicU32,
    causes: Mutex<u32>,
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineSignalsState {
    needs_reset: bool,
    generation: u32,
    causes: u32,
}

impl LineSignals {
    fn new(line: IrqLine) -> Self {
        LineSignals {
            line,
            needs_reset: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            causes: Mutex::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        self.causes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut u32)) {
        let mut causes = self.lock();
        change(&mut causes);
        self.line.set(*causes != 0);
    }

    fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.change(|causes| *causes = 0);
    }

    pub fn save(&self) -> LineSignalsState {
        let LineSignals { line: _, needs_reset, generation, causes } = self;
        LineSignalsState {
            needs_reset: needs_reset.load(Ordering::Acquire),
            generation: generation.load(Ordering::Acquire),
            causes: *causes.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub fn restore(&self, state: &LineSignalsState, name: &'static str) -> Result<(), StateError> {
        let LineSignalsState { needs_reset, generation, causes } = state;
        let known = causes & !(CAUSE_QUEUE | CAUSE_CONFIG) == 0;
        StateError::check(known, name, "interrupt status", *causes, "defined bits")?;
        self.needs_reset.store(*needs_reset, Ordering::Release);
        self.generation.store(*generation, Ordering::Release);
        self.change(|own| *own = *causes);
        Ok(())
    }
}

impl InterruptSink for LineSignals {
    fn queue_used(&self, _queue: u16) {
        self.change(|causes| *causes |= CAUSE_QUEUE);
    }
    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.change(|causes| *causes |= CAUSE_CONFIG);
    }
    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.change(|causes| *causes |= CAUSE_CONFIG);
    }
}

/// What a device on the MMIO transport is made of.
pub struct VirtioMmioConfig {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// Its interrupt line.
    pub line: IrqLine,
    /// See [`crate::Activation::inline`].
    pub inline: bool,
}

/// A virtio device in memory-mapped registers.
pub struct VirtioMmio {
    // Static configuration.
    name: &'static str,
    id: u32,
    // Runtime glue, with the volatile state.
    front: Arc<Front>,
    signals: Arc<LineSignals>,
}

impl VirtioMmio {
    /// Bytes of the register window.
    pub const SIZE: u64 = 0x1000;

    /// A transport for a device.
    ///
    /// # Panics
    /// As [`crate::VirtioPci::new`].
    pub fn new(c: VirtioMmioConfig) -> Self {
        let VirtioMmioConfig { device, memory, line, inline } = c;
        let (name, id) = (device.name(), device.device_type().0.into());
        let signals = Arc::new(LineSignals::new(line));
        let registers = Registers::new(device, memory, Interrupt::new(name, signals.clone()), inline);
        VirtioMmio { name, id, front: Arc::new(Front::new(registers)), signals }
    }

    /// A handle for the machine's owner.
    pub fn handle(&self) -> VirtioHandle {
        let signals = TransportSignals::Mmio(self.signals.clone());
        VirtioHandle { name: self.name, front: self.front.clone(), signals }
    }

    fn read(&self, at: u64) -> u32 {
        let r = self.front.registers();
        match at {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.id,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => r.device_features(),
            register::QUEUE_NUM_MAX => r.queue_max_size().into(),
            register::QUEUE_READY => r.queue(QueueField::Enable, 4) as u32,
            register::INTERRUPT_STATUS => *self.signals.lock(),
            register::STATUS => {
                let failed = self.signals.needs_reset.load(Ordering::Acquire);
                (r.status() | if failed { status::DEVICE_NEEDS_RESET } else { 0 }).into()
            }
            // There are no shared memory regions: length and base are all ones (4.2.2).
            at if register::SHM_LEN.contains(&at) => u32::MAX,
            register::CONFIG_GENERATION => self.signals.generation.load(Ordering::Acquire),
            _ => 0,
        }
    }

    fn write(&self, at: u64, value: u32) {
        match at {
            register::QUEUE_NOTIFY => return self.front.notify(value as u16),
            register::STATUS => return self.front.set_status(value as u8, || self.signals.reset()),
            register::INTERRUPT_ACK => return self.signals.change(|causes| *causes &= !value),
            _ => {}
        }
        let mut r = self.front.registers();
        match at {
            register::DEVICE_FEATURES_SEL => r.set_device_feature_select(value),
            register::DRIVER_FEATURES => r.set_driver_features(value),
            register::DRIVER_FEATURES_SEL => r.set_driver_feature_select(value),
            // A number that no queue has.
            register::QUEUE_SEL => r.set_queue_select(u16::try_from(value).unwrap_or(u16::MAX)),
            register::QUEUE_NUM => r.set_queue(QueueField::Size, 4, value.into()),
            register::QUEUE_READY if value & 1 == 0 => r.disable_queue(),
            register::QUEUE_READY => r.set_queue(QueueField::Enable, 4, 1),
            at => {
                if let Some(offset) = register::address(at) {
                    r.set_queue(QueueField::Address(offset), 4, value.into());
                }
            }
        }
    }
}

impl Device for VirtioMmio {
    fn name(&self) -> &'static str {
        self.name
    }
    fn reset(&mut self) {
        self.front.set_status(0, || self.signals.reset());
        self.signals.generation.store(0, Ordering::Release);
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

impl Mmio for VirtioMmio {
    /// Registers are read as aligned words (4.2.2.2), the configuration in any way.
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let mut bytes = [0; 8];
            self.front.registers().config_read(at, &mut bytes[..usize::from(size.min(8))]);
            return u64::from_le_bytes(bytes);
        }
        if (size, offset % 4) == (4, 0) { self.read(offset).into() } else { 0 }
    }

    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            let bytes = value.to_le_bytes();
            self.front.registers().config_write(at, &bytes[..usize::from(size.min(8))]);
        } else if (size, offset % 4) == (4, 0) {
            self.write(offset, value as u32);
        }
    }
}
