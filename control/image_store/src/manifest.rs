//! What an image is.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::ImageName;

/// The version of manifests written here.
pub(crate) const VERSION: u32 = 1;

/// A file in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// What it is named by.
    pub digest: Digest,
    /// Its length in bytes, holes included.
    pub size: u64,
}

/// The format of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The disk's bytes, sparse.
    Raw,
    /// QEMU's copy-on-write format, without a backing file.
    Qcow2,
}

impl DiskFormat {
    /// The word that stands for it.
    pub fn word(self) -> &'static str {
        match self {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        }
    }
}

/// The root disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is.
    #[serde(flatten)]
    pub blob: Blob,
    /// How it is written.
    pub format: DiskFormat,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// Bytes of the store that its data takes.
    pub stored: u64,
}

/// How the guest takes identity and files at its first start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstBoot {
    /// By the small unit that images built here contain, from the seed disk.
    Strata,
    /// By cloud-init's NoCloud source, from the same disk.
    NoCloud,
}

/// An image: what a machine is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The version of this manifest.
    pub version: u32,
    /// Its name.
    pub name: ImageName,
    /// One line for people: what is in it.
    pub description: String,
    /// Kernel to boot directly. Absent: the disk brings its own, which firmware loads.
    pub kernel: Option<Blob>,
    /// Initial RAM disk for that kernel.
    pub initrd: Option<Blob>,
    /// Root disk.
    pub disk: Disk,
    /// Kernel command line, without what a machine adds.
    pub cmdline: String,
    /// How identity reaches the guest.
    pub first_boot: FirstBoot,
    /// Seconds since 1970.
    pub created: u64,
    /// Where it came from: a file, or how it was built.
    pub source: String,
}

impl Image {
    /// Everything of the store that it needs.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        [self.kernel.as_ref(), self.initrd.as_ref(), Some(&self.disk.blob)].into_iter().flatten()
    }

    /// Read a manifest.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Image, String> {
        let image: Image = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if image.version != VERSION {
            return Err(format!("version {} is not known here", image.version));
        }
        Ok(image)
    }
}
