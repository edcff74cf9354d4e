//! The chips of a PC: PIC, IOAPIC, local APIC, PIT, HPET, RTC, 16550, i8042, ACPI PM.
