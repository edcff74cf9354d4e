use std::process::Command;

use super::*;

fn description(cpus: u32) -> AcpiDescription {
    AcpiDescription {
        hpet: Some(HpetDescription { address: 0xfed0_0000, block_id: 0x8086_a201 }),
        serial: vec![SerialDescription { port: 0x3f8, gsi: 4 }, SerialDescription { port: 0x2f8, gsi: 3 }],
        pci: Some(PciDescription {
            ecam: 0xe000_0000,
            last_bus: 255,
            window_32: (0xc000_0000, 0xdfff_ffff),
            window_64: Some((1 << 38, (1 << 39) - 1)),
            interrupts: [16, 17, 18, 19],
        }),
        ..AcpiDescription::pc((0..cpus).collect())
    }
}

/// The same with everything that can come and go, and a watchdog.
fn full_description(cpus: u32, more: u32) -> AcpiDescription {
    AcpiDescription {
        hotplug: HotplugDescription {
            absent_processors: (cpus as usize..(cpus + more) as usize).collect(),
            processor_port: Some(0xae00),
            memory: (0..4).map(|n| ((4 + n) << 30, 1 << 30)).collect(),
            memory_port: 0xae08,
            pci_slots: (1..32).collect(),
            pci_port: 0xae10,
        },
        watchdog: Some(WatchdogDescription { port: 0x660, period_ms: 100, max_count: 0xffff }),
        virtio_mmio: (0..3)
            .map(|n| VirtioMmioDescription { address: 0xfeb0_0000 + n * 0x1000, size: 0x1000, gsi: 16 + n })
            .collect(),
        ..description(cpus + more)
    }
}

/// The bytes of all pieces as a guest finds them.
struct Memory(Vec<Piece>);

impl Memory {
    fn at(&self, address: u64) -> &[u8] {
        &self
            .0
            .iter()
            .find(|p| p.address == address)
            .unwrap_or_else(|| panic!("nothing at {address:#x}"))
            .bytes
    }
    fn table(&self, address: u64) -> &[u8] {
        let t = self.at(address);
        assert_eq!(t.len(), u32_at(t, 4) as usize, "length of {:?}", &t[..4]);
        assert_eq!(sum(t), 0, "checksum of {:?}", std::str::from_utf8(&t[..4]));
        t
    }
    fn xsdt(&self, rsdp: u64) -> Vec<u64> {
        let rsdp = self.at(rsdp);
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
        self.table(u64_at(rsdp, 24))[36..].chunks(8).map(|e| u64_at(e, 0)).collect()
    }
    fn find(&self, d: &AcpiDescription, signature: &[u8; 4]) -> Option<&[u8]> {
        self.xsdt(d.rsdp_address).into_iter().map(|a| self.table(a)).find(|t| &t[..4] == signature)
    }
    fn find_dsdt(&self, d: &AcpiDescription) -> &[u8] {
        let fadt = self.find(d, b"FACP").expect("a FADT");
        self.table(u64_at(fadt, 140))
    }
}

fn sum(b: &[u8]) -> u8 {
    b.iter().fold(0, |a, &v| a.wrapping_add(v))
}
fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}
fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap())
}

#[test]
fn pieces_are_placed_as_asked() {
    for cpus in [1, 4, 300] {
        let d = description(cpus);
        let mut pieces = build(&d);
        assert_eq!(pieces[0].address, d.rsdp_address);
        pieces.sort_by_key(|p| p.address);
        for pair in pieces.windows(2) {
            assert!(pair[0].address + pair[0].bytes.len() as u64 <= pair[1].address);
        }
        let used = pieces.last().map(|p| p.address + p.bytes.len() as u64).unwrap() - d.tables_address;
        assert!(used < 0x2000 + 64 * u64::from(cpus), "{used:#x} bytes for {cpus} processors");
    }
}

#[test]
fn tables_by_description() {
    let d = description(2);
    let m = Memory(build(&d));
    for signature in [b"FACP", b"APIC", b"HPET", b"MCFG", b"SPCR", b"DBG2"] {
        assert!(m.find(&d, signature).is_some(), "{signature:?}");
    }
    let least = AcpiDescription::pc(vec![0]);
    let m = Memory(build(&least));
    for (signature, there) in
        [(b"FACP", true), (b"APIC", true), (b"HPET", false), (b"MCFG", false), (b"SPCR", false)]
    {
        assert_eq!(m.find(&least, signature).is_some(), there, "{signature:?}");
    }
}

#[test]
fn fadt_fields() {
    let d = description(1);
    let m = Memory(build(&d));
    let f = m.find(&d, b"FACP").unwrap();
    assert_eq!(f.len(), 276);
    // (offset, value of 32 bits): PM blocks, flags without hardware-reduced.
    for (at, value) in [(48, 0), (56, 0x600), (64, 0x604), (76, 0x608), (80, 0x620)] {
        assert_eq!(u32_at(f, at), value, "offset {at}");
    }
    let flags = u32_at(f, 112);
    assert_eq!((flags >> 20 & 1, flags >> 8 & 1, flags >> 10 & 1, flags >> 4 & 1), (0, 1, 1, 0));
    assert_eq!((f[108], f[128], u64_at(f, 120)), (0x32, 6, 0xcf9));
    assert_eq!(&m.at(u32_at(f, 36).into())[..4], b"FACS");
    assert_eq!(u32_at(f, 36) % 64, 0);
    assert_eq!(&m.table(u64_at(f, 140))[..4], b"DSDT");
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w == what)
}

