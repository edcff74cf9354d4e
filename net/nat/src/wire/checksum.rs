//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// A ones' complement sum under way.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Checksum {
    sum: u64,
    /// An odd number of bytes came so far.
    odd: bool,
}

impl Checksum {
    /// Add bytes; pieces may have any length.
    pub(crate) fn add(&mut self, mut bytes: &[u8]) {
        if self.odd
            && let Some((&first, rest)) = bytes.split_first()
        {
            self.sum += u64::from(first);
            self.odd = false;
            bytes = rest;
        }
        let (words, rest) = bytes.as_chunks::<4>();
        // No overflow: a frame has less than 2^16 words of 32 bits.
        self.sum += words.iter().map(|w| u64::from(u32::from_be_bytes(*w))).sum::<u64>();
        let (pairs, rest) = rest.as_chunks::<2>();
        self.sum += pairs.iter().map(|w| u64::from(u16::from_be_bytes(*w))).sum::<u64>();
        if let [last] = rest {
            self.sum += u64::from(*last) << 8;
            self.odd = true;
        }
    }

    /// The sum folded to 16 bits, not complemented: what stands in a partial checksum.
    pub(crate) fn folded(self) -> u16 {
        let mut sum = self.sum;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum of what was added.
    pub(crate) fn finish(self) -> u16 {
        !self.folded()
    }
}

/// The checksum of one piece.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = Checksum::default();
    sum.add(bytes);
    sum.finish()
}

/// The pseudo header's part of a transport checksum (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub(crate) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Checksum {
    let mut sum = Checksum::default();
    for address in [source, destination] {
        match address {
            IpAddr::V4(a) => sum.add(&a.octets()),
            IpAddr::V6(a) => sum.add(&a.octets()),
        }
    }
    sum.add(&[0, protocol]);
    sum.add(&(length as u32).to_be_bytes());
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the RFC words it.
    fn plain(bytes: &[u8]) -> u16 {
        let word = |c: &[u8]| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b));
        let sum = bytes.chunks(2).map(word).fold(0, |a: u32, w| {
            let s = a + w;
            (s & 0xffff) + (s >> 16)
        });
        !(sum as u16)
    }

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bytes in proptest::collection::vec(any::<u8>(), 0..200), cuts in proptest::collection::vec(0usize..200, 0..4)) {
            let mut sum = Checksum::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let mut from = 0;
            for to in cuts {
                sum.add(&bytes[from..to]);
                from = to;
            }
            prop_assert_eq!(sum.finish(), plain(&bytes));
        }
    }
}
