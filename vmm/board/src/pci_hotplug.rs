//! Disks and network cards that are plugged in and taken out while the guest runs.
//!
//! A function is put on the bus, its slot is filled, and the guest is told by GPE 3;
//! it places the BARs itself. To take one out the guest is asked; when its driver has
//! let go, it empties the slot, and the owner takes the function off the bus.

use std::sync::{Arc, MutexGuard, PoisonError};

use chipset::SlotKind;
use disk::{Disk, DiskError};
use nvme::{Nvme, NvmeConfig, NvmeHandle};
use serde::Serialize;
use virtio_block::{Block, BlockConfig};
use virtio_core::{VirtioDevice, VirtioHandle, VirtioPci, VirtioPciConfig};
use virtio_net::VirtioNet;

use crate::board::Board;
use crate::devices::PCI_SLOTS;
use crate::disks::{DiskInterface, DiskSpec, tells_full};
use crate::hotplug::HotplugError;
use crate::network::{self, NetSpec, Ports};
use crate::spec::{MachineSpec, TimeSource};

/// The way to make a device stand still.
#[derive(Clone)]
pub(crate) enum Standing {
    Virtio(VirtioHandle),
    Nvme(NvmeHandle),
}

impl Standing {
    fn quiesce(&self) {
        match self {
            Standing::Virtio(handle) => handle.quiesce(),
            Standing::Nvme(handle) => handle.quiesce(),
        }
    }
}

/// A device that can be told by its name.
pub(crate) struct PluggedDevice {
    /// `disk-0`, `net-1`, `rng`.
    pub(crate) id: String,
    /// Its slot of the PCI bus, which one on the MMIO transport keeps free.
    pub(crate) slot: u8,
    /// It is on the PCI bus.
    pub(crate) on_bus: bool,
    pub(crate) handle: Standing,
    pub(crate) disk: Option<Arc<dyn Disk>>,
}

impl PluggedDevice {
    /// Whether the guest can be asked to give it up: what others of the machine hold on to stays.
    pub(crate) fn is_removable(&self) -> bool {
        self.on_bus && (self.id.starts_with(DISK) || self.id.starts_with(NET))
    }
}

/// What names of disks and cards begin with.
pub(crate) const DISK: &str = "disk-";
pub(crate) const NET: &str = "net-";

/// A device of a machine, for those who ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceInfo {
    /// Its name in this machine.
    pub id: String,
    /// Its slot of the PCI bus; `None`: it is not there.
    pub pci_slot: Option<u8>,
}

/// A device that a machine's end brings to rest.
#[derive(Clone)]
pub struct EndingDevice {
    id: String,
    handle: Standing,
    disk: Option<Arc<dyn Disk>>,
}

impl EndingDevice {
    /// Its name in the machine.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Make it stand still and write its disk to its end. Takes as long as the host's
    /// storage does, which may be for ever.
    ///
    /// # Errors
    /// [`DiskError`]: nothing is known of what has not been flushed before.
    pub fn finish(&self) -> Result<(), DiskError> {
        self.handle.quiesce();
        self.disk.as_ref().map_or(Ok(()), |disk| disk.flush())
    }
}

/// Number of queues of a virtio disk: one for each vCPU.
pub(crate) fn disk_queues(spec: &MachineSpec) -> u16 {
    spec.most_cpus().min(virtio_block::MAX_QUEUES.into()) as u16
}

