//! One owner of a machine's state transitions: vCPU threads, engine choice and
//! switch, start to exit.
//!
//! [`Vm`] is the owner. In host time each vCPU has a thread; all stand at one
//! gate while the machine does not run. In virtual time one thread runs all
//! vCPUs in turn. [`Stage`] says which action is legal when, [`Outcome`] how a
//! machine ended and which exit status tells so.

mod ending;
mod engines;
mod exit;
mod gate;
mod model;
mod room;
mod stage;
mod stats;
mod vcpu_thread;
mod virtual_time;
mod vm;

pub use ::kvm::{Options as KvmOptions, ProbeResult, probe as probe_kvm};
pub use ::translator::{Recorder, Symbols};
pub use ending::EndFault;
pub use engines::{
    EngineChoice, EnginePlan, UnknownEngine, check_translator, interpreter, kvm, plan, translator,
};
pub use exit::Outcome;
pub use model::{DefaultModel, default_model};
pub use room::FullDisk;
pub use stage::{Action, IllegalAction, Stage};
pub use stats::{VcpuStats, VcpuTimes, VmStats};
pub use vm::{MachineState, Policy, Vm, VmError};
