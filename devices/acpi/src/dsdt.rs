//! The DSDT: processors, the PCI root, devices of the ISA bus, soft-off.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};

use crate::{AcpiDescription, HotplugDescription, PciDescription, bytes_of, hotplug, table};

/// Slots of a PCI bus.
const SLOTS: u32 = 32;

pub(crate) fn build(d: &AcpiDescription) -> Vec<u8> {
    let mut devices = Vec::new();
    match d.processor_bank() {
        Some(port) => devices.extend(hotplug::processors(port, &d.apic_ids)),
        None => (0u32..).zip(&d.apic_ids).for_each(|(uid, _)| devices.extend(processor(uid))),
    }
    if !d.hotplug.memory.is_empty() {
        devices.extend(hotplug::memory(&d.hotplug));
    }
    if let Some(pci) = &d.pci {
        devices.extend(pci_root(pci, &d.hotplug));
        devices.extend(ecam_reservation(pci));
    }
    for (i, serial) in d.serial.iter().enumerate().take(4) {
        let uid = i as u8 + 1;
        let resources = ResourceTemplate::new(vec![
            &IO::new(serial.port, serial.port, 1, 8),
            &Interrupt::new(true, true, false, false, serial.gsi),
        ])
        .bytes();
        devices.extend(isa_device(&format!("COM{uid}"), "PNP0501", uid, resources));
    }
    devices.extend(isa_device(
        "RTC_",
        "PNP0B00",
        0,
        ResourceTemplate::new(vec![&IO::new(0x70, 0x70, 1, 2), &Interrupt::new(true, true, false, false, 8)])
            .bytes(),
    ));
    if d.i8042 {
        devices.extend(isa_device(
            "KBD_",
            "PNP0303",
            0,
            ResourceTemplate::new(vec![
                &IO::new(0x60, 0x60, 1, 1),
                &IO::new(0x64, 0x64, 1, 1),
                &Interrupt::new(true, true, false, false, 1),
            ])
            .bytes(),
        ));
        devices.extend(isa_device(
            "MOU_",
            "PNP0F13",
            0,
            ResourceTemplate::new(vec![&Interrupt::new(true, true, false, false, 12)]).bytes(),
        ));
    }
    if let Some(hpet) = &d.hpet {
        let registers = Memory32Fixed::new(true, hpet.address as u32, 0x400);
        devices.extend(isa_device("HPET", "PNP0103", 0, ResourceTemplate::new(vec![&registers]).bytes()));
    }
    for (n, device) in (0u8..).zip(&d.virtio_mmio) {
        let resources = ResourceTemplate::new(vec![
            &Memory32Fixed::new(true, device.address, device.size),
            // Level, active low: as the PCI pins it shares the interrupt with.
            &Interrupt::new(true, false, true, true, device.gsi),
        ])
        .bytes();
        devices.extend(named_device(&format!("V{n:03X}"), &"LNRO0005", n, resources));
    }
    let mut aml = Scope::raw(Path::new("\\_SB_"), devices);
    aml.extend(hotplug::events(d));
    let s5 = d.sleep_type_s5;
    aml.extend(bytes_of(&Name::new(Path::new("\\_S5_"), &Package::new(vec![&s5, &s5, &0u8, &0u8]))));
    let mut t = table(b"DSDT", 2);
    t.append_slice(&aml);
    t.as_slice().to_vec()
}

/// Resource templates borrow their parts: turn them into bytes at once.
trait Bytes {
    fn bytes(&self) -> Raw;
}

impl<T: Aml> Bytes for T {
    fn bytes(&self) -> Raw {
        Raw(bytes_of(self))
    }
}

/// AML that is already encoded.
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// Processor containers have three hexadecimal digits of their number as name.
fn processor(uid: u32) -> Vec<u8> {
    let name = format!("C{:03X}", uid & 0xfff);
    bytes_of(&Device::new(
        Path::new(&name),
        vec![&Name::new(Path::new("_HID"), &"ACPI0007"), &Name::new(Path::new("_UID"), &uid)],
    ))
}

fn isa_device(name: &str, hid: &str, uid: u8, resources: Raw) -> Vec<u8> {
    named_device(name, &EISAName::new(hid), uid, resources)
}

fn named_device(name: &str, hid: &dyn Aml, uid: u8, resources: Raw) -> Vec<u8> {
    /// Present, enabled, shown, functioning.
    const WORKING: u8 = 0xf;
    bytes_of(&Device::new(
        Path::new(name),
        vec![
            &Name::new(Path::new("_HID"), hid),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_STA"), &WORKING),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    ))
}

fn pci_root(p: &PciDescription, slots: &HotplugDescription) -> Vec<u8> {
    let buses = AddressSpace::new_bus_number(0u16, p.last_bus.into());
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let low_ports = AddressSpace::new_io(0u16, 0xcf7, None);
    let high_ports = AddressSpace::new_io(0xd00u16, 0xffff, None);
    let not = AddressSpaceCacheable::NotCacheable;
    let window_32 = AddressSpace::new_memory(not, true, p.window_32.0, p.window_32.1, None);
    let window_64 = p.window_64.map(|(first, last)| {
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
    });
    let mut resources: Vec<&dyn Aml> = vec![&buses, &config, &low_ports, &high_ports, &window_32];
    if let Some(window) = &window_64 {
        resources.push(window);
    }
    let routes: Vec<Raw> = (0..SLOTS)
        .flat_map(|slot| (0..4u32).map(move |pin| (slot, pin)))
        .map(|(slot, pin)| {
            let gsi = p.interrupts[((slot + pin) % 4) as usize];
            // Any function of the slot; no link device: the GSI itself.
            Package::new(vec![&(slot << 16 | 0xffff), &(pin as u8), &0u8, &gsi]).bytes()
        })
        .collect();
    let routes: Vec<&dyn Aml> = routes.iter().map(|r| r as &dyn Aml).collect();
    let slots = Raw(if slots.pci_slots.is_empty() { Vec::new() } else { hotplug::pci_slots(slots) });
    bytes_of(&Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
            &Name::new(Path::new("_PRT"), &Package::new(routes)),
            &slots,
        ],
    ))
}

/// ECAM must be claimed by a motherboard resource (PCI firmware specification, 4.1.2).
fn ecam_reservation(p: &PciDescription) -> Vec<u8> {
    let last = p.ecam + (u64::from(p.last_bus) + 1) * (1 << 20) - 1;
    let ecam = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, p.ecam, last, None);
    isa_device("ECAM", "PNP0C02", 0, ResourceTemplate::new(vec![&ecam]).bytes())
}
