//! Decimal and ASCII adjustment (SDM volume 2; not in 64-bit mode).
//!
//! OF, undefined by the manual, is cleared by DAA, DAS, AAA, AAS, AAM and AAD;
//! SF, ZF and PF of AAA and AAS come from the adjusted AL.

use crate::flags::Flags;

/// Flags from an adjusted AL with CF and AF given.
fn adjusted(al: u8, cf: bool, af: bool) -> Flags {
    // Both carries equal: OF clear.
    let aux = (u32::from(cf) * 0xc000_0000) | (u32::from(af) << 3);
    Flags { result: al as i8 as u64, aux }
}

/// DAA: AL after a packed-decimal addition.
pub fn daa(al: u8, f: Flags) -> (u8, Flags) {
    let low = al & 0xf > 9 || f.af();
    let high = al > 0x99 || f.cf();
    let r = al.wrapping_add(if low { 6 } else { 0 }).wrapping_add(if high { 0x60 } else { 0 });
    (r, adjusted(r, high, low))
}

/// DAS: AL after a packed-decimal subtraction.
pub fn das(al: u8, f: Flags) -> (u8, Flags) {
    let low = al & 0xf > 9 || f.af();
    let high = al > 0x99 || f.cf();
    let r = al.wrapping_sub(if low { 6 } else { 0 }).wrapping_sub(if high { 0x60 } else { 0 });
    (r, adjusted(r, high || (low && (al < 6 || f.cf())), low))
}

/// AAA: AX after an unpacked-decimal addition.
pub fn aaa(ax: u16, f: Flags) -> (u16, Flags) {
    let adjust = ax & 0xf > 9 || f.af();
    let r = if adjust { ax.wrapping_add(0x106) } else { ax } & 0xff0f;
    (r, adjusted(r as u8, adjust, adjust))
}

/// AAS: AX after an unpacked-decimal subtraction.
pub fn aas(ax: u16, f: Flags) -> (u16, Flags) {
    let adjust = ax & 0xf > 9 || f.af();
    let r = if adjust { ax.wrapping_sub(0x106) } else { ax } & 0xff0f;
    (r, adjusted(r as u8, adjust, adjust))
}

/// AAM: AL into digits of `base` (10 unless coded otherwise); `None` is #DE.
pub fn aam(al: u8, base: u8) -> Option<(u16, Flags)> {
    let (digit, rest) = (al.checked_div(base)?, al.checked_rem(base)?);
    Some((u16::from(digit) << 8 | u16::from(rest), adjusted(rest, false, false)))
}

/// AAD: digits of `base` in AX into AL; AH becomes zero.
pub fn aad(ax: u16, base: u8) -> (u16, Flags) {
    let al = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(base));
    (u16::from(al), adjusted(al, false, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(cf: u64, af: u64) -> Flags {
        Flags::from_rflags(cf | af << 4)
    }

    #[test]
    fn packed_addition_carries_into_the_next_digits() {
        // SDM volume 2, DAA example: 79h + 35h = AEh, adjusted 14h with carry.
        let (al, f) = daa(0xae, flags(0, 0));
        assert_eq!((al, f.cf(), f.af()), (0x14, true, true));
        // All sums of two decimal numbers.
        for a in 0..100u8 {
            for b in 0..100u8 {
                let bcd = |v: u8| ((v / 10) << 4) | (v % 10);
                let (sum, f) = crate::int::add(bcd(a), bcd(b));
                let (al, f) = daa(sum, f);
                assert_eq!((al, f.cf()), (bcd((a + b) % 100), a + b > 99), "{a}+{b}");
                let (difference, f) = crate::int::sub(bcd(a), bcd(b));
                let (al, f) = das(difference, f);
                assert_eq!((al, f.cf()), (bcd((100 + a - b) % 100), a < b), "{a}-{b}");
            }
        }
    }

    #[test]
    fn packed_subtraction_borrows() {
        // SDM volume 2, DAS example: 35h - 47h = EEh, adjusted 88h with borrow.
        let (al, f) = das(0xee, flags(1, 1));
        assert_eq!((al, f.cf(), f.af(), f.sf(), f.pf()), (0x88, true, true, true, true));
    }

    #[test]
    fn unpacked_digits() {
        assert_eq!(aaa(0x000f, flags(0, 0)).0, 0x0105);
        assert_eq!(aaa(0x00fa, flags(0, 0)).0, 0x0200, "carry out of AL reaches AH");
        assert_eq!(aas(0x02ff, flags(0, 1)).0, 0x0109);
        assert_eq!(aas(0x0002, flags(0, 1)).0, 0xfe0c);
        assert_eq!(aam(63, 10).map(|r| r.0), Some(0x0603));
        assert_eq!(aam(63, 0), None);
        assert_eq!(aad(0x0603, 10).0, 63);
        let (ax, f) = aad(0x0a9c, 10);
        assert_eq!((ax, f.zf()), (0, true));
    }
}
