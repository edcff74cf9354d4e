//! New images.

use std::fs::OpenOptions;
use std::path::Path;

use disk::{ImageFormat, OpenError};
use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatCreateBuilder, StorageOpenOptions};

/// Make an empty image of `size` bytes, which must be whole sectors. `backing`: the
/// image it stands on, as its header is to name it (relative to the new image's
/// directory, or absolute), and that one's format, raw or qcow2; opening it asks
/// for [`crate::Backing::Allow`].
///
/// # Errors
/// When a file is there, or the host refuses.
pub fn create(path: &Path, size: u64, backing: Option<(&str, ImageFormat)>) -> Result<(), OpenError> {
    if size % 512 != 0 {
        return Err(OpenError::Size { path: path.to_path_buf(), size, block: 512 });
    }
    let fail = |e: std::io::Error| OpenError::open(path, e);
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(fail)?;
    let options = StorageOpenOptions::new().write(true).filename(path);
    let storage = File::from_open_file(file, options).map_err(fail)?;
    let mut builder = Qcow2::<File>::create_builder(storage).size(size);
    if let Some((name, format)) = backing {
        let format = match format {
            ImageFormat::Raw | ImageFormat::Qcow2 => format.name(),
            other => {
                let why = format!("it cannot stand on a {} image; use raw or qcow2", other.name());
                return Err(OpenError::refused(path, why));
            }
        };
        builder = builder.backing(name.to_string(), format.to_string());
    }
    builder.create().map_err(fail)
}
