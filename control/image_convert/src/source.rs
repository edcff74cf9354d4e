//! What is converted.

use std::path::PathBuf;

use disk::{Disk, ImageFormat, OpenError, RawDisk, RawOptions};
use disk_qcow2::Backing;

/// An image to read.
#[derive(Debug, Clone)]
pub struct Source {
    /// Its file.
    pub path: PathBuf,
    /// Its format, if it is known and not to be told by its first bytes: a raw disk
    /// could begin like any.
    pub format: Option<ImageFormat>,
    /// Whether the files that a qcow2 image says it stands on may be opened.
    pub backing: Backing,
    /// The internal snapshot of a qcow2 image to read, by identifier or name.
    pub snapshot: Option<String>,
}

/// Open an image of any format that is read, and lock it.
///
/// # Errors
/// When the host, another process or its contents refuse.
pub fn open(source: &Source) -> Result<Box<dyn Disk>, OpenError> {
    let Source { path, format, backing, snapshot } = source;
    let format = match format {
        Some(format) => *format,
        None => disk::probe_file(path)?,
    };
    if snapshot.is_some() && format != ImageFormat::Qcow2 {
        let why =
            format!("it is {}, and only qcow2 images have snapshots; leave --snapshot out", format.name());
        return Err(OpenError::refused(path, why));
    }
    match format {
        ImageFormat::Raw => {
            let options = RawOptions { read_only: true, ..RawOptions::default() };
            Ok(Box::new(RawDisk::open(path, options)?))
        }
        ImageFormat::Qcow2 => disk_qcow2::open_to_read(path, *backing, snapshot.as_deref()),
        ImageFormat::Compressed => Err(OpenError::Format {
            path: path.clone(),
            seen: format.name(),
            wanted: "a disk image",
            remedy: "unpack it first",
        }),
        other => disk_foreign::open(path, other),
    }
}
