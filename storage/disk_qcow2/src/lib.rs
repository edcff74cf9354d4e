//! Disks in qcow2 images (QEMU `docs/interop/qcow2.txt`).
//!
//! Tables, allocation and caches are the library `imago`'s; here an image's header
//! is judged before that sees it ([`Header::parse`]), files it names are opened
//! only through a gate ([`Backing`]), what the tables of an image that is to be written name
//! is held against its refcounts (`survey`), and its I/O becomes a [`disk::Disk`].
//!
//! What that does not read, and nobody has to write, is read here ([`open_to_read`]):
//! clusters compressed by zstd, extended L2 entries, internal snapshots.
//!
//! Written metadata are ordered so that a process that ends at any moment leaves an
//! image whose tables are right, with refcounts that may lag: clusters that are used and
//! not counted are counted when it is opened again; those counted that nothing uses
//! `qemu-img check -r leaks` gives back. A host may end at any moment too: what frees, names and
//! copies clusters comes to the medium in that order ([`Qcow2Disk`], `ordered`).

mod chain;
mod create;
mod header;
mod image;
mod ordered;
mod reader;
mod refcounts;
mod snapshots;
mod survey;
mod tables;

pub use chain::{Backing, ChainLink, MAX_CHAIN, backing_chain, header};
pub use create::create;
pub use header::{
    Compression, Header, HeaderError, L1Table, Layout, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, MAX_SNAPSHOTS,
    RefcountTable,
};
pub use image::{Qcow2Disk, Qcow2Options, open, open_given};
pub use reader::open_to_read;
pub use snapshots::{MAX_SNAPSHOT_TABLE_BYTES, Snapshot, snapshots};
