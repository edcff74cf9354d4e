//! Bit test, scan, count, extract and deposit; CRC32; ADX (SDM volume 2).
//!
//! Flags the manual leaves undefined follow AMD family 19h and are stated with
//! each function.

use crate::flags::Flags;
use crate::int::Int;

/// Mask of bit number `index`, taken modulo the operand width.
#[inline(always)]
pub fn bit_mask<T: Int>(index: T) -> T {
    T::from_u64(1 << (index.to_u64() & u64::from(T::BITS - 1)))
}

/// BT: CF = the bit. The other flags are kept.
#[inline(always)]
pub fn bt<T: Int>(a: T, index: T, f: Flags) -> Flags {
    f.with_cf(a.to_u64() & bit_mask(index).to_u64() != 0)
}

/// BTS.
#[inline(always)]
pub fn bts<T: Int>(a: T, index: T, f: Flags) -> (T, Flags) {
    (T::from_u64(a.to_u64() | bit_mask(index).to_u64()), bt(a, index, f))
}

/// BTR.
#[inline(always)]
pub fn btr<T: Int>(a: T, index: T, f: Flags) -> (T, Flags) {
    (T::from_u64(a.to_u64() & !bit_mask(index).to_u64()), bt(a, index, f))
}

/// BTC.
#[inline(always)]
pub fn btc<T: Int>(a: T, index: T, f: Flags) -> (T, Flags) {
    (T::from_u64(a.to_u64() ^ bit_mask(index).to_u64()), bt(a, index, f))
}

/// BSF and BSR: ZF for a zero source, PF of the index; the others clear.
#[inline(always)]
fn scan<T: Int>(source: u64, index: u32) -> (Option<T>, Flags) {
    if source == 0 {
        return (None, Flags::logic(0));
    }
    // Bit 8 makes it differ from zero and leaves the parity alone.
    let index = u64::from(index);
    (Some(T::from_u64(index)), Flags::logic(index | 1 << 8))
}

/// BSF: `None` for a zero source, where the destination keeps its value.
#[inline(always)]
pub fn bsf<T: Int>(a: T) -> (Option<T>, Flags) {
    let x = a.to_u64();
    scan(x, x.trailing_zeros())
}

/// BSR: `None` for a zero source, where the destination keeps its value.
#[inline(always)]
pub fn bsr<T: Int>(a: T) -> (Option<T>, Flags) {
    let x = a.to_u64();
    scan(x, 63 ^ x.leading_zeros())
}

/// LZCNT and TZCNT: CF for a zero source, ZF for a zero result; PF, AF and SF
/// are cleared, OF is kept.
#[inline(always)]
fn count_flags(source_zero: bool, count: u32, f: Flags) -> Flags {
    // Only ZF matters of the count: 1 stands for any other value, odd parity.
    let new = Flags { result: u64::from(count != 0), aux: if count == 0 { 1 << 8 } else { 0 } };
    let (cf, of) = (u32::from(source_zero), u32::from(f.of()));
    Flags { aux: new.aux | cf << 31 | (cf ^ of) << 30, ..new }
}

/// LZCNT.
#[inline(always)]
pub fn lzcnt<T: Int>(a: T, f: Flags) -> (T, Flags) {
    let x = a.to_u64();
    let n = x.leading_zeros() - (64 - T::BITS);
    (T::from_u64(u64::from(n)), count_flags(x == 0, n, f))
}

/// TZCNT.
#[inline(always)]
pub fn tzcnt<T: Int>(a: T, f: Flags) -> (T, Flags) {
    let x = a.to_u64();
    let n = x.trailing_zeros().min(T::BITS);
    (T::from_u64(u64::from(n)), count_flags(x == 0, n, f))
}

/// POPCNT: ZF for a zero source, the others clear.
#[inline(always)]
pub fn popcnt<T: Int>(a: T) -> (T, Flags) {
    let n = a.to_u64().count_ones();
    (T::from_u64(u64::from(n)), Flags { result: u64::from(n != 0), aux: if n == 0 { 1 << 8 } else { 0 } })
}

/// Logic flags with CF set to `cf` and OF clear.
#[inline(always)]
fn with_carry<T: Int>(r: T, cf: bool) -> (T, Flags) {
    (r, Flags { result: r.sext(), aux: u32::from(cf) * 0xc000_0000 })
}

/// ANDN: `!a & b`.
#[inline(always)]
pub fn andn<T: Int>(a: T, b: T) -> (T, Flags) {
    with_carry(T::from_u64(!a.to_u64() & b.to_u64()), false)
}

/// BLSI: the lowest set bit; CF unless the source is zero.
#[inline(always)]
pub fn blsi<T: Int>(a: T) -> (T, Flags) {
    let x = a.to_u64();
    with_carry(T::from_u64(x & x.wrapping_neg()), x != 0)
}

/// BLSMSK: mask up to the lowest set bit; CF for a zero source.
#[inline(always)]
pub fn blsmsk<T: Int>(a: T) -> (T, Flags) {
    let x = a.to_u64();
    with_carry(T::from_u64(x ^ x.wrapping_sub(1)), x == 0)
}

/// BLSR: clear the lowest set bit; CF for a zero source.
#[inline(always)]
pub fn blsr<T: Int>(a: T) -> (T, Flags) {
    let x = a.to_u64();
    with_carry(T::from_u64(x & x.wrapping_sub(1)), x == 0)
}

