//! An image's file, and numbers in it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use disk::{Access, DiskError, ImageLock, OpenError};

/// The unit guests know.
pub(crate) const SECTOR: u64 = 512;
/// Most bytes of a disk: the largest that VHDX allows, 64 TiB.
pub(crate) const MAX_DISK: u64 = 64 << 40;

/// Why an image is refused: cause, value, remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The file ends too early.
    #[error("ends after {len} bytes, before its {what}; copy it again")]
    Truncated {
        /// What is missing.
        what: &'static str,
        /// Bytes of the file.
        len: u64,
    },
    /// A structure that does not begin or check as it must.
    #[error("has no valid {0}; it is damaged, restore a copy")]
    Missing(&'static str),
    /// A version, type or feature that is not read.
    #[error("{0}, which is not read here; convert it with: qemu-img convert -O qcow2 IMAGE NEW")]
    Feature(String),
    /// It holds only what differs from another image.
    #[error(
        "stands on another image, which is not followed; merge them with the product that made it, or with: qemu-img convert -O qcow2 IMAGE NEW"
    )]
    Parent,
    /// It was in use when its host ended.
    #[error("was not closed and has changes in its log; repair it with: qemu-img check -r all IMAGE")]
    Dirty,
    /// A field that no image could have.
    #[error("has {field} {value:#x}, allowed is {allowed}; it is damaged, restore a copy")]
    Field {
        /// Which.
        field: &'static str,
        /// The value seen.
        value: u64,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// A line of a descriptor that is not understood.
    #[error("has a descriptor with \"{0}\"; see what made it, or restore a copy")]
    Line(String),
    /// The host cannot read.
    #[error("cannot be read: {0}; look at the host's log")]
    Host(String),
}

impl FormatError {
    /// Of an image.
    pub(crate) fn of(self, path: &Path) -> OpenError {
        OpenError::refused(path, self.to_string())
    }
}

/// Refuse a field's value unless `ok`.
pub(crate) fn check(
    ok: bool,
    field: &'static str,
    value: u64,
    allowed: &'static str,
) -> Result<(), FormatError> {
    if ok { Ok(()) } else { Err(FormatError::Field { field, value, allowed }) }
}

/// Refuse a disk's size that is none.
pub(crate) fn check_size(size: u64) -> Result<(), FormatError> {
    let ok = size > 0 && size <= MAX_DISK && size % SECTOR == 0;
    check(ok, "disk size", size, "whole sectors up to 64 TiB")
}

/// A structure of an image, its numbers little-endian. Places are the format's own, so
/// they are inside; what is not reads as zero.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn at<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|b| b.first_chunk::<N>()).copied().unwrap_or([0; N])
    }
    pub fn half(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.at(at))
    }
    pub fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.at(at))
    }
    pub fn long(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.at(at))
    }
    pub fn identifier(&self, at: usize) -> [u8; 16] {
        self.at(at)
    }
    pub fn is_zero(&self, at: usize, len: usize) -> bool {
        self.0.get(at..at + len).is_some_and(|b| b.iter().all(|b| *b == 0))
    }
}

/// An image's file, locked against writers for as long as it is open.
pub(crate) struct Input {
    pub file: File,
    pub len: u64,
    _lock: ImageLock,
}

impl Input {
    /// Open a file and lock it. `named_by_image`: its name comes from another image, so
    /// it must not lead elsewhere by a symbolic link.
    pub fn open(path: &Path, named_by_image: bool) -> Result<Input, OpenError> {
        let fail = |e| OpenError::open(path, e);
        // A named pipe must not make us wait for its other end.
        let mut flags = rustix::fs::OFlags::NONBLOCK;
        if named_by_image {
            flags |= rustix::fs::OFlags::NOFOLLOW;
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if !metadata.is_file() {
            let kind = if metadata.is_dir() { "directory" } else { "special file" };
            return Err(OpenError::Kind { path: path.to_path_buf(), kind });
        }
        let lock = ImageLock::take(path, Access::Read)?;
        Ok(Input { file, len: metadata.len(), _lock: lock })
    }

    /// A structure of the image, or that it is cut short.
    pub fn structure(&self, at: u64, len: usize, what: &'static str) -> Result<Vec<u8>, FormatError> {
        if !self.holds(at, len as u64) {
            return Err(FormatError::Truncated { what, len: self.len });
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).map_err(|e| FormatError::Host(e.to_string()))?;
        Ok(bytes)
    }

    /// Whether the file has these bytes.
    pub fn holds(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.len)
    }

    fn entry<const N: usize>(&self, at: u64, what: &'static str) -> Result<[u8; N], DiskError> {
        let mut bytes = [0; N];
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(DiskError::Damaged(format!("it ends before its {what} at {at:#x}")))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// A 32-bit entry of a table.
    pub fn word(&self, at: u64, what: &'static str) -> Result<u32, DiskError> {
        self.entry(at, what).map(u32::from_le_bytes)
    }

    /// A 64-bit entry of a table.
    pub fn long(&self, at: u64, what: &'static str) -> Result<u64, DiskError> {
        self.entry(at, what).map(u64::from_le_bytes)
    }
}