impl Board {
    fn plugged(&self) -> MutexGuard<'_, Vec<PluggedDevice>> {
        self.plugged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The devices that have names, in the order in which they came.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let info = |d: &PluggedDevice| DeviceInfo { id: d.id.clone(), pci_slot: d.on_bus.then_some(d.slot) };
        self.plugged().iter().map(info).collect()
    }

    /// Disk `disk-NUMBER`.
    pub fn disk(&self, number: usize) -> Option<Arc<dyn Disk>> {
        let id = format!("{DISK}{number}");
        self.plugged().iter().find(|d| d.id == id)?.disk.clone()
    }

    fn standing(&self) -> Vec<Standing> {
        self.plugged().iter().map(|d| d.handle.clone()).collect()
    }

    /// Virtio devices, in the order in which they came.
    pub fn virtio(&self) -> Vec<VirtioHandle> {
        let virtio = |s| if let Standing::Virtio(handle) = s { Some(handle) } else { None };
        self.standing().into_iter().filter_map(virtio).collect()
    }

    /// NVMe controllers, in the order in which they came.
    pub fn nvme(&self) -> Vec<NvmeHandle> {
        let nvme = |s| if let Standing::Nvme(handle) = s { Some(handle) } else { None };
        self.standing().into_iter().filter_map(nvme).collect()
    }

    /// Make every device with threads of its own stand still: guest memory changes
    /// no more once no vCPU runs either.
    pub fn quiesce_devices(&self) {
        self.standing().iter().for_each(Standing::quiesce);
    }

    /// Every device that has threads of its own, for the machine's end.
    pub fn ending_devices(&self) -> Vec<EndingDevice> {
        let ending = |d: &PluggedDevice| EndingDevice {
            id: d.id.clone(),
            handle: d.handle.clone(),
            disk: d.disk.clone(),
        };
        self.plugged().iter().map(ending).collect()
    }

    /// Let them go on.
    pub fn resume_devices(&self) {
        self.virtio().iter().for_each(VirtioHandle::resume);
        self.nvme().iter().for_each(NvmeHandle::resume);
    }

    /// Plug in a disk; answers its name.
    ///
    /// # Errors
    /// When no slot is free, or the machine's time is its own.
    pub fn add_disk(&self, spec: &DiskSpec, disk: Arc<dyn Disk>) -> Result<String, HotplugError> {
        if let Some(serial) = spec.serial.as_ref().filter(|s| !crate::disks::serial_fits(s)) {
            return Err(HotplugError::Serial(serial.clone()));
        }
        let (slot, number) = self.free_place(DISK)?;
        let id = format!("{DISK}{number}");
        let serial = spec.serial.clone().unwrap_or_else(|| id.clone());
        let kept = Some(disk.clone());
        let on_full = Some(tells_full(self.events(), number));
        match spec.interface {
            DiskInterface::Virtio => {
                let queues = disk_queues(self.spec());
                let device = Block::new(BlockConfig { disk, serial, queues, on_full });
                self.plug_virtio(id, slot, Box::new(device), kept)
            }
            DiskInterface::Nvme => {
                let config = NvmeConfig { serial, disk, inline: false, on_full };
                let function = Nvme::new(config, self.memory.clone(), self.interrupts.clone());
                let handle = Standing::Nvme(function.handle());
                let device = PluggedDevice { id, slot, on_bus: true, handle, disk: kept };
                self.fill_slot(device, Box::new(function))
            }
        }
    }

    /// Plug in a network card; answers its name.
    ///
    /// # Errors
    /// As [`Board::add_disk`].
    pub fn add_net(&self, spec: &NetSpec, ports: Ports) -> Result<String, HotplugError> {
        let (slot, number) = self.free_place(NET)?;
        let device = VirtioNet::new(network::mac(spec, number), ports);
        self.plug_virtio(format!("{NET}{number}"), slot, Box::new(device), None)
    }

    /// The Ethernet address that the next card without one of its own gets.
    pub fn next_mac(&self, spec: &NetSpec) -> port::MacAddress {
        network::mac(spec, self.free_number(NET))
    }

    /// Ask the guest to give up a disk or network card. It is there until
    /// [`Board::devices`] does not tell of it any more.
    ///
    /// # Errors
    /// When there is none of this name, or it cannot go.
    pub fn remove_device(&self, id: &str) -> Result<(), HotplugError> {
        let slot = {
            let plugged = self.plugged();
            let names = || plugged.iter().map(|d| d.id.as_str()).collect::<Vec<_>>().join(", ");
            let device = plugged.iter().find(|d| d.id == id);
            let device = device.ok_or_else(|| HotplugError::NoDevice(id.to_string(), names()))?;
            if !device.is_removable() {
                return Err(HotplugError::Stays(id.to_string()));
            }
            device.slot
        };
        if self.handles.hotplug.as_ref().is_some_and(|h| h.ask_removal(SlotKind::Pci, slot.into())) {
            self.raise(SlotKind::Pci);
        }
        Ok(())
    }

    /// Slots of the PCI bus that are free or whose device can go.
    pub(crate) fn open_pci_slots(&self) -> Vec<u8> {
        let plugged = self.plugged();
        (1..PCI_SLOTS).filter(|slot| !plugged.iter().any(|d| d.slot == *slot && !d.is_removable())).collect()
    }

    fn free_number(&self, prefix: &str) -> usize {
        let plugged = self.plugged();
        (0..).find(|n| !plugged.iter().any(|d| d.id == format!("{prefix}{n}"))).unwrap_or_default()
    }

    /// A slot, and the first number whose name is free.
    fn free_place(&self, prefix: &str) -> Result<(u8, usize), HotplugError> {
        if self.spec().time == TimeSource::Virtual {
            return Err(HotplugError::VirtualTime);
        }
        let number = self.free_number(prefix);
        let plugged = self.plugged();
        let slot = (1..PCI_SLOTS).find(|slot| !plugged.iter().any(|d| d.slot == *slot));
        Ok((slot.ok_or(HotplugError::NoSlot)?, number))
    }

    fn plug_virtio(
        &self,
        id: String,
        slot: u8,
        device: Box<dyn VirtioDevice>,
        disk: Option<Arc<dyn Disk>>,
    ) -> Result<String, HotplugError> {
        let Some((_, routes)) = &self.pci else { return Err(HotplugError::NoSlot) };
        let function = VirtioPci::new(VirtioPciConfig {
            device,
            memory: self.memory.clone(),
            msi: self.interrupts.clone(),
            intx: routes.bus().intx_line(slot, 1),
            inline: false,
        });
        let handle = Standing::Virtio(function.handle());
        self.fill_slot(PluggedDevice { id, slot, on_bus: true, handle, disk }, Box::new(function))
    }

    fn fill_slot(
        &self,
        device: PluggedDevice,
        function: Box<dyn pci::PciFunction>,
    ) -> Result<String, HotplugError> {
        let (Some((_, routes)), Some(hotplug)) = (&self.pci, &self.handles.hotplug) else {
            return Err(HotplugError::NoSlot);
        };
        let (id, slot) = (device.id.clone(), device.slot);
        if !routes.bus().add(slot, 0, function) {
            return Err(HotplugError::NoSlot);
        }
        routes.refresh();
        self.plugged().push(device);
        hotplug.insert(SlotKind::Pci, slot.into());
        self.raise(SlotKind::Pci);
        Ok(id)
    }

    /// The guest has emptied a slot: take out what was there.
    pub(crate) fn empty_slot(&self, slot: usize) {
        let (Some((_, routes)), Ok(slot)) = (&self.pci, u8::try_from(slot)) else { return };
        // Stopped and out of reach first, then closed.
        routes.bus().remove(slot);
        routes.refresh();
        self.plugged().retain(|d| d.slot != slot || !d.on_bus);
    }
}

