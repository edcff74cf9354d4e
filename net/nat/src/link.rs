//! The guest's end of the wire: what leaves for it.

use std::collections::VecDeque;
use std::net::IpAddr;

use port::{Checksum, ETHERNET_HEADER, FrameSink, MacAddress, Offload, Offloads};

use crate::addresses::Addresses;
use crate::wire::{Header, protocol, pseudo_header};

/// Answers waiting for room: ARP, ICMP, DHCP, refusals. What is beyond is lost, as on a wire.
const MAX_WAITING: usize = 256;

/// The guest's end of the wire.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) addresses: Addresses,
    /// Where frames go; learned from what the guest sends.
    pub(crate) guest: MacAddress,
    /// Longest packet, in bytes.
    pub(crate) mtu: u16,
    /// What the guest's device takes over.
    pub(crate) takes: Offloads,
    waiting: VecDeque<(Header, Vec<u8>)>,
    /// Identification of the next IPv4 datagram in fragments.
    next_id: u16,
}

/// Source and destination of a packet for the guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
}

impl Link {
    pub(crate) fn new(addresses: Addresses, guest: MacAddress, mtu: u16) -> Self {
        Link { addresses, guest, mtu, takes: Offloads::NONE, waiting: VecDeque::new(), next_id: 0 }
    }

    /// Destination and source of frames for the guest.
    pub(crate) fn macs(&self) -> (MacAddress, MacAddress) {
        (self.guest, self.addresses.mac)
    }

    /// Let a small answer wait for room. Its checksums are complete.
    pub(crate) fn answer(&mut self, header: Header, payload: Vec<u8>) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back((header, payload));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Hand over waiting answers; false when there is no room for one.
    pub(crate) fn flush(&mut self, sink: &mut dyn FrameSink) -> bool {
        while let Some((header, payload)) = self.waiting.front() {
            if !sink.room() {
                return false;
            }
            let offload = Offload { checksum: Checksum::Verified, segments: None };
            let offload = if self.takes.checksum { offload } else { Offload::NONE };
            sink.take(&[header.bytes(), payload], &offload);
            self.waiting.pop_front();
        }
        true
    }

    /// Let an answer in a single UDP datagram wait, to this frame address.
    pub(crate) fn answer_udp(&mut self, to_mac: MacAddress, ends: Ends, ports: (u16, u16), payload: Vec<u8>) {
        let (_, source) = self.macs();
        let header = udp_header((to_mac, source), ends, ports, &payload, false);
        self.answer(header, payload);
    }

    /// Hand over a UDP datagram, in fragments if it is longer than the MTU. Ask for room before.
    pub(crate) fn udp(&mut self, sink: &mut dyn FrameSink, ends: Ends, ports: (u16, u16), payload: &[u8]) {
        let headers = if ends.to.is_ipv4() { 20 } else { 40 };
        let whole = headers + 8 + payload.len() <= usize::from(self.mtu);
        let header = udp_header(self.macs(), ends, ports, payload, whole && self.takes.checksum);
        if whole {
            let start = (ETHERNET_HEADER + headers) as u16;
            let checksum =
                if self.takes.checksum { Checksum::Partial { start, offset: 6 } } else { Checksum::Complete };
            return sink.take(&[header.bytes(), payload], &Offload { checksum, segments: None });
        }
        let udp = header.bytes().get(ETHERNET_HEADER + headers..).unwrap_or_default();
        self.fragments(sink, ends, [udp, payload]);
    }

    /// Hand over a UDP datagram in fragments.
    fn fragments(&mut self, sink: &mut dyn FrameSink, ends: Ends, parts: [&[u8]; 2]) {
        self.next_id = self.next_id.wrapping_add(1);
        let overhead = if ends.to.is_ipv4() { 20 } else { 48 };
        let most = (usize::from(self.mtu) - overhead) & !7;
        let [udp, payload] = parts;
        let total = udp.len() + payload.len();
        let mut offset = 0;
        while offset < total {
            let length = most.min(total - offset);
            let more = offset + length < total;
            let header = self.fragment_header(ends, offset, length, more);
            let of_udp = udp.get(offset..).unwrap_or_default();
            let from = offset.saturating_sub(udp.len());
            let piece = payload.get(from..(offset + length - udp.len()).max(from)).unwrap_or_default();
            if !sink.room() {
                return;
            }
            sink.take(&[header.bytes(), of_udp, piece], &Offload::NONE);
            offset += length;
        }
    }

