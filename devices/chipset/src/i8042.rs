//! The 8042 keyboard controller with a keyboard and a mouse that identify
//! themselves, and the fast reset and A20 port 0x92.
//!
//! The A20 bit is kept and read back; memory is never wrapped at 1 MiB.

use std::collections::VecDeque;
use std::sync::Arc;

use device_model::{Device, IrqLine, PortIo, PortRange};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::{PowerEvents, byte_ports};

const NAME: &str = "i8042";
/// Most bytes that wait to be read; more are lost, as a full device buffer loses them.
const CAPACITY: usize = 64;

const STATUS_OUTPUT: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_COMMAND: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_MOUSE: u8 = 1 << 5;

/// Bits of the command byte, RAM address 0.
const KEYBOARD_INTERRUPT: u8 = 1 << 0;
const MOUSE_INTERRUPT: u8 = 1 << 1;
const SYSTEM: u8 = 1 << 2;
const KEYBOARD_OFF: u8 = 1 << 4;
const MOUSE_OFF: u8 = 1 << 5;
const TRANSLATE: u8 = 1 << 6;

const OUT_RUNNING: u8 = 1 << 0;
const OUT_A20: u8 = 1 << 1;

const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const PASSED: u8 = 0xaa;

/// Where a byte in the output buffer comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Mouse,
}

/// What the next byte written to the data port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Expects {
    /// A keyboard command.
    Keyboard,
    /// The argument of a keyboard command.
    KeyboardArgument(u8),
    /// A controller RAM byte.
    Ram(u8),
    /// The output port.
    OutputPort,
    /// A byte that comes back as if from the keyboard or mouse.
    Echo(Source),
    /// A mouse command.
    Mouse,
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    ram: [u8; 32],
    output_port: u8,
    last_was_command: bool,
    expects: Expects,
    mouse_argument: bool,
    scan_set: u8,
    output: Vec<(u8, Source)>,
}

/// The controller.
pub struct I8042 {
    // Runtime glue.
    irq1: IrqLine,
    irq12: IrqLine,
    power: Arc<dyn PowerEvents>,
    // Volatile state.
    /// Controller RAM; byte 0 is the command byte.
    ram: [u8; 32],
    output_port: u8,
    last_was_command: bool,
    expects: Expects,
    /// The mouse's next byte is an argument.
    mouse_argument: bool,
    scan_set: u8,
    output: VecDeque<(u8, Source)>,
}

impl I8042 {
    /// Data, status and command, port 0x92.
    pub const PORTS: &'static [PortRange] =
        &[PortRange::new(0x60, 1, 0), PortRange::new(0x64, 1, 0x10), PortRange::new(0x92, 1, 0x20)];

    /// A controller after power-up.
    pub fn new(irq1: IrqLine, irq12: IrqLine, power: Arc<dyn PowerEvents>) -> Self {
        let mut this = I8042 {
            irq1,
            irq12,
            power,
            ram: [0; 32],
            output_port: 0,
            last_was_command: false,
            expects: Expects::Keyboard,
            mouse_argument: false,
            scan_set: 2,
            output: VecDeque::new(),
        };
        this.power_up();
        this
    }

    fn power_up(&mut self) {
        self.ram = [0; 32];
        self.ram[0] = TRANSLATE | KEYBOARD_INTERRUPT | MOUSE_INTERRUPT;
        self.output_port = OUT_RUNNING | OUT_A20;
        self.last_was_command = false;
        self.expects = Expects::Keyboard;
        self.mouse_argument = false;
        self.scan_set = 2;
        self.output.clear();
    }

    fn push(&mut self, source: Source, bytes: &[u8]) {
        for &byte in bytes {
            if self.output.len() < CAPACITY {
                self.output.push_back((byte, source));
            }
        }
    }

    fn drive(&mut self) {
        let first = self.output.front().map(|&(_, source)| source);
        let enabled = |bit| self.ram[0] & bit != 0;
        self.irq1.set(first == Some(Source::Keyboard) && enabled(KEYBOARD_INTERRUPT));
        self.irq12.set(first == Some(Source::Mouse) && enabled(MOUSE_INTERRUPT));
    }

    fn status(&self) -> u8 {
        let output = match self.output.front() {
            None => 0,
            Some((_, Source::Keyboard)) => STATUS_OUTPUT,
            Some((_, Source::Mouse)) => STATUS_OUTPUT | STATUS_MOUSE,
        };
        let system = if self.ram[0] & SYSTEM != 0 { STATUS_SYSTEM } else { 0 };
        let command = if self.last_was_command { STATUS_COMMAND } else { 0 };
        STATUS_UNLOCKED | output | system | command
    }

