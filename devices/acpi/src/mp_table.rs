//! The tables of the MultiProcessor Specification 1.4, for kernels without ACPI.

use crate::{AcpiDescription, Piece, SCI_GSI};

const SPEC_REVISION: u8 = 4;
const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x20;
const FLOATING_POINTER: u64 = 16;
/// Family 6; CPUID says the rest.
const CPU_SIGNATURE: u32 = 0x600;
/// FPU, MCE, CX8 and APIC, the features that the specification names.
const CPU_FEATURES: u32 = 1 << 0 | 1 << 7 | 1 << 8 | 1 << 9;
const ISA_BUS: u8 = 0;
/// Active high, level-triggered.
const HIGH_LEVEL: u16 = 0xd;
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, &b| sum.wrapping_sub(b))
}

/// Build the floating pointer and, behind it, the configuration table at
/// `address`: a multiple of 16 in 0xf0000-0xfffff or the last KiB of base
/// memory. Processors with APIC IDs from 255 cannot be named and are left out.
pub fn mp_table(d: &AcpiDescription, address: u64) -> Piece {
    let mut entries = Vec::new();
    let mut count = 0u16;
    let mut entry = |parts: &[&[u8]]| {
        parts.iter().for_each(|p| entries.extend_from_slice(p));
        count += 1;
    };
    for (i, id, there) in d.processors() {
        let Some(id) = u8::try_from(id).ok().filter(|&id| there && id != 0xff) else { continue };
        // Usable; the first is the bootstrap processor.
        let flags = if i == 0 { 3 } else { 1 };
        let head = [0, id, LOCAL_APIC_VERSION, flags];
        entry(&[&head, &CPU_SIGNATURE.to_le_bytes(), &CPU_FEATURES.to_le_bytes(), &[0; 8]]);
    }
    entry(&[&[1, ISA_BUS], b"ISA   "]);
    entry(&[&[2, d.ioapic_id, IOAPIC_VERSION, 1], &d.ioapic_address.to_le_bytes()]);
    for irq in (0..16u8).filter(|&irq| irq != 2) {
        let pin = if irq == 0 { 2 } else { irq };
        let flags = if u32::from(irq) == SCI_GSI { HIGH_LEVEL } else { 0 };
        entry(&[&[3, INT], &flags.to_le_bytes(), &[ISA_BUS, irq, d.ioapic_id, pin]]);
    }
    // The PIC at LINT0 of the bootstrap processor, NMI at LINT1 of all.
    let bootstrap = d.apic_ids.first().map_or(0, |&id| id as u8);
    entry(&[&[4, EXT_INT, 0, 0, ISA_BUS, 0, bootstrap, 0]]);
    entry(&[&[4, NMI, 0, 0, ISA_BUS, 0, 0xff, 1]]);

    let mut table = b"PCMP".to_vec();
    table.extend((44 + entries.len() as u16).to_le_bytes());
    table.extend([SPEC_REVISION, 0]);
    table.extend(b"STRATA  PC          ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC_ADDRESS.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);

    let mut bytes = b"_MP_".to_vec();
    bytes.extend(((address + FLOATING_POINTER) as u32).to_le_bytes());
    bytes.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes.extend(table);
    Piece { address, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_checksums() {
        for (cpus, named) in [(1u32, 1), (4, 4), (300, 255)] {
            let piece = mp_table(&AcpiDescription::pc((0..cpus).collect()), 0xf_5000);
            let (pointer, table) = piece.bytes.split_at(16);
            assert_eq!((&pointer[..4], checksum(pointer)), (&b"_MP_"[..], 0));
            assert_eq!(u32::from_le_bytes(pointer[4..8].try_into().unwrap()), 0xf_5010);
            assert_eq!((&table[..4], checksum(table)), (&b"PCMP"[..], 0));
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            let mut counts = [0; 5];
            let mut rest = &table[44..];
            while let Some(&kind) = rest.first() {
                counts[usize::from(kind)] += 1;
                rest = &rest[if kind == 0 { 20 } else { 8 }..];
            }
            assert_eq!(counts, [named, 1, 1, 15, 2]);
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), counts.iter().sum::<u16>());
        }
    }
}
