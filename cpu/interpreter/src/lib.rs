//! The reference engine: exact, portable, with a decoded-block cache.
//!
//! [`Cpu`] is the working form of one processor: registers as the hot loop wants
//! them, lazy status flags, fast segment forms, a software TLB. Guest code is
//! decoded once into blocks of [`Insn`]: a handler pointer and its operands.
//! A handler reads operands, calls `x86_semantics`, writes results.
//!
//! | module | what |
//! | --- | --- |
//! | `cpu` | the working state, to and from `CpuState` |
//! | `insn` | the decoded form and effective addresses |
//! | `decode` | iced-x86 instruction to `Insn`, one table a group |
//! | `blocks` | the decoded-block cache |
//! | `tlb` | the software TLB |
//! | `memory` | checked access |
//! | `run` | the loop: blocks, events, limits |
//! | `breakpoints` | instruction and data breakpoints |
//! | `integer` | handlers of the general-purpose instructions |
//! | `system` | segments, transfers, exceptions, tasks, control registers |
//! | `fpu` | x87 and MMX |
//! | `vector` | SSE and AVX |

mod blocks;
mod breakpoints;
mod cpu;
mod decode;
mod fpu;
mod insn;
mod integer;
mod memory;
mod run;
mod system;
mod tlb;
mod vector;

use engine::{Engine, EngineError, LocalInterrupts, Vcpu, VcpuConfig};

pub use cpu::{Cpu, Privilege, Step, Stop};
pub use decode::exchange_for_pause;
pub use insn::{Handler, Insn};
pub use memory::Flush;
pub use run::{InterpreterVcpu, StepEnd};

/// The interpreter as an engine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Interpreter;

/// The interpreter as a reference for engines that do not follow x87 pointers: see
/// [`Cpu::x87_pointers`].
#[derive(Debug, Clone, Copy, Default)]
pub struct WithoutX87Pointers;

impl Engine for WithoutX87Pointers {
    fn name(&self) -> &'static str {
        Interpreter.name()
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        let mut vcpu = InterpreterVcpu::new(config);
        vcpu.cpu().x87_pointers = false;
        Ok(Box::new(vcpu))
    }

    fn local_interrupts(&self) -> Option<std::sync::Arc<dyn LocalInterrupts>> {
        None
    }
}

impl Engine for Interpreter {
    fn name(&self) -> &'static str {
        "interp"
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(InterpreterVcpu::new(config)))
    }

    fn local_interrupts(&self) -> Option<std::sync::Arc<dyn LocalInterrupts>> {
        None
    }
}