    fn fragment_header(&self, ends: Ends, offset: usize, length: usize, more: bool) -> Header {
        match (ends.from, ends.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (mac, source) = self.macs();
                let mut header = Header::ethernet(mac, source, crate::wire::ETHERTYPE_IPV4);
                let field = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
                header.push_ipv4(from, to, protocol::UDP, length, self.next_id, field);
                header
            }
            (from, to) => {
                let mut header = Header::ip(self.macs(), from, to, 44, length + 8);
                header.push(&[protocol::UDP, 0]);
                header.push(&(offset as u16 | u16::from(more)).to_be_bytes());
                header.push(&u32::from(self.next_id).to_be_bytes());
                header
            }
        }
    }
}

/// All headers of a UDP datagram; `partial`: the checksum is left to the receiver.
fn udp_header(
    macs: (MacAddress, MacAddress),
    ends: Ends,
    ports: (u16, u16),
    payload: &[u8],
    partial: bool,
) -> Header {
    let length = 8 + payload.len();
    let mut header = Header::ip(macs, ends.from, ends.to, protocol::UDP, length);
    let start = header.len();
    for field in [ports.0, ports.1, length as u16, 0] {
        header.push(&field.to_be_bytes());
    }
    let mut sum = pseudo_header(ends.from, ends.to, protocol::UDP, length);
    if partial {
        header.set16(start + 6, sum.folded());
    } else {
        sum.add(header.bytes().get(start..).unwrap_or_default());
        sum.add(payload);
        // Zero would say that there is none.
        let sum = sum.finish();
        header.set16(start + 6, if sum == 0 { 0xffff } else { sum });
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragments::Fragments;
    use crate::wire::{IpPacket, UdpDatagram};
    use std::time::Instant;

    struct Collect(Vec<(Vec<u8>, Offload)>);

    impl FrameSink for Collect {
        fn room(&mut self) -> bool {
            true
        }
        fn take(&mut self, parts: &[&[u8]], offload: &Offload) {
            self.0.push((parts.concat(), *offload));
        }
    }

    /// A datagram of this length arrives whole, in so many frames.
    fn check(ends: Ends, length: usize, takes: Offloads, frames: usize) {
        let mut link = Link::new(Addresses::default(), MacAddress([2; 6]), 1500);
        link.takes = takes;
        let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
        let mut sink = Collect(Vec::new());
        link.udp(&mut sink, ends, (53, 1024), &payload);
        assert_eq!(sink.0.len(), frames, "{length} bytes");
        let mut fragments = Fragments::default();
        let mut arrived = None;
        for (frame, offload) in &sink.0 {
            assert!(frame.len() <= 1514);
            let bytes = &frame[14..];
            let packet = match ends.to {
                IpAddr::V4(_) => IpPacket::parse_v4(bytes),
                IpAddr::V6(_) => IpPacket::parse_v6(bytes),
            };
            let packet = packet.expect("well formed");
            let body = match packet.fragment {
                Some(_) => fragments.add(&packet, Instant::now()),
                None => Some(packet.payload.to_vec()),
            };
            if let Some(body) = body {
                let whole = packet.reassembled(&body);
                let datagram = UdpDatagram::parse(&whole, offload).expect("a right checksum");
                assert_eq!((datagram.source, datagram.destination), (53, 1024));
                arrived = Some(datagram.payload.to_vec());
            }
        }
        assert_eq!(arrived.as_deref(), Some(&payload[..]), "{length} bytes");
    }

    #[test]
    fn datagrams_of_every_length_arrive() {
        let v4 = Ends { from: [10, 0, 2, 3].into(), to: [10, 0, 2, 15].into() };
        let v6 = Ends { from: Addresses::default().dns6.into(), to: Addresses::default().gateway6.into() };
        for takes in [Offloads::NONE, Offloads { checksum: true, ..Offloads::NONE }] {
            for (length, frames4, frames6) in [
                (0, 1, 1),
                (1, 1, 1),
                (1452, 1, 1),
                (1453, 1, 2),
                (1472, 1, 2),
                (1473, 2, 2),
                (65_507, 45, 46),
            ] {
                check(v4, length, takes, frames4);
                check(v6, length, takes, frames6);
            }
        }
    }
}
