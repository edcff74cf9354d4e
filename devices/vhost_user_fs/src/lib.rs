//! The virtio file system device (virtio 1.2, section 5.11) of which another process
//! is the server: virtiofsd, reached by the vhost-user protocol.
//!
//! The daemon never sees guest memory. It is given rings and buffers of ours in a
//! memory file of their own; the device copies requests in and answers out. So all
//! writes to guest memory stay the process's own, which look at the pages' marks
//! (translated code!), the queues' saved state is that of every other device, guests
//! may use either ring format, and a daemon that has gone wrong reaches no guest.
//! And the rings need no word with the daemon when the guest resets its device, so
//! the whole protocol is spoken before the machine starts and its sandbox closes.
//!
//! | module | subject |
//! | --- | --- |
//! | `daemon` | finding and starting virtiofsd |
//! | `backend` | the protocol, and what is shared with the daemon |
//! | `ring` | a queue's driver side, and its buffers |
//! | `request` | what the device knows of requests: headers, and which change nothing |
//! | `device` | the guest's side |

mod backend;
mod daemon;
mod device;
mod request;
mod ring;

pub use backend::{Backend, BackendError, Patience};
pub use daemon::{DaemonError, start};
pub use device::{FsConfig, VhostUserFs};
