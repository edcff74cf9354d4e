//! From a machine specification to a wired machine.
//!
//! [`MachineSpec`] says what is wanted, [`Board::build`] makes it: memory map,
//! devices and who answers at which address, interrupt wiring, timers, firmware
//! tables. Engines see the board as [`engine::Bus`]; its owner
//! (`lifecycle`) gets [`MachineEvent`]s.
//!
//! | module | what |
//! | --- | --- |
//! | `spec` | the specification and its judge |
//! | `devices` | the device list: one function a device |
//! | `disks` | images a machine's disks are made of |
//! | `board` | the loop over the list; state of the machine beside its vCPUs |
//! | `bus` | routing of accesses |
//! | `pci_routes` | where the guest has mapped BARs |
//! | `interrupts` | the switch between the platform's local APICs and an engine's |
//! | `hotplug` | processors and memory that come and go |
//! | `pci_hotplug` | disks and network cards that come and go |
//! | `virtio` | virtio devices on the PCI bus and beside it |
//! | `pmem` | files in the guest's memory |
//! | `network` | network cards and what carries their frames |
//! | `timers` | when devices act by themselves |
//! | `pvclock` | the paravirtual clock |
//! | `boot`, `memory`, `tables` | images, memory map, ACPI |
//!
//! Lock order, outermost first: device · PIC, IOAPIC · interrupt switch · local
//! APIC · APIC deadline · timer queue.

mod board;
mod boot;
mod bus;
mod devices;
mod disks;
mod events;
mod hotplug;
mod interrupts;
mod memory;
mod network;
mod pci_hotplug;
mod pci_routes;
mod pmem;
mod power;
mod pvclock;
mod ranges;
mod shares;
mod spec;
mod tables;
mod timers;
mod virtio;

pub use board::{Board, BoardError, BoardIo};
pub use boot::{BootError, ImageError, MAX_IMAGE};
pub use chipset::SlotKind;
pub use disks::{DiskInterface, DiskSpec, MAX_DISK_SERIAL, MAX_DISKS};
pub use events::{EventPoster, EventQueue, MachineEvent};
pub use hotplug::{HotplugError, Resources};
pub use interrupts::HeldInterrupts;
pub use memory::{HIGH_RAM_START, LOW_RAM_LIMIT, MIN_PIECE};
pub use network::{
    NatSpec, NetBackend, NetSpec, NetworkError, PasstSpec, Ports, TapSpec, open_network, open_networks,
};
pub use pci_hotplug::{DeviceInfo, EndingDevice};
pub use pmem::{PmemError, PmemSpec};
pub use shares::{ShareBackend, ShareSpec, open_shares};
pub use spec::{
    BalloonSpec, BootSpec, MAX_CPUS, MAX_MEMORY, MAX_PORT_NAME, MIN_MEMORY, MachineSpec, MachineType,
    PortSpec, RngSpec, SerialSpec, SpecError, TimeSource, VirtioTransport, VsockSpec, WatchdogAction,
    bytes_text,
};
pub use timers::{NEVER, TimerQueue};
pub use virtio_console::{ConsoleHandle, PortOutput};
