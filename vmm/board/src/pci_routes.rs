//! Where the guest has mapped the BARs of PCI functions.

use std::sync::{PoisonError, RwLock};

use pci::{BarId, BarKind, PciBus};

use crate::ranges::{Range, RangeTable};

#[derive(Default)]
struct Routes {
    bars: Vec<BarId>,
    memory: RangeTable,
    ports: RangeTable,
}

/// Routing of addresses no fixed device claims. A guest that maps two BARs over
/// each other gets the first; nothing else is harmed.
pub(crate) struct PciRoutes {
    bus: PciBus,
    routes: RwLock<Routes>,
}

impl PciRoutes {
    pub(crate) fn new(bus: PciBus) -> Self {
        PciRoutes { bus, routes: RwLock::default() }
    }

    /// Look whether the guest has moved a BAR. Call after configuration accesses.
    pub(crate) fn refresh(&self) {
        let Some(mappings) = self.bus.take_mappings() else { return };
        let mut routes = Routes::default();
        for m in mappings {
            let table = if matches!(m.kind, BarKind::Io) { &mut routes.ports } else { &mut routes.memory };
            let range = Range { start: m.address, len: m.size, slot: routes.bars.len(), offset: 0 };
            if table.insert(range).is_ok() {
                routes.bars.push(m.bar);
            }
        }
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// The BAR at an address and the offset into it.
    fn find(&self, port: bool, address: u64) -> Option<(BarId, u64)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let range = if port { &routes.ports } else { &routes.memory }.find(address)?;
        Some((*routes.bars.get(range.slot)?, address - range.start))
    }

    /// Read; `None`: no BAR is there.
    pub(crate) fn read(&self, port: bool, address: u64, size: u8) -> Option<u64> {
        let (bar, offset) = self.find(port, address)?;
        Some(self.bus.bar_read(bar, offset, size))
    }

    /// Write; `None`: no BAR is there.
    pub(crate) fn write(&self, port: bool, address: u64, size: u8, value: u64) -> Option<()> {
        let (bar, offset) = self.find(port, address)?;
        self.bus.bar_write(bar, offset, size, value);
        Some(())
    }
}
