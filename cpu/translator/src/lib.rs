//! The translating engine: x86-64 guest code runs as x86-64 host code.
//!
//! Guest registers stay in host registers, guest flags in host flags; vector
//! and x87 instructions run as themselves. Memory operands go through flat
//! address tables ([`tables`]), control flow through links that are patched to
//! jump from block to block. Whatever needs system state, faults, or touches
//! device memory is executed by the interpreter, one instruction at a time.
//!
//! | module | what |
//! | --- | --- |
//! | `modes` | what the processor's state means for translated code |
//! | `layout` | register assignment, the state shared with translated code |
//! | `emit` | glue instructions |
//! | `beside` | stores to pages that hold code |
//! | `block` | guest block to host code |
//! | `foresight` | which loads guess where their page is |
//! | `blocks`, `records`, `id_table` | translated blocks, links, invalidation |
//! | `tables`, `spaces` | guest linear address to host address |
//! | `call_stack` | host return addresses of guest calls |
//! | `thunks`, `string_thunks`, `native`, `signals` | into and out of translated code |
//! | `system_thunks`, `system_state` | SYSCALL, SYSRET, IRET; system state on the way in and out |
//! | `ledger`, `recorder` | what translation costs; perf maps and jitdumps |
//! | `vcpu` | the loop |
#![cfg(target_arch = "x86_64")]

mod beside;
mod block;
mod blocks;
mod call_stack;
mod emit;
mod foresight;
mod id_table;
mod layout;
mod ledger;
mod modes;
mod native;
mod recorder;
mod records;
mod signals;
mod spaces;
mod string_thunks;
mod system_state;
mod system_thunks;
mod tables;
mod thunks;
mod vcpu;

use std::sync::Arc;

use engine::{Engine, EngineError, LocalInterrupts, VcpuConfig};

pub use recorder::{Recorder, Symbols};
pub use vcpu::TranslatorVcpu;

/// The translator as an engine, `jit`.
pub struct Translator;

impl Translator {
    /// Whether this host can run translated code.
    ///
    /// # Errors
    /// What the host lacks.
    pub fn check_host() -> Result<(), EngineError> {
        if block::HostFeatures::detect().sufficient() {
            return Ok(());
        }
        Err(EngineError::Host {
            engine: "jit",
            what: "looking for AVX, BMI2 and SSE4.2 on the host processor (use --engine interp)".into(),
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }
}

impl Translator {
    /// Whether the host lets this process reserve the address tables of `vcpus`
    /// vCPUs. Reserves them and gives them back; nothing is committed.
    ///
    /// # Errors
    /// When it does not (RLIMIT_AS, strict overcommit, address space used up).
    pub fn check_reservation(vcpus: usize) -> Result<(), EngineError> {
        tables::check_reservation(vcpus).map_err(|e| EngineError::Host {
            engine: "jit",
            what: format!(
                "reserving the address tables of {vcpus} vCPUs (raise ulimit -v, or use --engine interp)"
            ),
            source: e.into(),
        })
    }
}

impl Engine for Translator {
    fn name(&self) -> &'static str {
        "jit"
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn engine::Vcpu>, EngineError> {
        Ok(Box::new(vcpu(config)?))
    }

    fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>> {
        None
    }
}

/// The translator with a [`Recorder`] that is told of every block.
pub struct RecordedTranslator(pub Arc<Recorder>);

impl Engine for RecordedTranslator {
    fn name(&self) -> &'static str {
        Translator.name()
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn engine::Vcpu>, EngineError> {
        let mut vcpu = vcpu(config)?;
        vcpu.record_to(self.0.clone());
        Ok(Box::new(vcpu))
    }

    fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>> {
        Translator.local_interrupts()
    }
}

/// The translator with numbers of code mappings from `first` to `last`, which are then
/// used again: for tests of what happens there, after months of an ordinary machine.
#[derive(Debug, Clone, Copy)]
pub struct WithNumbers {
    /// The first number given out once the vCPU is set up, from 1.
    pub first: u32,
    /// The last one, from [`WithNumbers::FEWEST`] to [`WithNumbers::LAST`].
    pub last: u32,
}

impl WithNumbers {
    /// As few as leave one for each context, and some.
    pub const FEWEST: u32 = spaces::CONTEXTS as u32 + 2;
    /// The last of an ordinary translator.
    pub const LAST: u32 = spaces::LAST_NUMBER;
}

impl Engine for WithNumbers {
    fn name(&self) -> &'static str {
        Translator.name()
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn engine::Vcpu>, EngineError> {
        let mut vcpu = vcpu(config)?;
        vcpu.limit_numbers(self.first, self.last);
        Ok(Box::new(vcpu))
    }

    fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>> {
        Translator.local_interrupts()
    }
}

fn vcpu(config: VcpuConfig) -> Result<TranslatorVcpu, EngineError> {
    TranslatorVcpu::new(config).map_err(|e| EngineError::Host {
        engine: "jit",
        what: "setting up".into(),
        source: std::io::Error::other(e),
    })
}
