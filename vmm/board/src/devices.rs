//! The device list: what a machine has and where each thing is attached.
//!
//! Each device is one small function from the context to an [`Attachment`]; the
//! board is a loop over [`LIST`].

use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use chipset::{
    AcpiPm, DebugExit, FwCfg, Hotplug, Hpet, HpetLines, I8042, IoApic, IrqRouter, Pic, Pit, PowerEvents,
    ResetControl,
};
use chipset::{
    Rtc, RtcConfig, Serial, SerialInput, SerialOutput, SlotKind, TestDevice, Watchdog, WatchdogExpiry,
    fw_cfg_key,
};
use device_model::{Clock, Device, IrqLine, MsiSink, PortRange};
use disk::Disk;
use guest_memory::GuestMemory;
use pci::{PciBus, PciBusConfig};
use virtio_balloon::BalloonHandle;
use virtio_console::{ConsoleHandle, PortOutput};
use virtio_core::VirtioDevice;
use virtio_vsock::VirtioVsock;

use crate::disks::disks;
use crate::events::{EventPoster, MachineEvent};
use crate::network::virtio_nets;
use crate::pci_hotplug::PluggedDevice;
use crate::pmem::{PmemRange, virtio_pmems};
use crate::power::{PanicNotifier, PowerPoster};
use crate::shares::virtio_shares;
use crate::spec::{MachineSpec, MachineType, WatchdogAction};
use crate::virtio::{virtio_balloon, virtio_console, virtio_ports, virtio_rng, virtio_vsock};

/// A device behind its lock.
pub(crate) type SharedDevice = Arc<Mutex<dyn Device>>;

/// A device and the addresses it answers to.
pub(crate) struct Attachment {
    pub(crate) device: SharedDevice,
    pub(crate) ports: Vec<PortRange>,
    /// First address and length.
    pub(crate) mmio: Vec<(u64, u64)>,
}

pub(crate) fn attach(device: impl Device + 'static) -> Attachment {
    Attachment { device: Arc::new(Mutex::new(device)), ports: Vec::new(), mmio: Vec::new() }
}

impl Attachment {
    fn ports(mut self, ranges: &[PortRange]) -> Self {
        self.ports.extend_from_slice(ranges);
        self
    }
    fn at_port(self, base: u16, len: u16) -> Self {
        self.ports(&[PortRange::new(base, len, 0)])
    }
    pub(crate) fn mmio(mut self, start: u64, len: u64) -> Self {
        self.mmio.push((start, len));
        self
    }
}

/// What device functions make devices from, and the handles they leave for the
/// board's own use.
pub(crate) struct Context<'a> {
    pub(crate) spec: &'a MachineSpec,
    pub(crate) clock: Clock,
    pub(crate) router: Arc<IrqRouter>,
    pub(crate) pic: Pic,
    pub(crate) ioapic: IoApic,
    /// The local APICs, for message-signalled interrupts.
    pub(crate) msi: Arc<dyn MsiSink>,
    pub(crate) events: EventPoster,
    pub(crate) power: Arc<dyn PowerEvents>,
    pub(crate) memory: GuestMemory,
    /// Opened disks, in the order of the specification.
    pub(crate) disks: Vec<Arc<dyn Disk>>,
    /// Where the next function of the PCI bus goes.
    pub(crate) free_pci_slot: u8,
    /// Outputs of the serial ports, COM1 first; taken by [`serial_ports`].
    pub(crate) serial_outputs: Vec<Box<dyn SerialOutput>>,
    /// Ports of the network cards; taken by [`virtio_nets`].
    pub(crate) networks: Vec<crate::Ports>,
    /// Output of the virtio console; taken by [`virtio_console`].
    pub(crate) console: Option<Box<dyn PortOutput>>,
    /// Outputs of the named ports; taken by [`virtio_ports`].
    pub(crate) ports: Vec<Box<dyn PortOutput>>,
    /// Opened files for the guest's memory; taken by [`virtio_pmems`].
    pub(crate) pmems: Vec<PmemRange>,
    /// The socket device; taken by [`virtio_vsock`].
    pub(crate) vsock: Option<VirtioVsock>,
    /// The file system devices; taken by [`virtio_shares`].
    pub(crate) shares: Vec<Box<dyn VirtioDevice>>,
    pub(crate) handles: Handles,
}

