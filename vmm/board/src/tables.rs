//! Firmware tables in guest memory.

use acpi::{AcpiDescription, HpetDescription, PciDescription, SerialDescription};
use chipset::{AcpiPm, Hpet, IoApic, ResetControl};
use guest_memory::{GuestMemory, MemoryError};

use pci::PciBus;

use crate::devices::{PCI_GSIS, SERIAL_PLACES};
use crate::memory::{PCI_WINDOW_32, PCI_WINDOW_64};
use crate::spec::MachineSpec;

/// The port of the reset control register.
const RESET_PORT: u16 = ResetControl::PORTS[0].base;

/// What the ACPI tables say of a machine.
fn describe(spec: &MachineSpec) -> AcpiDescription {
    let serial = SERIAL_PLACES.iter().take(spec.serial.len());
    AcpiDescription {
        ioapic_id: ioapic_id(spec.cpus),
        ioapic_address: IoApic::BASE as u32,
        pm_base: AcpiPm::DEFAULT_BASE,
        sleep_type_s5: AcpiPm::SLEEP_TYPE_S5,
        reset: (RESET_PORT, ResetControl::RESET_VALUE),
        hpet: Some(HpetDescription { address: Hpet::BASE, block_id: Hpet::BLOCK_ID }),
        serial: serial.map(|&(port, gsi)| SerialDescription { port, gsi }).collect(),
        pci: Some(PciDescription {
            ecam: PciBus::ECAM_BASE,
            last_bus: 255,
            window_32: PCI_WINDOW_32,
            window_64: Some(PCI_WINDOW_64),
            interrupts: PCI_GSIS,
        }),
        ..AcpiDescription::pc((0..spec.cpus).collect())
    }
}

/// One more than the highest local APIC ID.
pub(crate) fn ioapic_id(cpus: u32) -> u8 {
    cpus as u8
}

/// Store the ACPI tables; answers the RSDP's address.
///
/// # Errors
/// When the machine's memory does not reach to 1 MiB, which none of ours does.
pub(crate) fn store(memory: &GuestMemory, spec: &MachineSpec) -> Result<u64, MemoryError> {
    let description = describe(spec);
    for piece in acpi::build(&description) {
        memory.store(piece.address, &piece.bytes)?;
    }
    Ok(description.rsdp_address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_pointer_is_where_guests_search_it() {
        let memory = GuestMemory::flat(2 << 20).unwrap();
        for cpus in [1, crate::spec::MAX_CPUS] {
            let spec = MachineSpec { cpus, ..MachineSpec::default() };
            let at = store(&memory, &spec).unwrap();
            let mut signature = [0; 8];
            memory.load(at, &mut signature).unwrap();
            assert_eq!(&signature, b"RSD PTR ");
            let end =
                acpi::build(&describe(&spec)).iter().map(|p| p.address + p.bytes.len() as u64).max().unwrap();
            assert!(end <= 0x10_0000, "{end:#x}");
        }
    }
}
