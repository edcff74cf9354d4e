//! The hardware-assist engine over /dev/kvm.
//!
//! KVM executes guest code; interrupt controllers, timers and all devices are
//! the platform's, reached through [`engine::Bus`], so that a machine is the
//! same on every engine. There is no in-kernel interrupt controller.
//!
//! Some hosts have a /dev/kvm that executes supervisor code with the kernel's
//! instruction emulator, slowly, and gives up at instructions it does not know.
//! For those an *assistant*, another engine given by [`Options`], completes what
//! KVM cannot, from the exported state; then KVM goes on. [`probe()`] tells what
//! a host's /dev/kvm is worth.
//!
//! | module | what |
//! | --- | --- |
//! | `vm` | the VM: memory slots, capabilities, the engine |
//! | `vcpu` | the run loop and exits |
//! | `state` | export and import of the architectural state |
//! | `convert` | registers between `CpuState` and KVM's structures |
//! | `tsc` | the guest's time-stamp counter and the machine clock |
//! | `msr`, `cpuid` | who answers which MSR; CPUID from the model |
//! | `assist` | when the assistant runs, and for how long |
//! | `probe` | a tiny guest that measures the host |
//! | `sys` | the only unsafe code |

mod assist;
mod convert;
mod cpuid;
mod msr;
mod probe;
mod state;
mod sys;
mod tsc;
mod vcpu;
mod vm;

pub use assist::Assistance;
pub use probe::{ProbeResult, probe};
pub use vm::{HostTsc, KvmEngine, MissingFeatures, Options, host_tsc};

/// The engine's name, as on the command line.
pub const NAME: &str = "kvm";
