//! How devices that control power reach the machine's owner.

use chipset::PowerEvents;
use device_model::{Device, PortIo};

use crate::events::{EventPoster, MachineEvent};

/// Turns what devices ask for into events.
pub(crate) struct PowerPoster(pub(crate) EventPoster);

impl PowerEvents for PowerPoster {
    fn power_off(&self) {
        self.0.post(MachineEvent::PowerOff);
    }
    fn reset(&self) {
        self.0.post(MachineEvent::Reset);
    }
}

/// The guest's kernel has panicked (QEMU `docs/specs/pvpanic.rst`).
const PANICKED: u8 = 1 << 0;
/// The guest's kernel has panicked and will run a crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// The panic notification device.
pub(crate) struct PanicNotifier {
    // Runtime glue.
    events: EventPoster,
}

impl PanicNotifier {
    /// The port Linux's driver and firmware know it at.
    pub(crate) const PORT: u16 = 0x505;

    pub(crate) fn new(events: EventPoster) -> Self {
        PanicNotifier { events }
    }
}

impl PortIo for PanicNotifier {
    fn port_read(&mut self, _offset: u16, size: u8) -> u32 {
        // The events it understands; other bytes of a wider access float.
        let ones = if size >= 4 { u32::MAX } else { (1 << (size * 8)) - 1 };
        (ones & !0xff) | u32::from(PANICKED | CRASH_LOADED)
    }
    fn port_write(&mut self, _offset: u16, _size: u8, value: u32) {
        // A crash kernel goes on by itself; only a final panic is the owner's business.
        if value as u8 & PANICKED != 0 {
            self.events.post(MachineEvent::Panic);
        }
    }
}

impl Device for PanicNotifier {
    fn name(&self) -> &'static str {
        "pvpanic"
    }
    fn reset(&mut self) {}
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::EventQueue;

    #[test]
    fn only_a_final_panic_is_reported() {
        let (poster, queue) = EventQueue::new();
        let mut d = PanicNotifier::new(poster);
        assert_eq!(d.port_read(0, 1), 3);
        d.port_write(0, 1, CRASH_LOADED.into());
        assert!(queue.poll().is_none());
        d.port_write(0, 1, PANICKED.into());
        assert!(matches!(queue.poll(), Some(MachineEvent::Panic)));
    }
}
