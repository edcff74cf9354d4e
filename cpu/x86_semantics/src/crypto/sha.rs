//! SHA-1 and SHA-256 steps. Doublewords are named as in FIPS 180-4; element 3 of
//! a 128-bit operand holds A or the first message word.

/// Doublewords, lowest first.
fn split(v: u128) -> [u32; 4] {
    std::array::from_fn(|i| (v >> (32 * i)) as u32)
}

/// The value of doublewords, lowest first.
fn join(w: [u32; 4]) -> u128 {
    w.into_iter().rev().fold(0, |v, x| v << 32 | u128::from(x))
}

/// SHA1RNDS4: four rounds; bits 1-0 of `imm` select function and constant.
pub fn sha1rnds4(a: u128, b: u128, imm: u8) -> u128 {
    let [d0, c0, b0, a0] = split(a);
    let (mut a, mut bb, mut c, mut d, mut e) = (a0, b0, c0, d0, 0u32);
    let k = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6][usize::from(imm & 3)];
    // E of the first round is already added to the first message word.
    for w in split(b).into_iter().rev() {
        let f = match imm & 3 {
            0 => bb & c ^ !bb & d,
            2 => bb & c ^ bb & d ^ c & d,
            _ => bb ^ c ^ d,
        };
        let next = f.wrapping_add(a.rotate_left(5)).wrapping_add(w).wrapping_add(e).wrapping_add(k);
        (a, bb, c, d, e) = (next, a, bb.rotate_left(30), c, d);
    }
    join([d, c, bb, a])
}

/// SHA1NEXTE: E of four rounds on, added to the first message word.
pub fn sha1nexte(a: u128, b: u128) -> u128 {
    let mut w = split(b);
    w[3] = w[3].wrapping_add(split(a)[3].rotate_left(30));
    join(w)
}

/// SHA1MSG1.
pub fn sha1msg1(a: u128, b: u128) -> u128 {
    let ([w3, w2, w1, w0], [_, _, w5, w4]) = (split(a), split(b));
    join([w5 ^ w3, w4 ^ w2, w3 ^ w1, w2 ^ w0])
}

/// SHA1MSG2.
pub fn sha1msg2(a: u128, b: u128) -> u128 {
    let ([a0, a1, a2, a3], [w15, w14, w13, _]) = (split(a), split(b));
    let w16 = (a3 ^ w13).rotate_left(1);
    let (w17, w18) = ((a2 ^ w14).rotate_left(1), (a1 ^ w15).rotate_left(1));
    join([(a0 ^ w16).rotate_left(1), w18, w17, w16])
}

/// SHA256RNDS2: two rounds; `a` is {C D G H}, `b` is {A B E F}, `wk` (XMM0) has
/// the two sums of message word and constant in its low quadword.
pub fn sha256rnds2(a: u128, b: u128, wk: u128) -> u128 {
    let ([h0, g0, d0, c0], [f0, e0, b0, a0]) = (split(a), split(b));
    let (mut a, mut b, mut c, mut d) = (a0, b0, c0, d0);
    let (mut e, mut f, mut g, mut h) = (e0, f0, g0, h0);
    for wk in split(wk).into_iter().take(2) {
        let choice = e & f ^ !e & g;
        let majority = a & b ^ a & c ^ b & c;
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t = choice.wrapping_add(s1).wrapping_add(wk).wrapping_add(h);
        (h, g, f, e) = (g, f, e, t.wrapping_add(d));
        (d, c, b, a) = (c, b, a, t.wrapping_add(majority).wrapping_add(s0));
    }
    let _ = (c, d, g, h);
    join([f, e, b, a])
}

/// SHA256MSG1.
pub fn sha256msg1(a: u128, b: u128) -> u128 {
    let ([w0, w1, w2, w3], [w4, ..]) = (split(a), split(b));
    let s = |w: u32| w.rotate_right(7) ^ w.rotate_right(18) ^ w >> 3;
    join([w0.wrapping_add(s(w1)), w1.wrapping_add(s(w2)), w2.wrapping_add(s(w3)), w3.wrapping_add(s(w4))])
}

/// SHA256MSG2.
pub fn sha256msg2(a: u128, b: u128) -> u128 {
    let ([a0, a1, a2, a3], [_, _, w14, w15]) = (split(a), split(b));
    let s = |w: u32| w.rotate_right(17) ^ w.rotate_right(19) ^ w >> 10;
    let w16 = a0.wrapping_add(s(w14));
    let w17 = a1.wrapping_add(s(w15));
    join([w16, w17, a2.wrapping_add(s(w16)), a3.wrapping_add(s(w17))])
}
