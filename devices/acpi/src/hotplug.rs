//! AML for what comes and goes while the guest runs: processors, memory, PCI
//! functions (ACPI 6.5, 5.6.4, 6.3 and 8.4; registers of the chipset's hot-plug
//! device: SELECT and STATUS for each kind).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, AddressSpace, AddressSpaceCacheable, And, Arg, BufferData, Device, EISAName, Equal, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Local, Method, MethodCall, Mutex, Name,
    Notify, OpRegion, OpRegionSpace, Path, Release, ResourceTemplate, Return, Scope, Store, While,
};

use crate::dsdt::Raw;
use crate::{AcpiDescription, HotplugDescription, bytes_of};

/// Bits of STATUS.
const PRESENT: u8 = 1 << 0;
const INSERTED: u8 = 1 << 1;
const REMOVING: u8 = 1 << 2;
const EJECT: u8 = 1 << 3;
/// SELECT when nothing is pending.
const NONE: u32 = u32::MAX;
/// Notification values (5.6.6).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// `_STA` of what is there.
const WORKING: u8 = 0xf;
/// Wait for a mutex without limit.
const FOREVER: u16 = 0xffff;

/// The registers of a bank and the methods over them, to stand in the scope of
/// the device that holds the bank's children: `STAT(slot)`, `EJCT(slot)` and
/// `SCAN()`, which tells the operating system what is pending.
pub(crate) fn bank(port: u16, children: &[(u32, String)]) -> Vec<u8> {
    let mut b = Vec::new();
    let select = Path::new("SELR");
    let status = Path::new("STSR");
    let lock = || Acquire::new(Path::new("BUSY"), FOREVER);
    let unlock = || Release::new(Path::new("BUSY"));
    b.extend(bytes_of(&OpRegion::new(Path::new("REGS"), OpRegionSpace::SystemIO, &port, &8u8)));
    b.extend(bytes_of(&Field::new(
        Path::new("REGS"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"SELR", 32), FieldEntry::Named(*b"STSR", 32)],
    )));
    b.extend(bytes_of(&Mutex::new(Path::new("BUSY"), 0)));
    b.extend(bytes_of(&Method::new(
        Path::new("STAT"),
        1,
        true,
        vec![
            &lock(),
            &Store::new(&select, &Arg(0)),
            &And::new(&Local(0), &status, &PRESENT),
            &unlock(),
            &If::new(&Local(0), vec![&Return::new(&WORKING)]),
            &Return::new(&0u8),
        ],
    )));
    b.extend(bytes_of(&Method::new(
        Path::new("EJCT"),
        1,
        true,
        vec![&lock(), &Store::new(&select, &Arg(0)), &Store::new(&status, &EJECT), &unlock()],
    )));
    let told: Vec<Raw> = children
        .iter()
        .map(|(slot, name)| {
            let notify = Notify::new(&Path::new(name), &Arg(1)).encoded();
            If::new(&Equal::new(&Arg(0), slot), vec![&notify]).encoded()
        })
        .collect();
    let told: Vec<&dyn Aml> = told.iter().map(|t| t as &dyn Aml).collect();
    b.extend(bytes_of(&Method::new(Path::new("TELL"), 2, true, told)));
    b.extend(scan());
    b
}

/// While a slot has something pending: take the event, then tell of it. The event
/// is taken first, so that what comes meanwhile is not lost.
fn scan() -> Vec<u8> {
    let (select, status) = (Path::new("SELR"), Path::new("STSR"));
    let event = |bit: u8, value: u8| {
        let there = And::new(&Local(2), &Local(1), &bit).encoded();
        let tell = MethodCall::new(Path::new("TELL"), vec![&Local(0), &value]).encoded();
        Raw([there.0, If::new(&Local(2), vec![&tell]).encoded().0].concat())
    };
    bytes_of(&Method::new(
        Path::new("SCAN"),
        0,
        true,
        vec![
            &Acquire::new(Path::new("BUSY"), FOREVER),
            &Store::new(&Local(0), &select),
            &Store::new(&select, &Local(0)),
            &Store::new(&Local(1), &status),
            &While::new(
                &acpi_tables::aml::LessThan::new(&Local(0), &NONE),
                vec![
                    &And::new(&Local(2), &Local(1), &(INSERTED | REMOVING)),
                    &Store::new(&status, &Local(2)),
                    &event(INSERTED, DEVICE_CHECK),
                    &event(REMOVING, EJECT_REQUEST),
                    &Store::new(&Local(0), &select),
                    &Store::new(&select, &Local(0)),
                    &Store::new(&Local(1), &status),
                ],
            ),
            &Release::new(Path::new("BUSY")),
        ],
    ))
}

