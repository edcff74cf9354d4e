//! Images on their way into the store.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::error::{StoreError, failed};
use crate::manifest::{Blob, Disk, DiskFormat, FirstBoot};
use crate::name::ImageName;

/// A directory of one's own within the store, to make an image in. Dropping it
/// removes what is left; so does [`crate::Store::collect`] when its process died.
#[derive(Debug)]
pub struct Intake {
    pub(crate) directory: PathBuf,
    /// Held as long as it is in use.
    pub(crate) _lock: File,
}

/// An image whose files are in an intake, or anywhere on the same host.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Its name.
    pub name: ImageName,
    /// One line for people.
    pub description: String,
    /// Kernel, if it is booted directly.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Root disk, in the intake.
    pub disk: PathBuf,
    /// Format of the disk.
    pub format: DiskFormat,
    /// What the guest sees of the disk, in bytes.
    pub virtual_size: u64,
    /// Kernel command line.
    pub cmdline: String,
    /// How identity reaches the guest.
    pub first_boot: FirstBoot,
    /// Where it came from.
    pub source: String,
}

impl Intake {
    /// Where to make files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        // What stays is removed by the next collection.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Make a file a blob: flushed, read-only, named by its content. One in the
/// intake is renamed, another copied. A blob of that name is replaced; who has it open
/// or linked keeps the old file.
pub(crate) fn take_in(intake: &Intake, blobs: &Path, file: &Path) -> Result<Blob, StoreError> {
    use std::os::unix::fs::PermissionsExt;
    let path = if file.starts_with(&intake.directory) {
        file.to_path_buf()
    } else {
        let copy = intake.directory.join("copy");
        let _ = fs::remove_file(&copy);
        crate::copy::thin_copy(file, &copy, None).map_err(failed("copy", file))?;
        copy
    };
    let opened = File::open(&path).map_err(failed("open", &path))?;
    opened.sync_all().map_err(failed("flush", &path))?;
    let size = opened.metadata().map_err(failed("read", &path))?.len();
    let digest = Digest::of(&opened).map_err(failed("read", &path))?;
    let home = blobs.join(digest.as_str());
    let read_only = fs::Permissions::from_mode(0o444);
    fs::set_permissions(&path, read_only).map_err(failed("protect", &path))?;
    // In place of one that is there too: that one may be damaged, this one was just read.
    fs::rename(&path, &home).map_err(failed("rename into place", &home))?;
    Ok(Blob { digest, size })
}

/// The root disk as a blob.
pub(crate) fn take_disk(intake: &Intake, blobs: &Path, new: &NewImage) -> Result<Disk, StoreError> {
    use std::os::unix::fs::MetadataExt;
    let blob = take_in(intake, blobs, &new.disk)?;
    let path = blobs.join(blob.digest.as_str());
    let stored = fs::metadata(&path).map_err(failed("read", &path))?.blocks() * 512;
    Ok(Disk { blob, format: new.format, virtual_size: new.virtual_size, stored })
}
