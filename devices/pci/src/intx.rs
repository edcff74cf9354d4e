//! INTx pins of all slots, joined onto four interrupt lines.

use std::sync::{Arc, Mutex, PoisonError};

use device_model::{IrqLine, IrqSink};

/// Lines that INTA#-INTD# of device 0 are wired to; the pins of device n are
/// rotated by n (PCI local bus 3.0, 2.2.6).
pub(crate) struct Intx {
    outputs: [IrqLine; 4],
    /// A bit for each asserted pin: slot * 4 + pin.
    asserted: Mutex<u128>,
}

impl Intx {
    pub(crate) fn new(outputs: [IrqLine; 4]) -> Arc<Self> {
        Arc::new(Intx { outputs, asserted: Mutex::new(0) })
    }

    /// The line of a pin (0 is INTA#) of a slot.
    pub(crate) fn line(self: &Arc<Self>, slot: u8, pin: u8) -> IrqLine {
        IrqLine::new(self.clone(), u32::from(slot & 31) * 4 + u32::from(pin & 3))
    }

    fn output(source: u32) -> usize {
        ((source / 4 + source % 4) % 4) as usize
    }

    /// All pins that share an output.
    fn sharers(output: usize) -> u128 {
        (0..128).filter(|&s| Self::output(s) == output).fold(0, |mask, s| mask | 1 << s)
    }
}

impl IrqSink for Intx {
    fn set_level(&self, source: u32, level: bool) {
        if source >= 128 {
            return;
        }
        let mut asserted = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        match level {
            true => *asserted |= 1 << source,
            false => *asserted &= !(1 << source),
        }
        let output = Self::output(source);
        // Driven with the lock held, so that levels arrive in the order of events.
        self.outputs[output].set(*asserted & Self::sharers(output) != 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

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
    fn pins_rotate_and_share() {
        let lines = Arc::new(Lines::default());
        let intx = Intx::new(std::array::from_fn(|i| IrqLine::new(lines.clone(), 16 + i as u32)));
        let seen = || lines.0.load(Ordering::Relaxed) >> 16;
        for (slot, pin, line) in [(0, 0, 1), (0, 3, 8), (1, 0, 2), (3, 1, 1), (31, 3, 4)] {
            let wire = intx.line(slot, pin);
            wire.set(true);
            assert_eq!(seen(), line, "slot {slot}, pin {pin}");
            wire.set(false);
            assert_eq!(seen(), 0);
        }
        let (a, b) = (intx.line(0, 0), intx.line(4, 0));
        a.set(true);
        b.set(true);
        a.set(false);
        assert_eq!(seen(), 1, "the other still holds the line");
        b.set(false);
        assert_eq!(seen(), 0);
    }
}
