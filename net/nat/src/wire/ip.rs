//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{be16, be32, checksum};

/// Protocol numbers.
pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ICMPV6: u8 = 58;
}

/// Extension headers of IPv6 that are skipped.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// More than any honest packet has.
const MAX_EXTENSIONS: usize = 8;

/// Which part of a datagram a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    /// Bytes before it.
    pub(crate) offset: usize,
    /// Whether others follow.
    pub(crate) more: bool,
}

/// A packet of either version.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IpPacket<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    /// Time to live or hop limit.
    pub(crate) hops: u8,
    pub(crate) payload: &'a [u8],
    pub(crate) fragment: Option<Fragment>,
    /// The packet from its first byte, for ICMP errors that quote it.
    pub(crate) whole: &'a [u8],
}

impl<'a> IpPacket<'a> {
    pub(crate) fn parse_v4(bytes: &'a [u8]) -> Option<Self> {
        let fixed = bytes.first_chunk::<20>()?;
        let header_len = usize::from(fixed[0] & 15) * 4;
        let total = usize::from(be16(bytes, 2)?);
        let header = bytes.get(..header_len)?;
        if fixed[0] >> 4 != 4 || header_len < 20 || checksum(header) != 0 {
            return None;
        }
        let whole = bytes.get(..total)?;
        let flags = be16(bytes, 6)?;
        let (more, offset) = (flags & 0x2000 != 0, usize::from(flags & 0x1fff) * 8);
        let fragment = Fragment { id: u32::from(be16(bytes, 4)?), offset, more };
        Some(IpPacket {
            source: Ipv4Addr::from(be32(bytes, 12)?).into(),
            destination: Ipv4Addr::from(be32(bytes, 16)?).into(),
            protocol: fixed[9],
            hops: fixed[8],
            payload: whole.get(header_len..)?,
            fragment: (more || offset != 0).then_some(fragment),
            whole,
        })
    }

    pub(crate) fn parse_v6(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_first_chunk::<40>()?;
        if fixed[0] >> 4 != 6 {
            return None;
        }
        let length = usize::from(be16(fixed, 4)?);
        let address = |at: usize| -> Option<IpAddr> {
            Some(Ipv6Addr::from(*fixed.get(at..)?.first_chunk::<16>()?).into())
        };
        let mut packet = IpPacket {
            source: address(8)?,
            destination: address(24)?,
            protocol: fixed[6],
            hops: fixed[7],
            payload: rest.get(..length)?,
            fragment: None,
            whole: bytes.get(..40 + length)?,
        };
        for _ in 0..MAX_EXTENSIONS {
            match packet.protocol {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    let length = 8 + 8 * usize::from(*packet.payload.get(1)?);
                    packet.protocol = *packet.payload.first()?;
                    packet.payload = packet.payload.get(length..)?;
                }
                FRAGMENT if packet.fragment.is_none() => {
                    let field = be16(packet.payload, 2)?;
                    let fragment = Fragment {
                        id: be32(packet.payload, 4)?,
                        offset: usize::from(field & !7),
                        more: field & 1 != 0,
                    };
                    packet.protocol = *packet.payload.first()?;
                    packet.payload = packet.payload.get(8..)?;
                    // An atomic fragment is a whole packet (RFC 6946).
                    packet.fragment = (fragment.more || fragment.offset != 0).then_some(fragment);
                    if packet.fragment.is_some() {
                        return Some(packet);
                    }
                }
                _ => return Some(packet),
            }
        }
        None
    }

    /// What a packet is when its fragments are put together.
    pub(crate) fn reassembled(&self, payload: &'a [u8]) -> Self {
        IpPacket { payload, fragment: None, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Header;
    use port::MacAddress;
    use proptest::prelude::*;

    fn v4(payload: &[u8]) -> Vec<u8> {
        let (a, b) = (Ipv4Addr::new(10, 0, 2, 15).into(), Ipv4Addr::new(10, 0, 2, 2).into());
        let header = Header::ip(Default::default(), a, b, protocol::UDP, payload.len());
        [&header.bytes()[14..], payload].concat()
    }

    fn v6(extensions: &[u8], first: u8, payload: &[u8]) -> Vec<u8> {
        let (a, b) = (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into());
        let macs = (MacAddress::default(), MacAddress::default());
        let header = Header::ip(macs, a, b, first, extensions.len() + payload.len());
        [&header.bytes()[14..], extensions, payload].concat()
    }

    #[test]
    fn what_is_written_can_be_read() {
        let bytes = v4(b"hello");
        let packet = IpPacket::parse_v4(&bytes).unwrap();
        assert_eq!((packet.payload, packet.protocol, packet.hops), (&b"hello"[..], protocol::UDP, 64));
        assert_eq!(packet.fragment, None);
        let bytes = v6(&[], protocol::TCP, b"hello");
        assert_eq!(IpPacket::parse_v6(&bytes).unwrap().payload, b"hello");
    }

    #[test]
    fn extension_headers_are_skipped_and_fragments_told() {
        let hop_by_hop = [FRAGMENT, 0, 1, 4, 0, 0, 0, 0];
        let fragment = [protocol::UDP, 0, 0, 8 | 1, 0, 0, 0, 7];
        let bytes = v6(&[hop_by_hop, fragment].concat(), HOP_BY_HOP, b"part");
        let packet = IpPacket::parse_v6(&bytes).unwrap();
        assert_eq!((packet.protocol, packet.payload), (protocol::UDP, &b"part"[..]));
        assert_eq!(packet.fragment, Some(Fragment { id: 7, offset: 8, more: true }));
        let chain = [DESTINATION, 0, 1, 4, 0, 0, 0, 0].repeat(20);
        assert!(IpPacket::parse_v6(&v6(&chain, DESTINATION, b"")).is_none(), "an endless chain");
    }

    #[test]
    fn wrong_headers_are_refused() {
        let good = v4(b"x");
        for (at, value) in [(0, 0x44), (0, 0x65), (3, 255), (10, good[10] ^ 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(IpPacket::parse_v4(&bad).is_none(), "byte {at} = {value:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = IpPacket::parse_v6(&bytes);
            if let Some(b) = bytes.first_mut() {
                *b = *b & 15 | 0x60;
            }
            let _ = IpPacket::parse_v6(&bytes);
            let _ = IpPacket::parse_v4(&bytes);
        }
    }
}
