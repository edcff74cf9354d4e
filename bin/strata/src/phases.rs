//! How long each phase of a start took.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The moments of a run, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Images are there (fetched or found).
    Images,
    /// The engine was chosen (with its probe).
    Engine,
    /// Memory and devices exist.
    Machine,
    /// The kernel is in guest memory and the vCPUs exist.
    Loaded,
    /// The vCPUs were let go.
    FirstInstruction,
    /// The guest's first byte on a serial port.
    FirstOutput,
    /// The built-in guest's shell is ready.
    Shell,
}

const NAMES: [(&str, &str); 7] = [
    ("images", "images ready"),
    ("engine", "engine chosen"),
    ("machine", "machine built"),
    ("loaded", "kernel loaded"),
    ("first_instruction", "first instruction"),
    ("first_output", "first serial byte"),
    ("shell", "shell ready"),
];

/// Moments since the process began.
#[derive(Debug)]
pub struct Phases {
    start: Instant,
    at: [OnceLock<Instant>; NAMES.len()],
}

impl Phases {
    /// All phases are still to come.
    pub fn new(start: Instant) -> Self {
        Phases { start, at: Default::default() }
    }

    /// The phase is reached now; only the first time counts. True the first time.
    pub fn mark(&self, phase: Phase) -> bool {
        self.at[phase as usize].set(Instant::now()).is_ok()
    }

    /// Each reached phase: key, text, time since the process began, time since the phase before.
    pub fn list(&self) -> Vec<(&'static str, &'static str, Duration, Duration)> {
        let mut before = self.start;
        let reached = self.at.iter().zip(NAMES).filter_map(|(at, name)| Some((*at.get()?, name)));
        reached
            .map(|(at, (key, text))| {
                let since = at.saturating_duration_since(before);
                before = at;
                (key, text, at.saturating_duration_since(self.start), since)
            })
            .collect()
    }

    /// Time since the process began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reached_phases_are_listed_in_order_and_only_the_first_time_counts() {
        let p = Phases::new(Instant::now());
        assert!(p.mark(Phase::Engine));
        std::thread::sleep(Duration::from_millis(2));
        assert!(p.mark(Phase::FirstOutput));
        let first = p.list();
        assert!(!p.mark(Phase::FirstOutput));
        assert_eq!(first.iter().map(|l| l.0).collect::<Vec<_>>(), ["engine", "first_output"]);
        assert!(first[1].3 >= Duration::from_millis(2));
        assert_eq!(p.list(), first);
    }
}
