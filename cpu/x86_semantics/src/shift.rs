//! Shifts, rotates and double shifts (SDM volume 2).
//!
//! Counts are masked here to 5 bits, 6 for 64-bit operands; a masked count of
//! zero changes nothing, flags included. Where the manual leaves flags undefined
//! these functions do what processors do:
//!
//! - OF is computed for every count by the rule of count 1: top bit of the
//!   result against CF for left moves, against the next bit for right moves;
//! - shifts set AF (as AMD family 19h does);
//! - shifting by the operand's width or more gives the result and CF of that
//!   many single steps.

use crate::flags::Flags;
use crate::int::Int;

/// The count as the processor sees it.
#[inline(always)]
fn masked<T: Int>(count: u8) -> u32 {
    u32::from(count) & if T::BITS == 64 { 63 } else { 31 }
}

/// Bit `n` of `v`; `n` below 64.
#[inline(always)]
fn bit(v: u64, n: u32) -> u32 {
    (v >> (n & 63)) as u32 & 1
}

/// `aux` of [`Flags`] with the given CF and OF (0 or 1).
#[inline(always)]
fn carries(cf: u32, of: u32) -> u32 {
    cf << 31 | (cf ^ of) << 30
}

/// AF in `aux` of [`Flags`].
const AF: u32 = 8;

/// `f` with CF and OF replaced.
#[inline(always)]
fn replace(f: Flags, cf: u32, of: u32) -> Flags {
    Flags { aux: f.aux & 0x3fff_ffff | carries(cf, of), ..f }
}

/// OF of a move to the right: the result's two top bits differ.
#[inline(always)]
fn right_of<T: Int>(r: T) -> u32 {
    let r = r.to_u64();
    bit(r, T::BITS - 1) ^ bit(r, T::BITS - 2)
}

/// SHL and SAL.
#[inline(always)]
pub fn shl<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let x = a.to_u64();
    let r = T::from_u64(x << n);
    let cf = if T::BITS == 64 { bit(x, 64 - n) } else { bit(x << n, T::BITS) };
    let of = cf ^ u32::from(r.msb());
    (r, Flags { result: r.sext(), aux: carries(cf, of) | AF })
}

/// SHR.
#[inline(always)]
pub fn shr<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let x = a.to_u64();
    let r = T::from_u64(x >> n);
    let cf = bit(x, n - 1);
    (r, Flags { result: r.sext(), aux: carries(cf, right_of(r)) | AF })
}

/// SAR.
#[inline(always)]
pub fn sar<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let x = a.sext() as i64;
    let r = T::from_u64((x >> n) as u64);
    let cf = bit((x >> (n - 1)) as u64, 0);
    (r, Flags { result: r.sext(), aux: carries(cf, 0) | AF })
}

/// ROL. Only CF and OF change.
#[inline(always)]
pub fn rol<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let (x, n) = (a.to_u64(), n % T::BITS);
    let r = T::from_u64(if n == 0 { x } else { x << n | x >> (T::BITS - n) });
    let cf = bit(r.to_u64(), 0);
    (r, replace(f, cf, cf ^ u32::from(r.msb())))
}

/// ROR. Only CF and OF change.
#[inline(always)]
pub fn ror<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let (x, n) = (a.to_u64(), n % T::BITS);
    let r = T::from_u64(if n == 0 { x } else { x >> n | x << (T::BITS - n) });
    (r, replace(f, u32::from(r.msb()), right_of(r)))
}

/// RCL: rotate left through CF. Only CF and OF change.
#[inline(always)]
pub fn rcl<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let ring = u128::from(a.to_u64()) | u128::from(f.cf()) << T::BITS;
    let (r, cf) = rotate_ring::<T>(ring, n % (T::BITS + 1));
    (r, replace(f, cf, cf ^ u32::from(r.msb())))
}

/// RCR: rotate right through CF. Only CF and OF change.
#[inline(always)]
pub fn rcr<T: Int>(a: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let ring = u128::from(a.to_u64()) | u128::from(f.cf()) << T::BITS;
    let (r, cf) = rotate_ring::<T>(ring, T::BITS + 1 - n % (T::BITS + 1));
    (r, replace(f, cf, right_of(r)))
}

/// Rotate the operand-plus-carry ring left by `n` (0 to its width).
#[inline(always)]
fn rotate_ring<T: Int>(ring: u128, n: u32) -> (T, u32) {
    let turned = ring << n | ring >> (T::BITS + 1 - n);
    (T::from_u64(turned as u64), (turned >> T::BITS) as u32 & 1)
}

/// SHLD: shift `a` left, filling from the top of `b`.
///
/// 16-bit operands and a count above 16 (undefined by the manual) rotate `b`.
#[inline(always)]
pub fn shld<T: Int>(a: T, b: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let (x, y) = (a.to_u64(), b.to_u64());
    if n > T::BITS {
        let n = n - T::BITS;
        let r = T::from_u64(y << n | y >> (T::BITS - n));
        return (r, Flags { result: r.sext(), aux: AF });
    }
    let r = T::from_u64(if n == T::BITS { y } else { x << n | y >> (T::BITS - n) });
    let cf = bit(x, T::BITS - n);
    // At the full width nothing of `a` is left and its shifted top bit counts as 0.
    let top = if n == T::BITS { 0 } else { u32::from(r.msb()) };
    (r, Flags { result: r.sext(), aux: carries(cf, cf ^ top) | AF })
}

/// SHRD: shift `a` right, filling from the bottom of `b`. Counts above 16 of
/// 16-bit operands as for [`shld`].
#[inline(always)]
pub fn shrd<T: Int>(a: T, b: T, count: u8, f: Flags) -> (T, Flags) {
    let n = masked::<T>(count);
    if n == 0 {
        return (a, f);
    }
    let (x, y) = (a.to_u64(), b.to_u64());
    if n > T::BITS {
        let n = n - T::BITS;
        let r = T::from_u64(y >> n | y << (T::BITS - n));
        return (r, Flags { result: r.sext(), aux: carries(0, right_of(r)) | AF });
    }
    let r = T::from_u64(if n == T::BITS { y } else { x >> n | y << (T::BITS - n) });
    let cf = bit(x, n - 1);
    (r, Flags { result: r.sext(), aux: carries(cf, right_of(r)) | AF })
}
