//! Byte operations on eight bytes of a `u64` at once. Compilers turn loops over
//! bytes of a 128-bit value with selects in them into scalar code; string
//! functions live on these instructions.

/// Top bit of every byte.
const TOP: u64 = 0x8080_8080_8080_8080;
/// All other bits.
const REST: u64 = !TOP;

/// `f` of both halves.
#[inline(always)]
fn halves(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    let low = f(a as u64, b as u64);
    let high = f((a >> 64) as u64, (b >> 64) as u64);
    u128::from(low) | u128::from(high) << 64
}

/// All ones in every byte whose top bit is set in `top` (other bits are clear).
#[inline(always)]
fn fill(top: u64) -> u64 {
    (top >> 7).wrapping_mul(0xff)
}

#[inline(always)]
fn sum(a: u64, b: u64) -> u64 {
    (a & REST).wrapping_add(b & REST) ^ ((a ^ b) & TOP)
}

#[inline(always)]
fn difference(a: u64, b: u64) -> u64 {
    (a | TOP).wrapping_sub(b & REST) ^ (!(a ^ b) & TOP)
}

/// Top bits where `a < b`, unsigned: the borrows of `a - b`.
#[inline(always)]
fn below(a: u64, b: u64) -> u64 {
    ((!a & b) | (!(a ^ b) & difference(a, b))) & TOP
}

/// `on` where the mask has ones, else `off`.
#[inline(always)]
fn choose(mask: u64, on: u64, off: u64) -> u64 {
    off ^ ((off ^ on) & mask)
}

/// The bound a signed byte with the sign of `a` saturates at.
#[inline(always)]
fn bound(a: u64) -> u64 {
    REST.wrapping_add(a >> 7 & 0x0101_0101_0101_0101)
}

/// PADDB.
#[inline]
pub fn paddb(a: u128, b: u128) -> u128 {
    halves(a, b, sum)
}

/// PSUBB.
#[inline]
pub fn psubb(a: u128, b: u128) -> u128 {
    halves(a, b, difference)
}

/// PADDUSB.
#[inline]
pub fn paddusb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| {
        let s = sum(a, b);
        s | fill(((a & b) | ((a | b) & !s)) & TOP)
    })
}

/// PSUBUSB.
#[inline]
pub fn psubusb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| difference(a, b) & !fill(below(a, b)))
}

/// PADDSB.
#[inline]
pub fn paddsb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| {
        let s = sum(a, b);
        choose(fill(!(a ^ b) & (a ^ s) & TOP), bound(a), s)
    })
}

/// PSUBSB.
#[inline]
pub fn psubsb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| {
        let d = difference(a, b);
        choose(fill((a ^ b) & (a ^ d) & TOP), bound(a), d)
    })
}

/// PAVGB: rounded average.
#[inline]
pub fn pavgb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| (a | b).wrapping_sub((a ^ b) >> 1 & REST))
}

/// PCMPEQB.
#[inline]
pub fn pcmpeqb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| {
        let x = a ^ b;
        fill(!((x & REST).wrapping_add(REST) | x) & TOP)
    })
}

/// PCMPGTB.
#[inline]
pub fn pcmpgtb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| fill(below(b ^ TOP, a ^ TOP)))
}

/// PMINUB.
#[inline]
pub fn pminub(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| choose(fill(below(a, b)), a, b))
}

/// PMAXUB.
#[inline]
pub fn pmaxub(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| choose(fill(below(a, b)), b, a))
}

/// PMINSB.
#[inline]
pub fn pminsb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| choose(fill(below(a ^ TOP, b ^ TOP)), a, b))
}

/// PMAXSB.
#[inline]
pub fn pmaxsb(a: u128, b: u128) -> u128 {
    halves(a, b, |a, b| choose(fill(below(a ^ TOP, b ^ TOP)), b, a))
}

/// PMOVMSKB: the top bits of the bytes.
#[inline]
pub fn pmovmskb(a: u128) -> u32 {
    // Each top bit moves to a bit of the product's top byte; no two meet below it.
    let gather = |v: u64| ((v & TOP).wrapping_mul(0x0002_0408_1020_4081) >> 56) as u32;
    gather(a as u64) | gather((a >> 64) as u64) << 8
}

/// PSHUFB: bytes of `a` chosen by bits 3-0 of `control`'s; zero where bit 7 is set.
#[inline]
pub fn pshufb(a: u128, control: u128) -> u128 {
    let (from, control) = (a.to_le_bytes(), control.to_le_bytes());
    let mut r = [0; 16];
    for (r, c) in r.iter_mut().zip(control) {
        *r = from[usize::from(c & 15)] & !((c as i8 >> 7) as u8);
    }
    u128::from_le_bytes(r)
}
