//! Machines that outlast their process.
//!
//! ```text
//! machines/              0700, its own lock in .lock
//!   3f9a1c2b/            one a machine, by its identifier
//!     lock               held (flock) while a process runs it
//!     machine.json       name, image, how to start it
//!     end.json           how it ended last
//!     console.0.log      what its console said, in two files that take turns
//!     console.1.log
//!     messages.log       what its process said, when nobody listened
//!     base               link to what its disk stands on
//!     …                  disks and kernel, for whoever starts it
//! bases/                 what machines' disks stand on
//! ```
//! A directory whose record cannot be read, as of a host that stopped while the machine was
//! made, is listed as damaged and can be removed. A machine that was to go when it ends, and whose process died before it could
//! remove it, is removed by whoever looks next.

mod bases;
mod keep;
mod log;
mod record;

pub use bases::{BASE, Bases};
pub use keep::{Held, KeepError, Kept, MachineStore};
pub use log::{ConsoleLog, LogReader};
pub use record::{End, Record, Restart};
