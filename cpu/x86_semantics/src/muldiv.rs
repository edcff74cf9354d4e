//! Multiplication and division (SDM volume 2).

use crate::flags::Flags;
use crate::int::Int;

/// CF and OF together say that the upper half is significant. The others are
/// undefined by the manual; AMD family 19h leaves them as they were.
#[inline(always)]
fn product_flags(f: Flags, overflow: bool) -> Flags {
    f.with_cf(overflow).with_of(overflow)
}

/// MUL: unsigned `a * b` as (low, high).
#[inline(always)]
pub fn mul<T: Int>(a: T, b: T, f: Flags) -> (T, T, Flags) {
    let (lo, hi) = mulx(a, b);
    (lo, hi, product_flags(f, hi != T::default()))
}

/// MULX: as [`mul`], without flags.
#[inline(always)]
pub fn mulx<T: Int>(a: T, b: T) -> (T, T) {
    if T::BITS == 64 {
        let p = u128::from(a.to_u64()).wrapping_mul(u128::from(b.to_u64()));
        (T::from_u64(p as u64), T::from_u64((p >> 64) as u64))
    } else {
        let p = a.to_u64().wrapping_mul(b.to_u64());
        (T::from_u64(p), T::from_u64(p >> T::BITS))
    }
}

/// IMUL, one-operand form: signed `a * b` as (low, high).
#[inline(always)]
pub fn imul<T: Int>(a: T, b: T, f: Flags) -> (T, T, Flags) {
    let (lo, hi) = if T::BITS == 64 {
        let p = i128::from(a.sext() as i64).wrapping_mul(i128::from(b.sext() as i64));
        (T::from_u64(p as u64), T::from_u64((p >> 64) as u64))
    } else {
        let p = a.sext().wrapping_mul(b.sext());
        (T::from_u64(p), T::from_u64(p >> T::BITS))
    };
    let sign = if lo.msb() { T::MASK } else { 0 };
    (lo, hi, product_flags(f, hi.to_u64() != sign))
}

/// IMUL, two- and three-operand forms: the low half of the signed product.
#[inline(always)]
pub fn imul_truncating<T: Int>(a: T, b: T, f: Flags) -> (T, Flags) {
    let (lo, _, flags) = imul(a, b, f);
    (lo, flags)
}

/// Status flags after DIV or IDIV: all undefined by the manual; AMD family 19h
/// keeps CF and OF, sets AF and clears the others.
#[inline(always)]
pub fn division_flags(f: Flags) -> Flags {
    // Result 1: not zero, positive, odd parity. Bit 3 is AF.
    Flags { result: 1, aux: f.aux & 0xc000_0000 | 8 }
}

/// DIV: `hi:lo / d` as (quotient, remainder); `None` is #DE.
#[inline(always)]
pub fn div<T: Int>(hi: T, lo: T, d: T) -> Option<(T, T)> {
    let (h, l, d) = (hi.to_u64(), lo.to_u64(), d.to_u64());
    // The quotient fits exactly when the upper half is below the divisor.
    if h >= d {
        return None;
    }
    if h == 0 {
        return Some((T::from_u64(l / d), T::from_u64(l % d)));
    }
    if T::BITS == 64 {
        let n = u128::from(h) << 64 | u128::from(l);
        let d = u128::from(d);
        Some((T::from_u64((n / d) as u64), T::from_u64((n % d) as u64)))
    } else {
        let n = h << T::BITS | l;
        Some((T::from_u64(n / d), T::from_u64(n % d)))
    }
}

/// IDIV: signed `hi:lo / d`, quotient truncated towards zero; `None` is #DE.
#[inline(always)]
pub fn idiv<T: Int>(hi: T, lo: T, d: T) -> Option<(T, T)> {
    let divisor = d.sext() as i64;
    let fits = |q: i128| (q == i128::from(T::from_u64(q as u64).sext() as i64)).then_some(());
    if T::BITS == 64 {
        let n = i128::from(hi.to_u64() as i64) << 64 | i128::from(lo.to_u64());
        if let (Ok(n), true) = (i64::try_from(n), divisor != 0 && divisor != -1) {
            return Some((T::from_u64((n / divisor) as u64), T::from_u64((n % divisor) as u64)));
        }
        let d = i128::from(divisor);
        let (q, r) = (n.checked_div(d)?, n.checked_rem(d)?);
        fits(q)?;
        Some((T::from_u64(q as u64), T::from_u64(r as u64)))
    } else {
        let n = (hi.sext() << T::BITS | lo.to_u64()) as i64;
        let (q, r) = (n.checked_div(divisor)?, n.checked_rem(divisor)?);
        fits(i128::from(q))?;
        Some((T::from_u64(q as u64), T::from_u64(r as u64)))
    }
}
