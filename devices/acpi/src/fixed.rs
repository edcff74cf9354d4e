//! The tables with fixed layouts.

use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use crate::{
    AcpiDescription, HpetDescription, OEM_ID, OEM_REVISION, OEM_TABLE_ID, PciDescription, SCI_GSI,
    SerialDescription, bytes_of, table,
};

/// CMOS address of the century.
const CENTURY: u8 = 0x32;
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// C2 and C3 latencies that say there are no such states.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// IA-PC boot architecture flags (table 5.11).
const LEGACY_DEVICES: u16 = 1 << 0;
const HAS_8042: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;

fn port(address: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, address.into())
}

/// The FADT: fixed hardware in ACPI mode from the start, so no SMI command port.
pub(crate) fn fadt(d: &AcpiDescription, facs: u64, dsdt: u64) -> Vec<u8> {
    let base = d.pm_base;
    let mut f = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Desktop)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // A set bit says that there is no fixed sleep button.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    f.firmware_ctrl = (facs as u32).into();
    f.dsdt = (dsdt as u32).into();
    f.x_dsdt = dsdt.into();
    f.sci_int = (SCI_GSI as u16).into();
    f.pm1a_evt_blk = u32::from(base).into();
    f.pm1a_cnt_blk = u32::from(base + 4).into();
    f.pm_tmr_blk = u32::from(base + 8).into();
    f.gpe0_blk = u32::from(base + 0x20).into();
    f.pm1_evt_len = 4;
    f.pm1_cnt_len = 2;
    f.pm_tmr_len = 4;
    f.gpe0_blk_len = 16;
    f.x_pm1a_evt_blk = port(base, 32, AccessSize::WordAccess);
    f.x_pm1a_cnt_blk = port(base + 4, 16, AccessSize::WordAccess);
    f.x_pm_tmr_blk = port(base + 8, 32, AccessSize::DwordAccess);
    f.x_gpe0_blk = port(base + 0x20, 128, AccessSize::ByteAccess);
    f.p_lvl2_lat = NO_C2.into();
    f.p_lvl3_lat = NO_C3.into();
    f.century = CENTURY;
    f.iapc_boot_arch = (LEGACY_DEVICES | NO_VGA | if d.i8042 { HAS_8042 } else { 0 }).into();
    f.reset_reg = port(d.reset.0, 8, AccessSize::ByteAccess);
    f.reset_value = d.reset.1;
    f.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    bytes_of(&f.finalize())
}

/// The MADT (5.2.12). APIC IDs from 255 need the x2APIC form. "Online capable" is
/// reserved where a processor is enabled (table 5.22).
pub(crate) fn madt(d: &AcpiDescription) -> Vec<u8> {
    /// Processor is usable.
    const ENABLED: u32 = 1;
    /// Processor is not usable yet, but can be.
    const ONLINE_CAPABLE: u32 = 1 << 1;
    /// There is a PC/AT PIC as well.
    const PCAT_COMPATIBLE: u32 = 1;
    /// Active high, level-triggered.
    const HIGH_LEVEL: u16 = 0xd;

    let mut b = Vec::new();
    b.extend(LOCAL_APIC_ADDRESS.to_le_bytes());
    b.extend(PCAT_COMPATIBLE.to_le_bytes());
    for (uid, id, there) in d.processors() {
        let flags = if there { ENABLED } else { ONLINE_CAPABLE };
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(id)) if id != 0xff => {
                b.extend([0, 8, uid, id]);
                b.extend(flags.to_le_bytes());
            }
            _ => {
                b.extend([9, 16, 0, 0]);
                b.extend(id.to_le_bytes());
                b.extend(flags.to_le_bytes());
                b.extend(uid.to_le_bytes());
            }
        }
    }
    b.extend([1, 12, d.ioapic_id, 0]);
    b.extend(d.ioapic_address.to_le_bytes());
    b.extend(0u32.to_le_bytes());
    for (source, gsi, flags) in [(0u8, 2u32, 0u16), (SCI_GSI as u8, SCI_GSI, HIGH_LEVEL)] {
        b.extend([2, 10, 0, source]);
        b.extend(gsi.to_le_bytes());
        b.extend(flags.to_le_bytes());
    }
    // NMI at LINT1 of all processors, in both forms.
    b.extend([4, 6, 0xff, 0, 0, 1]);
    if d.apic_ids.iter().any(|&id| id >= 0xff) {
        b.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    let mut t = table(b"APIC", 5);
    t.append_slice(&b);
    t.as_slice().to_vec()
}

