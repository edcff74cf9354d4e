//! Virtio devices on the PCI bus.
//!
//! A device function makes a [`VirtioDevice`] of what the specification says and
//! plugs it in; slots are given in the order of the device list.

use std::os::unix::net::UnixListener;

use nvme::NvmeHandle;
use virtio_balloon::{Balloon, BalloonHandle};
use virtio_core::{VirtioDevice, VirtioHandle, VirtioPci, VirtioPciConfig};
use virtio_fs::{FsConfig, VirtioFs};
use virtio_rng::{Rng, Source};
use virtio_vsock::{VirtioVsock, VsockConfig};

use crate::board::{Board, BoardError};
use crate::devices::{Attachment, Context, PCI_SLOTS};
use crate::spec::{MachineSpec, ShareSpec, TimeSource, VsockSpec};

impl Context<'_> {
    /// Plug a device into the next free slot of the PCI bus. The specification has
    /// been judged: there is one.
    pub(crate) fn plug(&mut self, device: Box<dyn VirtioDevice>) {
        let slot = self.take_pci_slot();
        let Some((_, bus)) = &self.handles.pci else { return };
        let function = VirtioPci::new(VirtioPciConfig {
            device,
            memory: self.memory.clone(),
            msi: self.msi.clone(),
            intx: bus.intx_line(slot, 1),
            inline: self.spec.time == TimeSource::Virtual,
        });
        self.handles.virtio.push(function.handle());
        bus.add(slot, 0, Box::new(function));
    }
}

/// Functions that the bus has slots for: the host bridge takes one.
pub(crate) const MAX_DEVICES: usize = PCI_SLOTS as usize - 1;

/// The entropy device.
pub(crate) fn virtio_rng(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    if let Some(spec) = &c.spec.rng {
        let source = match c.spec.time {
            TimeSource::Host => Source::Host,
            TimeSource::Virtual => Source::Seeded(c.spec.epoch),
        };
        c.plug(Box::new(Rng::new(source, spec.bytes_per_second)));
    }
    Vec::new()
}

/// Make the socket device that the specification asks for.
///
/// # Errors
/// When the host refuses an event loop.
pub(crate) fn make_vsock(
    spec: &MachineSpec,
    listener: Option<UnixListener>,
) -> Result<Option<VirtioVsock>, BoardError> {
    let made = spec.vsock.as_ref().map(|VsockSpec { cid, to_host }| {
        VirtioVsock::new(VsockConfig { cid: (*cid).into(), listener, to_host: to_host.clone() })
    });
    made.transpose().map_err(|e| BoardError::Device("an event loop for the socket device", e))
}

/// The socket device, which the board has made.
pub(crate) fn virtio_vsock(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    if let Some(device) = c.vsock.take() {
        c.plug(Box::new(device));
    }
    Vec::new()
}

/// Make the file system devices.
///
/// # Errors
/// When a folder cannot be opened.
pub(crate) fn make_shares(spec: &MachineSpec) -> Result<Vec<VirtioFs>, BoardError> {
    let make = |share: &ShareSpec| {
        let ShareSpec { tag, folder, read_only } = share;
        VirtioFs::new(FsConfig { tag, folder, read_only: *read_only })
            .map_err(|error| BoardError::Share { folder: folder.clone(), error })
    };
    spec.shares.iter().map(make).collect()
}

/// The file system devices, which the board has made.
pub(crate) fn virtio_shares(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    for device in std::mem::take(&mut c.shares) {
        c.plug(Box::new(device));
    }
    Vec::new()
}

/// The memory balloon.
pub(crate) fn virtio_balloon(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    if let Some(spec) = &c.spec.balloon {
        let balloon = Balloon::new(spec.free_page_reporting);
        c.handles.balloon = Some(balloon.handle());
        c.plug(Box::new(balloon));
    }
    Vec::new()
}

impl Board {
    /// The memory balloon, if there is one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.handles.balloon.as_ref()
    }

    /// Virtio devices, in the order of their slots.
    pub fn virtio(&self) -> &[VirtioHandle] {
        &self.handles.virtio
    }

    /// NVMe controllers, in the order of their slots.
    pub fn nvme(&self) -> &[NvmeHandle] {
        &self.handles.nvme
    }

    /// Make every device with threads of its own stand still: guest memory changes
    /// no more once no vCPU runs either.
    pub fn quiesce_devices(&self) {
        self.handles.virtio.iter().for_each(VirtioHandle::quiesce);
        self.handles.nvme.iter().for_each(NvmeHandle::quiesce);
    }

    /// Let them go on.
    pub fn resume_devices(&self) {
        self.handles.virtio.iter().for_each(VirtioHandle::resume);
        self.handles.nvme.iter().for_each(NvmeHandle::resume);
    }
}
