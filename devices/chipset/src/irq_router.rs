//! Global system interrupts: how ISA lines reach PIC and IOAPIC at once.

use std::sync::Arc;

use device_model::{IrqLine, IrqSink};

use crate::{IoApic, Pic};

/// Routes GSIs as a PC wires them: ISA interrupts 0-15 reach the PIC and the
/// IOAPIC pin of the same number, except that the timer (0) is on IOAPIC pin 2
/// (the interrupt source override in the MADT); GSIs 16-23 reach the IOAPIC only.
///
/// A line has one driver: sources that share a level-triggered line are joined
/// before it.
pub struct IrqRouter {
    pic: Pic,
    ioapic: IoApic,
}

impl IrqRouter {
    /// Route to these controllers.
    pub fn new(pic: Pic, ioapic: IoApic) -> Arc<Self> {
        Arc::new(IrqRouter { pic, ioapic })
    }

    /// The line of a GSI (0-23).
    pub fn line(self: &Arc<Self>, gsi: u32) -> IrqLine {
        IrqLine::new(self.clone(), gsi)
    }
}

impl IrqSink for IrqRouter {
    fn set_level(&self, gsi: u32, asserted: bool) {
        if gsi < 16 {
            self.pic.set_level(gsi, asserted);
        }
        match gsi {
            0 => self.ioapic.set_level(2, asserted),
            // The PIC's cascade input is no GSI.
            2 => {}
            _ => self.ioapic.set_level(gsi, asserted),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use device_model::{Mmio, MsiMessage, MsiSink, PortIo};

    use super::*;

    #[derive(Default)]
    struct Vectors(Mutex<Vec<u8>>);
    impl MsiSink for Vectors {
        fn send_msi(&self, m: MsiMessage) {
            self.0.lock().unwrap().push(m.data as u8);
        }
    }

    #[test]
    fn gsis_reach_their_controllers() {
        // (GSI, IOAPIC pin, PIC vector)
        for (gsi, pin, vector) in [
            (0, Some(2), Some(0x20)),
            (1, Some(1), Some(0x21)),
            (12, Some(12), Some(0x2c)),
            (17, Some(17), None),
            (24, None, None),
        ] {
            let sent = Arc::new(Vectors::default());
            let mut pic = Pic::new(Box::new(|_| {}));
            for (o, v) in
                [(0, 0x11), (1, 0x20), (1, 4), (1, 1), (0x10, 0x11), (0x11, 0x28), (0x11, 2), (0x11, 1)]
            {
                pic.port_write(o, 1, v);
            }
            let mut ioapic = IoApic::new(0, sent.clone());
            for p in 0..24 {
                ioapic.mmio_write(0, 4, 0x10 + 2 * p);
                ioapic.mmio_write(0x10, 4, 0x40 + p);
            }
            IrqRouter::new(pic.clone(), ioapic).line(gsi).pulse();
            let seen = sent.0.lock().unwrap().clone();
            assert_eq!(seen, pin.map(|p| 0x40 + p).into_iter().collect::<Vec<u8>>(), "GSI {gsi}");
            assert_eq!(pic.acknowledge(), vector.unwrap_or(0x27), "GSI {gsi}");
        }
    }
}
