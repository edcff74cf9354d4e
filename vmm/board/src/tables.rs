//! Firmware tables in guest memory.

use acpi::{
    AcpiDescription, HotplugDescription, HpetDescription, PciDescription, SerialDescription,
    VirtioMmioDescription, WatchdogDescription,
};
use chipset::{AcpiPm, Hpet, IoApic, ResetControl, SlotKind, Watchdog};
use guest_memory::{GuestMemory, MemoryError};

use pci::PciBus;
use virtio_core::VirtioMmio;

use crate::devices::{PCI_GSIS, SERIAL_PLACES};
use crate::memory::{PCI_WINDOW_32, PCI_WINDOW_64};
use crate::spec::MachineSpec;

/// The port of the reset control register.
const RESET_PORT: u16 = ResetControl::PORTS[0].base;

/// What the tables tell of a machine beside its specification: how it is now.
#[derive(Debug, Clone, Default)]
pub(crate) struct Now {
    /// Numbers of the processors that the guest has been given.
    pub(crate) processors: Vec<usize>,
    /// Slots of the PCI bus that are free or whose device can go.
    pub(crate) pci_slots: Vec<u8>,
    /// Registers and interrupt of each virtio device on the MMIO transport.
    pub(crate) virtio_mmio: Vec<(u64, u32)>,
}

/// What the ACPI tables say of a machine.
fn describe(spec: &MachineSpec, now: &Now) -> AcpiDescription {
    let serial = SERIAL_PLACES.iter().take(spec.serial.len());
    let absent = (0..spec.most_cpus() as usize).filter(|cpu| !now.processors.contains(cpu));
    AcpiDescription {
        ioapic_id: ioapic_id(spec.most_cpus()),
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
        hotplug: HotplugDescription {
            absent_processors: absent.collect(),
            processor_port: Some(SlotKind::Processor.port()),
            memory: crate::memory::pieces(spec.memory, spec.more_memory()),
            memory_port: SlotKind::Memory.port(),
            pci_slots: now.pci_slots.clone(),
            pci_port: SlotKind::Pci.port(),
        },
        watchdog: spec.watchdog.map(|_| WatchdogDescription {
            port: Watchdog::PORTS[0].base,
            period_ms: (Watchdog::PERIOD / 1_000_000) as u32,
            max_count: Watchdog::MAX_COUNT,
        }),
        virtio_mmio: now
            .virtio_mmio
            .iter()
            .map(|&(address, gsi)| VirtioMmioDescription {
                address: address as u32,
                size: VirtioMmio::SIZE as u32,
                gsi,
            })
            .collect(),
        ..AcpiDescription::pc((0..spec.most_cpus()).collect())
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
pub(crate) fn store(memory: &GuestMemory, spec: &MachineSpec, now: &Now) -> Result<u64, MemoryError> {
    let description = describe(spec, now);
    for piece in acpi::build(&description) {
        memory.store(piece.address, &piece.bytes)?;
    }
    Ok(description.rsdp_address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::PCI_SLOTS;

    #[test]
    fn the_root_pointer_is_where_guests_search_it() {
        let memory = GuestMemory::flat(2 << 20).unwrap();
        for cpus in [1, crate::spec::MAX_CPUS] {
            let memory_max = Some(MachineSpec::default().memory + (64 << 30));
            let cpus_max = Some(crate::spec::MAX_CPUS);
            let spec = MachineSpec { cpus, cpus_max, memory_max, ..MachineSpec::default() };
            let now = Now {
                processors: (0..cpus as usize).collect(),
                pci_slots: (1..PCI_SLOTS).collect(),
                virtio_mmio: (1..32)
                    .map(|n| (crate::memory::VIRTIO_MMIO + n * VirtioMmio::SIZE, 16))
                    .collect(),
            };
            let at = store(&memory, &spec, &now).unwrap();
            let mut signature = [0; 8];
            memory.load(at, &mut signature).unwrap();
            assert_eq!(&signature, b"RSD PTR ");
            let end = acpi::build(&describe(&spec, &now))
                .iter()
                .map(|p| p.address + p.bytes.len() as u64)
                .max()
                .unwrap();
            assert!(end <= 0x10_0000, "{end:#x}");
        }
    }
}
