//! Suites that others wrote, run in-process on every software engine.
//!
//! [`Rig`] is the smallest machine: flat memory, one vCPU, a bus on which
//! nothing answers. [`moo`] reads the single-step format of the 80286 suite.
//! [`long_mode`] is where most tests begin. [`random`] and [`program`] make cases of our own, [`several`] machines of several vCPUs.

mod long_mode;
pub mod moo;
pub mod program;
pub mod random;
mod rig;
pub mod several;

use std::path::PathBuf;

pub use long_mode::long_mode;
pub use rig::{Rig, comparable_engines, random_model, software_engines};

/// The folder that holds the foreign suites, if this machine has it:
/// `STRATA_SUITES`, else `../shared/suites` beside the checkout.
pub fn suites() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let named = std::env::var_os("STRATA_SUITES").map(PathBuf::from);
    named.into_iter().chain([root.join("../shared/suites")]).find(|p| p.is_dir())
}
