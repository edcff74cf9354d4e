//! Protocol headers: read from what guests send, written for what they get.
//!
//! Readers borrow from the frame and answer `None` for what is malformed. Own, because a few
//! fields of six fixed layouts are needed and nothing may be allocated a packet.

mod checksum;
mod frame;
mod ip;
mod transport;

pub(crate) use checksum::{checksum, pseudo_header};
pub(crate) use frame::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Header, arp_reply};
#[cfg(test)]
pub(crate) use ip::Fragment;
pub(crate) use ip::{IpPacket, protocol};
pub(crate) use transport::{TcpFlags, TcpSegment, UdpDatagram};

/// Two bytes of a field, big-endian.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Four bytes of a field, big-endian.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
