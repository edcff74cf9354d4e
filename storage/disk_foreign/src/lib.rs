//! Disks in the images of other products, to read: Hyper-V's VHDX, VirtualBox's VDI,
//! VMware's VMDK. Machines run from raw and qcow2 images; these are converted.
//!
//! | module | what | by |
//! | --- | --- | --- |
//! | `vhdx` | fixed and dynamic | \[MS-VHDX\] |
//! | `vdi` | fixed and dynamic | VirtualBox `VDICore.h` |
//! | `vmdk` | monolithic and split, sparse and flat, stream-optimized | VMware "Virtual Disk Format 5.0" |
//!
//! An image is whoever's made it: every field is checked before it is used, tables
//! are looked up in the file and never loaded whole, and images that stand on others
//! (differencing disks, snapshots) are refused, since their names could be any file's.

mod input;
mod vdi;
mod vhdx;
mod vmdk;

use std::path::Path;

use disk::{Disk, ImageFormat, OpenError};

pub use input::FormatError;
pub use vmdk::{MAX_DESCRIPTOR_BYTES, MAX_EXTENTS, MAX_GRAIN_BYTES};

/// Open an image to read, and lock it.
///
/// # Errors
/// When the host, another process or its contents refuse, or `format` is none of those here.
pub fn open(path: &Path, format: ImageFormat) -> Result<Box<dyn Disk>, OpenError> {
    match format {
        ImageFormat::Vhdx => vhdx::open(path),
        ImageFormat::Vdi => vdi::open(path),
        ImageFormat::Vmdk => vmdk::open(path),
        other => Err(OpenError::Format {
            path: path.to_path_buf(),
            seen: other.name(),
            wanted: "VHDX, VDI or VMDK",
            remedy: "convert it with: qemu-img convert -O qcow2 IMAGE NEW",
        }),
    }
}
