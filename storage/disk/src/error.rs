//! What can go wrong with a disk.

use std::io;
use std::path::{Path, PathBuf};

/// Why an access failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The access leaves the disk.
    #[error(
        "access of {len} bytes at {offset:#x} leaves the disk of {size} bytes; the guest's driver is at fault"
    )]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The disk's size.
        size: u64,
    },
    /// The access is not whole blocks.
    #[error(
        "access of {len} bytes at {offset:#x} is not whole blocks of {block} bytes; the guest's driver is at fault"
    )]
    Misaligned {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The logical block size.
        block: u32,
    },
    /// The disk is read-only.
    #[error("the disk is read-only; attach it without ro")]
    ReadOnly,
    /// The host has no room: the access may succeed later.
    #[error("the host has no room for the disk's data; free some on the file system of the image")]
    NoSpace,
    /// A raw image whose format was guessed was to get the header of another format.
    #[error(
        "write of another image format's header to a disk whose format was guessed; attach it with format=raw"
    )]
    ForeignHeader,
    /// The image contradicts itself.
    #[error("the image is damaged: {0}; check it with qemu-img check, or restore a copy")]
    Damaged(String),
    /// The size cannot be changed to this.
    #[error("the disk cannot be resized to {size} bytes: {why}")]
    CannotResize {
        /// Bytes wanted.
        size: u64,
        /// The reason.
        why: &'static str,
    },
    /// The host failed.
    #[error("the host cannot access the disk: {0}; look at the host's log")]
    Io(io::Error),
}

impl From<io::Error> for DiskError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DiskError::NoSpace,
            _ => DiskError::Io(e),
        }
    }
}

impl From<rustix::io::Errno> for DiskError {
    fn from(e: rustix::io::Errno) -> Self {
        io::Error::from(e).into()
    }
}

/// Why an image cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host does not open it.
    #[error("cannot open disk image {}: {source}; {}", path.display(), remedy(source))]
    Open {
        /// The image.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// It is neither a file nor a block device.
    #[error("disk image {} is a {kind}; give a file or a block device", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Another process uses it.
    #[error("disk image {} is {use_} by another process; end that, make a copy, or attach it there and here with ro", path.display())]
    Locked {
        /// The image.
        path: PathBuf,
        /// `written` or `used`.
        use_: &'static str,
    },
    /// Its size is not whole blocks.
    #[error("disk image {} has {size} bytes, not a whole number of {block}-byte blocks; round it up with: truncate -s %{block} {}", path.display(), path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// The block size.
        block: u32,
    },
    /// Its format is not the one named, or not one that is read.
    #[error("disk image {} is {seen}, not {wanted}; {remedy}", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What was found.
        seen: &'static str,
        /// What was asked for.
        wanted: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The image is refused: damaged, hostile, or with features that are not read.
    #[error("disk image {}: {why}", path.display())]
    Refused {
        /// The image.
        path: PathBuf,
        /// Cause, value and remedy.
        why: String,
    },
}

impl OpenError {
    /// The host's error on opening.
    pub fn open(path: &Path, source: impl Into<io::Error>) -> Self {
        OpenError::Open { path: path.to_path_buf(), source: source.into() }
    }

    /// Refused, with cause, value and remedy.
    pub fn refused(path: &Path, why: impl Into<String>) -> Self {
        OpenError::Refused { path: path.to_path_buf(), why: why.into() }
    }
}

fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::NotFound => "check the path, or make one with: truncate -s 10G PATH",
        io::ErrorKind::PermissionDenied => "give yourself the right to write it, or attach it with ,ro",
        io::ErrorKind::ReadOnlyFilesystem => "attach it with ,ro",
        io::ErrorKind::InvalidInput => "its file system may not support cache=direct",
        _ => "look at the host's log",
    }
}
