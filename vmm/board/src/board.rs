//! The machine around the vCPUs.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chipset::{ApicWiring, IoApic, IrqRouter, LocalApics, LocalApicsConfig, Pic, SerialOutput, SlotKind};
use device_model::{Clock, Nanos, PortRange};
use engine::{Attention, LocalInterrupts, VcpuConfig};
use guest_memory::GuestMemory;
use loader::{BootState, MemoryRange};
use pci::PciBus;
use virtio_console::PortOutput;
use x86_state::{CpuModel, CpuState, Feature, PhysicalBits, Topology};

use crate::boot::{self, BootError, ImageError, Images};
use crate::devices::{self, Attachment, Context, Handles, SharedDevice};
use crate::disks::DiskSpec;
use crate::events::{EventPoster, EventQueue};
use crate::interrupts::{HeldInterrupts, LocalInterruptSwitch};
use crate::memory;
use crate::pci_hotplug::PluggedDevice;
use crate::pci_routes::PciRoutes;
use crate::pmem::{self, PmemError};
use crate::pvclock::ParavirtualClock;
use crate::ranges::{Conflict, Range, RangeTable};
use crate::spec::{MachineSpec, SpecError, TimeSource};
use crate::timers::TimerQueue;

/// Why a machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// The specification is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// An image cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image cannot be started.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The host refused what a device needs.
    #[error("the host refused {0}: {1}; see the limits of this user (ulimit -a)")]
    Device(&'static str, std::io::Error),
    /// A folder that cannot be shared.
    #[error("cannot share {}: {error}; check that it is a folder you may enter", folder.display())]
    Share {
        /// The folder.
        folder: PathBuf,
        /// The host's error.
        error: std::io::Error,
    },
    /// The host refused memory.
    #[error(transparent)]
    Memory(#[from] guest_memory::MemoryError),
    /// A disk's image cannot be attached.
    #[error(transparent)]
    Disk(#[from] disk::OpenError),
    /// A file cannot be in the guest's memory.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// Two devices claim one address; a mistake in the device list or in
    /// `debug_exit`.
    #[error("devices {0} and {1} both claim address {2:#x}; move --debug-exit to a free port")]
    Conflict(&'static str, &'static str, u64),
}

impl BoardError {
    /// The specification or an image is at fault, not the host or Strata.
    pub fn is_input(&self) -> bool {
        match self {
            BoardError::Spec(_)
            | BoardError::Image(_)
            | BoardError::Disk(_)
            | BoardError::Pmem(_)
            | BoardError::Conflict(..)
            | BoardError::Share { .. } => true,
            BoardError::Boot(e) => !matches!(e, BootError::Memory(_)),
            BoardError::Memory(_) | BoardError::Device(..) => false,
        }
    }
}

/// How much later a device is tried again that is in use when its deadline comes.
const BUSY_NS: Nanos = 50_000;

/// How many accesses there were, for statistics.
#[derive(Debug, Default)]
pub(crate) struct AccessCounts {
    pub(crate) port: AtomicU64,
    pub(crate) mmio: AtomicU64,
    pub(crate) apic: AtomicU64,
    pub(crate) unclaimed: AtomicU64,
}

/// A wired machine without processors: memory, devices, interrupt routing,
/// timers. Engines see it as [`engine::Bus`].
pub struct Board {
    // Static configuration.
    spec: MachineSpec,
    model: Arc<CpuModel>,
    images: Images,
    /// What the guest is told of its memory.
    memory_map: Vec<MemoryRange>,
    // Runtime glue.
    pub(crate) memory: GuestMemory,
    clock: Clock,
    attentions: Vec<Arc<Attention>>,
    pub(crate) devices: Vec<SharedDevice>,
    pub(crate) ports: RangeTable,
    pub(crate) mmio: RangeTable,
    pub(crate) handles: Handles,
    pub(crate) plugged: Mutex<Vec<PluggedDevice>>,
    /// Slots of the PCI configuration space, and where BARs are.
    pub(crate) pci: Option<([usize; 2], PciRoutes)>,
    pub(crate) apics: Arc<LocalApics>,
    pub(crate) interrupts: Arc<LocalInterruptSwitch>,
    pub(crate) pic: Pic,
    pub(crate) pvclock: ParavirtualClock,
    timers: Arc<TimerQueue>,
    /// Makes "ask the APICs for their deadline, then set it" one step.
    apic_deadline: Mutex<()>,
    events: EventPoster,
    event_queue: EventQueue,
    pub(crate) counts: AccessCounts,
}

/// What the board needs from its process.
pub struct BoardIo {
    /// Outputs of the serial ports, COM1 first.
    pub serial: Vec<Box<dyn SerialOutput>>,
    /// What carries the frames of the network cards, from [`crate::open_networks`].
    pub networks: Vec<crate::Ports>,
    /// Daemons that serve folders, from [`crate::open_shares`].
    pub shares: Vec<vhost_user_fs::Backend>,
    /// Where the virtio console's output goes.
    pub console: Option<Box<dyn PortOutput>>,
    /// Where that of the named ports goes, in their order.
    pub ports: Vec<Box<dyn PortOutput>>,
    /// Where programs of the host reach the guest's sockets.
    pub vsock: Option<UnixListener>,
    /// The clock to use in host time, where an engine needs one of its own; it
    /// must tick as the specification says. `None`: one that starts at 0.
    pub clock: Option<Clock>,
    /// Where events are posted.
    pub events: EventPoster,
    /// Where they come out.
    pub event_queue: EventQueue,
}

impl BoardIo {
    /// No serial ports, a new event channel.
    pub fn new() -> Self {
        let (events, event_queue) = EventQueue::new();
        BoardIo {
            serial: Vec::new(),
            networks: Vec::new(),
            shares: Vec::new(),
            console: None,
            ports: Vec::new(),
            vsock: None,
            clock: None,
            events,
            event_queue,
        }
    }
}

impl Default for BoardIo {
    fn default() -> Self {
        Self::new()
    }
}

/// The interrupt controllers and their connections.
struct Interrupts {
    apics: Arc<LocalApics>,
    switch: Arc<LocalInterruptSwitch>,
    pic: Pic,
    ioapic: IoApic,
}

fn wire_interrupts(model: &CpuModel, clock: &Clock, attentions: &[Arc<Attention>]) -> Interrupts {
    let config = LocalApicsConfig {
        apic_ids: (0..attentions.len() as u32).collect(),
        physical_bits: PhysicalBits::MAX as u8,
        x2apic: model.has(Feature::X2apic),
        tsc_deadline: model.has(Feature::TscDeadline),
    };
    let apics = LocalApics::new(config, clock.clone(), attentions.to_vec());
    let switch = Arc::new(LocalInterruptSwitch::new(apics.clone()));
    let extint = switch.clone();
    let pic = Pic::new(Box::new(move |asserted| extint.set_extint(asserted)));
    let ioapic = IoApic::new(crate::tables::ioapic_id(attentions.len() as u32), switch.clone());
    let (eoi, acknowledge) = (ioapic.clone(), pic.clone());
    apics.connect(ApicWiring {
        end_of_interrupt: Box::new(move |vector| eoi.end_of_interrupt(vector)),
        acknowledge_pic: Box::new(move || Some(acknowledge.acknowledge())),
    });
    Interrupts { apics, switch, pic, ioapic }
}

/// Make every device of the list and note who answers where.
fn attach_devices(
    context: &mut Context<'_>,
) -> Result<(Vec<SharedDevice>, RangeTable, RangeTable), BoardError> {
    let (mut slots, mut ports, mut mmio) =
        (Vec::<SharedDevice>::new(), RangeTable::default(), RangeTable::default());
    for make in devices::LIST {
        for Attachment { device, ports: port_ranges, mmio: mmio_ranges } in make(context, slots.len()) {
            let slot = slots.len();
            slots.push(device);
            let name = |i: usize| devices::lock(&slots[i]).name();
            let conflict =
                |Conflict(a, b): Conflict| BoardError::Conflict(name(a.slot), name(b.slot), a.start);
            for PortRange { base, len, offset } in port_ranges {
                let range = Range { start: base.into(), len: len.into(), slot, offset: offset.into() };
                ports.insert(range).map_err(conflict)?;
            }
            for (start, len) in mmio_ranges {
                mmio.insert(Range { start, len, slot, offset: 0 }).map_err(conflict)?;
            }
        }
    }
    Ok((slots, ports, mmio))
}

impl Board {
    /// Make the machine a specification describes. Nothing runs yet and guest
    /// memory is empty until [`Board::power_on`].
    ///
    /// # Errors
    /// When the specification is wrong, an image cannot be opened, or the host
    /// refuses memory.
    pub fn build(spec: MachineSpec, io: BoardIo) -> Result<Arc<Self>, BoardError> {
        let model = Arc::new(spec.validate()?);
        let images = Images::open(&spec.boot)?;
        let (ram, more) = (spec.memory, spec.more_memory());
        let pmems = pmem::open(&spec.pmems, memory::end(ram, more))?;
        let regions = pmems.iter().map(pmem::PmemRange::region);
        let memory = memory::reserve(ram, more, images.firmware_size(), regions)?;
        pmems.iter().try_for_each(|range| range.map(&memory))?;
        let BoardIo { serial, networks, shares, console, ports, vsock, clock, events, event_queue } = io;
        let vsock = crate::virtio::make_vsock(&spec, vsock)?;
        let shares = crate::shares::make_shares(&spec, shares)?;
        let clock = match spec.time {
            TimeSource::Host => clock.unwrap_or_else(|| Clock::host(model.tsc_khz())),
            TimeSource::Virtual => {
                Clock::virtual_time(model.tsc_khz(), spec.epoch.saturating_mul(1_000_000_000))
            }
        };
        let attentions: Vec<_> = (0..spec.most_cpus()).map(|_| Arc::new(Attention::new())).collect();
        events.connect(&attentions);
        let Interrupts { apics, switch, pic, ioapic } = wire_interrupts(&model, &clock, &attentions);
        let disks = spec.disks.iter().map(DiskSpec::open).collect::<Result<Vec<_>, _>>()?;
        let mut context = Context {
            spec: &spec,
            clock: clock.clone(),
            router: IrqRouter::new(pic.clone(), ioapic.clone()),
            pic: pic.clone(),
            ioapic,
            msi: switch.clone(),
            power: devices::power_events(&events),
            events: events.clone(),
            memory: memory.clone(),
            disks,
            console,
            ports,
            pmems,
            free_pci_slot: 1,
            serial_outputs: serial,
            networks,
            vsock,
            shares,
            handles: Handles::default(),
        };
        let (devices, ports, mmio) = attach_devices(&mut context)?;
        let mut handles = context.handles;
        let plugged = std::mem::take(&mut handles.plugged);
        if let Some(hotplug) = &handles.hotplug {
            for device in plugged.iter().filter(|d| d.on_bus) {
                match device.is_removable() {
                    true => hotplug.set_present(SlotKind::Pci, device.slot.into()),
                    false => hotplug.keep(SlotKind::Pci, device.slot.into()),
                };
            }
        }
        let pci = handles.pci.take().map(|(slots, bus)| (slots, PciRoutes::new(bus)));
        Ok(Arc::new(Board {
            memory_map: boot::memory_map(spec.memory, &[(PciBus::ECAM_BASE, PciBus::ECAM_SIZE)]),
            pvclock: ParavirtualClock::new(clock.clone(), memory.clone(), attentions.len()),
            timers: Arc::new(TimerQueue::new(clock.clone(), devices.len() + 1)),
            spec,
            model,
            images,
            memory,
            clock,
            attentions,
            devices,
            ports,
            mmio,
            handles,
            plugged: Mutex::new(plugged),
            pci,
            apics,
            interrupts: switch,
            pic,
            apic_deadline: Mutex::new(()),
            events,
            event_queue,
            counts: AccessCounts::default(),
        }))
    }

    /// Bring everything but the vCPUs to power-up state: devices reset, tables
    /// and images in memory. Answers the bootstrap processor's first state. Call
    /// only while no vCPU runs.
    ///
    /// # Errors
    /// When an image cannot be read or is not what it should be.
    pub fn power_on(&self) -> Result<CpuState, BoardError> {
        self.events.release();
        self.power_on_devices();
        let rsdp = crate::tables::store(&self.memory, &self.spec, &self.now())?;
        let state = self.load(rsdp)?;
        Ok(state.cpu)
    }

    /// Bring every device to power-up state.
    pub(crate) fn power_on_devices(&self) {
        for (slot, device) in self.devices.iter().enumerate() {
            let mut device = devices::lock(device);
            device.reset();
            self.timers.set(slot, device.timed().and_then(|t| t.next_deadline()));
        }
        if let Some((_, routes)) = &self.pci {
            if self.spec.boot.firmware.is_none() {
                routes.place_bars(memory::PCI_WINDOW_32);
            }
            routes.refresh();
        }
        self.apics.reset();
        self.apic_deadline_changed();
        self.pvclock.reset();
    }

    fn load(&self, rsdp: u64) -> Result<BootState, BoardError> {
        Ok(self.images.load(&self.memory, &self.memory_map, rsdp, self.model.signature())?)
    }

    /// The specification it was built from.
    pub fn spec(&self) -> &MachineSpec {
        &self.spec
    }

    /// Number of vCPUs, those that can still be added included: each has its thread.
    pub fn cpus(&self) -> usize {
        self.attentions.len()
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The one clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The processor model.
    pub fn model(&self) -> &CpuModel {
        &self.model
    }

    /// A vCPU's attention word.
    pub fn attention(&self, vcpu: usize) -> &Arc<Attention> {
        &self.attentions[vcpu]
    }

    /// All attention words.
    pub fn attentions(&self) -> &[Arc<Attention>] {
        &self.attentions
    }

    /// What an engine needs to make vCPU `index`.
    pub fn vcpu_config(self: &Arc<Self>, index: usize) -> VcpuConfig {
        VcpuConfig {
            index,
            model: self.model.clone(),
            topology: Topology { apic_id: index as u32, cpus: self.cpus() as u32 },
            memory: self.memory.clone(),
            clock: self.clock.clone(),
            attention: self.attentions[index].clone(),
            bus: self.clone(),
        }
    }

    /// Where to post events.
    pub fn events(&self) -> &EventPoster {
        &self.events
    }

    /// What has been posted; for the owner.
    pub fn event_queue(&self) -> &EventQueue {
        &self.event_queue
    }

    /// The deadlines of all devices.
    pub fn timers(&self) -> &Arc<TimerQueue> {
        &self.timers
    }

    /// A source's deadline has come.
    pub fn expire(&self, source: usize, now: Nanos) {
        let Some(device) = self.devices.get(source) else {
            self.apics.expire(now);
            self.apic_deadline_changed();
            return;
        };
        let held = match self.clock.is_virtual() {
            // Runs repeat: nobody holds a device for long but the thread that this is.
            true => Some(devices::lock(device)),
            false => devices::try_lock(device),
        };
        let Some(mut device) = held else {
            // A serial port may wait for the reader of its output; the others do not with it.
            self.timers.put_back(source, now.saturating_add(BUSY_NS));
            return;
        };
        let deadline = device.timed().and_then(|timed| {
            timed.expire(now);
            timed.next_deadline()
        });
        self.timers.set(source, deadline);
    }

    /// Look at the APICs' deadlines again.
    pub(crate) fn apic_deadline_changed(&self) {
        let _one_step = self.apic_deadline.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = if self.interrupts.is_foreign() { None } else { self.apics.next_deadline() };
        self.timers.set(self.devices.len(), deadline);
    }

    /// Bytes typed at serial port `port` (0 is COM1). Answers how many the port
    /// took; the rest is to be offered again.
    pub fn serial_input(&self, port: usize, bytes: &[u8]) -> usize {
        let Some((slot, input)) = self.handles.serial.get(port) else { return bytes.len() };
        let taken = input.push_input(bytes);
        self.refresh_deadline(*slot);
        taken
    }

    /// Something outside an access may have changed a device's deadline.
    pub(crate) fn refresh_deadline(&self, slot: usize) {
        let mut device = devices::lock(&self.devices[slot]);
        self.timers.set(slot, device.timed().and_then(|t| t.next_deadline()));
    }

    /// Press and release the power button.
    pub fn press_power_button(&self) {
        if let Some((slot, pm)) = &self.handles.pm {
            pm.press_power_button();
            self.refresh_deadline(*slot);
        }
    }

    /// The platform's own local APICs.
    pub fn platform_interrupts(&self) -> Arc<dyn LocalInterrupts> {
        self.interrupts.platform()
    }

    /// The local APICs in use.
    pub fn local_interrupts(&self) -> Arc<dyn LocalInterrupts> {
        self.interrupts.current()
    }

    /// Hold devices' interrupts while the local APICs' states move to a new owner;
    /// they are sent when the answer is dropped.
    #[must_use]
    pub fn hold_interrupts(&self) -> HeldInterrupts {
        self.interrupts.hold()
    }

    /// Use an engine's own local APICs; `None`: the platform's.
    pub fn use_local_interrupts(&self, locals: Option<Arc<dyn LocalInterrupts>>) {
        self.interrupts.connect(locals);
        self.apic_deadline_changed();
    }

    /// A vCPU took INIT: its platform APIC follows.
    pub fn init_local_apic(&self, vcpu: usize) {
        self.apics.init(vcpu);
        self.apic_deadline_changed();
    }

    /// Counters for statistics.
    pub fn counters(&self) -> [(&'static str, u64); 4] {
        let c = &self.counts;
        [("port", &c.port), ("mmio", &c.mmio), ("apic", &c.apic), ("unclaimed", &c.unclaimed)]
            .map(|(name, n)| (name, n.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use engine::Bus;

    use super::*;

    #[test]
    fn a_slow_reader_of_a_serial_port_holds_up_no_timer() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (written, was_written) = channel();
        let (go_on, may_go_on) = channel::<()>();
        let slow = move |_: &[u8]| {
            let _ = written.send(());
            let _ = may_go_on.recv_timeout(PATIENCE);
        };
        let spec = MachineSpec { memory: 2 << 20, ..MachineSpec::default() };
        let io = BoardIo { serial: vec![Box::new(slow)], ..BoardIo::new() };
        let board = Board::build(spec, io).unwrap();
        let slot = board.handles.serial[0].0;
        std::thread::scope(|s| {
            s.spawn(|| board.port_write(0x3f8, 1, 0x41));
            was_written.recv_timeout(PATIENCE).unwrap();
            let (start, now) = (Instant::now(), board.clock().now());
            board.expire(slot, now);
            assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
            assert_eq!(board.timers().arm(), now + BUSY_NS, "it has its turn later");
            go_on.send(()).unwrap();
        });
        // The access ended and knows better.
        assert_eq!(board.timers().arm(), crate::NEVER);
    }
}
