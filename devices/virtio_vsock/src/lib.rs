//! The virtio socket device (virtio 1.2, section 5.10): stream sockets between a
//! guest and Unix sockets of the host, in the manner of Firecracker's.
//!
//! *Host to guest.* A program connects to the machine's socket and writes
//! `CONNECT PORT\n`; when a program of the guest listens on that vsock port, it
//! reads `OK HOST_PORT\n`, and from then on the bytes of the connection. Refused:
//! the socket closes.
//!
//! *Guest to host.* A program of the guest connects to port P of the host (context
//! identifier 2); the device connects to the Unix socket whose path is that of the
//! machine with `_P` added. Nobody listens there, or the machine was not allowed
//! to reach the host: the guest's connection is refused.
//!
//! | module | what |
//! | --- | --- |
//! | `packet` | the header of packets |
//! | `connection` | one connection: its stream, buffers and credit |
//! | `switch` | all connections, and what packets do to them |
//! | `door` | host programs that have not said yet where they want to go |
//! | `device` | queues, and the worker |
//!
//! Everything a guest can make grow has a cap: connections ([`MAX_CONNECTIONS`]),
//! bytes a connection holds that the host does not read ([`BUFFER`]; a guest that
//! sends beyond its credit is reset), answers the guest does not take
//! (`MAX_ANSWERS`; then nothing more is taken from it).
//!
//! Own packets, because the crate `virtio-vsock` reads and writes them through
//! vm-memory's traits, behind which writes would miss guest memory's marks.

mod connection;
mod device;
mod door;
mod packet;
mod switch;

pub use device::{VirtioVsock, VsockConfig};
pub use packet::{HEADER, HOST_CID, Header, Operation};

/// Connections at once, both directions together.
pub const MAX_CONNECTIONS: usize = 1023;
/// Bytes from the guest that one connection holds until the host reads them: the
/// credit the guest is given.
pub const BUFFER: u32 = 256 << 10;
/// The smallest context identifier of a guest; those below have meanings (5.10.4).
pub const FIRST_GUEST_CID: u64 = 3;
