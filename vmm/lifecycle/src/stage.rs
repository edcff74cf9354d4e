//! The states of a machine and the transitions between them.
//!
//! ```text
//!            start              pause
//! Created ──────────▶ Running ◀────────▶ Paused
//!    │                 │  ▲     resume    │ │
//!    │            stop │  └── reset ───────┘ │ stop
//!    │ stop            ▼                     ▼
//!    └──────────────▶ Stopped ◀──────────────┘
//! ```
//! Reset keeps a running machine running and a paused one paused. An engine
//! switch pauses, switches and resumes; it is legal where its parts are. Looking
//! at a machine is legal until it has stopped.

use std::fmt;

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Built, vCPUs not started.
    Created,
    /// vCPUs execute.
    Running,
    /// vCPUs are parked at an instruction boundary.
    Paused,
    /// Ended for good.
    Stopped,
}

/// What somebody wants of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Let the vCPUs go for the first time.
    Start,
    /// Park the vCPUs.
    Pause,
    /// Let parked vCPUs go on.
    Resume,
    /// Back to power-up state.
    Reset,
    /// Continue on another engine.
    SwitchEngine,
    /// Read counters.
    Observe,
    /// End.
    Stop,
}

/// An action that the stage does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {action} a machine that is {stage}; {remedy}", remedy = self.remedy())]
pub struct IllegalAction {
    /// Where the machine was.
    pub stage: Stage,
    /// What was asked.
    pub action: Action,
}

impl IllegalAction {
    fn remedy(&self) -> &'static str {
        match self.stage {
            Stage::Created => "start it first",
            Stage::Running => "it already runs",
            Stage::Paused => "resume it first",
            Stage::Stopped => "create a new one",
        }
    }
}

impl Stage {
    /// Every stage.
    pub const ALL: [Stage; 4] = [Stage::Created, Stage::Running, Stage::Paused, Stage::Stopped];

    /// The stage after `action`.
    ///
    /// # Errors
    /// When the action makes no sense here; nothing changes.
    pub fn after(self, action: Action) -> Result<Stage, IllegalAction> {
        use Action as A;
        use Stage as S;
        match (self, action) {
            (S::Created, A::Start) | (S::Paused, A::Resume) => Ok(S::Running),
            (S::Running, A::Pause) => Ok(S::Paused),
            (S::Running | S::Paused, A::Reset | A::SwitchEngine) => Ok(self),
            (S::Created | S::Running | S::Paused, A::Observe) => Ok(self),
            (S::Created | S::Running | S::Paused, A::Stop) => Ok(S::Stopped),
            _ => Err(IllegalAction { stage: self, action }),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Created => "created",
            Stage::Running => "running",
            Stage::Paused => "paused",
            Stage::Stopped => "stopped",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Action::Start => "start",
            Action::Pause => "pause",
            Action::Resume => "resume",
            Action::Reset => "reset",
            Action::SwitchEngine => "switch the engine of",
            Action::Observe => "look at",
            Action::Stop => "stop",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_drawn_transitions_are_legal() {
        use Action::*;
        let legal = [
            (Stage::Created, Start, Stage::Running),
            (Stage::Created, Stop, Stage::Stopped),
            (Stage::Created, Observe, Stage::Created),
            (Stage::Running, Observe, Stage::Running),
            (Stage::Paused, Observe, Stage::Paused),
            (Stage::Running, Pause, Stage::Paused),
            (Stage::Running, Reset, Stage::Running),
            (Stage::Running, SwitchEngine, Stage::Running),
            (Stage::Running, Stop, Stage::Stopped),
            (Stage::Paused, Resume, Stage::Running),
            (Stage::Paused, Reset, Stage::Paused),
            (Stage::Paused, SwitchEngine, Stage::Paused),
            (Stage::Paused, Stop, Stage::Stopped),
        ];
        for stage in Stage::ALL {
            for action in [Start, Pause, Resume, Reset, SwitchEngine, Observe, Stop] {
                let expect = legal.iter().find(|l| (l.0, l.1) == (stage, action)).map(|l| l.2);
                assert_eq!(stage.after(action).ok(), expect, "{stage} {action}");
            }
        }
    }

    #[test]
    fn nothing_leaves_stopped_and_the_refusal_says_so() {
        let e = Stage::Stopped.after(Action::Resume).unwrap_err().to_string();
        assert_eq!(e, "cannot resume a machine that is stopped; create a new one");
    }
}