#[test]
fn the_madt_tells_which_processors_are_there() {
    // (absent, flags of the four local APICs: 1 enabled, 2 online capable)
    for (absent, flags) in [
        (vec![], [1, 1, 1, 1]),
        (vec![2, 3], [1, 1, 2, 2]),
        (vec![1], [1, 2, 1, 1]),
        (vec![1, 3], [1, 2, 1, 2]),
    ] {
        let mut d = full_description(4, 0);
        d.hotplug.absent_processors = absent.clone();
        let m = Memory(build(&d));
        let t = m.find(&d, b"APIC").unwrap();
        for (n, flag) in (0u8..).zip(flags) {
            let entry = &t[44 + 8 * usize::from(n)..][..8];
            assert_eq!(entry, [0, 8, n, n, flag, 0, 0, 0], "processor {n} without {absent:?}");
        }
        let named = mp_table(&d, 0xf_5000).bytes[16 + 44..].chunks(20).take_while(|e| e[0] == 0).count();
        assert_eq!(named, 4 - absent.len());
    }
}

#[test]
fn only_what_can_go_has_an_eject_method() {
    // (processors, the bank's port; whether there is a bank)
    for (cpus, port, bank) in [(1, Some(0xae00), false), (4, Some(0xae00), true), (4, None, false)] {
        let mut d = description(cpus);
        d.hotplug = HotplugDescription { processor_port: port, ..HotplugDescription::default() };
        let m = Memory(build(&d));
        let dsdt = m.find_dsdt(&d);
        for name in [&b"CPUS"[..], b"_E01", b"_EJ0"] {
            assert_eq!(contains(dsdt, name), bank, "{cpus} processors, {:?}", std::str::from_utf8(name));
        }
    }
    let mut d = description(1);
    d.hotplug =
        HotplugDescription { pci_slots: vec![2, 31], pci_port: 0xae10, ..HotplugDescription::default() };
    let m = Memory(build(&d));
    let dsdt = m.find_dsdt(&d);
    for (name, there) in [(b"S001", false), (b"S002", true), (b"S003", false), (b"S01F", true)] {
        assert_eq!(contains(dsdt, name), there, "{:?}", std::str::from_utf8(name));
    }
    assert_eq!(dsdt.windows(4).filter(|w| w == b"_EJ0").count(), 2);
}

#[test]
fn madt_entries() {
    for (cpus, more, local, x2, nmi_forms) in
        [(1, 0, 1, 0, 1), (8, 0, 8, 0, 1), (300, 0, 255, 45, 2), (2, 3, 5, 0, 1)]
    {
        let d = full_description(cpus, more);
        let m = Memory(build(&d));
        let t = m.find(&d, b"APIC").unwrap();
        let mut counts = [0; 16];
        let mut enabled = 0;
        let mut rest = &t[44..];
        while !rest.is_empty() {
            counts[usize::from(rest[0])] += 1;
            enabled += match rest[0] {
                0 => u32_at(rest, 4) & 1,
                9 => u32_at(rest, 8) & 1,
                _ => 0,
            };
            rest = &rest[usize::from(rest[1])..];
        }
        assert_eq!(enabled, cpus, "those to come are not enabled");
        assert_eq!(
            (counts[0], counts[9], counts[1], counts[2], counts[4] + counts[10]),
            (local, x2, 1, 2, nmi_forms)
        );
    }
}

#[test]
fn iasl_understands_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        eprintln!("skipped: iasl is not installed (Debian package acpica-tools)");
        return;
    }
    understood_by_iasl(&description(3), "plain");
    understood_by_iasl(&full_description(2, 2), "full");
}

fn understood_by_iasl(description: &AcpiDescription, what: &str) {
    let dir = std::env::temp_dir().join(format!("strata-acpi-{what}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for piece in build(description).iter().filter(|p| &p.bytes[..4] != b"RSD ") {
        let name = String::from_utf8_lossy(&piece.bytes[..4]).to_lowercase();
        let path = dir.join(format!("{name}.dat"));
        std::fs::write(&path, &piece.bytes).unwrap();
        let out = Command::new("iasl").arg("-d").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        let lower = said.to_lowercase();
        assert!(
            out.status.success() && !lower.contains("error") && !lower.contains("warning"),
            "{name}: {said}"
        );
        let text = std::fs::read_to_string(path.with_extension("dsl")).unwrap();
        assert!(!text.contains("Invalid") && !text.contains("Unknown"), "{name}: {text}");
        if name == "dsdt" {
            let mut again = Command::new("iasl");
            again.args(["-vi", "-p"]).arg(dir.join("again")).arg(path.with_extension("dsl"));
            let out = again.output().unwrap();
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