trait Encoded {
    fn encoded(&self) -> Raw;
}

impl<T: Aml> Encoded for T {
    fn encoded(&self) -> Raw {
        Raw(bytes_of(self))
    }
}

/// `_STA` and, where the guest may give it up, `_EJ0` of a bank's child.
fn presence(slot: u32, ejectable: bool) -> Vec<u8> {
    let state = MethodCall::new(Path::new("STAT"), vec![&slot]);
    let mut b = bytes_of(&Method::new(Path::new("_STA"), 0, true, vec![&Return::new(&state)]));
    if ejectable {
        b.extend(ejection(slot));
    }
    b
}

fn ejection(slot: u32) -> Vec<u8> {
    bytes_of(&Method::new(Path::new("_EJ0"), 1, true, vec![&MethodCall::new(Path::new("EJCT"), vec![&slot])]))
}

fn processor_name(uid: u32) -> String {
    format!("C{:03X}", uid & 0xfff)
}

/// All processors the machine can have, in a container. Their local APIC is in
/// `_MAT`, since the MADT says of some that they are not there.
pub(crate) fn processors(port: u16, apic_ids: &[u32]) -> Vec<u8> {
    let names: Vec<_> = (0..apic_ids.len() as u32).map(|uid| (uid, processor_name(uid))).collect();
    let mut inner = bank(port, &names);
    for ((uid, name), &apic_id) in names.iter().zip(apic_ids) {
        // Local APIC: type, length, uid, APIC ID, enabled.
        let entry = BufferData::new(vec![0, 8, *uid as u8, apic_id as u8, 1, 0, 0, 0]);
        // The bootstrap processor stays.
        let presence = Raw(presence(*uid, *uid != 0));
        inner.extend(bytes_of(&Device::new(
            Path::new(name),
            vec![
                &Name::new(Path::new("_HID"), &"ACPI0007"),
                &Name::new(Path::new("_UID"), uid),
                &Name::new(Path::new("_MAT"), &entry),
                &presence,
            ],
        )));
    }
    let inner = Raw(inner);
    bytes_of(&Device::new(
        Path::new("CPUS"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0010"),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A05")),
            &inner,
        ],
    ))
}

/// All pieces of memory that can be added.
pub(crate) fn memory(h: &HotplugDescription) -> Vec<u8> {
    let names: Vec<_> = (0..h.memory.len() as u32).map(|n| (n, format!("M{:03X}", n & 0xfff))).collect();
    let mut inner = bank(h.memory_port, &names);
    for ((slot, name), &(start, size)) in names.iter().zip(&h.memory) {
        let last = start.saturating_add(size) - 1;
        let range = AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, start, last, None);
        let presence = Raw(presence(*slot, true));
        inner.extend(bytes_of(&Device::new(
            Path::new(name),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0C80")),
                &Name::new(Path::new("_UID"), slot),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&range])),
                &presence,
            ],
        )));
    }
    let inner = Raw(inner);
    bytes_of(&Device::new(
        Path::new("MEMS"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A06")),
            &Name::new(Path::new("_UID"), &"memory"),
            &inner,
        ],
    ))
}

/// The slots of the root bus whose functions come and go, to stand in its scope. Whether
/// there is a function in a slot its configuration space says.
pub(crate) fn pci_slots(h: &HotplugDescription) -> Vec<u8> {
    let names: Vec<_> = h.pci_slots.iter().map(|&n| (u32::from(n), format!("S{n:03X}"))).collect();
    let mut inner = bank(h.pci_port, &names);
    for (slot, name) in &names {
        let ejection = Raw(ejection(*slot));
        inner.extend(bytes_of(&Device::new(
            Path::new(name),
            vec![
                &Name::new(Path::new("_ADR"), &(slot << 16)),
                &Name::new(Path::new("_SUN"), slot),
                &ejection,
            ],
        )));
    }
    inner
}

/// What general-purpose events 1, 2 and 3 lead to.
pub(crate) fn events(d: &AcpiDescription) -> Vec<u8> {
    let h = &d.hotplug;
    let mut methods = Vec::new();
    for (there, name, scan) in [
        (d.processor_bank().is_some(), "_E01", "\\_SB_.CPUS.SCAN"),
        (!h.memory.is_empty(), "_E02", "\\_SB_.MEMS.SCAN"),
        (!h.pci_slots.is_empty(), "_E03", "\\_SB_.PCI0.SCAN"),
    ] {
        if there {
            let call = MethodCall::new(Path::new(scan), vec![]);
            methods.extend(bytes_of(&Method::new(Path::new(name), 0, true, vec![&call])));
        }
    }
    Scope::raw(Path::new("\\_GPE"), methods)
}