    fn read_data(&mut self) -> u8 {
        let byte = self.output.pop_front().map_or(0, |(byte, _)| byte);
        // The line falls with the read, so that the next byte is an edge of its own.
        self.irq1.set(false);
        self.irq12.set(false);
        byte
    }

    fn command(&mut self, command: u8) {
        self.expects = Expects::Keyboard;
        let answer = match command {
            0x20..=0x3f => self.ram[usize::from(command & 0x1f)],
            0x60..=0x7f => return self.expects = Expects::Ram(command & 0x1f),
            0xa7 => return self.ram[0] |= MOUSE_OFF,
            0xa8 => return self.ram[0] &= !MOUSE_OFF,
            // Interface tests: no error.
            0xa9 | 0xab => 0,
            0xaa => {
                self.ram[0] |= SYSTEM;
                0x55
            }
            0xad => return self.ram[0] |= KEYBOARD_OFF,
            0xae => return self.ram[0] &= !KEYBOARD_OFF,
            // Input port: keyboard not locked.
            0xc0 => 0x80,
            0xd0 => self.output_port,
            0xd1 => return self.expects = Expects::OutputPort,
            0xd2 => return self.expects = Expects::Echo(Source::Keyboard),
            0xd3 => return self.expects = Expects::Echo(Source::Mouse),
            0xd4 => return self.expects = Expects::Mouse,
            0xdd => return self.output_port &= !OUT_A20,
            0xdf => return self.output_port |= OUT_A20,
            0xf0..=0xff => {
                // Pulses the output lines whose bits are 0; line 0 is reset.
                if command & 1 == 0 {
                    self.power.reset();
                }
                return;
            }
            _ => return,
        };
        self.push(Source::Keyboard, &[answer]);
    }

    fn data(&mut self, value: u8) {
        match std::mem::replace(&mut self.expects, Expects::Keyboard) {
            Expects::Ram(address) => self.ram[usize::from(address & 0x1f)] = value,
            Expects::OutputPort => self.set_output_port(value),
            Expects::Echo(source) => self.push(source, &[value]),
            Expects::Mouse => self.mouse(value),
            Expects::KeyboardArgument(command) => self.keyboard_argument(command, value),
            Expects::Keyboard => {
                // Writing to the keyboard enables it.
                self.ram[0] &= !KEYBOARD_OFF;
                self.keyboard(value);
            }
        }
    }

    fn set_output_port(&mut self, value: u8) {
        self.output_port = value | OUT_RUNNING;
        if value & OUT_RUNNING == 0 {
            self.power.reset();
        }
    }

    fn keyboard(&mut self, command: u8) {
        let answer: &[u8] = match command {
            0xed | 0xf0 | 0xf3 | 0xfb..=0xfd => {
                self.expects = Expects::KeyboardArgument(command);
                &[ACK]
            }
            0xee => &[0xee],
            // Identity of an MF2 keyboard, whose second byte is translated as a scan code is.
            0xf2 if self.ram[0] & TRANSLATE != 0 => &[ACK, 0xab, 0x41],
            0xf2 => &[ACK, 0xab, 0x83],
            0xf4..=0xfa => {
                if matches!(command, 0xf5 | 0xf6) {
                    self.scan_set = 2;
                }
                &[ACK]
            }
            0xff => {
                self.scan_set = 2;
                &[ACK, PASSED]
            }
            _ => &[RESEND],
        };
        self.push(Source::Keyboard, answer);
    }

    fn keyboard_argument(&mut self, command: u8, value: u8) {
        match (command, value) {
            (0xf0, 0) => {
                let set = self.scan_set;
                self.push(Source::Keyboard, &[ACK, set]);
            }
            (0xf0, 1..=3) => {
                self.scan_set = value;
                self.push(Source::Keyboard, &[ACK]);
            }
            (0xf0, _) => self.push(Source::Keyboard, &[RESEND]),
            _ => self.push(Source::Keyboard, &[ACK]),
        }
    }

