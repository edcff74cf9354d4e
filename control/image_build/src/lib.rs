//! Where images come from.
//!
//! | module | what |
//! | --- | --- |
//! | `debian` | a Debian built from its packages by mmdebstrap |
//! | `guest_package` | what of ours is in it |
//! | `import` | disks and kernels that others made |
//! | `sniff` | what a disk file is |
//! | `tools` | the programs needed, and how to get them |
//! | `program` | other programs, run and watched |

mod debian;
mod error;
mod guest_package;
mod import;
mod program;
mod sniff;
mod tools;

pub use debian::{DEFAULT_SIZE, Debian, MAX_SIZE, MIN_SIZE, build_debian};
pub use error::BuildError;
pub use import::{Import, import};
pub use sniff::{DiskKind, sniff};
