//! The machine's disks: what is wanted, and opening it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use disk::{Aio, CacheMode, Disk, FullListener, ImageFormat, OpenError, RawDisk, RawOptions};
use disk_qcow2::{Backing, Qcow2Options};
use nvme::{Nvme, NvmeConfig};
use serde::{Deserialize, Serialize};
use virtio_block::{Block, BlockConfig};

use crate::devices::{Attachment, Context};
use crate::events::{EventPoster, MachineEvent};
use crate::pci_hotplug::{DISK, PluggedDevice, Standing, disk_queues};
use crate::spec::TimeSource;

/// open(2): past the host's cache.
const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();

/// The most disks a machine has: each takes a PCI slot.
pub const MAX_DISKS: usize = 16;
/// The longest serial number of a disk, in bytes (virtio 1.2, 5.2.6.1; NVMe's is as long).
pub const MAX_DISK_SERIAL: usize = 20;

/// What a disk is attached by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskInterface {
    /// An NVMe controller, whose driver is part of distributions' kernels.
    #[default]
    Nvme,
    /// A virtio block device, whose driver is often a module.
    Virtio,
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The image: a file or a block device of the host.
    pub path: PathBuf,
    /// Its format; `None`: by its first bytes.
    #[serde(default)]
    pub format: Option<ImageFormat>,
    /// Refuse every change.
    #[serde(default)]
    pub read_only: bool,
    /// Open the files that the image's header says it stands on.
    #[serde(default)]
    pub backing: bool,
    /// Serial number the guest sees; `None`: `disk-` and its number from 0.
    #[serde(default)]
    pub serial: Option<String>,
    /// What the host caches.
    #[serde(default)]
    pub cache: CacheMode,
    /// How a device's reads and writes reach a raw image; other formats go on one after
    /// another.
    #[serde(default)]
    pub aio: Aio,
    /// What it is attached by.
    #[serde(default)]
    pub interface: DiskInterface,
}

impl DiskSpec {
    /// An image, attached as disks are unless told otherwise.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        DiskSpec {
            path: path.into(),
            format: None,
            read_only: false,
            backing: false,
            serial: None,
            cache: CacheMode::default(),
            aio: Aio::default(),
            interface: DiskInterface::default(),
        }
    }

    /// The format named, or the one found; an error for those no disk is made of.
    fn known_format(&self, open: Option<&File>) -> Result<ImageFormat, OpenError> {
        let format = match (self.format, open) {
            (Some(format), _) => format,
            (None, Some(file)) => disk::probe_open(&self.path, file)?,
            (None, None) => disk::probe_file(&self.path)?,
        };
        match format {
            ImageFormat::Raw | ImageFormat::Qcow2 => Ok(format),
            other => Err(OpenError::Format {
                path: self.path.clone(),
                seen: other.name(),
                wanted: "a raw or qcow2 image",
                remedy: "convert it with: strata image convert IMAGE NEW",
            }),
        }
    }

    fn gate(&self) -> Backing {
        if self.backing { Backing::Allow } else { Backing::Deny }
    }

    /// Every file the image is made of, itself first; all but it are only read.
    ///
    /// # Errors
    /// As [`DiskSpec::open`].
    pub fn files(&self) -> Result<Vec<PathBuf>, OpenError> {
        match self.known_format(None)? {
            ImageFormat::Qcow2 => {
                let chain = disk_qcow2::backing_chain(&self.path, !self.read_only, self.gate())?;
                Ok(chain.into_iter().map(|link| link.path).collect())
            }
            _ => Ok(vec![self.path.clone()]),
        }
    }

    /// Open the image, and lock it.
    ///
    /// # Errors
    /// When the host, another process or its contents refuse.
    pub fn open(&self) -> Result<Arc<dyn Disk>, OpenError> {
        let (read_only, cache) = (self.read_only, self.cache);
        Ok(match self.known_format(None)? {
            ImageFormat::Qcow2 => {
                let options = Qcow2Options { read_only, cache, backing: self.gate() };
                disk_qcow2::open(&self.path, options)?
            }
            _ => {
                let options = RawOptions { read_only, cache, guessed: self.format.is_none(), aio: self.aio };
                Arc::new(RawDisk::open(&self.path, options)?)
            }
        })
    }

    /// Open [`DiskSpec::files`], for a process that may not do so itself: it gives
    /// them to [`DiskSpec::open_of`].
    ///
    /// # Errors
    /// As [`DiskSpec::open`].
    pub fn open_files(&self) -> Result<Vec<File>, OpenError> {
        // Headers of qcow2 are read as they come; DiskSpec::open_of refuses the mode then.
        let is_raw = self.known_format(None)? == ImageFormat::Raw;
        let direct = if self.cache == CacheMode::Direct && is_raw { O_DIRECT } else { 0 };
        let open = |(n, path): (usize, PathBuf)| {
            let write = n == 0 && !self.read_only;
            let opened = OpenOptions::new().read(true).write(write).custom_flags(direct).open(&path);
            opened.map_err(|e| OpenError::open(&path, e))
        };
        self.files()?.into_iter().enumerate().map(open).collect()
    }

    /// Take the image in files that were opened by [`DiskSpec::open_files`].
    ///
    /// # Errors
    /// As [`DiskSpec::open`]; also for qcow2 with [`CacheMode::Direct`].
    pub fn open_of(&self, mut files: Vec<File>) -> Result<Arc<dyn Disk>, OpenError> {
        let (read_only, cache) = (self.read_only, self.cache);
        let Some(first) = files.first() else {
            return Err(OpenError::refused(&self.path, "it was not opened".to_string()));
        };
        Ok(match self.known_format(Some(first))? {
            ImageFormat::Qcow2 => {
                let options = Qcow2Options { read_only, cache, backing: self.gate() };
                disk_qcow2::open_given(&self.path, files, options)?
            }
            _ => {
                let options = RawOptions { read_only, cache, guessed: self.format.is_none(), aio: self.aio };
                Arc::new(RawDisk::of_file(&self.path, files.swap_remove(0), options)?)
            }
        })
    }
}

