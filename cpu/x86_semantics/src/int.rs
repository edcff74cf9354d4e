//! Addition, subtraction, logic and the sixteen conditions (SDM volume 2).

use crate::flags::Flags;

/// An operand width: `u8`, `u16`, `u32` or `u64`.
pub trait Int: Copy + Eq + Default + std::fmt::Debug + Send + Sync + 'static {
    /// Width in bits.
    const BITS: u32;
    /// All bits set, zero-extended.
    const MASK: u64;
    /// The low bits of `v`.
    fn from_u64(v: u64) -> Self;
    /// Zero-extended.
    fn to_u64(self) -> u64;
    /// Sign-extended.
    fn sext(self) -> u64;
    /// The most significant bit.
    #[inline(always)]
    fn msb(self) -> bool {
        self.sext() >> 63 != 0
    }
}

macro_rules! int {
    ($($t:ty, $signed:ty;)*) => {$(
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const MASK: u64 = <$t>::MAX as u64;
            #[inline(always)]
            fn from_u64(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn sext(self) -> u64 {
                self as $signed as i64 as u64
            }
        }
    )*};
}
int! { u8, i8; u16, i16; u32, i32; u64, i64; }

/// `a + b` and its flags.
#[inline(always)]
fn add_with<T: Int>(a: T, b: T, carry: u64) -> (T, Flags) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let r = T::from_u64(x.wrapping_add(y).wrapping_add(carry));
    // Carry out of bit i: both operands had it, or one had it and the sum lost it.
    let carries = (x & y) | ((x | y) & !r.to_u64());
    (r, Flags::from_carries(r.sext(), carries, T::BITS))
}

/// `a - b - borrow` and its flags.
#[inline(always)]
fn sub_with<T: Int>(a: T, b: T, borrow: u64) -> (T, Flags) {
    let (x, y) = (a.to_u64(), b.to_u64());
    let r = T::from_u64(x.wrapping_sub(y).wrapping_sub(borrow));
    let borrows = (!x & y) | ((!x | y) & r.to_u64());
    (r, Flags::from_carries(r.sext(), borrows, T::BITS))
}

/// ADD.
#[inline(always)]
pub fn add<T: Int>(a: T, b: T) -> (T, Flags) {
    add_with(a, b, 0)
}

/// ADC.
#[inline(always)]
pub fn adc<T: Int>(a: T, b: T, f: Flags) -> (T, Flags) {
    add_with(a, b, u64::from(f.cf()))
}

/// SUB and CMP: `a - b`.
#[inline(always)]
pub fn sub<T: Int>(a: T, b: T) -> (T, Flags) {
    sub_with(a, b, 0)
}

/// SBB.
#[inline(always)]
pub fn sbb<T: Int>(a: T, b: T, f: Flags) -> (T, Flags) {
    sub_with(a, b, u64::from(f.cf()))
}

/// NEG: CF is set unless the operand is zero.
#[inline(always)]
pub fn neg<T: Int>(a: T) -> (T, Flags) {
    sub_with(T::default(), a, 0)
}

/// AND and TEST. AF, undefined by the manual, is cleared as processors do.
#[inline(always)]
pub fn and<T: Int>(a: T, b: T) -> (T, Flags) {
    logic(a.to_u64() & b.to_u64())
}

/// OR. AF as for [`and`].
#[inline(always)]
pub fn or<T: Int>(a: T, b: T) -> (T, Flags) {
    logic(a.to_u64() | b.to_u64())
}

/// XOR. AF as for [`and`].
#[inline(always)]
pub fn xor<T: Int>(a: T, b: T) -> (T, Flags) {
    logic(a.to_u64() ^ b.to_u64())
}

#[inline(always)]
fn logic<T: Int>(v: u64) -> (T, Flags) {
    let r = T::from_u64(v);
    (r, Flags::logic(r.sext()))
}

/// `new` with the CF of `old`.
#[inline(always)]
fn keep_cf(new: Flags, old: Flags) -> Flags {
    // Flipping both carries changes CF and keeps OF.
    let flip = ((new.aux ^ old.aux) as i32 >> 31) as u32 & 0xc000_0000;
    Flags { aux: new.aux ^ flip, ..new }
}

/// INC: as ADD 1, but CF is kept.
#[inline(always)]
pub fn inc<T: Int>(a: T, f: Flags) -> (T, Flags) {
    let (r, new) = add(a, T::from_u64(1));
    (r, keep_cf(new, f))
}

/// DEC: as SUB 1, but CF is kept.
#[inline(always)]
pub fn dec<T: Int>(a: T, f: Flags) -> (T, Flags) {
    let (r, new) = sub(a, T::from_u64(1));
    (r, keep_cf(new, f))
}

/// Condition `code` of Jcc, SETcc and CMOVcc: the low four bits of the opcode
/// (SDM volume 1, appendix B).
#[inline(always)]
pub fn condition(code: u8, f: Flags) -> bool {
    let plain = match code >> 1 & 7 {
        0 => f.of(),
        1 => f.cf(),
        2 => f.zf(),
        3 => f.cf() | f.zf(),
        4 => f.sf(),
        5 => f.pf(),
        6 => f.sf() != f.of(),
        _ => f.zf() | (f.sf() != f.of()),
    };
    plain != (code & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_follow_their_definitions() {
        for i in 0..64u64 {
            let on = |n: u32| i >> n & 1 != 0;
            let (cf, pf, zf, sf, of) = (on(0), on(1), on(3), on(4), on(5));
            let rflags = [0, 2, 4, 6, 7, 11].iter().enumerate().fold(0, |m, (n, b)| m | (i >> n & 1) << b);
            let f = Flags::from_rflags(rflags);
            let want = [of, cf, zf, cf || zf, sf, pf, sf != of, zf || sf != of];
            for (n, w) in want.into_iter().enumerate() {
                assert_eq!(condition(n as u8 * 2, f), w, "condition {n}, flags {rflags:#x}");
                assert_eq!(condition(n as u8 * 2 + 1, f), !w, "condition not {n}, flags {rflags:#x}");
            }
        }
    }
}
