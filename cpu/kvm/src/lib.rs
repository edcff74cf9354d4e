//! The hardware-assist engine over /dev/kvm.
//!
//! KVM executes guest code; interrupt controllers, timers and all devices are
//! the platform's, reached through [`engine::Bus`], so that a machine is the
//! same on every engine. There is no in-kernel interrupt controller.
//!
//! # Hosts that only look like hardware assist
//!
//! Some hosts have a /dev/kvm that executes supervisor code with the kernel's
//! instruction emulator: a thousand times slower than a processor, and it gives
//! up at instructions it does not know. [`probe()`] tells such a host from a
//! good one by running a tiny guest. What was found on them, and what is done:
//!
//! | the host's KVM | this engine |
//! | --- | --- |
//! | cannot emulate an instruction | an *assistant*, another engine given by [`Options`], completes it from the exported state |
//! | reports a shutdown for events it cannot deliver | the assistant executes the instruction again; a real triple fault comes back. Where supervisor code runs on the processor a shutdown is one, and the state may be lost (AMD) |
//! | keeps an MSR that the model has and refuses it to guests | it is read and written for the guest |
//! | executes SYSCALL in ring 3 by rules of its own | user code is confined: every event ends in a shutdown before its instruction, and the assistant takes over |
//! | shadows page tables and misses writes of other engines | it is made to forget them when the state comes back |
//! | lets guests read the host's TSC | the machine's clock starts there ([`HostTsc::clock`]) |
//! | shows guests features the model lacks | the assistant executes all code, unless told otherwise |
//! | does not see CR8 writes and interrupts until some instructions later | nothing: this is the host's precision |
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
