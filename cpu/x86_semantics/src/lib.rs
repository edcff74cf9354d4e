//! What x86 instructions compute: values in, values and flags out.
//!
//! The one home of instruction semantics, shared by the interpreter, the
//! translator's slow paths and tests. No operands, no memory, no processor
//! state: a function here takes numbers and returns numbers. No unsafe code.
#![forbid(unsafe_code)]

pub mod bcd;
pub mod bits;
pub mod crypto;
pub mod flags;
pub mod int;
pub mod muldiv;
pub mod shift;
pub mod simd;
pub mod sse_fp;
pub mod x87;
