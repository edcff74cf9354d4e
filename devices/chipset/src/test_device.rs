//! The device that test programs for virtual machines drive (QEMU's `pc-testdev`):
//! interrupt lines to pull, ports and device memory that hold what was written.

use device_model::{Device, IrqLine, Mmio, PortIo, PortRange};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

const NAME: &str = "test-device";
const MEMORY: usize = 0x1_0000;
/// Offset of the interrupt lines' ports.
const LINES: u16 = 0x10;

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestDeviceState {
    port: u32,
    memory: Vec<u8>,
}

/// The test device. Programs pull a line by writing 0 or 1 to port 0x2000 + GSI.
pub struct TestDevice {
    // Runtime glue.
    lines: Vec<IrqLine>,
    // Volatile state.
    port: u32,
    memory: Vec<u8>,
}

impl TestDevice {
    /// The port that holds a value, and one for each of 24 interrupt lines.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0xe0, 4, 0), PortRange::new(0x2000, 24, LINES)];
    /// Where programs expect its memory.
    pub const BASE: u64 = 0xff00_0000;
    /// Bytes of its memory.
    pub const SIZE: u64 = MEMORY as u64;

    /// `lines` by GSI. They are pulled beside the lines' own devices: no guest but
    /// a test program should meet this device.
    pub fn new(lines: Vec<IrqLine>) -> Self {
        TestDevice { lines, port: 0, memory: vec![0; MEMORY] }
    }

    fn range(offset: u64, size: u8) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(size.into())?;
        (end <= MEMORY && size <= 8).then_some(start..end)
    }
}

impl Device for TestDevice {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        self.port = 0;
        self.memory.fill(0);
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

impl PortIo for TestDevice {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        match offset {
            0..4 => self.port >> (8 * offset) & u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))),
            _ => u32::MAX,
        }
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        match offset {
            0..4 => {
                let mask = u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))) << (8 * offset);
                self.port = self.port & !mask | value << (8 * offset) & mask;
            }
            _ => {
                if let Some(line) = offset.checked_sub(LINES).and_then(|n| self.lines.get(usize::from(n))) {
                    line.set(value & 1 != 0);
                }
            }
        }
    }
}

impl Mmio for TestDevice {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        let Some(range) = Self::range(offset, size) else { return u64::MAX };
        self.memory[range].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }
    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        if let Some(range) = Self::range(offset, size) {
            let len = range.len();
            self.memory[range].copy_from_slice(&value.to_le_bytes()[..len]);
        }
    }
}

impl Saved for TestDevice {
    type State = TestDeviceState;
    const VERSION: u16 = 1;

    fn save(&self) -> TestDeviceState {
        let TestDevice { lines: _, port, memory } = self;
        TestDeviceState { port: *port, memory: memory.clone() }
    }

    fn restore(&mut self, state: &TestDeviceState) -> Result<(), StateError> {
        let TestDeviceState { port, memory } = state;
        StateError::check(memory.len() == MEMORY, NAME, "memory", memory.len() as u64, "65536 bytes")?;
        self.port = *port;
        self.memory = memory.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use device_model::IrqSink;

    use super::*;

    #[derive(Default)]
    struct Lines(AtomicU32);
    impl IrqSink for Lines {
        fn set_level(&self, line: u32, level: bool) {
            match level {
                true => self.0.fetch_or(1 << line, Ordering::Relaxed),
                false => self.0.fetch_and(!(1 << line), Ordering::Relaxed),
            };
        }
    }

    #[test]
    fn lines_ports_and_memory() {
        let lines = Arc::new(Lines::default());
        let mut d = TestDevice::new((0..24).map(|n| IrqLine::new(lines.clone(), n)).collect());
        d.port_write(LINES + 5, 1, 1);
        d.port_write(LINES + 24, 1, 1);
        assert_eq!(lines.0.load(Ordering::Relaxed), 1 << 5);
        d.port_write(LINES + 5, 1, 0);
        assert_eq!(lines.0.load(Ordering::Relaxed), 0);
        d.port_write(0, 4, 0x1234_5678);
        d.port_write(1, 1, 0xaa);
        assert_eq!((d.port_read(0, 4), d.port_read(2, 2)), (0x1234_aa78, 0x1234));
        d.mmio_write(8, 8, 0x1122_3344_5566_7788);
        assert_eq!(
            (d.mmio_read(8, 4), d.mmio_read(12, 2), d.mmio_read(0xffff, 2)),
            (0x5566_7788, 0x3344, u64::MAX)
        );
        let state = d.save();
        d.reset();
        assert_eq!(d.mmio_read(8, 8), 0);
        d.restore(&state).unwrap();
        assert_eq!(d.save(), state);
        assert!(d.restore(&TestDeviceState { port: 0, memory: vec![] }).is_err());
    }
}