/// Typed access to devices the owner talks to.
#[derive(Default)]
pub(crate) struct Handles {
    /// Slot and input of each serial port.
    pub(crate) serial: Vec<(usize, SerialInput)>,
    pub(crate) pm: Option<(usize, AcpiPm)>,
    pub(crate) hotplug: Option<Hotplug>,
    /// The bus and the slots through which its configuration space is reached.
    pub(crate) pci: Option<([usize; 2], PciBus)>,
    /// What sits in the slots of the PCI bus, and virtio devices beside it.
    pub(crate) plugged: Vec<PluggedDevice>,
    /// Registers and interrupt of virtio devices on the MMIO transport.
    pub(crate) virtio_mmio: Vec<(u64, u32)>,
    pub(crate) balloon: Option<BalloonHandle>,
    pub(crate) console: Option<ConsoleHandle>,
    pub(crate) ports: Option<ConsoleHandle>,
    /// Files that are locked as long as the machine is there.
    pub(crate) pmems: Vec<PmemRange>,
}

impl Context<'_> {
    fn line(&self, gsi: u32) -> IrqLine {
        self.router.line(gsi)
    }

    /// The next free slot of the PCI bus. The specification has been judged: there
    /// is one.
    pub(crate) fn take_pci_slot(&mut self) -> u8 {
        let slot = self.free_pci_slot;
        self.free_pci_slot += 1;
        slot
    }
}