/// BEXTR: `control` bits 7-0 are the start, 15-8 the length. AF is set, SF
/// clear.
#[inline(always)]
pub fn bextr<T: Int>(a: T, control: T) -> (T, Flags) {
    let (start, len) = (control.to_u64() as u8, (control.to_u64() >> 8) as u8);
    let shifted = a.to_u64().checked_shr(u32::from(start)).unwrap_or(0);
    let mask = 1u64.checked_shl(u32::from(len)).map_or(u64::MAX, |b| b.wrapping_sub(1));
    let r = T::from_u64(shifted & mask);
    (r, Flags { result: r.sext(), aux: 8 | u32::from(r.msb()) })
}

/// BZHI: zero the bits from `index` (low 8 bits) up; CF when there are none.
#[inline(always)]
pub fn bzhi<T: Int>(a: T, index: T) -> (T, Flags) {
    let n = u32::from(index.to_u64() as u8);
    if n >= T::BITS {
        return with_carry(a, true);
    }
    with_carry(T::from_u64(a.to_u64() & ((1 << n) - 1)), false)
}

/// PDEP: spread the low bits of `a` over the set bits of `mask`.
#[inline(always)]
pub fn pdep<T: Int>(a: T, mask: T) -> T {
    let (mut source, mut rest, mut r) = (a.to_u64(), mask.to_u64(), 0);
    while rest != 0 {
        let lowest = rest & rest.wrapping_neg();
        if source & 1 != 0 {
            r |= lowest;
        }
        source >>= 1;
        rest ^= lowest;
    }
    T::from_u64(r)
}

/// PEXT: gather the bits of `a` selected by `mask` to the bottom.
#[inline(always)]
pub fn pext<T: Int>(a: T, mask: T) -> T {
    let (source, mut rest, mut r) = (a.to_u64(), mask.to_u64(), 0);
    let mut position = 0;
    while rest != 0 {
        let lowest = rest & rest.wrapping_neg();
        r |= u64::from(source & lowest != 0) << position;
        position += 1;
        rest ^= lowest;
    }
    T::from_u64(r)
}

/// RORX: rotate right without flags.
#[inline(always)]
pub fn rorx<T: Int>(a: T, count: u8) -> T {
    let n = u32::from(count) & (T::BITS - 1);
    let x = a.to_u64();
    T::from_u64(if n == 0 { x } else { x >> n | x << (T::BITS - n) })
}

/// SHLX: shift left without flags; the count is taken modulo the width.
#[inline(always)]
pub fn shlx<T: Int>(a: T, count: T) -> T {
    T::from_u64(a.to_u64() << (count.to_u64() & u64::from(T::BITS - 1)))
}

/// SHRX.
#[inline(always)]
pub fn shrx<T: Int>(a: T, count: T) -> T {
    T::from_u64(a.to_u64() >> (count.to_u64() & u64::from(T::BITS - 1)))
}

/// SARX.
#[inline(always)]
pub fn sarx<T: Int>(a: T, count: T) -> T {
    T::from_u64(((a.sext() as i64) >> (count.to_u64() & u64::from(T::BITS - 1))) as u64)
}

/// BSWAP, and MOVBE's exchange. A 16-bit BSWAP, undefined by the manual, gives
/// zero on processors: see [`bswap_register`].
#[inline(always)]
pub fn bswap<T: Int>(a: T) -> T {
    T::from_u64(a.to_u64().swap_bytes() >> (64 - T::BITS))
}

/// The BSWAP instruction: [`bswap`], zero for a 16-bit operand.
#[inline(always)]
pub fn bswap_register<T: Int>(a: T) -> T {
    if T::BITS == 16 { T::default() } else { bswap(a) }
}

/// CRC32C of one byte, for every value of the byte.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut crc, mut n) = (i as u32, 0);
        while n < 8 {
            // Polynomial 0x11EDC6F41, reflected.
            crc = crc >> 1 ^ if crc & 1 != 0 { 0x82f6_3b78 } else { 0 };
            n += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// CRC32: accumulate `a` into `crc`.
#[inline(always)]
pub fn crc32<T: Int>(crc: u32, a: T) -> u32 {
    let (mut crc, mut x) = (crc, a.to_u64());
    for _ in 0..T::BITS / 8 {
        crc = crc >> 8 ^ CRC32C[usize::from(crc as u8 ^ x as u8)];
        x >>= 8;
    }
    crc
}

/// `a + b + carry` and the carry out.
#[inline(always)]
fn add_carry<T: Int>(a: T, b: T, carry: bool) -> (T, bool) {
    let sum = u128::from(a.to_u64()) + u128::from(b.to_u64()) + u128::from(carry);
    (T::from_u64(sum as u64), sum >> T::BITS != 0)
}

/// ADCX: add with CF; only CF changes.
#[inline(always)]
pub fn adcx<T: Int>(a: T, b: T, f: Flags) -> (T, Flags) {
    let (r, carry) = add_carry(a, b, f.cf());
    (r, f.with_cf(carry))
}

/// ADOX: add with OF as the carry; only OF changes.
#[inline(always)]
pub fn adox<T: Int>(a: T, b: T, f: Flags) -> (T, Flags) {
    let (r, carry) = add_carry(a, b, f.of());
    (r, f.with_of(carry))
}
