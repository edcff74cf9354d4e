//! What x86 instructions compute: values in, values and flags out.
//!
//! The one home of instruction semantics, shared by the interpreter, the
//! translator's slow paths and tests. No operands, no memory, no processor
//! state: a function here takes numbers and returns numbers. Unsafe code stands only
//! where the host's instruction is the definition (RCPPS and RSQRTPS).
//!
//! | module | what |
//! | --- | --- |
//! | `flags` | the six status flags, lazily evaluated |
//! | `int`, `shift`, `muldiv`, `bits`, `bcd` | general-purpose integer instructions |
//! | `simd` | MMX to AVX2 integer operations, shuffles, string comparisons |
//! | `crypto` | AES, carry-less multiplication, SHA |
//! | `sse_fp` | SSE to AVX, FMA and F16C floating point |
//! | `x87` | the x87 instructions |
//!
//! The tests in `tests/host_*.rs` compare each with the host's processor. Flags
//! that the manual leaves undefined follow AMD family 19h where they are stated.

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
