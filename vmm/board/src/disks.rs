//! The machine's disks: what is wanted, and opening it.

use std::path::PathBuf;
use std::sync::Arc;

use disk::{CacheMode, Disk, FullListener, ImageFormat, OpenError, RawDisk, RawOptions};
use disk_qcow2::{Backing, Qcow2Options};
use nvme::{Nvme, NvmeConfig};
use serde::{Deserialize, Serialize};
use virtio_block::{Block, BlockConfig};

use crate::devices::{Attachment, Context};
use crate::events::MachineEvent;
use crate::spec::TimeSource;

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
            interface: DiskInterface::default(),
        }
    }

    /// The format named, or the one found; an error for those no disk is made of.
    fn known_format(&self) -> Result<ImageFormat, OpenError> {
        let format = match self.format {
            Some(format) => format,
            None => disk::probe_file(&self.path)?,
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
        match self.known_format()? {
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
        Ok(match self.known_format()? {
            ImageFormat::Qcow2 => {
                let options = Qcow2Options { read_only, cache, backing: self.gate() };
                disk_qcow2::open(&self.path, options)?
            }
            _ => {
                let options = RawOptions { read_only, cache, guessed: self.format.is_none() };
                Arc::new(RawDisk::open(&self.path, options)?)
            }
        })
    }
}

/// A disk to be attached.
struct Wanted {
    serial: String,
    disk: Arc<dyn Disk>,
    on_full: FullListener,
}

/// The disks of an interface.
fn disks_of(c: &Context<'_>, interface: DiskInterface) -> Vec<Wanted> {
    let all = c.spec.disks.iter().zip(&c.disks).enumerate();
    let wanted = all.filter(|(_, (spec, _))| spec.interface == interface);
    wanted
        .map(|(n, (spec, disk))| {
            let events = c.events.clone();
            Wanted {
                serial: spec.serial.clone().unwrap_or_else(|| format!("disk-{n}")),
                disk: disk.clone(),
                on_full: Arc::new(move || events.post(MachineEvent::DiskFull { disk: n })),
            }
        })
        .collect()
}

/// A controller for each NVMe disk. They are on the bus, which the guest finds them by.
pub(crate) fn nvme_disks(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    for Wanted { serial, disk, on_full } in disks_of(c, DiskInterface::Nvme) {
        let inline = c.spec.time == TimeSource::Virtual;
        let config = NvmeConfig { serial, disk, inline, on_full: Some(on_full) };
        let function = Nvme::new(config, c.memory.clone(), c.msi.clone());
        c.handles.nvme.push(function.handle());
        let slot = c.take_pci_slot();
        if let Some((_, bus)) = &c.handles.pci {
            bus.add(slot, 0, Box::new(function));
        }
    }
    Vec::new()
}

/// A device for each virtio disk, with a queue for each vCPU.
pub(crate) fn virtio_blocks(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let queues = c.spec.most_cpus().min(virtio_block::MAX_QUEUES.into()) as u16;
    for Wanted { serial, disk, on_full } in disks_of(c, DiskInterface::Virtio) {
        c.plug(Box::new(Block::new(BlockConfig { disk, serial, queues, on_full: Some(on_full) })));
    }
    Vec::new()
}
