//! Ethernet and ARP; headers of frames on their way to the guest.

use std::net::{IpAddr, Ipv4Addr};

use port::{ETHERNET_HEADER, MacAddress};

use super::{be16, checksum};

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Hop limit and time to live of what the NAT sends.
const HOPS: u8 = 64;

/// A frame (IEEE 802.3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ethernet<'a> {
    pub(crate) source: MacAddress,
    pub(crate) destination: MacAddress,
    pub(crate) ethertype: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    pub(crate) fn parse(frame: &'a [u8]) -> Option<Self> {
        let (header, payload) = frame.split_first_chunk::<ETHERNET_HEADER>()?;
        let (destination, rest) = header.split_first_chunk()?;
        let (source, _) = rest.split_first_chunk()?;
        let ethertype = be16(header, 12)?;
        Some(Ethernet {
            source: MacAddress(*source),
            destination: MacAddress(*destination),
            ethertype,
            payload,
        })
    }
}

/// The headers of a frame for the guest, without memory of their own on the heap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    bytes: [u8; Header::LONGEST],
    len: usize,
}

impl Header {
    /// Ethernet, IPv6 with a fragment header, TCP with all its options.
    const LONGEST: usize = ETHERNET_HEADER + 40 + 8 + 60;

    /// An Ethernet header for this kind of packet.
    pub(crate) fn ethernet(destination: MacAddress, source: MacAddress, ethertype: u16) -> Self {
        let mut header = Header { bytes: [0; Self::LONGEST], len: 0 };
        header.push(&destination.0);
        header.push(&source.0);
        header.push(&ethertype.to_be_bytes());
        header
    }

    /// Ethernet and IP headers for `length` bytes of this protocol. Both addresses are of one family.
    pub(crate) fn ip(
        macs: (MacAddress, MacAddress),
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        length: usize,
    ) -> Self {
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Self::ethernet(macs.0, macs.1, ETHERTYPE_IPV4);
                header.push_ipv4(source, destination, protocol, length, 0, 0x4000);
                header
            }
            (source, destination) => {
                let mut header = Self::ethernet(macs.0, macs.1, ETHERTYPE_IPV6);
                header.push(&[0x60, 0, 0, 0]);
                header.push(&(length as u16).to_be_bytes());
                // RFC 4861 wants 255 of neighbour discovery; others do not mind.
                let hops = if protocol == super::protocol::ICMPV6 { 255 } else { HOPS };
                header.push(&[protocol, hops]);
                for address in [source, destination] {
                    match address {
                        IpAddr::V6(a) => header.push(&a.octets()),
                        IpAddr::V4(a) => header.push(&a.to_ipv6_mapped().octets()),
                    }
                }
                header
            }
        }
    }

    /// An IPv4 header; `fragment` is its field of flags and offset.
    pub(crate) fn push_ipv4(
        &mut self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        length: usize,
        id: u16,
        fragment: u16,
    ) {
        let start = self.len;
        self.push(&[0x45, 0]);
        self.push(&((length + 20) as u16).to_be_bytes());
        self.push(&id.to_be_bytes());
        self.push(&fragment.to_be_bytes());
        self.push(&[HOPS, protocol, 0, 0]);
        self.push(&source.octets());
        self.push(&destination.octets());
        let sum = checksum(self.bytes.get(start..self.len).unwrap_or_default());
        self.set16(start + 10, sum);
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        // LONGEST is what the NAT's own code writes; nothing a guest sends changes it.
        self.bytes[self.len..end].copy_from_slice(bytes);
        self.len = end;
    }

    pub(crate) fn set16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The answer to an ARP packet (RFC 826), if it asks for an address that is `ours`.
/// Also what it says of its sender.
pub(crate) fn arp_reply(
    packet: &[u8],
    mac: MacAddress,
    ours: impl Fn(Ipv4Addr) -> bool,
) -> Option<(MacAddress, Header)> {
    /// Ethernet, IPv4, their address lengths, request.
    const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    let (fixed, rest) = packet.split_first_chunk::<8>()?;
    let (sender_mac, rest) = rest.split_first_chunk::<6>()?;
    let (sender, rest) = rest.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<6>()?;
    let (target, _) = rest.split_first_chunk::<4>()?;
    if *fixed != REQUEST || !ours(Ipv4Addr::from(*target)) {
        return None;
    }
    let mut reply = Header::ethernet(MacAddress(*sender_mac), mac, ETHERTYPE_ARP);
    reply.push(&[0, 1, 8, 0, 6, 4, 0, 2]);
    reply.push(&mac.0);
    reply.push(target);
    reply.push(sender_mac);
    reply.push(sender);
    Some((MacAddress(*sender_mac), reply))
}
