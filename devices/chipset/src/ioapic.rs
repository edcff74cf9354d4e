//! The I/O APIC: 24 pins, version 0x20 (82093AA registers with the EOI register of later parts).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::{Device, IrqSink, Mmio, MsiMessage, MsiSink};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

const NAME: &str = "ioapic";
const PINS: usize = 24;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
/// Delivery status and remote IRR.
const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;
/// All that a redirection entry holds: destination with its extension, mask and below.
const DEFINED: u64 = 0xfffe_0000_0001_ffff;

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_TABLE: u8 = 0x10;

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    id: u8,
    select: u8,
    lines: u32,
    edges: u32,
    table: [u64; PINS],
}

struct Chip {
    // Runtime glue.
    msi: Arc<dyn MsiSink>,
    // Volatile state.
    id: u8,
    /// IOREGSEL.
    select: u8,
    /// Pin levels.
    lines: u32,
    /// Edges not yet sent.
    edges: u32,
    table: [u64; PINS],
}

impl Chip {
    /// Send what a pin has to send.
    fn service(&mut self, pin: usize) {
        let (bit, entry) = (1 << pin, self.table[pin]);
        if entry & MASKED != 0 {
            return;
        }
        if entry & LEVEL != 0 {
            if self.lines & bit == 0 || entry & REMOTE_IRR != 0 {
                return;
            }
            self.table[pin] |= REMOTE_IRR;
        } else {
            if self.edges & bit == 0 {
                return;
            }
            self.edges &= !bit;
        }
        let destination = entry >> 56 << 12 | (entry >> 49 & 0x7f) << 5;
        let logical = if entry & LOGICAL != 0 { 1 << 2 } else { 0 };
        self.msi.send_msi(MsiMessage {
            address: 0xfee0_0000 | destination | logical,
            data: (entry & 0x7ff) as u32 | (entry & LEVEL) as u32 | 1 << 14,
        });
    }

    fn set_line(&mut self, pin: usize, asserted: bool) {
        let bit = 1 << pin;
        let before = self.lines & bit != 0;
        match asserted {
            true => self.lines |= bit,
            false => self.lines &= !bit,
        }
        // A masked pin ignores edges (82093AA, 3.2.4).
        if asserted && !before && self.table[pin] & (LEVEL | MASKED) == 0 {
            self.edges |= bit;
        }
        self.service(pin);
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = self.table[pin];
            if entry as u8 == vector && entry & LEVEL != 0 && entry & REMOTE_IRR != 0 {
                self.table[pin] &= !REMOTE_IRR;
                self.service(pin);
            }
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => 0x20 | (PINS as u32 - 1) << 16,
            select => match self.entry(select) {
                Some((pin, shift)) => (self.table[pin] >> shift) as u32,
                None => 0,
            },
        }
    }

    /// The pin of a table register, and how far its half is shifted.
    fn entry(&self, select: u8) -> Option<(usize, u32)> {
        let n = select.checked_sub(REG_TABLE)?;
        let pin = usize::from(n >> 1);
        (pin < PINS).then_some((pin, u32::from(n & 1) * 32))
    }

    fn write_register(&mut self, value: u32) {
        if self.select == REG_ID {
            self.id = (value >> 24) as u8 & 0xf;
        } else if let Some((pin, shift)) = self.entry(self.select) {
            let half = 0xffff_ffff << shift;
            let writable = DEFINED & !READ_ONLY & half;
            let mut entry = self.table[pin] & !writable | u64::from(value) << shift & writable;
            if entry & LEVEL == 0 {
                // Remote IRR means nothing for edges; software clears it this way.
                entry &= !REMOTE_IRR;
            }
            if entry & LEVEL != 0 {
                self.edges &= !(1 << pin);
            }
            self.table[pin] = entry;
            self.service(pin);
        }
    }
}

/// The I/O APIC. A handle: clones are the same chip.
#[derive(Clone)]
pub struct IoApic(Arc<Mutex<Chip>>);

impl IoApic {
    /// Where the first IOAPIC of a PC sits.
    pub const BASE: u64 = 0xfec0_0000;
    /// Bytes it decodes.
    pub const SIZE: u64 = 0x1000;
    /// Count of input pins.
    pub const PINS: u32 = PINS as u32;