/// The HPET table (IA-PC HPET specification, 3.2.4).
pub(crate) fn hpet(h: &HpetDescription) -> Vec<u8> {
    /// Least ticks between periodic interrupts that are not lost.
    const MINIMUM_TICK: u16 = 0x80;
    let mut t = table(b"HPET", 1);
    let mut b = h.block_id.to_le_bytes().to_vec();
    b.extend(bytes_of_gas(GAS::new(AddressSpace::SystemMemory, 64, 0, AccessSize::Undefined, h.address)));
    b.push(0);
    b.extend(MINIMUM_TICK.to_le_bytes());
    b.push(0);
    t.append_slice(&b);
    t.as_slice().to_vec()
}

/// The MCFG (PCI firmware specification 3.3, 4.1.2).
pub(crate) fn mcfg(p: &PciDescription) -> Vec<u8> {
    let mut t = table(b"MCFG", 1);
    let mut b = vec![0; 8];
    b.extend(p.ecam.to_le_bytes());
    b.extend([0, 0, 0, p.last_bus, 0, 0, 0, 0]);
    t.append_slice(&b);
    t.as_slice().to_vec()
}

fn bytes_of_gas(gas: GAS) -> Vec<u8> {
    bytes_of(&gas)
}

/// The serial port console redirection table, revision 2.
pub(crate) fn spcr(s: &SerialDescription) -> Vec<u8> {
    const INTERFACE_16550: u8 = 0;
    /// Both the PIC's and the IOAPIC's interrupt are given.
    const PIC_AND_IOAPIC: u8 = 3;
    const BAUD_115200: u8 = 7;
    const ONE_STOP_BIT: u8 = 1;
    const ANSI: u8 = 3;
    let mut b = vec![INTERFACE_16550, 0, 0, 0];
    b.extend(bytes_of_gas(port(s.port, 8, AccessSize::ByteAccess)));
    b.extend([PIC_AND_IOAPIC, s.gsi as u8]);
    b.extend(s.gsi.to_le_bytes());
    b.extend([BAUD_115200, 0, ONE_STOP_BIT, 0, ANSI, 0]);
    // No PCI device.
    b.extend([0xff, 0xff, 0xff, 0xff]);
    b.extend([0; 12]);
    let mut t = table(b"SPCR", 2);
    t.append_slice(&b);
    t.as_slice().to_vec()
}

/// The debug port table 2 with one 16550.
pub(crate) fn dbg2(s: &SerialDescription) -> Vec<u8> {
    const NAME: &[u8] = b"\\_SB_.COM1\0";
    const HEADER: u16 = 22;
    const GAS_LEN: u16 = 12;
    const SERIAL: u16 = 0x8000;
    let name_at = HEADER + GAS_LEN + 4;
    let len = name_at + NAME.len() as u16;
    let mut b = Vec::new();
    // Offset and count of the devices.
    b.extend(44u32.to_le_bytes());
    b.extend(1u32.to_le_bytes());
    b.push(0);
    b.extend(len.to_le_bytes());
    b.push(1);
    b.extend((NAME.len() as u16).to_le_bytes());
    b.extend(name_at.to_le_bytes());
    // No OEM data.
    b.extend([0; 4]);
    b.extend(SERIAL.to_le_bytes());
    // 16550, reserved.
    b.extend([0; 4]);
    b.extend(HEADER.to_le_bytes());
    b.extend((HEADER + GAS_LEN).to_le_bytes());
    b.extend(bytes_of_gas(port(s.port, 8, AccessSize::ByteAccess)));
    b.extend(8u32.to_le_bytes());
    b.extend(NAME);
    let mut t = table(b"DBG2", 0);
    t.append_slice(&b);
    t.as_slice().to_vec()
}