#[cfg(test)]
mod tests {
    use disk::{RawDisk, RawOptions};
    use engine::Bus;

    use super::*;
    use crate::{BoardIo, MachineEvent};

    const ECAM: u64 = pci::PciBus::ECAM_BASE;

    fn disk(name: &str) -> (std::path::PathBuf, Arc<dyn Disk>) {
        let path = std::env::temp_dir().join(format!("strata-plugged-{name}-{}", std::process::id()));
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let disk = RawDisk::open(&path, RawOptions::default()).unwrap();
        (path, Arc::new(disk))
    }

    /// What the guest's AML does: take the event; answers (slot, what happened).
    fn event(board: &Board) -> Option<(u64, u64)> {
        let port = SlotKind::Pci.port();
        let slot = u64::from(board.port_read(port, 4));
        board.port_write(port, 4, slot as u32);
        let status = u64::from(board.port_read(port + 4, 4));
        board.port_write(port + 4, 4, status as u32 & 6);
        (slot != u64::from(u32::MAX)).then_some((slot, status & 6))
    }

    fn identity(board: &Board, slot: u8) -> u64 {
        board.mmio_read(0, ECAM + (u64::from(slot) << 15), 4)
    }

    #[test]
    fn disks_come_and_go_while_the_guest_runs() {
        for (interface, id) in [(DiskInterface::Virtio, 0x1042_1af4), (DiskInterface::Nvme, 0)] {
            let spec = MachineSpec { memory: 2 << 20, serial: Vec::new(), ..MachineSpec::default() };
            let board = Board::build(spec, BoardIo::new()).unwrap();
            board.power_on_devices();
            let (path, image) = disk(&format!("{interface:?}"));
            let disk_spec = DiskSpec { interface, ..DiskSpec::new(&path) };
            assert_eq!(board.add_disk(&disk_spec, image), Ok("disk-0".to_string()));
            assert_eq!(board.devices(), [DeviceInfo { id: "disk-0".into(), pci_slot: Some(1) }]);
            let found = identity(&board, 1);
            assert!(if id == 0 { found != 0xffff_ffff } else { found == id }, "{found:#x}");
            assert_eq!((event(&board), event(&board)), (Some((1, 2)), None));
            board.quiesce_devices();
            board.resume_devices();
            board.remove_device("disk-0").unwrap();
            assert_eq!(event(&board), Some((1, 4)));
            assert_eq!(identity(&board, 1), found, "asking takes nothing out");
            board.port_write(SlotKind::Pci.port() + 4, 4, 8);
            let Some(MachineEvent::Ejected { kind, slot }) = board.event_queue().poll() else {
                panic!("no event")
            };
            board.ejected(kind, slot);
            assert_eq!((identity(&board, 1), board.devices()), (0xffff_ffff, Vec::new()));
            // Nobody holds the image any more.
            drop(RawDisk::open(&path, RawOptions::default()).unwrap());
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn what_cannot_come_or_go_is_refused() {
        let rng = Some(crate::RngSpec::default());
        let spec = MachineSpec { memory: 2 << 20, serial: Vec::new(), rng, ..MachineSpec::default() };
        let board = Board::build(spec.clone(), BoardIo::new()).unwrap();
        let nothing = board.remove_device("disk-7").unwrap_err().to_string();
        assert!(nothing.contains("disk-7") && nothing.contains("rng"), "{nothing}");
        assert_eq!(board.remove_device("rng"), Err(HotplugError::Stays("rng".to_string())));
        let (path, image) = disk("refused");
        let bad = DiskSpec { serial: Some("a b".into()), ..DiskSpec::new(&path) };
        assert_eq!(board.add_disk(&bad, image.clone()), Err(HotplugError::Serial("a b".into())));
        for n in 0..30 {
            assert_eq!(board.add_disk(&DiskSpec::new(&path), image.clone()), Ok(format!("disk-{n}")));
        }
        assert_eq!(board.add_disk(&DiskSpec::new(&path), image.clone()), Err(HotplugError::NoSlot));
        let repeats = MachineSpec { time: TimeSource::Virtual, ..spec };
        let board = Board::build(repeats, BoardIo::new()).unwrap();
        assert_eq!(board.add_disk(&DiskSpec::new(&path), image), Err(HotplugError::VirtualTime));
        std::fs::remove_file(path).unwrap();
    }
}
