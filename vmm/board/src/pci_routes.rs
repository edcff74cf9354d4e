//! Where the guest has mapped the BARs of PCI functions.

use std::sync::{Arc, PoisonError, RwLock};

use pci::{BarAccess, BarId, BarKind, PciBus};

use crate::ranges::{Range, RangeTable};

/// A mapped BAR, and the way to it past the bus's lock.
#[derive(Clone)]
struct Bar {
    id: BarId,
    access: Option<Arc<dyn BarAccess>>,
}

#[derive(Default)]
struct Routes {
    bars: Vec<Bar>,
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

    /// The bus.
    pub(crate) fn bus(&self) -> &PciBus {
        &self.bus
    }

    /// Look whether the guest has moved a BAR. Call after configuration accesses.
    pub(crate) fn refresh(&self) {
        let Some(mappings) = self.bus.take_mappings() else { return };
        let mut routes = Routes::default();
        for m in mappings {
            let table = if matches!(m.kind, BarKind::Io) { &mut routes.ports } else { &mut routes.memory };
            let range = Range { start: m.address, len: m.size, slot: routes.bars.len(), offset: 0 };
            if table.insert(range).is_ok() {
                routes.bars.push(Bar { id: m.bar, access: self.bus.bar_access(m.bar) });
            }
        }
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// Let every memory BAR decode in a window.
    pub(crate) fn place_bars(&self, window: (u32, u32)) {
        self.bus.place_bars(window);
        self.refresh();
    }

    /// The BAR at an address and the offset into it. No lock is held afterwards: an
    /// access may take long, and another may move BARs meanwhile.
    fn find(&self, port: bool, address: u64) -> Option<(Bar, u64)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let range = if port { &routes.ports } else { &routes.memory }.find(address)?;
        Some((routes.bars.get(range.slot)?.clone(), address - range.start))
    }

    /// Read; `None`: no BAR is there.
    pub(crate) fn read(&self, port: bool, address: u64, size: u8) -> Option<u64> {
        let (bar, offset) = self.find(port, address)?;
        Some(match bar.access {
            Some(access) => access.read(bar.id.bar, offset, size),
            None => self.bus.bar_read(bar.id, offset, size),
        })
    }

    /// Write; `None`: no BAR is there.
    pub(crate) fn write(&self, port: bool, address: u64, size: u8, value: u64) -> Option<()> {
        let (bar, offset) = self.find(port, address)?;
        match bar.access {
            Some(access) => access.write(bar.id.bar, offset, size, value),
            None => self.bus.bar_write(bar.id, offset, size, value),
        }
        Some(())
    }
}
