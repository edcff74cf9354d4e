//! Bus 0: configuration access, mapped BARs, interrupts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::{Device, IrqLine, Mmio, PortIo, PortRange};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::intx::Intx;
use crate::{BarAccess, BarId, BarKind, ConfigSpace, HostBridge, PciFunction, command, offset};

const NAME: &str = "pci";
/// Writable bits of the address register: enable, bus, device, function, register.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
const ADDRESS_ENABLE: u32 = 1 << 31;

/// What a bus is wired to.
pub struct PciBusConfig {
    /// Lines of INTA#-INTD# of device 0; those of device n are rotated by n.
    pub interrupts: [IrqLine; 4],
}

/// A BAR that decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Whose BAR.
    pub bar: BarId,
    /// Ports or memory.
    pub kind: BarKind,
    /// First address or port.
    pub address: u64,
    /// Bytes or ports.
    pub size: u64,
}

/// Where a function is: slot and function number.
type Place = (u8, u8);

struct Bus {
    // Runtime glue.
    intx: Arc<Intx>,
    functions: BTreeMap<Place, Box<dyn PciFunction>>,
    // Volatile state.
    /// The address register at port 0xcf8.
    address: u32,
    /// Mappings have changed since the board asked.
    changed: bool,
}

/// Bus 0 and everything on it. A handle: clones are the same bus. The host
/// bridge is at slot 0.
#[derive(Clone)]
pub struct PciBus(Arc<Mutex<Bus>>);

/// The bus's memory-mapped configuration space, a device of its own.
pub struct Ecam(PciBus);

/// The saved state: the address register and all configuration spaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBusState {
    address: u32,
    functions: Vec<(u8, u8, Vec<u8>)>,
}

impl Bus {
    fn read(&mut self, bus: u8, place: Place, offset: u16, size: u8) -> u32 {
        let within = u16::from(size) + (offset & 3) <= 4;
        match self.functions.get_mut(&place) {
            Some(function) if bus == 0 && within => function.config_read(offset, size),
            _ => u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))),
        }
    }

    fn write(&mut self, bus: u8, place: Place, offset: u16, size: u8, value: u32) {
        let within = u16::from(size) + (offset & 3) <= 4;
        let Some(function) = self.functions.get_mut(&place).filter(|_| bus == 0 && within) else { return };
        let before: Vec<_> = function.config().mapped_bars().collect();
        function.config_write(offset, size, value);
        self.changed |= !function.config().mapped_bars().eq(before);
    }

    /// What the address register names.
    fn selected(&self) -> Option<(u8, Place, u16)> {
        let a = self.address;
        let place = ((a >> 11 & 0x1f) as u8, (a >> 8 & 7) as u8);
        (a & ADDRESS_ENABLE != 0).then_some(((a >> 16) as u8, place, (a & 0xfc) as u16))
    }

    fn mappings(&self) -> Vec<Mapping> {
        let mut mappings = Vec::new();
        for (&(slot, function), f) in &self.functions {
            mappings.extend(f.config().mapped_bars().map(|(bar, kind, address, size)| Mapping {
                bar: BarId { slot, function, bar },
                kind,
                address,
                size,
            }));
        }
        mappings
    }
}

impl PciBus {
    /// Address register (doubleword accesses only: 0xcf9 is another device's) and data.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0xcf8, 1, 0), PortRange::new(0xcfc, 4, 4)];
    /// Where the board puts ECAM.
    pub const ECAM_BASE: u64 = 0xe000_0000;
    /// Bytes of ECAM: 256 buses.
    pub const ECAM_SIZE: u64 = 256 << 20;

    /// A bus with its host bridge.
    pub fn new(config: PciBusConfig) -> Self {
        let functions: BTreeMap<Place, Box<dyn PciFunction>> =
            BTreeMap::from([((0, 0), Box::new(HostBridge::new()) as Box<dyn PciFunction>)]);
        let intx = Intx::new(config.interrupts);
        PciBus(Arc::new(Mutex::new(Bus { intx, functions, address: 0, changed: false })))
    }

    fn lock(&self) -> MutexGuard<'_, Bus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plug in a function. Answers false, and drops it, when the place is taken or does not exist.
    pub fn add(&self, slot: u8, function: u8, device: Box<dyn PciFunction>) -> bool {
        let mut bus = self.lock();
        let free = slot < 32 && function < 8 && !bus.functions.contains_key(&(slot, function));
        if free {
            bus.functions.insert((slot, function), device);
            bus.changed = true;
        }
        free
    }

