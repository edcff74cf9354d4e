//! The transcendental instructions on register values. Precision control has no
//! effect; results are correctly rounded as rounding control says but for
//! operands that come closer than 2^-120 to a rounding boundary.

use soft_float::{Env, F80, Float};

/// Result of a trigonometric instruction on registers.
pub type Trigonometric = soft_float::Trigonometric<F80>;

macro_rules! functions {
    ($($doc:literal $name:ident($($arg:ident)*) -> $result:ty;)*) => {$(
        #[doc = $doc]
        pub fn $name($($arg: F80,)* env: &mut Env) -> $result {
            env.precision = 64;
            soft_float::$name($($arg.unpack(),)* env)
        }
    )*};
}

functions! {
    "F2XM1." exp2_minus_1(a) -> F80;
    "FYL2X of ST(0) and ST(1)." y_log2_x(x y) -> F80;
    "FYL2XP1 of ST(0) and ST(1)." y_log2_x_plus_1(x y) -> F80;
    "FPATAN of ST(0) and ST(1)." arctangent(x y) -> F80;
    "FSIN." sine(a) -> Trigonometric;
    "FCOS." cosine(a) -> Trigonometric;
    "FSINCOS." sine_cosine(a) -> Trigonometric;
    "FPTAN." tangent(a) -> Trigonometric;
}
