//! What the tables say, as plain values.

/// Interrupt of the ACPI fixed hardware, as the PC wires it.
pub const SCI_GSI: u32 = 9;

/// A machine as its ACPI tables describe it.
#[derive(Debug, Clone)]
pub struct AcpiDescription {
    /// Where the RSDP goes: a multiple of 16 in 0xe0000-0xfffff, where guests search it.
    pub rsdp_address: u64,
    /// Where the other tables go, below 4 GiB, a multiple of 64. They take about
    /// 4 KiB, 64 bytes more for each processor and 128 for each slot.
    pub tables_address: u64,
    /// APIC ID of each processor that the machine can have, the bootstrap processor first.
    pub apic_ids: Vec<u32>,
    /// IOAPIC ID.
    pub ioapic_id: u8,
    /// IOAPIC address.
    pub ioapic_address: u32,
    /// First port of the PM block laid out as in the ICH9: PM1a events at 0,
    /// control at 4, timer (32-bit) at 8, 16 bytes of GPE0 at 0x20.
    pub pm_base: u16,
    /// SLP_TYP of soft-off, 0-7.
    pub sleep_type_s5: u8,
    /// Reset register: a port and the value to write.
    pub reset: (u16, u8),
    /// The HPET, if there is one.
    pub hpet: Option<HpetDescription>,
    /// Serial ports; the first is the debug and console port of SPCR and DBG2.
    pub serial: Vec<SerialDescription>,
    /// PCI, if there is any.
    pub pci: Option<PciDescription>,
    /// Whether there is a keyboard controller.
    pub i8042: bool,
    /// What can be added and removed while the guest runs.
    pub hotplug: HotplugDescription,
    /// The watchdog, if there is one.
    pub watchdog: Option<WatchdogDescription>,
    /// Virtio devices on the MMIO transport.
    pub virtio_mmio: Vec<VirtioMmioDescription>,
}

/// A virtio device in memory-mapped registers.
#[derive(Debug, Clone, Copy)]
pub struct VirtioMmioDescription {
    /// Its registers.
    pub address: u32,
    /// Bytes of them.
    pub size: u32,
    /// Its interrupt, which may be shared.
    pub gsi: u32,
}

/// Slots that are filled and emptied while the guest runs, and the first of each
/// bank's 8 ports. Without any, the tables say nothing of it.
#[derive(Debug, Clone, Default)]
pub struct HotplugDescription {
    /// Processors that are not there now, by their places in [`AcpiDescription::apic_ids`].
    pub absent_processors: Vec<usize>,
    /// Port of the processors' bank; `None`: they neither come nor go.
    pub processor_port: Option<u16>,
    /// Start and size of each piece of memory that can be added.
    pub memory: Vec<(u64, u64)>,
    /// Port of the memory's bank.
    pub memory_port: u16,
    /// Slots of the root bus that functions can be plugged into and taken out of.
    pub pci_slots: Vec<u8>,
    /// Port of the PCI slots' bank.
    pub pci_port: u16,
}

impl AcpiDescription {
    /// Each processor's place, its APIC ID, and whether it is there now.
    pub(crate) fn processors(&self) -> impl Iterator<Item = (u32, u32, bool)> {
        let absent = &self.hotplug.absent_processors;
        self.apic_ids.iter().enumerate().map(|(place, &id)| (place as u32, id, !absent.contains(&place)))
    }

    /// The port of the processors' bank, if any of them can come or go: the bootstrap
    /// processor stays.
    pub(crate) fn processor_bank(&self) -> Option<u16> {
        self.hotplug.processor_port.filter(|_| self.apic_ids.len() > 1)
    }
}

/// A watchdog of four 16-bit registers: control (bit 0 runs, bit 1 has expired,
/// cleared by a one), countdown, what is left of it, restart.
#[derive(Debug, Clone, Copy)]
pub struct WatchdogDescription {
    /// First of its 8 ports.
    pub port: u16,
    /// Milliseconds in a count.
    pub period_ms: u32,
    /// The longest countdown.
    pub max_count: u16,
}

/// An HPET.
#[derive(Debug, Clone, Copy)]
pub struct HpetDescription {
    /// Its registers.
    pub address: u64,
    /// Low half of its capabilities register.
    pub block_id: u32,
}

/// A 16550.
#[derive(Debug, Clone, Copy)]
pub struct SerialDescription {
    /// First of 8 ports.
    pub port: u16,
    /// Its interrupt.
    pub gsi: u32,
}

/// A PCI host bridge, segment 0, buses from 0.
#[derive(Debug, Clone)]
pub struct PciDescription {
    /// ECAM address.
    pub ecam: u64,
    /// Last bus that ECAM covers.
    pub last_bus: u8,
    /// First and last address for 32-bit BARs.
    pub window_32: (u32, u32),
    /// First and last address for 64-bit BARs.
    pub window_64: Option<(u64, u64)>,
    /// GSIs of INTA#-INTD# of device 0; device n's pins are rotated by n.
    pub interrupts: [u32; 4],
}

impl AcpiDescription {
    /// A PC with these processors and nothing but what every one of our machine
    /// types has, at the usual places.
    pub fn pc(apic_ids: Vec<u32>) -> Self {
        AcpiDescription {
            rsdp_address: 0xe_0000,
            tables_address: 0xe_0040,
            apic_ids,
            ioapic_id: 0,
            ioapic_address: 0xfec0_0000,
            pm_base: 0x600,
            sleep_type_s5: 7,
            reset: (0xcf9, 6),
            hpet: None,
            serial: Vec::new(),
            pci: None,
            i8042: true,
            hotplug: HotplugDescription::default(),
            watchdog: None,
            virtio_mmio: Vec::new(),
        }
    }
}