/// Whether both interfaces can tell a serial number.
pub(crate) fn serial_fits(serial: &str) -> bool {
    (1..=MAX_DISK_SERIAL).contains(&serial.len()) && serial.bytes().all(|b| b.is_ascii_graphic())
}

/// Tells the machine's owner that the host has no room for disk `number`.
pub(crate) fn tells_full(events: &EventPoster, number: usize) -> FullListener {
    let events = events.clone();
    Arc::new(move || events.post(MachineEvent::DiskFull { disk: number }))
}

/// A disk to be attached.
struct Wanted {
    id: String,
    serial: String,
    disk: Arc<dyn Disk>,
    on_full: FullListener,
}

/// The disks of an interface.
fn disks_of(c: &Context<'_>, interface: DiskInterface) -> Vec<Wanted> {
    let all = c.spec.disks.iter().zip(&c.disks).enumerate();
    let wanted = all.filter(|(_, (spec, _))| spec.interface == interface);
    let named = wanted.map(|(n, (spec, disk))| {
        let id = format!("{DISK}{n}");
        let serial = spec.serial.clone().unwrap_or_else(|| id.clone());
        Wanted { id, serial, disk: disk.clone(), on_full: tells_full(&c.events, n) }
    });
    named.collect()
}

/// A controller for each NVMe disk, then a device for each virtio disk. They are on
/// the bus, which the guest finds them by.
pub(crate) fn disks(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    for Wanted { id, serial, disk, on_full } in disks_of(c, DiskInterface::Nvme) {
        let inline = c.spec.time == TimeSource::Virtual;
        let kept = Some(disk.clone());
        let config = NvmeConfig { serial, disk, inline, on_full: Some(on_full) };
        let function = Nvme::new(config, c.memory.clone(), c.msi.clone());
        let handle = Standing::Nvme(function.handle());
        let slot = c.take_pci_slot();
        if let Some((_, bus)) = &c.handles.pci {
            bus.add(slot, 0, Box::new(function));
        }
        c.handles.plugged.push(PluggedDevice { id, slot, on_bus: true, handle, disk: kept });
    }
    let mut list = Vec::new();
    for Wanted { id, serial, disk, on_full } in disks_of(c, DiskInterface::Virtio) {
        let kept = Some(disk.clone());
        let queues = disk_queues(c.spec);
        let config = BlockConfig { disk, serial, queues, on_full: Some(on_full) };
        list.extend(c.plug(id, Box::new(Block::new(config))));
        if let Some(plugged) = c.handles.plugged.last_mut() {
            plugged.disk = kept;
        }
    }
    list
}
