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
//! | `layout` | register assignment, the state shared with translated code |
//! | `emit` | glue instructions |
//! | `block` | guest block to host code |
//! | `blocks` | translated blocks, links, invalidation |
//! | `tables`, `spaces` | guest linear address to host address |
//! | `call_stack` | host return addresses of guest calls |
//! | `thunks`, `string_thunks`, `native`, `signals` | into and out of translated code |
//! | `vcpu` | the loop |
#![cfg(target_arch = "x86_64")]

mod block;
mod blocks;
mod call_stack;
mod emit;
mod layout;
mod native;
mod signals;
mod spaces;
mod string_thunks;
mod tables;
mod thunks;
mod vcpu;

use std::sync::Arc;

use engine::{Engine, EngineError, LocalInterrupts, VcpuConfig};

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

impl Engine for Translator {
    fn name(&self) -> &'static str {
        "jit"
    }

    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn engine::Vcpu>, EngineError> {
        let vcpu = TranslatorVcpu::new(config).map_err(|e| EngineError::Host {
            engine: "jit",
            what: "setting up".into(),
            source: std::io::Error::other(e),
        })?;
        Ok(Box::new(vcpu))
    }

    fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>> {
        None
    }
}
