//! Which engine executes a machine.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use board::Board;
use device_model::Clock;
use engine::{Engine, EngineError};
use interpreter::Interpreter;
use kvm::{HostTsc, KvmEngine, Options};
use translator::{RecordedTranslator, Recorder, Translator};

use crate::vm::{Policy, Vm, VmError};

/// An engine, or the choice left to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// KVM if a probe really runs a guest on it at speed, else the translator
    /// where the host can run its code, else the interpreter.
    #[default]
    Auto,
    /// Hardware assist through /dev/kvm.
    Kvm,
    /// The translator.
    Jit,
    /// The interpreter.
    Interp,
}

/// The name is not an engine's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown engine \"{0}\"; known: auto, kvm, jit, interp")]
pub struct UnknownEngine(String);

impl FromStr for EngineChoice {
    type Err = UnknownEngine;
    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        match text {
            "auto" => Ok(EngineChoice::Auto),
            "kvm" => Ok(EngineChoice::Kvm),
            "jit" => Ok(EngineChoice::Jit),
            "interp" => Ok(EngineChoice::Interp),
            other => Err(UnknownEngine(other.to_string())),
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Kvm => "kvm",
            EngineChoice::Jit => "jit",
            EngineChoice::Interp => "interp",
        })
    }
}

/// An engine of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Kvm,
    Jit,
    Interp,
}

/// A choice, made before the board exists: the engine has a say in the TSC's frequency.
#[derive(Clone)]
pub struct EnginePlan {
    kind: Kind,
    kvm: Option<Options>,
    /// Take the next best engine if this one refuses the machine.
    fallback: bool,
    /// The clock the machine should have so that every engine of this host can
    /// execute it: guests under hardware assist may see the host's TSC.
    pub clock: Option<Clock>,
    /// Why this engine, in one line.
    pub reason: String,
    /// What was tried before and refused, in one line.
    pub note: Option<String>,
    /// How long choosing took.
    pub took: Duration,
    /// Told of every block the translator translates.
    pub recorder: Option<Arc<Recorder>>,
}

/// Choose an engine for a machine whose time is virtual or not.
pub fn plan(choice: EngineChoice, virtual_time: bool) -> EnginePlan {
    let start = Instant::now();
    let mut plan = EnginePlan {
        kind: Kind::Interp,
        kvm: None,
        fallback: choice == EngineChoice::Auto,
        clock: None,
        reason: "asked for".to_string(),
        note: None,
        took: Duration::ZERO,
        recorder: None,
    };
    match choice {
        EngineChoice::Interp => {}
        EngineChoice::Jit => plan.kind = Kind::Jit,
        EngineChoice::Auto if virtual_time => {
            plan.reason = "virtual time needs an engine that counts instructions".to_string();
        }
        EngineChoice::Auto | EngineChoice::Kvm => {
            let probe = ::kvm::probe();
            if probe.usable || choice == EngineChoice::Kvm {
                plan.kind = Kind::Kvm;
                plan.kvm = Some(Options::for_host(&probe, interpreter()));
            } else {
                plan.kind = Kind::Jit;
            }
            plan.clock = probe.tsc.map(HostTsc::clock);
            plan.reason = probe.reason;
        }
    }
    if !virtual_time && plan.clock.is_none() {
        plan.clock = ::kvm::host_tsc().map(HostTsc::clock);
    }
    plan.took = start.elapsed();
    plan
}

