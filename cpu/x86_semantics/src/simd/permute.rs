//! Permutations with a variable index, and those that cross lanes.

use std::array::from_fn;

use super::lanes::{dwords, qwords};

/// VPERMILPS: doublewords of `a` chosen within the lane by bits 1-0 of `control`'s.
pub fn vpermilps(a: u128, control: u128) -> u128 {
    let a = dwords::split(a);
    dwords::map(control, |c| a[c as usize & 3])
}

/// VPERMILPD: quadwords of `a` chosen within the lane by bit 1 of `control`'s.
pub fn vpermilpd(a: u128, control: u128) -> u128 {
    let a = qwords::split(a);
    qwords::map(control, |c| a[c as usize >> 1 & 1])
}

/// VPERMD and VPERMPS: doublewords of 256-bit `a` chosen by bits 2-0 of `index`'s.
pub fn vpermd(index: [u128; 2], a: [u128; 2]) -> [u128; 2] {
    let (low, high) = (dwords::split(a[0]), dwords::split(a[1]));
    index.map(|half| dwords::map(half, |c| if c & 4 == 0 { low } else { high }[c as usize & 3]))
}

/// VPERMQ and VPERMPD: quadwords of 256-bit `a` chosen by two bits of `imm` each.
pub fn vpermq(a: [u128; 2], imm: u8) -> [u128; 2] {
    let quads: [u64; 4] = from_fn(|i| (a[i >> 1] >> (64 * (i & 1))) as u64);
    let chosen = |i: u32| quads[usize::from(imm >> (2 * i)) & 3];
    [qwords::join([chosen(0), chosen(1)]), qwords::join([chosen(2), chosen(3)])]
}
