//! One disk image into another: from any format that is read, to raw or qcow2.
//!
//! What an image is, its first bytes say, never its name. The new image appears under
//! its name when it is whole and on the medium, or not at all.

mod output;
mod source;

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use disk::{Disk, DiskError, OpenError, RawDisk, RawOptions};
use disk_qcow2::{Qcow2Disk, Qcow2Options};

pub use output::Output;
pub use source::{Source, open};

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The disk's bytes; holes where it has zeroes.
    Raw,
    /// qcow2, version 3; zeroes take no room.
    Qcow2,
}

impl Target {
    /// What a file is expected to be by its name.
    pub fn of_name(path: &Path) -> Target {
        match path.extension().and_then(|e| e.to_str()) {
            Some(e) if e.eq_ignore_ascii_case("qcow2") => Target::Qcow2,
            _ => Target::Raw,
        }
    }

    /// For messages.
    pub fn word(self) -> &'static str {
        match self {
            Target::Raw => "raw",
            Target::Qcow2 => "qcow2",
        }
    }
}

/// Why there is no new image.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It was to go no further.
    #[error("the conversion was broken off; nothing is left of it, start it again")]
    Interrupted,
    /// The source, or the new image on the way.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Reading or writing failed.
    #[error("cannot copy {} to {}: {source}", from.display(), to.display())]
    Copy {
        /// The source.
        from: PathBuf,
        /// The new image.
        to: PathBuf,
        /// The disk's error.
        source: DiskError,
    },
    /// There is a file of that name.
    #[error("{} is there already; give another name, or replace it with --force", .0.display())]
    Exists(PathBuf),
    /// Source and target are one file.
    #[error("{} would be converted into itself; give another name", .0.display())]
    Itself(PathBuf),
    /// The host refused the new file.
    #[error("cannot {what} {}: {source}; give a directory that may be written, with room", path.display())]
    Write {
        /// The operation.
        what: &'static str,
        /// The new image.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
}

/// A conversion.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// What is read.
    pub from: Source,
    /// Where the new image is to be.
    pub to: PathBuf,
    /// What it is to be.
    pub target: Target,
    /// Put it in the place of a file of that name.
    pub replace: bool,
}

/// Make the new image; answers the disk's size in bytes. `progress` is told bytes
/// done, of how many, and may break off.
///
/// # Errors
/// [`ConvertError`]; nothing is left then, and what was there is as it was.
pub fn convert(
    conversion: &Conversion,
    mut progress: impl FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<u64, ConvertError> {
    let Conversion { from, to, target, replace } = conversion;
    let source = open(from)?;
    let output = Output::begin(&from.path, to, *replace)?;
    let size = source.geometry().size;
    let new = create(output.path(), *target, size)?;
    if progress(0, size).is_break() {
        return Err(ConvertError::Interrupted);
    }
    let copied = disk::copy(&*source, &*new, |done| progress(done, size));
    let fail = |source| ConvertError::Copy { from: from.path.clone(), to: to.clone(), source };
    if copied.map_err(fail)?.is_break() {
        return Err(ConvertError::Interrupted);
    }
    drop(new);
    output.finish(*replace)?;
    Ok(size)
}

/// An empty image, and its disk.
fn create(path: &Path, target: Target, size: u64) -> Result<Box<dyn Disk>, ConvertError> {
    Ok(match target {
        Target::Raw => {
            let made = std::fs::File::options().write(true).create_new(true).open(path);
            let sized = made.and_then(|file| file.set_len(size));
            sized.map_err(|e| ConvertError::Write { what: "create", path: path.into(), source: e })?;
            Box::new(RawDisk::open(path, RawOptions::default())?)
        }
        Target::Qcow2 => {
            disk_qcow2::create(path, size, None)?;
            Box::new(Qcow2Disk::open(path, Qcow2Options::default())?)
        }
    })
}
