//! A process gives up what it no longer needs after its set-up.
//!
//! [`confine_files`] (Landlock) takes away every file but a few: from the calling
//! thread and those it starts later. [`confine_calls`] (seccomp) leaves all
//! threads only the system calls that a running machine makes. Neither needs a
//! privilege, neither can be undone.
//!
//! A call outside the list fails with EPERM, so that a library's optional call
//! costs nothing. One that only an intruder makes (a program started, another
//! process touched, a privilege asked for) ends the process, which the kernel logs.

mod calls;
mod files;

pub use calls::{Calls, confine_calls};
pub use files::{Files, Landlock, confine_files, landlock};

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Landlock refuses.
    #[error("Landlock does not confine files: {0}; run with --no-sandbox, or mend the host")]
    Files(#[from] ::landlock::RulesetError),
    /// A path of the allow-list cannot be used.
    #[error("Landlock cannot allow a path: {0}; check that it exists")]
    Path(#[from] ::landlock::PathFdError),
    /// The kernel refuses the filter.
    #[error("seccomp does not confine system calls: {0}; run with --no-sandbox, or mend the host")]
    Calls(#[from] seccompiler::Error),
    /// The filter does not compile.
    #[error("the system-call filter is wrong: {0}; report it")]
    Filter(#[from] seccompiler::BackendError),
}