    /// A chip after power-up: everything masked. `id` is 0-15.
    pub fn new(id: u8, msi: Arc<dyn MsiSink>) -> Self {
        let table = [MASKED; PINS];
        IoApic(Arc::new(Mutex::new(Chip { msi, id: id & 0xf, select: 0, lines: 0, edges: 0, table })))
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A local APIC has ended a level-triggered interrupt with this vector.
    pub fn end_of_interrupt(&self, vector: u8) {
        self.lock().end_of_interrupt(vector);
    }

    /// [`IoApic::end_of_interrupt`] for [`crate::ApicWiring`], without keeping the chip alive.
    pub fn end_of_interrupt_callback(&self) -> Box<dyn Fn(u8) + Send + Sync> {
        let weak = Arc::downgrade(&self.0);
        Box::new(move |vector| {
            if let Some(chip) = weak.upgrade() {
                IoApic(chip).end_of_interrupt(vector);
            }
        })
    }

    /// Vectors of level-triggered entries, whose EOIs an engine with its own
    /// local APICs must report.
    pub fn level_vectors(&self) -> Vec<u8> {
        self.lock().table.iter().filter(|&&e| e & LEVEL != 0 && e & MASKED == 0).map(|&e| e as u8).collect()
    }
}

impl IrqSink for IoApic {
    /// Pins 0-23; others are not connected.
    fn set_level(&self, pin: u32, asserted: bool) {
        if pin < Self::PINS {
            self.lock().set_line(pin as usize, asserted);
        }
    }
}

impl Device for IoApic {
    fn name(&self) -> &'static str {
        NAME
    }
    /// Pins keep their levels: whoever drives them is reset on its own.
    fn reset(&mut self) {
        let mut chip = self.lock();
        chip.select = 0;
        chip.edges = 0;
        chip.table = [MASKED; PINS];
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

impl Mmio for IoApic {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        let chip = self.lock();
        let value = match offset & !3 {
            0x00 => u32::from(chip.select),
            0x10 => chip.read_register(),
            _ => 0,
        };
        // A part of a register, or the register with zeroes above it.
        u64::from(value) >> (8 * (offset & 3))
            & if size >= 8 { u64::MAX } else { (1 << (8 * u32::from(size))) - 1 }
    }

    /// IOREGSEL takes bytes, the others whole registers.
    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        let mut chip = self.lock();
        match offset {
            0x00 => chip.select = value as u8,
            0x10 if size >= 4 => chip.write_register(value as u32),
            0x40 => chip.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

impl Saved for IoApic {
    type State = IoApicState;
    const VERSION: u16 = 1;

    fn save(&self) -> IoApicState {
        let chip = self.lock();
        let Chip { msi: _, id, select, lines, edges, table } = &*chip;
        IoApicState { id: *id, select: *select, lines: *lines, edges: *edges, table: *table }
    }

    fn restore(&mut self, state: &IoApicState) -> Result<(), StateError> {
        let IoApicState { id, select, lines, edges, table } = state;
        StateError::check(*id < 16, NAME, "id", *id, "0-15")?;
        StateError::check(lines >> PINS == 0, NAME, "lines", *lines, "24 bits")?;
        StateError::check(edges >> PINS == 0, NAME, "edges", *edges, "24 bits")?;
        for entry in table {
            StateError::check(entry & !DEFINED == 0, NAME, "table", *entry, "defined bits")?;
            let remote = entry & REMOTE_IRR == 0 || entry & LEVEL != 0;
            StateError::check(remote, NAME, "table", *entry, "remote IRR with level trigger only")?;
        }
        let mut chip = self.lock();
        chip.id = *id;
        chip.select = *select;
        chip.lines = *lines;
        chip.edges = *edges;
        chip.table = *table;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u64, u32)>>);
    impl MsiSink for Sent {
        fn send_msi(&self, m: MsiMessage) {
            self.0.lock().unwrap().push((m.address, m.data));
        }
    }

    struct Fixture(IoApic, Arc<Sent>);
    impl Fixture {
        fn new() -> Self {
            let sent = Arc::new(Sent::default());
            Fixture(IoApic::new(1, sent.clone()), sent)
        }
        fn write(&mut self, register: u64, value: u32) {
            self.0.mmio_write(0, 4, register);
            self.0.mmio_write(0x10, 4, value.into());
        }
        fn read(&mut self, register: u64) -> u64 {
            self.0.mmio_write(0, 1, register);
            self.0.mmio_read(0x10, 4)
        }
        fn entry(&mut self, pin: u64, entry: u64) {
            self.write(0x11 + 2 * pin, (entry >> 32) as u32);
            self.write(0x10 + 2 * pin, entry as u32);
        }
        fn sent(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut self.1.0.lock().unwrap())
        }
    }

    #[test]
    fn registers() {
        let mut f = Fixture::new();
        assert_eq!((f.read(0), f.read(1), f.read(2)), (1 << 24, 0x17_0020, 1 << 24));
        assert_eq!((f.read(0x10), f.read(0x3f), f.read(0x40), f.read(0xff)), (0x1_0000, 0, 0, 0));
        f.write(0, 0xff00_0000);
        assert_eq!(f.read(0), 0x0f00_0000);
        f.write(0x12, 0xffff_ffff);
        assert_eq!(f.read(0x12), 0x1_afff, "status and remote IRR are read-only");
    }

    #[test]
    fn messages() {
        // (entry, address, data)
        for (entry, address, data) in [
            (0x0200_0000_0000_0041u64, 0xfee0_2000, 0x4041),
            (0x0300_0000_0000_0941, 0xfee0_3004, 0x4141),
            (0x0100_0000_0000_8041, 0xfee0_1000, 0xc041),
            (0x0102_0000_0000_0441, 0xfee0_1020, 0x4441),
        ] {
            let mut f = Fixture::new();
            f.entry(5, entry);
            f.0.set_level(5, true);
            assert_eq!(f.sent(), [(address, data)], "entry {entry:#x}");
        }
    }

    #[test]
    fn level_waits_for_its_end() {
        let mut f = Fixture::new();
        f.entry(9, 0x8050);
        f.0.set_level(9, true);
        f.0.set_level(9, true);
        assert_eq!(f.sent().len(), 1);
        assert_eq!(f.read(0x22), 0xc050, "remote IRR");
        f.0.end_of_interrupt(0x51);
        assert_eq!(f.sent().len(), 0);
        f.0.end_of_interrupt(0x50);
        assert_eq!(f.sent().len(), 1, "still asserted");
        f.0.set_level(9, false);
        f.0.mmio_write(0x40, 4, 0x50);
        assert_eq!((f.sent().len(), f.read(0x22)), (0, 0x8050));
        f.entry(9, 0x1_8050);
        f.0.set_level(9, true);
        assert_eq!(f.sent().len(), 0);
        f.entry(9, 0x8050);
        assert_eq!(f.sent().len(), 1, "unmasking serves a level");
        f.write(0x22, 0x1_0050);
        f.write(0x22, 0x1_8050);
        assert_eq!(f.read(0x22), 0x1_8050, "a turn to edge clears remote IRR");
        assert_eq!(f.0.level_vectors(), []);
    }

    #[test]
    fn edges() {
        let mut f = Fixture::new();
        f.entry(4, 0x1_0030);
        f.0.set_level(4, true);
        f.entry(4, 0x30);
        assert_eq!(f.sent().len(), 0, "an edge at a masked pin is lost");
        f.0.set_level(4, false);
        f.0.set_level(4, true);
        f.0.set_level(4, true);
        assert_eq!(f.sent().len(), 1);
        f.0.set_level(24, true);
    }

    #[test]
    fn state_goes_round_and_is_checked() {
        let mut f = Fixture::new();
        f.entry(9, 0x8050);
        f.0.set_level(9, true);
        let state = f.0.save();
        let mut other = Fixture::new();
        other.0.restore(&state).unwrap();
        assert_eq!(other.0.save(), state);
        for damage in [
            (|s: &mut IoApicState| s.id = 16) as fn(&mut IoApicState),
            |s| s.lines = 1 << 24,
            |s| s.edges = 1 << 31,
            |s| s.table[3] = 1 << 17,
            |s| s.table[3] = REMOTE_IRR,
        ] {
            let mut bad = state.clone();
            damage(&mut bad);
            assert!(other.0.restore(&bad).is_err());
            assert_eq!(other.0.save(), state);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_accesses(ops in proptest::collection::vec((0u8..4, any::<u8>(), any::<u64>()), 1..300)) {
            let mut f = Fixture::new();
            for (what, n, value) in ops {
                match what {
                    0 => f.0.mmio_write(u64::from(n % 20) * 4, 1 << (value >> 62), value),
                    1 => f.write(u64::from(n), value as u32),
                    2 => f.0.set_level(u32::from(n), value & 1 != 0),
                    _ => _ = f.0.mmio_read(u64::from(n), 1 << (value >> 62)),
                }
            }
            let state = f.0.save();
            prop_assert!(f.0.restore(&state).is_ok());
        }
    }
}
