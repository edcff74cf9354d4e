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
use translator::Translator;

/// An engine, or the choice left to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// KVM if a probe really runs a guest on it at speed, else the interpreter.
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

/// A choice, made before the board exists: the engine has a say in the TSC's frequency.
#[derive(Clone)]
pub struct EnginePlan {
    kvm: Option<Options>,
    jit: bool,
    /// Fall back to the interpreter if KVM refuses the machine.
    fallback: bool,
    /// The clock the engine needs the machine to have: guests under hardware
    /// assist may see the host's TSC.
    pub clock: Option<Clock>,
    /// Why this engine, in one line.
    pub reason: String,
    /// How long choosing took.
    pub took: Duration,
}

/// Choose an engine for a machine whose time is virtual or not.
pub fn plan(choice: EngineChoice, virtual_time: bool) -> EnginePlan {
    let start = Instant::now();
    let mut plan = EnginePlan {
        kvm: None,
        jit: false,
        fallback: false,
        clock: None,
        reason: String::new(),
        took: Duration::ZERO,
    };
    match choice {
        EngineChoice::Interp => plan.reason = "asked for".to_string(),
        EngineChoice::Jit => {
            plan.jit = true;
            plan.reason = "asked for".to_string();
        }
        EngineChoice::Auto if virtual_time => {
            plan.reason = "virtual time needs an engine that counts instructions".to_string();
        }
        EngineChoice::Auto | EngineChoice::Kvm => {
            let probe = kvm::probe();
            if probe.usable || choice == EngineChoice::Kvm {
                plan.kvm = Some(Options::for_host(&probe, interpreter()));
                plan.clock = probe.tsc.map(HostTsc::clock);
            }
            plan.fallback = choice == EngineChoice::Auto;
            plan.reason = probe.reason;
        }
    }
    plan.took = start.elapsed();
    plan
}

impl EnginePlan {
    /// The planned engine's name.
    pub fn name(&self) -> &'static str {
        match &self.kvm {
            Some(_) => kvm::NAME,
            None if self.jit => "jit",
            None => "interp",
        }
    }

    /// Make the engine for a board.
    ///
    /// # Errors
    /// When the engine asked for cannot serve this board.
    pub fn make(&mut self, board: &Board) -> Result<Arc<dyn Engine>, EngineError> {
        let Some(options) = self.kvm.clone() else {
            return if self.jit { translator() } else { Ok(interpreter()) };
        };
        match kvm(board, options) {
            Err(e) if self.fallback => {
                self.kvm = None;
                self.reason = e.to_string();
                Ok(interpreter())
            }
            result => result,
        }
    }
}

/// The interpreter.
pub fn interpreter() -> Arc<dyn Engine> {
    Arc::new(Interpreter)
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
}
