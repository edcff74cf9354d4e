//! The host's side of the agent in a guest.
//!
//! A [`Guest`] is reached through its machine's vsock socket; each call is a
//! connection of its own. [`Guest::exec`] runs a command with its streams,
//! [`Guest::copy_in`] and [`Guest::copy_out`] carry trees of files,
//! [`Guest::facts`] asks how the guest is.
//!
//! The guest is not trusted: what it sends has caps (`agent_protocol`), a copy
//! out of it never leaves its destination, and what it is called there is not the
//! guest's choice.

mod copy;
mod dial;
mod exec;
mod outbox;

pub use agent_protocol::{Ending, Exec, FailureKind, GuestFacts, Power, Size, tree_size};
pub use copy::Copied;
pub use dial::{Guest, GuestError};
pub use exec::{Control, Streams};
