//! The PCI transport (virtio 1.2, section 4.1), modern devices only.
//!
//! One BAR holds all structures. It is reached without the bus's lock
//! ([`BarAccess`]); a doorbell of a device with a worker takes no lock that is
//! held for long: it looks the worker up and wakes it.
//!
//! Locks, outermost first: PCI bus · registers (with the device) · doorbells ·
//! signals · interrupt controllers.

mod layout;
mod signals;

use std::sync::{Arc, MutexGuard};

use device_model::{IrqLine, MsiSink};
use guest_memory::GuestMemory;
use pci::{BarAccess, BarKind, ConfigSpace, Identity, MsixTable, PciFunction, command, offset};

use crate::front::{Front, TransportSignals, VirtioHandle};
use crate::registers::{QueueField, Registers, status};
use crate::{DeviceType, Interrupt, VirtioDevice};
use layout::{BAR, BAR_SIZE, COMMON, ConfigAccess, DEVICE, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, STRUCTURE};
use signals::Source;
pub(crate) use signals::{Signals, SignalsState};

/// Red Hat's vendor ID, virtio's by donation.
const VENDOR: u16 = 0x1af4;
/// Device ID of device type 0 (4.1.2).
const DEVICE_ID_BASE: u16 = 0x1040;

/// What a function is made of.
pub struct VirtioPciConfig {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// Where MSI-X messages go.
    pub msi: Arc<dyn MsiSink>,
    /// INTA# of the function's slot.
    pub intx: IrqLine,
    /// See [`crate::Activation::inline`].
    pub inline: bool,
}

/// Shared by the function on the bus and its BAR.
struct Shared {
    front: Arc<Front>,
    signals: Arc<Signals>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    // Static configuration.
    name: &'static str,
    access: ConfigAccess,
    // Runtime glue.
    shared: Arc<Shared>,
    // Volatile state.
    config: ConfigSpace,
}

/// Base class and subclass that systems show for a device type.
fn class(device: DeviceType) -> u32 {
    match device {
        DeviceType::NET => 0x02_0000,
        DeviceType::BLOCK | DeviceType::SCSI => 0x01_8000,
        DeviceType::CONSOLE => 0x07_8000,
        DeviceType::GPU => 0x03_8000,
        _ => 0xff_0000,
    }
}

impl VirtioPci {
    /// A function for a device.
    ///
    /// # Panics
    /// When the device has too many queues or one of an impossible size: errors
    /// of the device's author.
    pub fn new(c: VirtioPciConfig) -> Self {
        let VirtioPciConfig { device, memory, msi, intx, inline } = c;
        let (name, kind, queues) = (device.name(), device.device_type(), device.queue_sizes().len() as u16);
        let id = DEVICE_ID_BASE.wrapping_add(kind.0);
        // The subsystem ID has no meaning for modern drivers but must be at least 0x40.
        let identity =
            Identity { vendor: VENDOR, device: id, class: class(kind), revision: 1, subsystem: (VENDOR, id) };
        let mut config =
            ConfigSpace::new(identity).with_bar(BAR, BarKind::Memory32, BAR_SIZE).with_interrupt_pin(1);
        let msix = MsixTable::add(&mut config, BAR, queues + 1, MSIX_TABLE as u32, MSIX_PENDING as u32);
        let access = layout::add_capabilities(&mut config, queues);
        let signals = Arc::new(Signals::new(msi, intx, msix, queues));
        let registers = Registers::new(device, memory, Interrupt::new(name, signals.clone()), inline);
        let shared = Arc::new(Shared { front: Arc::new(Front::new(registers)), signals });
        VirtioPci { name, access, shared, config }
    }

    /// A handle for the machine's owner.
    pub fn handle(&self) -> VirtioHandle {
        let Shared { front, signals } = &*self.shared;
        let signals = TransportSignals::Pci(signals.clone());
        VirtioHandle { name: self.name, front: front.clone(), signals }
    }
}

