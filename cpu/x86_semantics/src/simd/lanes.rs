//! A 128-bit value as an array of elements and back, lowest element first.

use std::array::from_fn;

macro_rules! lanes {
    ($($name:ident $t:ty, $n:literal;)*) => {$(
        /// Elements of one width.
        pub(super) mod $name {
            use super::from_fn;

            /// The elements, lowest first.
            #[inline(always)]
            pub fn split(v: u128) -> [$t; $n] {
                from_fn(|i| (v >> (i as u32 * <$t>::BITS)) as $t)
            }
            /// The value the elements make.
            #[inline(always)]
            pub fn join(elements: [$t; $n]) -> u128 {
                let mut v = 0;
                for (i, e) in elements.into_iter().enumerate() {
                    v |= u128::from(e) << (i as u32 * <$t>::BITS);
                }
                v
            }
            /// `f` of each element.
            #[inline(always)]
            pub fn map(a: u128, f: impl Fn($t) -> $t) -> u128 {
                join(split(a).map(f))
            }
            /// `f` of each pair of elements.
            #[inline(always)]
            pub fn zip(a: u128, b: u128, f: impl Fn($t, $t) -> $t) -> u128 {
                let (a, b) = (split(a), split(b));
                join(from_fn(|i| f(a[i], b[i])))
            }
        }
    )*};
}

lanes! {
    bytes u8, 16;
    words u16, 8;
    dwords u32, 4;
    qwords u64, 2;
}

/// The signed 16-bit value saturated to a signed byte.
#[inline(always)]
pub(super) fn saturate_i8(v: i16) -> u8 {
    v.clamp(-128, 127) as u8
}

/// The signed 16-bit value saturated to an unsigned byte.
#[inline(always)]
pub(super) fn saturate_u8(v: i16) -> u8 {
    v.clamp(0, 255) as u8
}

/// The signed 32-bit value saturated to a signed word.
#[inline(always)]
pub(super) fn saturate_i16(v: i32) -> u16 {
    v.clamp(-0x8000, 0x7fff) as u16
}

/// The signed 32-bit value saturated to an unsigned word.
#[inline(always)]
pub(super) fn saturate_u16(v: i32) -> u16 {
    v.clamp(0, 0xffff) as u16
}
