//! Why no image was made.

use std::path::{Path, PathBuf};

use image_store::StoreError;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A disk of another format.
    #[error(transparent)]
    Convert(#[from] image_convert::ConvertError),
    /// Programs are missing and cannot be installed from here.
    #[error("programs are missing: {missing}; install them as root: apt-get install {packages}")]
    Missing {
        /// Programs.
        missing: String,
        /// Debian packages that have them.
        packages: String,
    },
    /// A program could not be started.
    #[error("cannot run {program}: {source}; install it")]
    NoProgram {
        /// Its name.
        program: String,
        /// The host's error.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {said}; {remedy}")]
    Program {
        /// Its name.
        program: String,
        /// The end of what it printed.
        said: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {source}; check that it is there, may be read, and that the disk has room", .path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The path it was done on.
        path: PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// A wrong value among the options.
    #[error("{0}")]
    Option(String),
    /// A disk that cannot be taken in.
    #[error("{} {what}; {remedy}", .path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// Names what was tried.
pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BuildError {
    let path = path.to_path_buf();
    move |source| BuildError::Io { what, path, source }
}
