//! Why there is no default guest.

use std::path::PathBuf;

/// Why a guest could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum GuestImageError {
    /// Neither STRATA_CACHE nor XDG_CACHE_HOME nor HOME says where to keep files.
    #[error(
        "no place for the cache: STRATA_CACHE, XDG_CACHE_HOME and HOME are all unset; set STRATA_CACHE to a directory"
    )]
    NoCacheDirectory,
    /// The cache directory cannot be used.
    #[error("cannot {what} {} in the cache: {source}; make it writable with space for 100 MiB, or set STRATA_CACHE to a directory that is", .path.display())]
    Cache {
        /// The operation.
        what: &'static str,
        /// The path it was done on.
        path: PathBuf,
        /// The host's error.
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot run {program}: {source}; install it, or give a kernel with --kernel and --initrd")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// The host's error.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("`{command}` failed: {output}{remedy}")]
    Command {
        /// The command line.
        command: String,
        /// The end of what it printed.
        output: String,
        /// What to do, with its separator; may be empty.
        remedy: &'static str,
    },
    /// apt knows no such package.
    #[error(
        "apt knows no package {package}; run `apt-get update` as root, with Debian's main archive in its sources"
    )]
    UnknownPackage {
        /// Package name.
        package: String,
    },
    /// A package lacks what it should have.
    #[error("package {package} contains no {file}; give a kernel with --kernel and --initrd instead")]
    NotInPackage {
        /// Package name.
        package: String,
        /// The file looked for.
        file: &'static str,
    },
    /// Nothing worked.
    #[error(
        "no guest to boot: by apt: {apt}; on this host: {host}; give your own with --kernel and --initrd"
    )]
    NoSource {
        /// Why not from Debian.
        apt: String,
        /// Why not from the host.
        host: String,
    },
}