    /// Take out what is in a slot: every function is reset, so that it has stopped
    /// when this returns, and dropped.
    pub fn remove(&self, slot: u8) {
        let taken: Vec<_> = {
            let mut bus = self.lock();
            bus.changed = true;
            (0..8).filter_map(|function| bus.functions.remove(&(slot, function))).collect()
        };
        // Without the bus's lock: a device may take a moment to stop.
        for mut function in taken {
            function.reset();
        }
    }

    /// The interrupt line of a pin (1 is INTA#, to 4) of a slot.
    pub fn intx_line(&self, slot: u8, pin: u8) -> IrqLine {
        self.lock().intx.line(slot, pin.wrapping_sub(1))
    }

    /// The memory-mapped configuration space.
    pub fn ecam(&self) -> Ecam {
        Ecam(self.clone())
    }

    /// All BARs that decode, if that has changed since the last call.
    pub fn take_mappings(&self) -> Option<Vec<Mapping>> {
        let mut bus = self.lock();
        std::mem::take(&mut bus.changed).then(|| bus.mappings())
    }

    /// Place every memory BAR in a window (first and last address) and let it
    /// decode, as firmware does: for machines without any. What does not fit stays
    /// unplaced; guests place it themselves.
    pub fn place_bars(&self, window: (u32, u32)) {
        let mut bus = self.lock();
        let mut next = u64::from(window.0);
        for f in bus.functions.values_mut() {
            let bars: Vec<_> = f.config().bars().filter(|b| b.1 != BarKind::Io).collect();
            for (bar, _, size) in bars {
                let at = next.next_multiple_of(size);
                if at + (size - 1) <= u64::from(window.1) {
                    f.config_mut().place_bar(bar, at);
                    f.config_write(offset::COMMAND, 2, (f.config().command() | command::MEMORY).into());
                    next = at + size;
                }
            }
        }
        bus.changed = true;
    }

    /// The way to a function's BARs that takes no lock of the bus, if it has one.
    pub fn bar_access(&self, id: BarId) -> Option<Arc<dyn BarAccess>> {
        self.lock().functions.get(&(id.slot, id.function))?.bar_access()
    }

    /// Read from a mapped BAR.
    pub fn bar_read(&self, id: BarId, offset: u64, size: u8) -> u64 {
        match self.lock().functions.get_mut(&(id.slot, id.function)) {
            Some(f) => f.bar_read(id.bar, offset, size),
            None => u64::MAX,
        }
    }

    /// Write to a mapped BAR.
    pub fn bar_write(&self, id: BarId, offset: u64, size: u8, value: u64) {
        if let Some(f) = self.lock().functions.get_mut(&(id.slot, id.function)) {
            f.bar_write(id.bar, offset, size, value);
        }
    }
}

impl Device for PciBus {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        let mut bus = self.lock();
        bus.address = 0;
        bus.changed = true;
        bus.functions.values_mut().for_each(|f| f.reset());
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for PciBus {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let mut bus = self.lock();
        match (offset, size) {
            (0, 4) => bus.address,
            (4..=7, _) => match bus.selected() {
                Some((number, place, register)) => bus.read(number, place, register + (offset - 4), size),
                None => u32::MAX,
            },
            _ => u32::MAX,
        }
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let mut bus = self.lock();
        match (offset, size) {
            (0, 4) => bus.address = value & ADDRESS_BITS,
            (4..=7, _) => {
                if let Some((number, place, register)) = bus.selected() {
                    bus.write(number, place, register + (offset - 4), size, value);
                }
            }
            _ => {}
        }
    }
}

/// Bus, place and register of an ECAM offset (PCI Express base 5.0, 7.2.2).
fn ecam_address(offset: u64) -> (u8, Place, u16) {
    let place = ((offset >> 15 & 0x1f) as u8, (offset >> 12 & 7) as u8);
    ((offset >> 20) as u8, place, (offset & 0xfff) as u16)
}

impl Device for Ecam {
    fn name(&self) -> &'static str {
        "pci-ecam"
    }
    /// The bus resets itself.
    fn reset(&mut self) {}
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

impl Mmio for Ecam {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        let (number, place, register) = ecam_address(offset);
        let mut bus = self.0.lock();
        let low = u64::from(bus.read(number, place, register, size.min(4)));
        match size {
            8 => low | u64::from(bus.read(number, place, register | 4, 4)) << 32,
            _ => low,
        }
    }
    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        let (number, place, register) = ecam_address(offset);
        let mut bus = self.0.lock();
        bus.write(number, place, register, size.min(4), value as u32);
        if size == 8 {
            bus.write(number, place, register | 4, 4, (value >> 32) as u32);
        }
    }
}

