//! A content-addressed store of machine images.
//!
//! ```text
//! images/                    0700
//!   lock                     held while a manifest or blob comes or goes
//!   manifests/debian@latest.json   what an image is: blobs, command line, origin
//!   blobs/<64 digits>        read-only files, named by the digest of their content
//!   checked/<64 digits>      when that blob was last read and found right
//!   work/<number>/           something on its way in; its lock tells whether it still is
//! ```
//! A blob is complete or not there: it is written in a work directory, flushed,
//! and renamed, in place of one of the same name, so that making an image again mends
//! a damaged one. What no manifest names is removed by [`Store::collect`]. A machine
//! gets copies of its own ([`thin_copy`]), so an image may go while machines run.
//!
//! | module | what |
//! | --- | --- |
//! | `digest` | the digest of a sparse file |
//! | `name` | names of images |
//! | `manifest` | what an image is |
//! | `store` | the directory |
//! | `intake` | images on their way in |
//! | `copy` | copies that share or skip what they can |

mod copy;
mod digest;
mod error;
mod intake;
mod manifest;
mod name;
mod store;

pub use copy::{CopyMethod, data_extents, thin_copy};
pub use digest::Digest;
pub use error::StoreError;
pub use intake::{Intake, NewImage};
pub use manifest::{Blob, Disk, DiskFormat, FirstBoot, Image};
pub use name::{ImageName, ImageNameError};
pub use store::{Collected, Listed, Store};
