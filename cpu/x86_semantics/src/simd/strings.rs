//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM volume 2, 4.1).

use std::array::from_fn;

use super::lanes::{bytes, words};
use crate::flags::Flags;

/// Result of a string comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compared {
    /// IntRes2: one bit an element.
    pub bits: u32,
    /// Number of elements: 16 bytes or 8 words.
    pub elements: u32,
    /// The status flags.
    pub flags: Flags,
}

impl Compared {
    /// The index PCMPxSTRI leaves in ECX: the lowest set bit, the highest if bit 6
    /// of `imm` is set, the element count if there is none.
    pub fn index(&self, imm: u8) -> u32 {
        if self.bits == 0 {
            self.elements
        } else if imm & 0x40 != 0 {
            31 - self.bits.leading_zeros()
        } else {
            self.bits.trailing_zeros()
        }
    }

    /// The mask PCMPxSTRM leaves in XMM0: bits, or whole elements if bit 6 of
    /// `imm` is set.
    pub fn mask(&self, imm: u8) -> u128 {
        let on = |i: usize| self.bits >> i & 1 != 0;
        if imm & 0x40 == 0 {
            u128::from(self.bits)
        } else if self.elements == 8 {
            words::join(from_fn(|i| if on(i) { u16::MAX } else { 0 }))
        } else {
            bytes::join(from_fn(|i| if on(i) { u8::MAX } else { 0 }))
        }
    }
}

/// PCMPESTRx: lengths are given, as the values of EAX/RAX (`len_a`) and EDX/RDX,
/// sign-extended; their magnitudes saturate at the element count.
pub fn explicit(a: u128, len_a: i64, b: u128, len_b: i64, imm: u8) -> Compared {
    let n = element_count(imm);
    let clamp = |len: i64| len.unsigned_abs().min(n as u64) as usize;
    compare(a, clamp(len_a), b, clamp(len_b), imm)
}

/// PCMPISTRx: strings end at their first zero element.
pub fn implicit(a: u128, b: u128, imm: u8) -> Compared {
    let n = element_count(imm);
    let len = |v: u128| elements(v, imm).iter().take(n).position(|e| *e == 0).unwrap_or(n);
    compare(a, len(a), b, len(b), imm)
}

/// 16 for bytes, 8 for words.
fn element_count(imm: u8) -> usize {
    if imm & 1 == 0 { 16 } else { 8 }
}

/// The elements widened to 32 bits, with sign where bit 1 of `imm` says so.
fn elements(v: u128, imm: u8) -> [i32; 16] {
    match imm & 3 {
        0 => bytes::split(v).map(i32::from),
        2 => bytes::split(v).map(|x| i32::from(x as i8)),
        signed => {
            let v = words::split(v);
            from_fn(|i| {
                let x = v[i & 7];
                if signed == 1 { i32::from(x) } else { i32::from(x as i16) }
            })
        }
    }
}

fn compare(a: u128, len_a: usize, b: u128, len_b: usize, imm: u8) -> Compared {
    let n = element_count(imm);
    let all = (1u32 << n) - 1;
    let (x, y) = (elements(a, imm), elements(b, imm));
    let result = match imm >> 2 & 3 {
        0 => select(n, |j| j < len_b && x[..len_a].contains(&y[j])),
        1 => select(n, |j| {
            // An odd last bound has no partner and matches nothing.
            j < len_b && x[..len_a].chunks_exact(2).any(|range| (range[0]..=range[1]).contains(&y[j]))
        }),
        2 => select(n, |j| match (j < len_a, j < len_b) {
            (true, true) => x[j] == y[j],
            (valid_a, valid_b) => valid_a == valid_b,
        }),
        _ => select(n, |j| {
            // Substring `a` at position j of `b`; what lies beyond the register matches.
            (0..len_a.min(n - j)).all(|i| j + i < len_b && x[i] == y[j + i])
        }),
    };
    let bits = match imm >> 4 & 3 {
        1 => result ^ all,
        3 => result ^ ((1u32 << len_b) - 1),
        _ => result,
    };
    let (cf, zf, sf, of) = (bits != 0, len_b < n, len_a < n, bits & 1 != 0);
    let rflags = u64::from(cf) | u64::from(zf) << 6 | u64::from(sf) << 7 | u64::from(of) << 11;
    Compared { bits, elements: n as u32, flags: Flags::from_rflags(rflags) }
}

/// The bits for which `f` holds.
fn select(n: usize, f: impl Fn(usize) -> bool) -> u32 {
    (0..n).fold(0, |bits, j| bits | u32::from(f(j)) << j)
}
