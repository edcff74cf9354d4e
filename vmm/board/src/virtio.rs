//! Virtio devices, on the PCI bus or beside it.
//!
//! A device function makes a [`VirtioDevice`] of what the specification says and
//! plugs it in; slots are given in the order of the device list.

use std::os::unix::net::UnixListener;

use virtio_balloon::{Balloon, BalloonHandle};
use virtio_console::{Console, ConsoleHandle, Port};
use virtio_core::{VirtioDevice, VirtioMmio, VirtioMmioConfig, VirtioPci, VirtioPciConfig};
use virtio_rng::{Rng, Source};
use virtio_vsock::{VirtioVsock, VsockConfig};

use crate::board::{Board, BoardError};
use crate::devices::{Attachment, Context, PCI_GSIS, PCI_SLOTS, attach};
use crate::memory;
use crate::pci_hotplug::{PluggedDevice, Standing};
use crate::spec::{MachineSpec, PortSpec, TimeSource, VirtioTransport, VsockSpec};

impl Context<'_> {
    /// Give a device the next free slot of the PCI bus, or the registers and the
    /// interrupt that go with it. The specification has been judged: there is one.
    pub(crate) fn plug(&mut self, id: String, device: Box<dyn VirtioDevice>) -> Option<Attachment> {
        let slot = self.take_pci_slot();
        let (_, bus) = self.handles.pci.as_ref()?;
        let (memory, inline) = (self.memory.clone(), self.spec.time == TimeSource::Virtual);
        let line = bus.intx_line(slot, 1);
        let on_bus = self.spec.virtio == VirtioTransport::Pci;
        let (handle, attachment) = if on_bus {
            let config = VirtioPciConfig { device, memory, msi: self.msi.clone(), intx: line, inline };
            let function = VirtioPci::new(config);
            let handle = function.handle();
            bus.add(slot, 0, Box::new(function));
            (handle, None)
        } else {
            let device = VirtioMmio::new(VirtioMmioConfig { device, memory, line, inline });
            let at = memory::VIRTIO_MMIO + u64::from(slot) * VirtioMmio::SIZE;
            // Where the bus leads the slot's INTA#.
            self.handles.virtio_mmio.push((at, PCI_GSIS[usize::from(slot) % PCI_GSIS.len()]));
            (device.handle(), Some(attach(device).mmio(at, VirtioMmio::SIZE)))
        };
        let device = PluggedDevice { id, slot, on_bus, handle: Standing::Virtio(handle), disk: None };
        self.handles.plugged.push(device);
        attachment
    }

    /// As [`Context::plug`], for device functions with one device at most.
    fn plug_one(&mut self, id: &str, device: impl VirtioDevice + 'static) -> Vec<Attachment> {
        self.plug(id.to_string(), Box::new(device)).into_iter().collect()
    }
}

/// Functions that the bus has slots for: the host bridge takes one.
pub(crate) const MAX_DEVICES: usize = PCI_SLOTS as usize - 1;

/// The entropy device.
pub(crate) fn virtio_rng(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let Some(spec) = &c.spec.rng else { return Vec::new() };
    let source = match c.spec.time {
        TimeSource::Host => Source::Host,
        TimeSource::Virtual => Source::Seeded(c.spec.epoch),
    };
    let device = Rng::new(source, spec.bytes_per_second);
    c.plug_one("rng", device)
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
    match c.vsock.take() {
        Some(device) => c.plug_one("vsock", device),
        None => Vec::new(),
    }
}

/// The memory balloon.
pub(crate) fn virtio_balloon(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let Some(spec) = &c.spec.balloon else { return Vec::new() };
    let balloon = Balloon::new(spec.free_page_reporting);
    c.handles.balloon = Some(balloon.handle());
    c.plug_one("balloon", balloon)
}

/// The terminal.
pub(crate) fn virtio_console(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let Some(output) = c.console.take().filter(|_| c.spec.console) else { return Vec::new() };
    let console = Console::terminal(output);
    c.handles.console = Some(console.handle());
    c.plug_one("console", console)
}

/// The named channels, of one device.
pub(crate) fn virtio_ports(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let outputs = std::mem::take(&mut c.ports);
    let port = |(spec, output): (&PortSpec, _)| Port { name: spec.name.clone(), console: false, output };
    let ports: Vec<_> = c.spec.ports.iter().zip(outputs).map(port).collect();
    if ports.is_empty() {
        return Vec::new();
    }
    let console = Console::new(ports);
    let handle = console.handle();
    // Nobody has connected yet.
    (0..handle.ports()).for_each(|port| handle.set_connected(port, false));
    c.handles.ports = Some(handle);
    c.plug_one("ports", console)
}

impl Board {
    /// The memory balloon, if there is one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.handles.balloon.as_ref()
    }

    /// The host's side of the virtio console, if there is one.
    pub fn console(&self) -> Option<&ConsoleHandle> {
        self.handles.console.as_ref()
    }

    /// The host's side of the named ports, in the order of the specification.
    pub fn ports(&self) -> Option<&ConsoleHandle> {
        self.handles.ports.as_ref()
    }
}
