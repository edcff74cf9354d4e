//! The PCI function.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::MsiSink;
use disk::{Disk, FullListener};
use guest_memory::GuestMemory;
use pci::{BarAccess, BarKind, ConfigSpace, Identity, MsixTable, PciFunction};

use crate::MAX_IO_QUEUES;
use crate::controller::Controller;
use crate::identify::{SERIAL_LEN, VENDOR};
use crate::interrupts::Interrupts;
use crate::io::Namespace;
use crate::saved::NvmeHandle;

const IDENTITY: Identity = Identity {
    vendor: VENDOR,
    device: 0x0010,
    // Mass storage, non-volatile memory, NVM Express I/O controller.
    class: 0x01_0802,
    revision: 0,
    subsystem: (VENDOR, 0x0010),
};
/// Registers and doorbells, then MSI-X.
const BAR_SIZE: u64 = 0x4000;
const MSIX_TABLE: u32 = 0x2000;
const MSIX_PENDING: u32 = 0x3000;

/// What an NVMe controller is made of.
pub struct NvmeConfig {
    /// Serial number: ASCII, cut after 20 characters. The namespace's unique
    /// identifiers follow from it.
    pub serial: String,
    /// The namespace.
    pub disk: Arc<dyn Disk>,
    /// Start no threads: execute commands where doorbells are rung, so that a run in
    /// virtual time repeats.
    pub inline: bool,
    /// Told when commands wait for room on the host. `None`: they fail.
    pub on_full: Option<FullListener>,
}

/// What the BAR leads to, without the bus's lock.
pub(crate) struct Registers {
    pub(crate) interrupts: Interrupts,
    controller: Mutex<Controller>,
}

impl Registers {
    pub(crate) fn controller(&self) -> MutexGuard<'_, Controller> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BarAccess for Registers {
    fn read(&self, bar: u8, offset: u64, size: u8) -> u64 {
        if bar != 0 {
            return u64::MAX;
        }
        // MSI-X lies behind the registers, which a driver reads and rings more often.
        let there = if offset < MSIX_TABLE.into() { None } else { self.interrupts.read(offset, size) };
        there.unwrap_or_else(|| self.controller().read(offset, size))
    }

    fn write(&self, bar: u8, offset: u64, size: u8, value: u64) {
        if bar != 0 || offset >= MSIX_TABLE.into() && self.interrupts.write(offset, size, value) {
            return;
        }
        let rung = self.controller().write(offset, size, value);
        // A queue's commands are taken without the controller's lock: other queues
        // can be rung meanwhile.
        if let Some((queue, tail)) = rung {
            queue.ring(tail);
        }
    }
}

/// An NVMe controller.
pub struct Nvme {
    config: ConfigSpace,
    registers: Arc<Registers>,
}

impl Nvme {
    /// A controller whose driver's memory is `memory` and whose interrupts go to `msi`.
    pub fn new(config: NvmeConfig, memory: GuestMemory, msi: Arc<dyn MsiSink>) -> Self {
        let NvmeConfig { mut serial, disk, inline, on_full } = config;
        serial.retain(|c| c.is_ascii_graphic() || c == ' ');
        serial.truncate(SERIAL_LEN);
        let mut config = ConfigSpace::new(IDENTITY).with_bar(0, BarKind::Memory64, BAR_SIZE);
        let table = MsixTable::add(&mut config, 0, MAX_IO_QUEUES + 1, MSIX_TABLE, MSIX_PENDING);
        let interrupts = Interrupts::new(table, msi);
        let namespace = Arc::new(Namespace::new(disk, memory, on_full));
        let controller = Mutex::new(Controller::new(serial, inline, namespace, interrupts.clone()));
        Nvme { config, registers: Arc::new(Registers { interrupts, controller }) }
    }

    /// A handle for the machine's owner.
    pub fn handle(&self) -> NvmeHandle {
        NvmeHandle::new(self.registers.clone())
    }
}

impl PciFunction for Nvme {
    fn name(&self) -> &'static str {
        "nvme"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
        self.registers.interrupts.config_written(&self.config);
    }
    fn bar_access(&self) -> Option<Arc<dyn BarAccess>> {
        Some(self.registers.clone())
    }
    fn reset(&mut self) {
        self.config.reset();
        self.registers.interrupts.reset();
        self.registers.controller().reset();
    }
}