impl Saved for PciBus {
    type State = PciBusState;
    const VERSION: u16 = 1;

    fn save(&self) -> PciBusState {
        let bus = self.lock();
        let Bus { intx: _, functions, address, changed: _ } = &*bus;
        let spaces = functions.iter().map(|(&(slot, number), f)| (slot, number, f.config().bytes().to_vec()));
        PciBusState { address: *address, functions: spaces.collect() }
    }

    fn restore(&mut self, state: &PciBusState) -> Result<(), StateError> {
        let PciBusState { address, functions } = state;
        let mut bus = self.lock();
        StateError::check(address & !ADDRESS_BITS == 0, NAME, "address", *address, "defined bits")?;
        let same =
            functions.iter().map(|&(slot, number, _)| (slot, number)).eq(bus.functions.keys().copied());
        StateError::check(same, NAME, "functions", functions.len() as u64, "the functions of this machine")?;
        for (slot, number, bytes) in functions {
            bus.functions[&(*slot, *number)].config().check(bytes)?;
        }
        for (slot, number, bytes) in functions {
            if let Some(f) = bus.functions.get_mut(&(*slot, *number)) {
                f.config_mut().restore(bytes)?;
            }
        }
        bus.address = *address;
        bus.changed = true;
        Ok(())
    }
}

impl std::fmt::Debug for PciBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bus = self.lock();
        let places: Vec<_> = bus.functions.iter().map(|(place, function)| (place, function.name())).collect();
        f.debug_struct("PciBus").field("functions", &places).finish_non_exhaustive()
    }
}