/// A device function: makes its devices, given the slot the first one will have.
type Make = fn(&mut Context<'_>, usize) -> Vec<Attachment>;

/// Every device of every machine type, in saved-state order.
pub(crate) const LIST: &[Make] = &[
    interrupt_controllers,
    timers,
    serial_ports,
    keyboard_controller,
    power_management,
    pci_bus,
    hotplug,
    watchdog,
    panic_notifier,
    debug_exit,
    firmware_configuration,
    disks,
    virtio_rng,
    virtio_balloon,
    virtio_nets,
    virtio_vsock,
    virtio_shares,
    virtio_console,
    virtio_ports,
    virtio_pmems,
];

/// First port and interrupt of COM1 to COM4.
pub(crate) const SERIAL_PLACES: [(u16, u32); 4] =
    [(Serial::COM1, 4), (Serial::COM2, 3), (Serial::COM3, 4), (Serial::COM4, 3)];
/// Interrupts of INTA#-INTD# of PCI device 0.
pub(crate) const PCI_GSIS: [u32; 4] = [16, 17, 18, 19];
/// Slots of a PCI bus.
pub(crate) const PCI_SLOTS: u8 = 32;
/// Ports of an interface that a debug-exit device occupies.
const DEBUG_EXIT_PORTS: u16 = 4;

fn interrupt_controllers(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    vec![attach(c.pic.clone()).ports(Pic::PORTS), attach(c.ioapic.clone()).mmio(IoApic::BASE, IoApic::SIZE)]
}

/// The HPET can replace the PIT and the RTC: their lines go through it.
fn timers(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let (below, above) = crate::memory::split(c.spec.memory);
    let config = RtcConfig { ram_below_4g: below, ram_above_4g: above };
    let hpet = Hpet::new(
        c.clock.clone(),
        HpetLines { gsi: (0..24).map(|g| c.line(g)).collect(), pit_irq0: c.line(0), rtc_irq8: c.line(8) },
    );
    vec![
        attach(Pit::new(c.clock.clone(), hpet.gate(c.line(0)))).ports(Pit::PORTS),
        attach(Rtc::new(c.clock.clone(), hpet.gate(c.line(8)), config)).ports(Rtc::PORTS),
        attach(hpet).mmio(Hpet::BASE, Hpet::SIZE),
    ]
}

fn serial_ports(c: &mut Context<'_>, slot: usize) -> Vec<Attachment> {
    let outputs = std::mem::take(&mut c.serial_outputs);
    let mut list = Vec::new();
    for (i, (output, (port, gsi))) in outputs.into_iter().zip(SERIAL_PLACES).enumerate() {
        let serial = Serial::new(c.clock.clone(), c.line(gsi), output);
        c.handles.serial.push((slot + i, serial.input()));
        list.push(attach(serial).at_port(port, Serial::PORT_COUNT));
    }
    list
}

fn keyboard_controller(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    vec![
        attach(I8042::new(c.line(1), c.line(12), c.power.clone())).ports(I8042::PORTS),
        attach(ResetControl::new(c.power.clone())).ports(ResetControl::PORTS),
    ]
}

fn power_management(c: &mut Context<'_>, slot: usize) -> Vec<Attachment> {
    let pm = AcpiPm::new(c.clock.clone(), c.line(acpi::SCI_GSI), c.power.clone());
    let slot_ports: Vec<_> =
        AcpiPm::PORTS.iter().map(|p| PortRange { base: p.base + AcpiPm::DEFAULT_BASE, ..*p }).collect();
    c.handles.pm = Some((slot, pm.clone()));
    vec![attach(pm).ports(&slot_ports)]
}

fn pci_bus(c: &mut Context<'_>, slot: usize) -> Vec<Attachment> {
    let bus = PciBus::new(PciBusConfig { interrupts: PCI_GSIS.map(|gsi| c.line(gsi)) });
    let ecam = bus.ecam();
    c.handles.pci = Some(([slot, slot + 1], bus.clone()));
    vec![attach(bus).ports(PciBus::PORTS), attach(ecam).mmio(PciBus::ECAM_BASE, PciBus::ECAM_SIZE)]
}

/// Slots for what comes and goes while the guest runs.
fn hotplug(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let pieces = crate::memory::pieces(c.spec.memory, c.spec.more_memory());
    let events = c.events.clone();
    let ejected = Box::new(move |kind, slot| events.post(MachineEvent::Ejected { kind, slot }));
    let slots = [c.spec.most_cpus() as usize, pieces.len(), PCI_SLOTS.into()];
    let hotplug = Hotplug::new(slots, ejected);
    // The bootstrap processor stays.
    hotplug.keep(SlotKind::Processor, 0);
    for cpu in 1..c.spec.cpus as usize {
        hotplug.set_present(SlotKind::Processor, cpu);
    }
    c.handles.hotplug = Some(hotplug.clone());
    vec![attach(hotplug).ports(Hotplug::PORTS)]
}

fn watchdog(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let Some(action) = c.spec.watchdog else { return Vec::new() };
    let power = c.power.clone();
    let expiry: WatchdogExpiry = Arc::new(move || match action {
        WatchdogAction::Reset => power.reset(),
        WatchdogAction::PowerOff => power.power_off(),
    });
    vec![attach(Watchdog::new(c.clock.clone(), expiry)).ports(Watchdog::PORTS)]
}

fn panic_notifier(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    vec![attach(PanicNotifier::new(c.events.clone())).at_port(PanicNotifier::PORT, 1)]
}

/// What test programs end with, and the device they test interrupts with.
fn debug_exit(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let Some(port) = c.spec.debug_exit else { return Vec::new() };
    let events = c.events.clone();
    // As QEMU's isa-debug-exit: odd statuses, so that none is mistaken for success.
    let exit = DebugExit::new(Box::new(move |value| {
        events.post(MachineEvent::DebugExit((value << 1) as u8 | 1));
    }));
    let test = TestDevice::new((0..IoApic::PINS).map(|gsi| c.line(gsi)).collect());
    vec![
        attach(exit).at_port(port, DEBUG_EXIT_PORTS),
        attach(test).ports(TestDevice::PORTS).mmio(TestDevice::BASE, TestDevice::SIZE),
    ]
}

/// What firmware and test programs ask about the machine.
fn firmware_configuration(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    if c.spec.machine == MachineType::Micro && c.spec.debug_exit.is_none() {
        return Vec::new();
    }
    let (below, above) = crate::memory::split(c.spec.memory);
    let mut fw_cfg = FwCfg::new(c.memory.clone());
    fw_cfg.set_u64(fw_cfg_key::RAM_SIZE, c.spec.memory);
    match c.handles.hotplug.clone() {
        Some(slots) => {
            fw_cfg.ask_u16(fw_cfg_key::CPU_COUNT, move || slots.present(SlotKind::Processor).len() as u16);
        }
        None => fw_cfg.set_u16(fw_cfg_key::CPU_COUNT, c.spec.cpus as u16),
    }
    fw_cfg.set_u16(fw_cfg_key::MAX_CPUS, c.spec.most_cpus() as u16);
    // Address, length and type (RAM) of each piece.
    let ram = [(0, below), (crate::memory::HIGH_RAM_START, above)];
    let e820: Vec<u8> = ram
        .into_iter()
        .filter(|&(_, length)| length > 0)
        .flat_map(|(start, length)| {
            [&start.to_le_bytes()[..], &length.to_le_bytes(), &1u32.to_le_bytes()].concat()
        })
        .collect();
    // The only file of a new device: neither its name nor its size can be refused.
    let _ = fw_cfg.add_file("etc/e820", e820);
    vec![attach(fw_cfg).ports(FwCfg::PORTS)]
}

/// Power requests go to the machine's owner.
pub(crate) fn power_events(events: &EventPoster) -> Arc<dyn PowerEvents> {
    Arc::new(PowerPoster(events.clone()))
}

/// Lock a device unless somebody has it.
pub(crate) fn try_lock(
    device: &Mutex<dyn Device>,
) -> Option<std::sync::MutexGuard<'_, dyn Device + 'static>> {
    match device.try_lock() {
        Ok(device) => Some(device),
        Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Lock a device; a panic in another thread's access does not lock it for ever.
pub(crate) fn lock(device: &Mutex<dyn Device>) -> std::sync::MutexGuard<'_, dyn Device + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
