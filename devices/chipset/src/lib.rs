//! The chips of a PC: PIC, IOAPIC, local APIC, PIT, HPET, RTC, 16550, i8042, ACPI PM.

mod local_apic;
mod power;

pub use local_apic::{ApicWiring, LocalApics, LocalApicsConfig};
pub use power::PowerEvents;
