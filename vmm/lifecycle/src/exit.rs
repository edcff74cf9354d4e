//! How a machine ended, and the exit status that says so.

use std::fmt;

use engine::EngineError;

/// How a machine ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest switched the power off.
    PowerOff,
    /// The guest reset and the owner asked not to reboot.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// A vCPU shut down after a triple fault.
    TripleFault {
        /// Its number.
        vcpu: usize,
    },
    /// The time limit passed.
    Timeout,
    /// The user, or a signal, ended it.
    Stopped,
    /// The guest wrote this status to the debug-exit port.
    DebugExit(u8),
    /// An engine could not go on.
    Error {
        /// The vCPU's number.
        vcpu: usize,
        /// Why.
        error: EngineError,
    },
}

impl Outcome {
    /// Exit statuses, for `--help`.
    pub const STATUS_HELP: &'static str = "\
Exit status:
  0    the guest powered off; with -- CMD, the command's own status
  1    Strata or the host failed
  2    the command line or an input file is wrong
  3    the guest's kernel panicked
  4    the guest reset and --no-reboot was given
  5    triple fault and --no-reboot was given
  124  --timeout passed
  130  ended by the user (Ctrl-A x, a signal, strata kill; strata stop, if the guest did not power off)
  N    with --debug-exit, what the guest wrote: (value << 1) | 1";

    /// The process's exit status.
    pub fn status(&self) -> u8 {
        match self {
            Outcome::PowerOff => 0,
            Outcome::Error { .. } => 1,
            Outcome::Panic => 3,
            Outcome::Reset => 4,
            Outcome::TripleFault { .. } => 5,
            Outcome::Timeout => 124,
            Outcome::Stopped => 130,
            Outcome::DebugExit(status) => *status,
        }
    }

    /// One stable word for machine-readable output.
    pub fn word(&self) -> &'static str {
        match self {
            Outcome::PowerOff => "power-off",
            Outcome::Error { .. } => "error",
            Outcome::Panic => "panic",
            Outcome::Reset => "reset",
            Outcome::TripleFault { .. } => "triple-fault",
            Outcome::Timeout => "timeout",
            Outcome::Stopped => "stopped",
            Outcome::DebugExit(_) => "debug-exit",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::PowerOff => f.write_str("the guest powered off"),
            Outcome::Reset => f.write_str("the guest reset"),
            Outcome::Panic => f.write_str("the guest's kernel panicked"),
            Outcome::TripleFault { vcpu } => write!(f, "triple fault on vCPU {vcpu}"),
            Outcome::Timeout => f.write_str("the time limit passed"),
            Outcome::Stopped => f.write_str("ended by the user"),
            Outcome::DebugExit(status) => write!(f, "the guest ended the run with status {status}"),
            Outcome::Error { vcpu, error } => write!(f, "vCPU {vcpu}: {error}"),
        }
    }
}
