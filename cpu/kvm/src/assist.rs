//! When the assistant runs instead of KVM, and for how long.

use std::time::Duration;

/// When the assistant is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Assistance {
    /// Where KVM fails; for longer at a time while failures keep coming.
    #[default]
    OnFailure,
    /// For all supervisor code, because this host's KVM interprets it more slowly
    /// than the assistant does; KVM gets user code.
    Supervisor,
}

/// A stretch in KVM shorter than this was not worth the way there and back.
const SHORT: Duration = Duration::from_micros(500);
/// After a stretch this long, failures count as rare again.
const LONG: Duration = Duration::from_millis(10);
/// Longest burst of the assistant, in instructions: about 10 ms.
const MAX_BURST: u64 = 1 << 20;
/// Instructions between two looks at the privilege level.
const LOOK: u64 = 1 << 14;
/// Most looks that find user code and still leave it to the assistant.
const MAX_SKIP: u32 = 1 << 10;

/// What to do after a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// KVM goes on.
    Kvm,
    /// The assistant goes on.
    Assistant,
}

/// Decides from what has happened; holds no vCPU.
#[derive(Debug)]
pub(crate) struct Policy {
    mode: Assistance,
    burst: u64,
    /// Looks to skip before KVM is tried again, and the next such number.
    skip: u32,
    next_skip: u32,
}

impl Policy {
    pub(crate) fn new(mode: Assistance) -> Self {
        Policy { mode, burst: 1, skip: 0, next_skip: 1 }
    }

    /// Instructions the assistant runs next.
    pub(crate) fn burst(&self) -> u64 {
        match self.mode {
            Assistance::OnFailure => self.burst,
            Assistance::Supervisor => LOOK,
        }
    }

    /// Whether KVM should start at privilege level `cpl` at all.
    pub(crate) fn starts_in_kvm(&self, cpl: u8) -> bool {
        self.mode == Assistance::OnFailure || cpl == 3
    }

    /// KVM could not go on after running for `ran`.
    pub(crate) fn kvm_failed(&mut self, ran: Duration) {
        match self.mode {
            Assistance::OnFailure if ran < SHORT => self.burst = (self.burst * 2).min(MAX_BURST),
            Assistance::OnFailure if ran > LONG => self.burst = 1,
            Assistance::Supervisor if ran < SHORT => {
                self.skip = self.next_skip;
                self.next_skip = (self.next_skip * 2).min(MAX_SKIP);
            }
            Assistance::Supervisor => self.next_skip = 1,
            Assistance::OnFailure => {}
        }
    }

    /// KVM refused the state the assistant left: more of the assistant.
    pub(crate) fn kvm_refused(&mut self) {
        self.kvm_failed(Duration::ZERO);
    }

    /// The assistant has used up its burst and is at privilege level `cpl`.
    pub(crate) fn after_burst(&mut self, cpl: u8) -> Next {
        if !self.starts_in_kvm(cpl) {
            return Next::Assistant;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Next::Assistant;
        }
        Next::Kvm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failures_lengthen_bursts_up_to_a_bound() {
        let mut p = Policy::new(Assistance::OnFailure);
        assert_eq!(p.burst(), 1, "the first failure costs one instruction");
        for _ in 0..40 {
            p.kvm_failed(Duration::from_micros(3));
        }
        assert_eq!(p.burst(), MAX_BURST);
        p.kvm_failed(Duration::from_millis(50));
        assert_eq!(p.burst(), 1, "a long stretch in KVM makes failures rare again");
    }

    #[test]
    fn supervisor_code_stays_with_the_assistant() {
        let mut p = Policy::new(Assistance::Supervisor);
        assert!(!p.starts_in_kvm(0));
        assert_eq!(p.after_burst(0), Next::Assistant);
        assert_eq!(p.after_burst(3), Next::Kvm);
        // User code that comes straight back makes KVM wait longer each time.
        p.kvm_failed(Duration::from_micros(100));
        p.kvm_failed(Duration::from_micros(100));
        assert_eq!(p.after_burst(3), Next::Assistant);
        assert_eq!(p.after_burst(3), Next::Assistant);
        assert_eq!(p.after_burst(3), Next::Kvm);
    }
}
