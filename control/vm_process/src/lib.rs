//! The process of one machine.
//!
//! [`Owner`] has the machine and alone changes it: it watches the machine and,
//! between events, does what was asked of it. Requests come from the control
//! socket through a [`Desk`], which hands them over and waits for the answer.
//!
//! ```text
//! client ── socket ── Desk ──▶ queue ──▶ Owner ──▶ Vm
//!                      ◀── answer ───────┘
//! ```

mod console;
mod desk;
mod devices;
mod figures;
mod owner;

pub use console::{Console, ConsoleHub};
pub use desk::{Desk, Requests, desk};
pub use owner::{Identity, Owner, Switch};
