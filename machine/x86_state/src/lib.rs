//! Plain x86 register state: what engines, snapshots, debuggers and tests exchange.
//!
//! [`CpuState`] holds all that the architecture defines for one logical
//! processor (Intel SDM volume 3, chapter 10.1, table 10-1 gives the reset
//! values). Every engine can produce it and accept it at every instruction
//! boundary. Nothing here acts: these are values.

mod apic;
mod bits;
mod cpuid;
mod fpu;
mod model;
mod msr;
mod segment;
mod state;

pub use apic::ApicState;
pub use bits::{cr0, cr4, debugctl, dr6, dr7, efer, rflags, vector, xcr0};
pub use cpuid::{CpuidResult, Topology};
pub use fpu::{F80, FpuState, MXCSR_MASK, MXCSR_RESET};
pub use model::{CpuModel, CpuModelError, Feature, PhysicalBits};
pub use msr::{Msrs, msr_index};
pub use segment::{Segment, SegmentIndex, TableRegister};
pub use state::{Activity, CpuState, Exception, InterruptShadow, reg};
