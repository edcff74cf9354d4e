//! The reset control register at port 0xcf9 (ICH9 datasheet, 13.7.5).

use std::sync::Arc;

use device_model::{Device, PortIo, PortRange};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::PowerEvents;

const NAME: &str = "reset-control";
const RESET_CPU: u8 = 1 << 2;
/// System reset, CPU reset, full reset.
const WRITABLE: u8 = 0x0e;

/// The saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlState {
    register: u8,
}

/// The register: the machine is reset when RST_CPU goes from 0 to 1, whatever kind is chosen.
pub struct ResetControl {
    // Runtime glue.
    power: Arc<dyn PowerEvents>,
    // Volatile state.
    register: u8,
}

impl ResetControl {
    /// The register. Only byte accesses reach it: wider ones belong to PCI configuration.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0xcf9, 1, 0)];
    /// What the FADT's reset register is told to write.
    pub const RESET_VALUE: u8 = 0x06;

    /// A register after power-up.
    pub fn new(power: Arc<dyn PowerEvents>) -> Self {
        ResetControl { power, register: 0 }
    }
}

impl Device for ResetControl {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        self.register = 0;
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for ResetControl {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        if offset == 0 && size == 1 { self.register.into() } else { u32::MAX }
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        if offset != 0 || size != 1 {
            return;
        }
        let before = self.register;
        self.register = value as u8 & WRITABLE;
        if self.register & !before & RESET_CPU != 0 {
            self.power.reset();
        }
    }
}

impl Saved for ResetControl {
    type State = ResetControlState;
    const VERSION: u16 = 1;

    fn save(&self) -> ResetControlState {
        let ResetControl { power: _, register } = self;
        ResetControlState { register: *register }
    }

    fn restore(&mut self, state: &ResetControlState) -> Result<(), StateError> {
        let ResetControlState { register } = state;
        StateError::check(register & !WRITABLE == 0, NAME, "register", *register, "bits 3-1")?;
        self.register = *register;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Resets(AtomicU32);
    impl PowerEvents for Resets {
        fn power_off(&self) {}
        fn reset(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_rising_cpu_reset_resets() {
        // (writes, resets, read back)
        for (writes, resets, register) in [
            (&[2u32, 6][..], 1, 6),
            (&[6], 1, 6),
            (&[6, 6, 0xe], 1, 0xe),
            (&[6, 2, 6], 2, 6),
            (&[0xfb], 0, 0x0a),
        ] {
            let seen = Arc::new(Resets::default());
            let mut r = ResetControl::new(seen.clone());
            writes.iter().for_each(|&v| r.port_write(0, 1, v));
            r.port_write(0, 4, 0x8000_0006);
            assert_eq!(
                (seen.0.load(Ordering::Relaxed), r.port_read(0, 1)),
                (resets, register),
                "{writes:x?}"
            );
            let state = r.save();
            assert_eq!(r.restore(&state), Ok(()));
            assert!(r.restore(&ResetControlState { register: 1 }).is_err());
        }
    }
}
