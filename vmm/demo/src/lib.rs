//! `strata demo`: a small guest whose source is here ([`guest`]), run on every
//! engine this host offers, with what it did and how fast.
//!
//! The guest starts in real mode, goes through protected mode to long mode, says
//! hello on the serial port, computes, walks memory, takes timer interrupts from
//! its local APIC, and makes an excursion to ring 3 with system calls. No file,
//! no download, no privilege is needed.

pub mod guest;
pub mod layout;
pub mod machine;
mod report;
mod run;

pub use report::{Format, Report};
pub use run::{DemoEngine, available_engines, run, run_one};
