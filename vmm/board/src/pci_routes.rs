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
/// each other gets the first; nothing else is harmed. Locks: routes, then bus.
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

    /// Look whether the guest has moved a BAR. Call after configuration accesses, without
    /// the bus's lock.
    pub(crate) fn refresh(&self) {
        // Taken first: of two that refresh at once the later one stores what is newer, and
        // one that finds nothing changed returns when that is in effect.
        let mut current = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let Some(mappings) = self.bus.take_mappings() else { return };
        let mut routes = Routes::default();
        for m in mappings {
            let table = if matches!(m.kind, BarKind::Io) { &mut routes.ports } else { &mut routes.memory };
            let range = Range { start: m.address, len: m.size, slot: routes.bars.len(), offset: 0 };
            if table.insert(range).is_ok() {
                routes.bars.push(Bar { id: m.bar, access: self.bus.bar_access(m.bar) });
            }
        }
        *current = routes;
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use device_model::{IrqLine, Mmio};
    use pci::{ConfigSpace, Identity, PciBusConfig, PciFunction, command, offset};

    use super::*;

    const SIZE: u64 = 0x1000;

    /// A function with one BAR of memory.
    struct Card(ConfigSpace);

    impl Card {
        fn new() -> Self {
            let id =
                Identity { vendor: 0x1234, device: 0x5678, class: 0xff_0000, revision: 0, subsystem: (0, 0) };
            Card(ConfigSpace::new(id).with_bar(0, BarKind::Memory32, SIZE))
        }
    }

    impl PciFunction for Card {
        fn name(&self) -> &'static str {
            "card"
        }
        fn config(&self) -> &ConfigSpace {
            &self.0
        }
        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.0
        }
        fn reset(&mut self) {
            self.0.reset();
        }
    }

    #[test]
    fn what_processors_map_at_once_is_in_effect_for_each() {
        let bus = PciBus::new(PciBusConfig { interrupts: std::array::from_fn(|_| IrqLine::unconnected()) });
        let routes = PciRoutes::new(bus);
        // The more there are, the longer a table is in the making.
        for slot in 1..32 {
            assert!(routes.bus().add(slot, 0, Box::new(Card::new())));
        }
        routes.place_bars(crate::memory::PCI_WINDOW_32);
        let base = u64::from(crate::memory::PCI_WINDOW_32.0);
        let toggle = |slot: u64| {
            let (mut ecam, at) = (routes.bus().ecam(), base + (slot - 1) * SIZE);
            let (start, mut n) = (Instant::now(), 0);
            while start.elapsed() < Duration::from_millis(300) {
                n += 1;
                for (command, there) in [(0, false), (command::MEMORY, true)] {
                    ecam.mmio_write(slot << 15 | u64::from(offset::COMMAND), 2, command.into());
                    routes.refresh();
                    // It stays so, whatever the others store meanwhile.
                    for _ in 0..50 {
                        assert_eq!(routes.read(false, at, 4).is_some(), there, "slot {slot}, round {n}");
                    }
                }
            }
        };
        let toggle = &toggle;
        std::thread::scope(|s| {
            for slot in 1..=4 {
                s.spawn(move || toggle(slot));
            }
        });
    }
}