/// Compile-time reminder that a function's space is what ECAM addresses.
const _: () = assert!(ConfigSpace::SIZE == 1 << 12);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Identity;

    struct Card {
        config: ConfigSpace,
        last: (u8, u64, u64),
    }
    impl Card {
        fn new() -> Self {
            let id =
                Identity { vendor: 0x1234, device: 0x5678, class: 0xff_0000, revision: 0, subsystem: (0, 0) };
            let config =
                ConfigSpace::new(id).with_bar(0, BarKind::Memory32, 0x1000).with_bar(1, BarKind::Io, 16);
            Card { config, last: (0, 0, 0) }
        }
    }
    impl PciFunction for Card {
        fn name(&self) -> &'static str {
            "card"
        }
        fn config(&self) -> &ConfigSpace {
            &self.config
        }
        fn config_mut(&mut self) -> &mut ConfigSpace {
            &mut self.config
        }
        fn bar_read(&mut self, bar: u8, offset: u64, _: u8) -> u64 {
            if self.last.0 == bar && self.last.1 == offset { self.last.2 } else { 0 }
        }
        fn bar_write(&mut self, bar: u8, offset: u64, _: u8, value: u64) {
            self.last = (bar, offset, value);
        }
        fn reset(&mut self) {
            self.config.reset();
        }
    }

    fn bus() -> PciBus {
        let bus = PciBus::new(PciBusConfig { interrupts: std::array::from_fn(|_| IrqLine::unconnected()) });
        assert!(bus.add(3, 0, Box::new(Card::new())));
        assert!(!bus.add(3, 0, Box::new(Card::new())));
        assert!(!bus.add(32, 0, Box::new(Card::new())));
        bus
    }

    #[test]
    fn both_mechanisms_see_the_same() {
        let mut bus = bus();
        let mut ecam = bus.ecam();
        for (slot, function, id) in
            [(0u32, 0u32, 0x0d57_8086), (3, 0, 0x5678_1234), (3, 1, u32::MAX), (4, 0, u32::MAX)]
        {
            bus.port_write(0, 4, 1 << 31 | slot << 11 | function << 8);
            assert_eq!(bus.port_read(4, 4), id, "{slot}.{function}");
            assert_eq!(bus.port_read(6, 2), id >> 16);
            assert_eq!(bus.port_read(5, 1), id >> 8 & 0xff);
            assert_eq!(ecam.mmio_read(u64::from(slot << 15 | function << 12), 4), id.into());
        }
        assert_eq!(ecam.mmio_read(1 << 20, 4), 0xffff_ffff, "bus 1");
        assert_eq!(ecam.mmio_read(3 << 15, 8), 0x5678_1234);
        bus.port_write(0, 4, 3 << 11);
        assert_eq!(bus.port_read(4, 4), u32::MAX, "not enabled");
        bus.port_write(0, 4, 0x8000_1803);
        assert_eq!(
            (bus.port_read(0, 4), bus.port_read(0, 1), bus.port_read(7, 2)),
            (0x8000_1800, u32::MAX, 0xffff)
        );
    }

    #[test]
    fn mappings_are_reported_once_for_each_change() {
        let bus = bus();
        let mut ecam = bus.ecam();
        let at = |register: u64| 3 << 15 | register;
        assert_eq!(bus.take_mappings(), Some(vec![]));
        assert_eq!(bus.take_mappings(), None);
        ecam.mmio_write(at(0x10), 4, 0xc000_0000);
        assert_eq!(bus.take_mappings(), None, "not enabled yet");
        ecam.mmio_write(at(4), 2, 2);
        let id = BarId { slot: 3, function: 0, bar: 0 };
        let mapping = Mapping { bar: id, kind: BarKind::Memory32, address: 0xc000_0000, size: 0x1000 };
        assert_eq!(bus.take_mappings(), Some(vec![mapping]));
        ecam.mmio_write(at(0x3c), 1, 11);
        assert_eq!(bus.take_mappings(), None);
        bus.bar_write(id, 8, 4, 77);
        assert_eq!((bus.bar_read(id, 8, 4), bus.bar_read(BarId { slot: 9, ..id }, 0, 4)), (77, u64::MAX));
        bus.clone().reset();
        assert_eq!(bus.take_mappings(), Some(vec![]));
    }

    #[test]
    fn what_is_taken_out_answers_no_more() {
        let bus = bus();
        let mut ecam = bus.ecam();
        ecam.mmio_write(3 << 15 | 0x10, 4, 0xc000_0000);
        ecam.mmio_write(3 << 15 | 4, 2, 2);
        assert_eq!(bus.take_mappings().map(|m| m.len()), Some(1));
        bus.remove(3);
        bus.remove(3);
        assert_eq!((ecam.mmio_read(3 << 15, 4), bus.take_mappings()), (0xffff_ffff, Some(vec![])));
        assert!(bus.add(3, 0, Box::new(Card::new())), "the slot is free");
        assert_eq!(ecam.mmio_read(3 << 15 | 0x10, 4), 0, "a new function, not yet placed");
    }

    #[test]
    fn bars_are_placed_apart_and_inside_the_window() {
        let bus = bus();
        assert!(bus.add(4, 0, Box::new(Card::new())));
        assert!(bus.add(5, 0, Box::new(Card::new())));
        bus.place_bars((0xc000_0800, 0xc000_2fff));
        let places: Vec<_> = bus.take_mappings().unwrap().iter().map(|m| (m.bar.slot, m.address)).collect();
        assert_eq!(places, [(3, 0xc000_1000), (4, 0xc000_2000)], "the third has no room");
    }

    #[test]
    fn state_goes_round_and_is_checked() {
        let bus = bus();
        let mut ecam = bus.ecam();
        ecam.mmio_write(3 << 15 | 0x10, 4, 0xc000_0000);
        ecam.mmio_write(3 << 15 | 4, 2, 2);
        let state = bus.save();
        let mut other = self::bus();
        other.take_mappings();
        other.restore(&state).unwrap();
        assert_eq!((other.save(), other.take_mappings().map(|m| m.len())), (state.clone(), Some(1)));
        let mut bad = state.clone();
        bad.functions[1].2[0] ^= 1;
        assert!(other.restore(&bad).is_err());
        let mut bad = state.clone();
        bad.functions.pop();
        assert!(other.restore(&bad).is_err());
        assert_eq!(other.save(), state);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_accesses(ops in proptest::collection::vec((0u8..6, any::<u16>(), any::<u64>()), 1..200)) {
            let mut bus = bus();
            let mut ecam = bus.ecam();
            for (what, at, value) in ops {
                let size = 1 << (value & 3);
                let register = u64::from(at & 0x3f) & !(u64::from(size) - 1);
                match what {
                    0 => bus.port_write(at % 9, size.min(4), value as u32),
                    1 => bus.port_write(0, 4, 0x8000_1800 | value as u32 & 0xfc),
                    2 => _ = bus.port_read(at % 9, size.min(4)),
                    3 => ecam.mmio_write(3 << 15 | register, size, value >> 2),
                    4 => ecam.mmio_write(u64::from(at) << 8 & !7, size, value),
                    _ => _ = ecam.mmio_read(u64::from(at) << 8 & !7, size),
                }
                bus.take_mappings();
            }
            let state = bus.save();
            prop_assert!(bus.restore(&state).is_ok());
        }
    }
}
