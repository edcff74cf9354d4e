//! What happens before arithmetic: NaNs, unsupported encodings, denormals.

use crate::env::{Env, Unit, exception};
use crate::format::{Class, Float, Operand};

/// The result of an invalid operation.
#[cold]
pub(crate) fn invalid<F: Float>(env: &mut Env) -> F {
    env.raise(exception::IE);
    F::default_nan()
}

/// True if the operand ends the operation before arithmetic.
#[inline(always)]
pub(crate) fn special(v: &Operand) -> bool {
    matches!(v.class, Class::Quiet | Class::Signaling | Class::Unsupported)
}

/// Treat denormals as zeros if the environment says so. Returns true if the
/// operand counts for the denormal-operand exception.
#[inline(always)]
pub(crate) fn flush(v: &mut Operand, env: &Env) -> bool {
    if v.denormal && env.daz {
        *v = Operand::zero(v.sign);
    }
    v.denormal
}

/// Result of a one-operand instruction whose operand is [`special`].
#[cold]
pub(crate) fn propagate1<F: Float>(a: Operand, env: &mut Env) -> F {
    match a.class {
        Class::Unsupported => invalid(env),
        _ => {
            if a.class == Class::Signaling {
                env.raise(exception::IE);
            }
            F::quiet_nan(a.sign, a.significand)
        }
    }
}

/// Result of a two-operand instruction one of whose operands is [`special`]
/// (SDM volume 1, table 4-7).
#[cold]
pub(crate) fn propagate2<F: Float>(a: Operand, b: Operand, env: &mut Env) -> F {
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        return invalid(env);
    }
    if a.class == Class::Signaling || b.class == Class::Signaling {
        env.raise(exception::IE);
    }
    let chosen = match (a.is_nan(), b.is_nan(), env.unit) {
        (true, false, _) => a,
        (false, _, _) => b,
        (true, true, Unit::Sse) => a,
        (true, true, Unit::X87) => larger(a, b),
    };
    F::quiet_nan(chosen.sign, chosen.significand)
}

/// The x87's choice between two NaNs: a quiet one before a signaling one, then
/// the larger significand, then the positive one.
fn larger(a: Operand, b: Operand) -> Operand {
    match (a.class, b.class) {
        (Class::Signaling, Class::Quiet) => b,
        (Class::Quiet, Class::Signaling) => a,
        _ if a.significand != b.significand => {
            if a.significand > b.significand {
                a
            } else {
                b
            }
        }
        _ if a.sign => b,
        _ => a,
    }
}
