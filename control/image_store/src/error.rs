//! Why the store did not do it.

use std::io;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::name::ImageName;

/// Why an image cannot be kept, found or used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The host refused a file.
    #[error("cannot {what} {} in the image store: {source}; make it writable with enough free space, or set STRATA_CACHE to a directory that is", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The path it was done on.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Nobody has this name.
    #[error(
        "no image \"{0}\" is here; `strata image ls` lists those that are, `strata image build debian` makes one"
    )]
    Unknown(ImageName),
    /// The name is in use.
    #[error("there is an image \"{0}\" already; choose another --name, or replace it with --force")]
    Exists(ImageName),
    /// A manifest that is none.
    #[error(
        "the manifest of \"{name}\" is damaged: {cause}; remove the image with `strata image rm {name}` and make it again"
    )]
    Manifest {
        /// The image.
        name: ImageName,
        /// What is wrong with it.
        cause: String,
    },
    /// A blob is gone.
    #[error(
        "a part of the image is missing from the store ({digest}); build or import the image again with --force"
    )]
    Missing {
        /// The part.
        digest: Digest,
    },
    /// A blob is not what its name says.
    #[error(
        "a part of the image was changed or damaged: {digest} has content {found}; build or import the image again with --force"
    )]
    Damaged {
        /// The part.
        digest: Digest,
        /// What is there.
        found: String,
    },
}

/// Names what was tried.
pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { what, path, source }
}
