//! A guest's disk, whatever keeps it.
//!
//! Devices hold a `dyn` [`Disk`] and know no format. Formats implement it: raw images
//! here ([`RawDisk`]), others in crates of their own, those that are only read by way
//! of a [`BlockMap`]. [`probe`] tells formats by
//! their magic numbers, [`ImageLock`] keeps a second writer out, also one of
//! QEMU's programs.
//!
//! [`Disk::transfer_all`] has several reads and writes of a queue under way, where the
//! disk can: raw images by io_uring.
//!
//! **Durable** means after [`Disk::flush`]: what was written before it is found
//! again after a crash of this process or of the host. What was written since may
//! be there or not, block by block.

mod bounce;
mod contract;
mod copy;
mod error;
mod lock;
#[cfg(feature = "mock")]
pub mod mock;
mod overlap;
mod probe;
mod raw;
mod read_only;
mod ring;
mod room;

pub use bounce::BOUNCE;
pub use contract::{CacheMode, Disk, FullListener, Geometry, ResizeListener, Segment, total_len};
pub use copy::copy;
pub use error::{DiskError, OpenError};
pub use lock::{Access, ImageLock};
pub use overlap::{Aio, Transfer, Transfers};
pub use probe::{ImageFormat, PROBE_LEN, probe, probe_file, probe_open};
pub use raw::{RawDisk, RawOptions};
pub use read_only::{BlockMap, LOOK_UPS, Place, ReadOnlyDisk};
pub use ring::{DEPTH, check_io_uring};
pub use room::room;
