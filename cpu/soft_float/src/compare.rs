//! Comparison.

use crate::env::{Env, exception};
use crate::format::{Class, Operand};
use crate::nan::{flush, special};

/// The four outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// a < b.
    Less,
    /// a = b, zeros of either sign included.
    Equal,
    /// a > b.
    Greater,
    /// One of them is a NaN or an unsupported encoding.
    Unordered,
}

/// Compare. A signaling comparison raises IE for every NaN, a quiet one only for
/// signaling NaNs and unsupported encodings.
pub fn compare(mut a: Operand, mut b: Operand, signaling: bool, env: &mut Env) -> Relation {
    if special(&a) || special(&b) {
        let invalid =
            |v: &Operand| matches!(v.class, Class::Signaling | Class::Unsupported) || signaling && v.is_nan();
        if invalid(&a) || invalid(&b) {
            env.raise(exception::IE);
        }
        return Relation::Unordered;
    }
    if flush(&mut a, env) | flush(&mut b, env) {
        env.raise(exception::DE);
    }
    order(&a, &b)
}

/// A key that orders operands of one sign by magnitude.
fn magnitude(v: &Operand) -> (i32, u64) {
    match v.class {
        Class::Zero => (i32::MIN, 0),
        Class::Infinity => (i32::MAX, 0),
        _ => (v.exponent, v.significand),
    }
}

/// Order of two operands neither of which is a NaN.
fn order(a: &Operand, b: &Operand) -> Relation {
    if a.is_zero() && b.is_zero() {
        return Relation::Equal;
    }
    let by_magnitude = match (a.sign, b.sign) {
        (false, true) => return Relation::Greater,
        (true, false) => return Relation::Less,
        (false, false) => magnitude(a).cmp(&magnitude(b)),
        (true, true) => magnitude(b).cmp(&magnitude(a)),
    };
    match by_magnitude {
        std::cmp::Ordering::Less => Relation::Less,
        std::cmp::Ordering::Equal => Relation::Equal,
        std::cmp::Ordering::Greater => Relation::Greater,
    }
}
