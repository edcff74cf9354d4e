//! ACPI tables of the board, built from its description (ACPI 6.5).

mod description;
mod dsdt;
mod fixed;
mod hotplug;
mod mp_table;
#[cfg(test)]
mod tests;
mod watchdog;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

pub use description::{
    AcpiDescription, HotplugDescription, HpetDescription, PciDescription, SCI_GSI, SerialDescription,
    VirtioMmioDescription, WatchdogDescription,
};
pub use mp_table::mp_table;

const OEM_ID: [u8; 6] = *b"STRATA";
const OEM_TABLE_ID: [u8; 8] = *b"STRATAPC";
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this; the FACS needs it.
const ALIGNMENT: u64 = 64;

/// Bytes for guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Guest-physical address.
    pub address: u64,
    /// What to store there.
    pub bytes: Vec<u8>,
}

/// An empty table with our identification.
fn table(signature: &[u8; 4], revision: u8) -> Sdt {
    Sdt::new(*signature, 36, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// Lays tables one behind another.
struct Layout {
    next: u64,
    pieces: Vec<Piece>,
}

impl Layout {
    fn place(&mut self, bytes: Vec<u8>) -> u64 {
        let address = self.next;
        self.next = (address + bytes.len() as u64).next_multiple_of(ALIGNMENT);
        self.pieces.push(Piece { address, bytes });
        address
    }
}

/// Build all tables. The first piece is the RSDP; none overlap if its address
/// and those of the tables are as [`AcpiDescription`] asks.
pub fn build(d: &AcpiDescription) -> Vec<Piece> {
    let mut layout = Layout { next: d.tables_address, pieces: Vec::new() };
    let facs = layout.place(bytes_of(&FACS::new()));
    let dsdt = layout.place(dsdt::build(d));
    let mut entries = vec![layout.place(fixed::fadt(d, facs, dsdt)), layout.place(fixed::madt(d))];
    if let Some(hpet) = &d.hpet {
        entries.push(layout.place(fixed::hpet(hpet)));
    }
    if let Some(pci) = &d.pci {
        entries.push(layout.place(fixed::mcfg(pci)));
    }
    if let Some(serial) = d.serial.first() {
        entries.push(layout.place(fixed::spcr(serial)));
        entries.push(layout.place(fixed::dbg2(serial)));
    }
    if let Some(watchdog) = &d.watchdog {
        entries.push(layout.place(watchdog::wdat(watchdog)));
    }
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    entries.into_iter().for_each(|entry| xsdt.add_entry(entry));
    let xsdt = layout.place(bytes_of(&xsdt));
    let rsdp = Piece { address: d.rsdp_address, bytes: bytes_of(&Rsdp::new(OEM_ID, xsdt)) };
    let mut pieces = layout.pieces;
    pieces.insert(0, rsdp);
    pieces
}