impl EnginePlan {
    /// The planned engine's name.
    pub fn name(&self) -> &'static str {
        match self.kind {
            Kind::Kvm => ::kvm::NAME,
            Kind::Jit => "jit",
            Kind::Interp => "interp",
        }
    }

    /// Make the engine for a board.
    ///
    /// # Errors
    /// When the engine asked for cannot serve this board.
    pub fn make(&mut self, board: &Board) -> Result<Arc<dyn Engine>, EngineError> {
        loop {
            match self.attempt(board) {
                Err(e) if self.step_down(&e) => {}
                result => return result,
            }
        }
    }

    fn attempt(&self, board: &Board) -> Result<Arc<dyn Engine>, EngineError> {
        match (self.kind, &self.kvm) {
            (Kind::Kvm, Some(options)) => kvm(board, options.clone()),
            (Kind::Jit, _) => {
                check_translator(board.cpus())?;
                Ok(match &self.recorder {
                    Some(recorder) => Arc::new(RecordedTranslator(recorder.clone())),
                    None => Arc::new(Translator),
                })
            }
            _ => Ok(interpreter()),
        }
    }

    /// Make the machine on the planned engine. Where the choice was left to us,
    /// an engine that refuses the machine's vCPUs gives way to the next best.
    ///
    /// # Errors
    /// When the engine asked for, or every engine, refuses the machine.
    pub fn launch(&mut self, board: &Arc<Board>, policy: Policy) -> Result<Vm, VmError> {
        loop {
            let engine = self.make(board)?;
            match Vm::new(board.clone(), engine, policy) {
                Err(VmError::Engine(e)) if self.step_down(&e) => {}
                result => return result,
            }
        }
    }

    /// Plan the next best engine because of `error`; false if there is none, or
    /// this engine was asked for.
    fn step_down(&mut self, error: &EngineError) -> bool {
        let next = match self.kind {
            Kind::Kvm => Kind::Jit,
            Kind::Jit => Kind::Interp,
            Kind::Interp => return false,
        };
        if self.fallback {
            let from = self.name();
            self.kind = next;
            self.note = Some(format!("engine {} instead of {from}: {error}", self.name()));
        }
        self.fallback
    }
}

/// The interpreter.
pub fn interpreter() -> Arc<dyn Engine> {
    Arc::new(Interpreter)
}

/// Whether the translator can execute a machine of `vcpus` vCPUs on this host.
///
/// # Errors
/// What is missing: processor features, or address space.
pub fn check_translator(vcpus: usize) -> Result<(), EngineError> {
    Translator::check_host()?;
    Translator::check_reservation(vcpus)
}

/// The translator.
///
/// # Errors
/// When the host's processor lacks what translated code is made of.
pub fn translator() -> Result<Arc<dyn Engine>, EngineError> {
    Translator::check_host()?;
    Ok(Arc::new(Translator))
}

/// KVM, set up as `options` say ([`Options::for_host`]: as the probe advises).
///
/// # Errors
/// As [`KvmEngine::new`].
pub fn kvm(board: &Board, options: Options) -> Result<Arc<dyn Engine>, EngineError> {
    Ok(Arc::new(KvmEngine::new(board.memory(), board.model(), board.clock(), options)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engine_names_round_trip_and_others_are_refused_with_the_list() {
        for choice in [EngineChoice::Auto, EngineChoice::Kvm, EngineChoice::Jit, EngineChoice::Interp] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let text = "xen".parse::<EngineChoice>().unwrap_err().to_string();
        assert!(text.contains("xen") && text.contains("auto, kvm, jit, interp"), "{text}");
    }

    #[test]
    fn virtual_time_never_plans_kvm_by_itself() {
        let plan = plan(EngineChoice::Auto, true);
        assert_eq!(plan.name(), "interp");
        assert!(plan.clock.is_none());
    }

    #[test]
    fn a_choice_left_to_us_steps_down_to_the_interpreter_and_says_why() {
        let refused = EngineError::BadState { engine: "kvm", reason: "no room".into() };
        let mut plan = plan(EngineChoice::Auto, true);
        plan.kind = Kind::Kvm;
        for name in ["jit", "interp"] {
            assert!(plan.step_down(&refused));
            assert_eq!(plan.name(), name);
            assert!(plan.note.as_ref().is_some_and(|n| n.contains(name) && n.contains("no room")));
        }
        assert!(!plan.step_down(&refused));
    }

    #[test]
    fn an_engine_that_was_asked_for_is_not_replaced() {
        let refused = EngineError::BadState { engine: "jit", reason: "no room".into() };
        let mut plan = plan(EngineChoice::Jit, true);
        assert!(!plan.step_down(&refused));
        assert_eq!((plan.name(), plan.note), ("jit", None));
    }
}
