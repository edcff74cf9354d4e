//! The correctly rounded result cut to 12 significand bits, to nearest. Denormal
//! operands are zeros, denormal results too.

use soft_float::{Class, Env, F32, Float, Operand, Rounding, div, exception, sqrt};

use crate::sse_fp::lanes::{from_ps, ps};

/// An environment in which nothing traps.
fn quiet() -> Env {
    Env { daz: true, ftz: true, ..Env::sse(u32::from(exception::ALL) << 7) }
}

/// Keep 12 bits of a significand, to nearest even.
fn cut(v: F32) -> F32 {
    const DROPPED: u32 = 12;
    let half = (1 << (DROPPED - 1)) - 1 + (v.0 >> DROPPED & 1);
    F32(v.0.wrapping_add(half) & !((1 << DROPPED) - 1))
}

fn reciprocal(v: F32) -> F32 {
    let mut env = quiet();
    let x = v.unpack();
    let r: F32 = div(Operand::from_i64(1), x, &mut env);
    if x.class == Class::Finite { cut(r) } else { r }
}

fn reciprocal_root(v: F32) -> F32 {
    let mut env = Env { rounding: Rounding::Zero, ..quiet() };
    let x = v.unpack();
    // A binary64 root leaves the 12 bits exact.
    let root: soft_float::F64 = sqrt(x, &mut env);
    let r: F32 = div(Operand::from_i64(1), root.unpack(), &mut env);
    if x.class == Class::Finite && !x.denormal && !x.sign { cut(r) } else { r }
}

/// RCPPS.
pub(super) fn rcpps(b: u128) -> u128 {
    from_ps(ps(b).map(reciprocal))
}

/// RSQRTPS.
pub(super) fn rsqrtps(b: u128) -> u128 {
    from_ps(ps(b).map(reciprocal_root))
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::host;

    /// Special operands give what the host gives, others lie within 1.5 * 2^-12
    /// of the exact value.
    fn check(name: &str, host: fn(u128) -> u128, ours: fn(u128) -> u128, exact: fn(f64) -> f64) {
        let steps = (0..=u32::MAX).step_by(0x4001);
        let edges = (0..=0x1ff_u32).flat_map(|e| [e << 23, e << 23 | 1, (e << 23).wrapping_sub(1)]);
        for v in steps.chain(edges) {
            let (expected, got) = (host(v.into()) as u32, ours(v.into()) as u32);
            let (x, y, h) = (f32::from_bits(v), f64::from(f32::from_bits(got)), f32::from_bits(expected));
            if h.is_normal() && x.is_normal() {
                let error = (y / exact(f64::from(x)) - 1.0).abs();
                assert!(error <= 1.5 / 4096.0, "{name} {v:#x}: {got:#x}, host {expected:#x}");
            } else if x.is_normal() && x.abs() > 1.99 * 2f32.powi(125) && x.abs() < 1.01 * 2f32.powi(126) {
                // Whether the result is tiny, and so zero, depends on the processor.
            } else {
                assert_eq!(got, expected, "{name} of {v:#x}");
            }
        }
    }

    #[test]
    fn as_near_as_any_processor() {
        check("rcpps", host::rcpps, super::rcpps, |x| 1.0 / x);
        check("rsqrtps", host::rsqrtps, super::rsqrtps, |x| 1.0 / x.sqrt());
    }
}