impl Shared {
    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.front.registers()
    }

    /// The common configuration (4.1.4.3).
    fn common_read(&self, at: u64, size: u8) -> u64 {
        let r = self.registers();
        match (at, size) {
            (0x00, 4) => r.device_feature_select().into(),
            (0x04, 4) => r.device_features().into(),
            (0x08, 4) => r.driver_feature_select().into(),
            (0x0c, 4) => r.driver_features().into(),
            (0x10, 2) => self.signals.vector(Source::Config).into(),
            (0x12, 2) => r.queue_count().into(),
            (0x14, 1) => {
                let needs_reset = if self.signals.needs_reset() { status::DEVICE_NEEDS_RESET } else { 0 };
                (r.status() | needs_reset).into()
            }
            (0x15, 1) => self.signals.generation().into(),
            (0x16, 2) => r.queue_select().into(),
            (0x18, 2) => r.queue(QueueField::Size, 2),
            (0x1a, 2) => self.signals.vector(Source::Queue(r.queue_select())).into(),
            (0x1c, 2) => r.queue(QueueField::Enable, 2),
            (0x1e, 2) => r.queue_select().into(),
            (0x20..0x38, 4 | 8) => r.queue(QueueField::Address((at - 0x20) as u8), size),
            _ => 0,
        }
    }

    fn common_write(&self, at: u64, size: u8, value: u64) {
        if (at, size) == (0x14, 1) {
            return self.set_status(value as u8);
        }
        let mut r = self.registers();
        match (at, size) {
            (0x00, 4) => r.set_device_feature_select(value as u32),
            (0x08, 4) => r.set_driver_feature_select(value as u32),
            (0x0c, 4) => r.set_driver_features(value as u32),
            (0x10, 2) => self.signals.set_vector(Source::Config, value as u16),
            (0x16, 2) => r.set_queue_select(value as u16),
            (0x18, 2) => r.set_queue(QueueField::Size, size, value),
            (0x1a, 2) => self.signals.set_vector(Source::Queue(r.queue_select()), value as u16),
            (0x1c, 2) => r.set_queue(QueueField::Enable, size, value),
            (0x20..0x38, 4 | 8) => r.set_queue(QueueField::Address((at - 0x20) as u8), size, value),
            _ => {}
        }
    }

    fn set_status(&self, value: u8) {
        self.front.set_status(value, || self.signals.reset_device());
    }
}

impl BarAccess for Shared {
    fn read(&self, _bar: u8, at: u64, size: u8) -> u64 {
        match at & !(STRUCTURE - 1) {
            COMMON => self.common_read(at, size),
            ISR if at == ISR => self.signals.take_isr().into(),
            DEVICE => {
                let mut bytes = [0; 8];
                self.registers().config_read(at - DEVICE, &mut bytes[..usize::from(size.min(8))]);
                u64::from_le_bytes(bytes)
            }
            NOTIFY | ISR => 0,
            _ => self.signals.msix_read(at, size).unwrap_or(0),
        }
    }

    fn write(&self, _bar: u8, at: u64, size: u8, value: u64) {
        match at & !(STRUCTURE - 1) {
            NOTIFY => self.front.notify(((at - NOTIFY) / u64::from(layout::NOTIFY_MULTIPLIER)) as u16),
            COMMON => self.common_write(at, size, value),
            DEVICE => {
                let bytes = value.to_le_bytes();
                self.registers().config_write(at - DEVICE, &bytes[..usize::from(size.min(8))]);
            }
            ISR => {}
            _ => self.signals.msix_write(at, size, value),
        }
    }
}

impl PciFunction for VirtioPci {
    fn name(&self) -> &'static str {
        self.name
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn config_read(&mut self, at: u16, size: u8) -> u32 {
        if self.access.hit(at, size) {
            let Some(target) = self.access.target(&self.config) else { return 0 };
            return self.shared.read(BAR, target.offset, target.size) as u32;
        }
        if at & !3 == offset::COMMAND {
            self.config.set_intx_status(self.shared.signals.intx_wanted());
        }
        self.config.read(at, size)
    }
    fn config_write(&mut self, at: u16, size: u8, value: u32) {
        let may_access = |config: &ConfigSpace| config.command() & command::BUS_MASTER != 0;
        let before = may_access(&self.config);
        self.config.write(at, size, value);
        // As elsewhere a device from which this right was taken goes on after a reset only: a
        // system that starts another one without firmware takes it, and gives it back before
        // it resets, when the old rings are somebody's memory.
        if before && !may_access(&self.config) {
            self.shared.front.stop();
        }
        if self.access.hit(at, size)
            && let Some(target) = self.access.target(&self.config)
        {
            self.shared.write(BAR, target.offset, target.size, value.into());
        }
        self.shared.signals.config_space_changed(&self.config);
    }
    fn bar_access(&self) -> Option<Arc<dyn BarAccess>> {
        Some(self.shared.clone())
    }
    fn reset(&mut self) {
        self.shared.set_status(0);
        self.shared.signals.reset_function();
        self.config.reset();
    }
}
