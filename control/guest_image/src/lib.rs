//! The default guest of `strata run`: a Debian kernel and a busybox shell.
//!
//! Both come from Debian packages by `apt-get download`, which needs no
//! privileges and verifies what it fetched; only the kernel and busybox are
//! taken out of the packages. They are kept in a cache directory. Without apt,
//! the host's own kernel and busybox serve. The initramfs is made here, so that
//! tests can put programs of their own into a guest too.

mod apt;
mod cache;
mod cpio;
mod error;
mod host;
mod initramfs;
mod modules;
mod progress;

use std::path::PathBuf;

pub use cache::{CACHE_VARIABLE, cache_directory};
pub use cpio::Archive;
pub use error::GuestImageError;
pub use initramfs::{
    COMMAND_PARAMETER, ExtraFile, READY_MARKER, STATUS_MARKER, build_initramfs, command_parameter,
};
pub use progress::{Progress, Silent};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-cloud-amd64`: drivers of virtual machines only.
    Cloud,
    /// `linux-image-amd64`: the kernel of an ordinary Debian installation.
    Generic,
}

impl Flavour {
    /// The metapackage that depends on the current kernel.
    pub fn package(self) -> &'static str {
        match self {
            Flavour::Cloud => "linux-image-cloud-amd64",
            Flavour::Generic => "linux-image-amd64",
        }
    }

    /// Name of its place in the cache.
    fn directory(self) -> &'static str {
        match self {
            Flavour::Cloud => "cloud",
            Flavour::Generic => "generic",
        }
    }
}

/// A guest ready to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFiles {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initramfs, an uncompressed cpio archive.
    pub initrd: PathBuf,
    /// A static busybox for amd64, to build other initramfs archives with.
    pub busybox: PathBuf,
    /// One line for the user: which kernel, and from where.
    pub description: String,
}

/// The default guest, from the cache or fetched now.
///
/// # Errors
/// [`GuestImageError`]: each names its remedy.
pub fn ensure_default_guest(progress: &dyn Progress) -> Result<GuestFiles, GuestImageError> {
    ensure_guest(Flavour::Cloud, progress)
}

/// As [`ensure_default_guest`], with a kernel of choice.
///
/// # Errors
/// As [`ensure_default_guest`].
pub fn ensure_guest(flavour: Flavour, progress: &dyn Progress) -> Result<GuestFiles, GuestImageError> {
    let cache = cache::Cache::open(&cache_directory()?, progress)?;
    if let Some(files) = cache.find(flavour.directory())? {
        return Ok(files);
    }
    let apt_error = match apt::fetch(flavour.package(), &cache, progress) {
        Ok(parts) => return cache.install(flavour.directory(), parts, progress),
        // A full or unwritable cache stays so whatever the source.
        Err(e @ GuestImageError::Cache { .. }) => return Err(e),
        Err(e) => e,
    };
    progress.phase("apt cannot provide the guest; looking for the host's own kernel");
    match host::find() {
        // Not installed in the cache: the host's kernel may change.
        Ok(parts) => cache.install("host", parts, progress),
        Err(host_error) => Err(GuestImageError::NoSource { apt: apt_error.to_string(), host: host_error }),
    }
}
