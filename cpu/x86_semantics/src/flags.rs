//! The six status flags in a form that is cheap to produce and to query.

/// Lazily evaluated CF PF AF ZF SF OF.
///
/// `result` is the operation's result, sign-extended to 64 bits: it gives ZF, SF
/// and PF. `aux` holds what the result does not:
///
/// | bits | meaning |
/// | --- | --- |
/// | 31 | CF: carry out of the top bit |
/// | 30 | carry into the top bit; OF = bit 31 xor bit 30 |
/// | 8-15 | xored into the result's low byte before its parity is taken |
/// | 3 | AF: carry out of bit 3 |
/// | 0 | xored into SF |
///
/// Any combination of the six flags can be represented ([`Flags::from_rflags`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags {
    /// Sign-extended result.
    pub result: u64,
    /// Carries and corrections.
    pub aux: u32,
}

impl Flags {
    /// From the carry vector of a `bits`-wide addition or the borrow vector of a
    /// subtraction (bit i = carry out of bit i), and the result sign-extended to 64 bits.
    #[inline(always)]
    pub fn from_carries(result: u64, carries: u64, bits: u32) -> Self {
        let top = match bits {
            64 => carries >> 32,
            32 => carries,
            16 => carries << 16,
            _ => carries << 24,
        };
        Flags { result, aux: (top as u32 & 0xc000_0000) | (carries as u32 & 8) }
    }

    /// Flags of a logical operation: CF, OF and AF clear.
    #[inline(always)]
    pub fn logic(result: u64) -> Self {
        Flags { result, aux: 0 }
    }

    /// CF.
    #[inline(always)]
    pub fn cf(self) -> bool {
        self.aux >> 31 != 0
    }
    /// OF.
    #[inline(always)]
    pub fn of(self) -> bool {
        (self.aux ^ self.aux << 1) >> 31 != 0
    }
    /// AF.
    #[inline(always)]
    pub fn af(self) -> bool {
        self.aux & 8 != 0
    }
    /// ZF.
    #[inline(always)]
    pub fn zf(self) -> bool {
        self.result == 0
    }
    /// SF.
    #[inline(always)]
    pub fn sf(self) -> bool {
        (self.result >> 63) as u32 ^ (self.aux & 1) != 0
    }
    /// PF: even parity of the low byte.
    #[inline(always)]
    pub fn pf(self) -> bool {
        (self.result as u8 ^ (self.aux >> 8) as u8).count_ones() % 2 == 0
    }

    /// The flags as RFLAGS bits.
    pub fn to_rflags(self) -> u64 {
        u64::from(self.cf())
            | u64::from(self.pf()) << 2
            | u64::from(self.af()) << 4
            | u64::from(self.zf()) << 6
            | u64::from(self.sf()) << 7
            | u64::from(self.of()) << 11
    }

    /// From RFLAGS bits (others are ignored).
    pub fn from_rflags(rflags: u64) -> Self {
        let on = |bit: u32| (rflags >> bit & 1) as u32;
        let (cf, pf, af, zf, sf, of) = (on(0), on(2), on(4), on(6), on(7), on(11));
        // Result 0 for ZF, else 1 (odd parity, positive): the corrections do the rest.
        let result = u64::from(zf == 0);
        let natural_pf = zf;
        let aux = cf << 31 | (cf ^ of) << 30 | (pf ^ natural_pf) << 8 | af << 3 | sf;
        Flags { result, aux }
    }

    /// These flags with CF replaced; OF is kept.
    #[inline(always)]
    pub fn with_cf(self, cf: bool) -> Self {
        let flip = if self.cf() == cf { 0 } else { 0xc000_0000 };
        Flags { aux: self.aux ^ flip, ..self }
    }

    /// These flags with OF replaced; CF is kept.
    #[inline(always)]
    pub fn with_of(self, of: bool) -> Self {
        let flip = if self.of() == of { 0 } else { 0x4000_0000 };
        Flags { aux: self.aux ^ flip, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives_the_round_trip() {
        for i in 0..64u64 {
            let bits = [0, 2, 4, 6, 7, 11];
            let rflags = bits.iter().enumerate().fold(0, |m, (n, b)| m | (i >> n & 1) << b);
            let f = Flags::from_rflags(rflags);
            assert_eq!(f.to_rflags(), rflags, "{rflags:#x}");
            assert_eq!(f.with_cf(true).to_rflags(), rflags | 1);
            assert_eq!(f.with_cf(false).to_rflags(), rflags & !1);
            assert_eq!(f.with_of(true).to_rflags(), rflags | 0x800);
            assert_eq!(f.with_of(false).to_rflags(), rflags & !0x800);
        }
    }
}