    fn mouse(&mut self, command: u8) {
        let argument = std::mem::replace(&mut self.mouse_argument, matches!(command, 0xe8 | 0xf3));
        let answer: &[u8] = match command {
            _ if argument => {
                self.mouse_argument = false;
                &[ACK]
            }
            0xff => &[ACK, PASSED, 0],
            0xf2 => &[ACK, 0],
            // Status: disabled, 4 counts per millimetre, 100 samples a second.
            0xe9 => &[ACK, 0, 2, 100],
            // A packet: nothing has moved.
            0xeb => &[ACK, 8, 0, 0],
            0xe6 | 0xe7 | 0xe8 | 0xea | 0xf0 | 0xf3..=0xf6 => &[ACK],
            _ => &[RESEND],
        };
        self.push(Source::Mouse, answer);
    }

    fn write_port_92(&mut self, value: u8) {
        if value & OUT_A20 != 0 {
            self.output_port |= OUT_A20;
        } else {
            self.output_port &= !OUT_A20;
        }
        if value & 1 != 0 {
            self.power.reset();
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        self.power_up();
        self.drive();
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for I8042 {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let value = byte_ports::read(offset, size, |o| match o {
            0 => self.read_data(),
            0x10 => self.status(),
            0x20 => self.output_port & OUT_A20,
            _ => 0xff,
        });
        self.drive();
        value
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        byte_ports::write(offset, size, value, |o, v| match o {
            0 => {
                self.last_was_command = false;
                self.data(v);
            }
            0x10 => {
                self.last_was_command = true;
                self.command(v);
            }
            0x20 => self.write_port_92(v),
            _ => {}
        });
        self.drive();
    }
}

impl Saved for I8042 {
    type State = I8042State;
    const VERSION: u16 = 1;

    fn save(&self) -> I8042State {
        let I8042 {
            irq1: _,
            irq12: _,
            power: _,
            ram,
            output_port,
            last_was_command,
            expects,
            mouse_argument,
            scan_set,
            output,
        } = self;
        I8042State {
            ram: *ram,
            output_port: *output_port,
            last_was_command: *last_was_command,
            expects: *expects,
            mouse_argument: *mouse_argument,
            scan_set: *scan_set,
            output: output.iter().copied().collect(),
        }
    }

    fn restore(&mut self, state: &I8042State) -> Result<(), StateError> {
        let I8042State { ram, output_port, last_was_command, expects, mouse_argument, scan_set, output } =
            state;
        StateError::check(output_port & OUT_RUNNING != 0, NAME, "output_port", *output_port, "bit 0 set")?;
        StateError::check((1..=3).contains(scan_set), NAME, "scan_set", *scan_set, "1-3")?;
        StateError::check(output.len() <= CAPACITY, NAME, "output", output.len() as u64, "64 bytes")?;
        if let Expects::Ram(address) = expects {
            StateError::check(*address < 32, NAME, "RAM address", *address, "0-31")?;
        }
        self.ram = *ram;
        self.output_port = *output_port;
        self.last_was_command = *last_was_command;
        self.expects = *expects;
        self.mouse_argument = *mouse_argument;
        self.scan_set = *scan_set;
        self.output = output.iter().copied().collect();
        self.drive();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use device_model::IrqSink;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct World {
        lines: AtomicU32,
        resets: AtomicU32,
    }
    impl IrqSink for World {
        fn set_level(&self, line: u32, asserted: bool) {
            match asserted {
                true => self.lines.fetch_or(1 << line, Ordering::Relaxed),
                false => self.lines.fetch_and(!(1 << line), Ordering::Relaxed),
            };
        }
    }
    impl PowerEvents for World {
        fn power_off(&self) {}
        fn reset(&self) {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn i8042() -> (I8042, Arc<World>) {
        let w = Arc::new(World::default());
        (I8042::new(IrqLine::new(w.clone(), 1), IrqLine::new(w.clone(), 12), w.clone()), w)
    }

    const C: u16 = 0x10;

    #[test]
    fn conversations() {
        // (bytes written to command (C) or data (0) port, bytes read, from the mouse)
        for (writes, reads, mouse) in [
            (&[(C, 0xaau32)][..], &[0x55u32][..], false),
            (&[(C, 0x20)], &[0x43], false),
            (&[(C, 0x60), (0, 0x74), (C, 0x20)], &[0x74], false),
            (&[(C, 0x7f), (0, 0x12), (C, 0x3f)], &[0x12], false),
            (&[(C, 0xa7), (C, 0xad), (C, 0x20)], &[0x73], false),
            (&[(C, 0xa9)], &[0], false),
            (&[(C, 0xab)], &[0], false),
            (&[(C, 0xd0)], &[3], false),
            (&[(C, 0xd1), (0, 0x01), (C, 0xd0)], &[1], false),
            (&[(C, 0xd2), (0, 0x77)], &[0x77], false),
            (&[(C, 0xd3), (0, 0x5a)], &[0x5a], true),
            (&[(0, 0xff)], &[0xfa, 0xaa], false),
            (&[(0, 0xf2)], &[0xfa, 0xab, 0x41], false),
            (&[(C, 0x60), (0, 0), (0, 0xf2)], &[0xfa, 0xab, 0x83], false),
            (&[(0, 0xed), (0, 7)], &[0xfa, 0xfa], false),
            (&[(0, 0xf0), (0, 0)], &[0xfa, 0xfa, 2], false),
            (&[(0, 0xee)], &[0xee], false),
            (&[(0, 0x05)], &[0xfe], false),
            (&[(C, 0xd4), (0, 0xff)], &[0xfa, 0xaa, 0], true),
            (&[(C, 0xd4), (0, 0xf2)], &[0xfa, 0], true),
            (&[(C, 0xd4), (0, 0xf3), (C, 0xd4), (0, 0xff)], &[0xfa, 0xfa], true),
        ] {
            let (mut c, w) = i8042();
            writes.iter().for_each(|&(port, value)| c.port_write(port, 1, value));
            for &expected in reads {
                let lines = if c.ram[0] & 3 == 0 {
                    0
                } else if mouse {
                    1 << 12
                } else {
                    1 << 1
                };
                if c.ram[0] & 3 == 3 || c.ram[0] & 3 == 0 {
                    assert_eq!(w.lines.load(Ordering::Relaxed), lines, "{writes:x?}");
                }
                assert_eq!(c.port_read(C, 1) & 0x21, if mouse { 0x21 } else { 1 }, "{writes:x?}");
                assert_eq!(c.port_read(0, 1), expected, "{writes:x?}");
            }
            assert_eq!((c.port_read(C, 1) & 1, w.lines.load(Ordering::Relaxed)), (0, 0), "{writes:x?}");
        }
    }

    #[test]
    fn resets() {
        for (writes, resets) in [
            (&[(C, 0xfeu32)][..], 1),
            (&[(C, 0xff)], 0),
            (&[(C, 0xd1), (0, 0xfe)], 1),
            (&[(C, 0xd1), (0, 0xff)], 0),
            (&[(0x20, 1)], 1),
            (&[(0x20, 2)], 0),
        ] {
            let (mut c, w) = i8042();
            writes.iter().for_each(|&(port, value)| c.port_write(port, 1, value));
            assert_eq!(w.resets.load(Ordering::Relaxed), resets, "{writes:x?}");
        }
    }

    #[test]
    fn a20_is_one_bit_in_two_places() {
        let (mut c, _) = i8042();
        for (port, value, a20) in [(0x20u16, 0u32, 0), (0x20, 2, 2), (C, 0xdd, 0), (C, 0xdf, 2)] {
            c.port_write(port, 1, value);
            assert_eq!(c.port_read(0x20, 1), a20);
        }
    }

    #[test]
    fn state_goes_round_and_is_checked() {
        let (mut c, _) = i8042();
        c.port_write(0, 1, 0xf2);
        let state = c.save();
        let (mut other, w) = i8042();
        other.restore(&state).unwrap();
        assert_eq!((other.save(), w.lines.load(Ordering::Relaxed)), (state.clone(), 2));
        for damage in [
            (|s: &mut I8042State| s.output_port = 0) as fn(&mut I8042State),
            |s| s.scan_set = 0,
            |s| s.output = vec![(0, Source::Mouse); 65],
            |s| s.expects = Expects::Ram(32),
        ] {
            let mut bad = state.clone();
            damage(&mut bad);
            assert!(other.restore(&bad).is_err());
            assert_eq!(other.save(), state);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_accesses(ops in proptest::collection::vec((any::<bool>(), 0usize..4, any::<u32>()), 1..300)) {
            let (mut c, _) = i8042();
            for (write, port, value) in ops {
                let (offset, size) = ([0, C, 0x20, 0x21][port], 1 << (value >> 30).min(2));
                match write {
                    true => c.port_write(offset, size, value),
                    false => _ = c.port_read(offset, size),
                }
                prop_assert!(c.output.len() <= CAPACITY);
            }
            let state = c.save();
            prop_assert!(c.restore(&state).is_ok());
        }
    }
}
