//! How a running machine is found and spoken to.
//!
//! Each machine's process serves one Unix socket in a directory of its own below
//! the user's runtime directory. A request is one line of JSON that holds one
//! [`Action`]; the answer is one line that holds a [`Reply`] or a [`Refusal`].
//! The command line is one client; anything that can write a line to a socket
//! is another.
//!
//! | module | what |
//! | --- | --- |
//! | `protocol` | what can be asked and answered |
//! | `wire` | lines with a cap on their length and a limit on their time |
//! | `identity` | identifiers and names of machines |
//! | `place` | the runtime directory, and whether it is safe |
//! | `registry` | machines in it: register, find, remove the dead |
//! | `server`, `client` | the two ends of the socket |
//! | `ending` | the power button, then force |

mod client;
mod ending;
mod identity;
mod place;
mod protocol;
mod registry;
mod server;
mod wire;

pub use client::{CallError, Client};
pub use ending::{ENDING, EndError, Ending};
pub use identity::{MachineId, MachineName, NameError};
pub use place::{PlaceError, RUNTIME_DIR_VARIABLE, RuntimeDir, STATE_VARIABLE, state_directory};
pub use protocol::{
    Action, Answer, MachineInfo, MachineStats, Refusal, RefusalKind, Reply, Request, Response, State,
    VERSION, VcpuFigures,
};
pub use registry::{Found, Registration, Registry, RegistryError, pick};
pub use server::{Handler, MAX_CONNECTIONS, MAX_CONSOLES, Server, serve};
pub use wire::{MAX_FILES, MAX_REQUEST};
