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
//! | `memory` | TLB and checked access |
//! | `run` | the loop: blocks, events, limits |
//! | `integer` | handlers of the general-purpose instructions |
//! | `system` | segments, transfers, exceptions, tasks, control registers |
//! | `fpu` | x87 and MMX |
//! | `vector` | SSE and AVX |

mod cpu;
mod insn;

pub use cpu::{Cpu, Privilege, Stop, Step};
pub use insn::{Handler, Insn};
