//! 64-bit MMX forms that are not the low half of the 128-bit operation on
//! zero-extended operands. All others are: `paddb(a.into(), b.into()) as u64`.

use super::shuffle;

/// Two 64-bit operands as the halves of one 128-bit operand.
#[inline(always)]
fn both(a: u64, b: u64) -> u128 {
    u128::from(a) | u128::from(b) << 64
}

macro_rules! packed {
    ($($doc:literal $name:ident $wide:path;)*) => {$(
        #[doc = $doc]
        #[inline]
        pub fn $name(a: u64, b: u64) -> u64 {
            // One 128-bit operand narrows to the eight bytes wanted.
            $wide(both(a, b), 0) as u64
        }
    )*};
}

packed! {
    "PACKSSWB." packsswb shuffle::packsswb;
    "PACKUSWB." packuswb shuffle::packuswb;
    "PACKSSDW." packssdw shuffle::packssdw;
    "PHADDW." phaddw super::phaddw;
    "PHADDD." phaddd super::phaddd;
    "PHADDSW." phaddsw super::phaddsw;
    "PHSUBW." phsubw super::phsubw;
    "PHSUBD." phsubd super::phsubd;
    "PHSUBSW." phsubsw super::phsubsw;
}

macro_rules! high {
    ($($doc:literal $name:ident $low:path;)*) => {$(
        #[doc = $doc]
        #[inline]
        pub fn $name(a: u64, b: u64) -> u64 {
            ($low(u128::from(a), u128::from(b)) >> 64) as u64
        }
    )*};
}

high! {
    "PUNPCKHBW." punpckhbw shuffle::punpcklbw;
    "PUNPCKHWD." punpckhwd shuffle::punpcklwd;
    "PUNPCKHDQ." punpckhdq shuffle::punpckldq;
}

/// PSHUFB: bytes of `a` chosen by bits 2-0 of `control`'s.
pub fn pshufb(a: u64, control: u64) -> u64 {
    let (a, control) = (a.to_le_bytes(), control.to_le_bytes());
    u64::from_le_bytes(control.map(|c| if c & 0x80 != 0 { 0 } else { a[usize::from(c & 7)] }))
}

/// PSHUFW.
pub fn pshufw(a: u64, imm: u8) -> u64 {
    shuffle::pshuflw(u128::from(a), imm) as u64
}

/// PALIGNR: bytes `imm` and up of `a:b`.
pub fn palignr(a: u64, b: u64, imm: u8) -> u64 {
    both(b, a).checked_shr(u32::from(imm) * 8).unwrap_or(0) as u64
}

/// PMULUDQ: unsigned product of the low doublewords.
pub fn pmuludq(a: u64, b: u64) -> u64 {
    u64::from(a as u32) * u64::from(b as u32)
}

/// PMOVMSKB.
pub fn pmovmskb(a: u64) -> u32 {
    super::pmovmskb(u128::from(a))
}

/// PINSRW: word `value` into position `imm` modulo 4.
pub fn pinsrw(a: u64, value: u16, imm: u8) -> u64 {
    let at = u32::from(imm & 3) * 16;
    a & !(0xffff << at) | u64::from(value) << at
}

/// PEXTRW: the word at position `imm` modulo 4.
pub fn pextrw(a: u64, imm: u8) -> u16 {
    (a >> (u32::from(imm & 3) * 16)) as u16
}
