//! The two cascaded 8259A interrupt controllers, with the ELCR of the PIIX/ICH.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use device_model::{Device, IrqSink, PortIo, PortRange};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::byte_ports;

/// The INTR output: called with the PIC locked whenever its level changes.
pub type IntrOutput = Box<dyn Fn(bool) + Send + Sync>;

/// Master input that the slave's output is wired to.
const CASCADE: u8 = 2;
/// Lines that cannot be level-triggered: timer, keyboard, cascade; RTC and coprocessor.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// What an initialization sequence expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    Operation,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChipState {
    irr: u8,
    imr: u8,
    isr: u8,
    elcr: u8,
    /// Input levels.
    lines: u8,
    /// Input with the highest priority.
    first: u8,
    vector_base: u8,
    expects: Expects,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl ChipState {
    fn new() -> Self {
        ChipState {
            irr: 0,
            imr: 0,
            isr: 0,
            elcr: 0,
            lines: 0,
            first: 0,
            vector_base: 0,
            expects: Expects::Operation,
            needs_icw4: false,
            single: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    /// Distance of the highest-priority bit from `first`, 8 when there is none.
    fn rank(&self, bits: u8) -> u8 {
        bits.rotate_right(u32::from(self.first)).trailing_zeros() as u8
    }

    fn input(&self, rank: u8) -> u8 {
        (self.first + rank) & 7
    }

    /// The input to serve next. `cascade`: requests that come from the slave, and
    /// in-service bits that do not hold it back in special fully nested mode.
    fn request(&self, cascade: u8) -> Option<u8> {
        let wanted = self.rank((self.irr | cascade) & !self.imr);
        let mut busy = self.isr;
        if self.special_mask {
            busy &= !self.imr;
        }
        if self.special_fully_nested {
            busy &= !cascade;
        }
        (wanted < self.rank(busy)).then(|| self.input(wanted))
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.first = (input + 1) & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn set_line(&mut self, input: u8, asserted: bool) {
        let bit = 1 << input;
        let before = self.lines & bit != 0;
        match asserted {
            true => self.lines |= bit,
            false => self.lines &= !bit,
        }
        if self.elcr & bit != 0 {
            self.irr = self.irr & !bit | self.lines & bit;
        } else if asserted && !before {
            self.irr |= bit;
        }
    }

    fn set_elcr(&mut self, value: u8) {
        let changed = self.elcr ^ value;
        self.elcr = value;
        // A line that becomes level-triggered requests while it is high, and only then.
        self.irr = self.irr & !changed | self.lines & changed & self.elcr;
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1: edges must come anew; a level still counts.
            *self = ChipState {
                irr: self.lines & self.elcr,
                elcr: self.elcr,
                lines: self.lines,
                expects: Expects::Icw2,
                needs_icw4: value & 1 != 0,
                single: value & 2 != 0,
                ..ChipState::new()
            };
        } else if value & 8 != 0 {
            // OCW3.
            self.poll = value & 4 != 0;
            if value & 2 != 0 {
                self.read_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end_of_interrupt(value >> 5, value & 7);
        }
    }

    /// OCW2.
    fn end_of_interrupt(&mut self, command: u8, level: u8) {
        match command {
            0 | 4 => self.rotate_on_auto_eoi = command == 4,
            1 | 5 => {
                // In special mask mode a masked input's bit is left alone.
                let ends = if self.special_mask { self.isr & !self.imr } else { self.isr };
                let rank = self.rank(ends);
                if rank < 8 {
                    let input = self.input(rank);
                    self.isr &= !(1 << input);
                    if command == 5 {
                        self.first = (input + 1) & 7;
                    }
                }
            }
            3 | 7 => {
                self.isr &= !(1 << level);
                if command == 7 {
                    self.first = (level + 1) & 7;
                }
            }
            6 => self.first = (level + 1) & 7,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.expects {
            Expects::Operation => self.imr = value,
            Expects::Icw2 => {
                self.vector_base = value & 0xf8;
                self.expects = match (self.single, self.needs_icw4) {
                    (false, _) => Expects::Icw3,
                    (true, true) => Expects::Icw4,
                    (true, false) => Expects::Operation,
                };
            }
            Expects::Icw3 => {
                self.expects = if self.needs_icw4 { Expects::Icw4 } else { Expects::Operation };
            }
            Expects::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 2 != 0;
                self.expects = Expects::Operation;
            }
        }
    }

    fn check(&self, elcr_mask: u8) -> Result<(), StateError> {
        let ChipState {
            irr: _,
            imr: _,
            isr: _,
            elcr,
            lines: _,
            first,
            vector_base,
            expects: _,
            needs_icw4: _,
            single: _,
            auto_eoi: _,
            rotate_on_auto_eoi: _,
            special_fully_nested: _,
            special_mask: _,
            read_isr: _,
            poll: _,
        } = self;
        StateError::check(elcr & !elcr_mask == 0, NAME, "elcr", *elcr, "inputs that can be level-triggered")?;
        StateError::check(*first < 8, NAME, "first", *first, "0-7")?;
        StateError::check(vector_base & 7 == 0, NAME, "vector_base", *vector_base, "multiples of 8")
    }
}

const NAME: &str = "pic";

/// The saved state of both chips, master first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    chips: [ChipState; 2],
}

struct Pair {
    // Runtime glue.
    output: IntrOutput,
    // Volatile state.
    chips: [ChipState; 2],
    /// Level of INTR as last told; follows from the chips.
    intr: bool,
}

impl Pair {
    fn cascade(&self) -> u8 {
        u8::from(self.chips[1].request(0).is_some()) << CASCADE
    }

    fn master_request(&self) -> Option<u8> {
        // The slave's output is a level: it falls with the last request.
        self.chips[0].request(self.cascade())
    }

    fn update(&mut self) {
        let intr = self.master_request().is_some();
        if intr != self.intr {
            self.intr = intr;
            (self.output)(intr);
        }
    }

    /// Interrupt acknowledge sequence. A request that has gone away yields the
    /// spurious vector of the chip's input 7, with no in-service bit.
    fn acknowledge(&mut self) -> u8 {
        let vector = match self.master_request() {
            None => self.chips[0].vector_base | 7,
            Some(CASCADE) => {
                let slave = &mut self.chips[1];
                let input = slave.request(0);
                if let Some(input) = input {
                    slave.acknowledge(input);
                }
                let vector = slave.vector_base | input.unwrap_or(7);
                self.chips[0].acknowledge(CASCADE);
                vector
            }
            Some(input) => {
                self.chips[0].acknowledge(input);
                self.chips[0].vector_base | input
            }
        };
        self.update();
        vector
    }

    /// A read in poll mode is an acknowledge.
    fn poll(&mut self, chip: usize) -> u8 {
        let cascade = if chip == 0 { self.cascade() } else { 0 };
        self.chips[chip].poll = false;
        let Some(input) = self.chips[chip].request(cascade) else { return 0 };
        self.chips[chip].acknowledge(input);
        self.update();
        0x80 | input
    }

    fn read(&mut self, offset: u16) -> u8 {
        let chip = usize::from(offset >> 4 & 1);
        match offset {
            0x00 | 0x01 | 0x10 | 0x11 if self.chips[chip].poll => self.poll(chip),
            0x00 | 0x10 if self.chips[chip].read_isr => self.chips[chip].isr,
            0x00 => self.chips[0].irr | self.cascade(),
            0x10 => self.chips[1].irr,
            0x01 | 0x11 => self.chips[chip].imr,
            0x20 => self.chips[0].elcr,
            0x21 => self.chips[1].elcr,
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u16, value: u8) {
        let chip = usize::from(offset >> 4 & 1);
        match offset {
            0x00 | 0x10 => self.chips[chip].write_command(value),
            0x01 | 0x11 => self.chips[chip].write_data(value),
            0x20 => self.chips[0].set_elcr(value & ELCR_MASK[0]),
            0x21 => self.chips[1].set_elcr(value & ELCR_MASK[1]),
            _ => return,
        }
        self.update();
    }
}

/// The PIC pair. A handle: clones are the same chips, so that one can sit on the
/// bus, one behind interrupt lines and one at the processor's acknowledge.
#[derive(Clone)]
pub struct Pic(Arc<Mutex<Pair>>);

impl Pic {
    /// Master, slave, ELCR.
    pub const PORTS: &'static [PortRange] =
        &[PortRange::new(0x20, 2, 0), PortRange::new(0xa0, 2, 0x10), PortRange::new(0x4d0, 2, 0x20)];

    /// Chips after power-up, with INTR wired to `output`.
    pub fn new(output: IntrOutput) -> Self {
        Pic(Arc::new(Mutex::new(Pair { output, chips: [ChipState::new(), ChipState::new()], intr: false })))
    }

    fn lock(&self) -> MutexGuard<'_, Pair> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupt acknowledge: the vector, which becomes in service.
    pub fn acknowledge(&self) -> u8 {
        self.lock().acknowledge()
    }

    /// [`Pic::acknowledge`] for [`crate::ApicWiring`], without keeping the PIC alive.
    pub fn acknowledge_callback(&self) -> Box<dyn Fn() -> Option<u8> + Send + Sync> {
        let weak: Weak<Mutex<Pair>> = Arc::downgrade(&self.0);
        Box::new(move || weak.upgrade().map(|pair| Pic(pair).acknowledge()))
    }
}

impl IrqSink for Pic {
    /// Lines 0-7 are the master's inputs, 8-15 the slave's; others are not connected.
    fn set_level(&self, line: u32, asserted: bool) {
        if line < 16 {
            let mut pair = self.lock();
            pair.chips[(line >> 3) as usize].set_line((line & 7) as u8, asserted);
            pair.update();
        }
    }
}

impl Device for Pic {
    fn name(&self) -> &'static str {
        NAME
    }
    /// Lines keep their levels: whoever drives them is reset on its own.
    fn reset(&mut self) {
        let mut pair = self.lock();
        for chip in &mut pair.chips {
            *chip = ChipState { lines: chip.lines, ..ChipState::new() };
        }
        pair.update();
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for Pic {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let mut pair = self.lock();
        byte_ports::read(offset, size, |o| pair.read(o))
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let mut pair = self.lock();
        byte_ports::write(offset, size, value, |o, v| pair.write(o, v));
    }
}

impl Saved for Pic {
    type State = PicState;
    const VERSION: u16 = 1;

    fn save(&self) -> PicState {
        PicState { chips: self.lock().chips.clone() }
    }

    fn restore(&mut self, state: &PicState) -> Result<(), StateError> {
        let PicState { chips } = state;
        for (chip, mask) in chips.iter().zip(ELCR_MASK) {
            chip.check(mask)?;
        }
        let mut pair = self.lock();
        pair.chips = chips.clone();
        pair.update();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;

    use super::*;

    fn pic() -> (Pic, Arc<AtomicBool>) {
        let intr = Arc::new(AtomicBool::new(false));
        let to = intr.clone();
        let mut pic = Pic::new(Box::new(move |level| to.store(level, Ordering::SeqCst)));
        for (offset, value) in
            [(0, 0x11), (1, 0x20), (1, 4), (1, 1), (0x10, 0x11), (0x11, 0x28), (0x11, 2), (0x11, 1)]
        {
            pic.port_write(offset, 1, value);
        }
        (pic, intr)
    }

    /// Steps of a scenario.
    enum Step {
        Pulse(u32),
        Level(u32, bool),
        Write(u16, u32),
        Read(u16, u32),
        Intr(bool),
        Ack(u8),
    }
    use Step::*;

    fn check(name: &str, steps: &[Step]) {
        let (mut pic, intr) = pic();
        for (i, step) in steps.iter().enumerate() {
            match *step {
                Pulse(line) => {
                    pic.set_level(line, true);
                    pic.set_level(line, false);
                }
                Level(line, on) => pic.set_level(line, on),
                Write(port, value) => pic.port_write(port, 1, value),
                Read(port, value) => assert_eq!(pic.port_read(port, 1), value, "{name}, step {i}"),
                Intr(level) => assert_eq!(intr.load(Ordering::SeqCst), level, "{name}, step {i}"),
                Ack(vector) => {
                    let seen = pic.acknowledge();
                    assert_eq!(seen, vector, "{name}, step {i}: {seen:#x}");
                }
            }
        }
    }

    #[test]
    fn scenarios() {
        check(
            "priority and nesting",
            &[
                Pulse(4),
                Pulse(1),
                Intr(true),
                Ack(0x21),
                Intr(false),
                Read(0, 0x10),
                Write(0, 0x0b),
                Read(0, 2),
                Write(0, 0x20),
                Read(0, 0),
                Intr(true),
                Ack(0x24),
                Pulse(0),
                Intr(true),
                Ack(0x20),
            ],
        );
        check("mask", &[Write(1, 2), Pulse(1), Intr(false), Read(1, 2), Write(1, 0), Intr(true), Ack(0x21)]);
        check(
            "cascade",
            &[
                Pulse(12),
                Intr(true),
                Ack(0x2c),
                Pulse(14),
                Intr(false),
                Write(0x10, 0x20),
                Write(0, 0x20),
                Ack(0x2e),
            ],
        );
        check(
            "a higher slave request waits in fully nested mode",
            &[Pulse(12), Ack(0x2c), Pulse(8), Intr(false), Write(0, 0x20), Intr(true), Ack(0x28)],
        );
        check(
            "and passes in special fully nested mode",
            &[
                Write(0, 0x11),
                Write(1, 0x20),
                Write(1, 4),
                Write(1, 0x11),
                Pulse(12),
                Ack(0x2c),
                Pulse(8),
                Intr(true),
                Ack(0x28),
                Pulse(9),
                Intr(false),
            ],
        );
        check(
            "level-triggered",
            &[
                Write(0x21, 0x0c),
                Level(10, true),
                Ack(0x2a),
                Intr(false),
                Write(0x10, 0x20),
                Write(0, 0x20),
                Intr(true),
                Level(10, false),
                Intr(false),
            ],
        );
        check(
            "spurious 7",
            &[Write(0x21, 2), Level(9, true), Level(9, false), Ack(0x27), Write(0, 0x0b), Read(0, 0)],
        );
        check(
            "spurious 15",
            &[Pulse(2), Ack(0x2f), Write(0, 0x0b), Read(0, 4), Write(0x10, 0x0b), Read(0x10, 0)],
        );
        check(
            "automatic EOI with rotation",
            &[
                Write(0, 0x13),
                Write(1, 0x20),
                Write(1, 3),
                Write(0, 0x80),
                Pulse(3),
                Pulse(1),
                Ack(0x21),
                Pulse(1),
                Ack(0x23),
                Ack(0x21),
                Intr(false),
                Write(0, 0x0b),
                Read(0, 0),
            ],
        );
        check(
            "rotation on EOI",
            &[Pulse(0), Ack(0x20), Write(0, 0xa0), Pulse(0), Pulse(7), Ack(0x27), Write(0, 0x67), Ack(0x20)],
        );
        check("set priority", &[Write(0, 0xc4), Pulse(0), Pulse(5), Ack(0x25)]);
        check(
            "special mask",
            &[
                Pulse(1),
                Ack(0x21),
                Pulse(4),
                Intr(false),
                Write(1, 2),
                Write(0, 0x68),
                Intr(true),
                Ack(0x24),
                Write(0, 0x20),
                Write(0, 0x0b),
                Read(0, 2),
                Write(0, 0x61),
                Read(0, 0),
            ],
        );
        check(
            "poll",
            &[Pulse(6), Write(0, 0x0c), Read(0, 0x86), Read(0, 0), Intr(false), Write(0, 0x0c), Read(0, 0)],
        );
        check(
            "ICW1 forgets edges, keeps levels",
            &[
                Write(0x20, 0x20),
                Level(5, true),
                Pulse(3),
                Write(0, 0x11),
                Read(0, 0x20),
                Write(1, 0x40),
                Write(1, 4),
                Write(1, 1),
                Ack(0x45),
            ],
        );
        check(
            "ELCR has fixed edges",
            &[Write(0x20, 0xff), Write(0x21, 0xff), Read(0x20, 0xf8), Read(0x21, 0xde)],
        );
    }

    #[test]
    fn state_goes_round_and_is_checked() {
        let (pic, _) = pic();
        pic.set_level(6, true);
        let state = pic.save();
        let (mut other, intr) = self::pic();
        other.restore(&state).unwrap();
        assert!(intr.load(Ordering::SeqCst));
        assert_eq!(other.save(), state);
        for damage in [
            (|s: &mut PicState| s.chips[0].first = 8) as fn(&mut PicState),
            |s| s.chips[1].vector_base = 0x2c,
            |s| s.chips[0].elcr = 1,
        ] {
            let mut bad = state.clone();
            damage(&mut bad);
            assert!(other.restore(&bad).is_err());
            assert_eq!(other.save(), state, "nothing changed");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_accesses(ops in proptest::collection::vec((0u8..4, any::<u16>(), any::<u32>()), 1..300)) {
            let (mut pic, intr) = pic();
            for (what, offset, value) in ops {
                match what {
                    0 => pic.port_write(offset % 0x24, 1 << (value >> 30), value),
                    1 => _ = pic.port_read(offset % 0x24, 1 << (value & 1)),
                    2 => pic.set_level(u32::from(offset % 17), value & 1 != 0),
                    _ => _ = pic.acknowledge(),
                }
                let pair = pic.lock();
                prop_assert_eq!(pair.master_request().is_some(), intr.load(Ordering::SeqCst));
            }
            let state = pic.save();
            prop_assert!(pic.restore(&state).is_ok());
        }
    }
}
