//! IEEE 754 and x87 arithmetic in integers: exact, portable, every rounding mode and exception flag.
//!
//! Values are unpacked into one [`Operand`] form, whatever their format;
//! operations compute on 128-bit significands and round once into the
//! destination format. Where SSE and the x87 differ, [`Env::unit`] decides.
//!
//! | module | what |
//! | --- | --- |
//! | `env` | rounding, masks, flags |
//! | `format` | binary16, binary32, binary64, double extended |
//! | `round` | rounding, overflow, underflow |
//! | `nan` | NaN selection and denormal operands |
//! | `add` `mul` `div` | arithmetic, fused multiply-add, square root |
//! | `rem` | x87 partial remainders |
//! | `compare` `integer` `convert` `bcd` | relations and conversions |
//! | `fast` | the host's arithmetic where only the value can show |
//! | `wide` | 128-bit significands for the transcendental functions |
//! | `exponential` `logarithm` `trigonometric` `arctangent` | those of the x87 |
#![forbid(unsafe_code)]

mod add;
mod arctangent;
mod bcd;
mod compare;
mod convert;
mod div;
mod env;
mod exponential;
pub mod fast;
mod format;
mod integer;
mod logarithm;
mod mul;
mod nan;
mod rem;
mod round;
mod trigonometric;
mod wide;

pub use add::{add, sub};
pub use arctangent::arctangent;
pub use bcd::{BCD_INDEFINITE, from_bcd, to_bcd};
pub use compare::{Relation, compare};
pub use convert::{convert, extract, scale};
pub use div::{div, sqrt};
pub use env::{Env, Rounding, Unit, exception};
pub use exponential::exp2_minus_1;
pub use format::{Class, F16, F32, F64, F80, Float, Operand};
pub use integer::{from_i64, from_u64, round_to_integral, to_signed, to_unsigned};
pub use logarithm::{y_log2_x, y_log2_x_plus_1};
pub use mul::{fma, mul};
pub use rem::{Quotient, Remainder, remainder};
pub use trigonometric::{Trigonometric, cosine, sine, sine_cosine, tangent};
