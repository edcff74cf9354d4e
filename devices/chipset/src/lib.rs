//! The chips of a PC: PIC, IOAPIC, local APIC, PIT, HPET, RTC, 16550, i8042, ACPI PM.

mod byte_ports;
mod ioapic;
mod irq_router;
mod local_apic;
mod pic;
mod power;

pub use ioapic::{IoApic, IoApicState};
pub use irq_router::IrqRouter;
pub use local_apic::{ApicWiring, LocalApics, LocalApicsConfig};
pub use pic::{IntrOutput, Pic, PicState};
pub use power::PowerEvents;
