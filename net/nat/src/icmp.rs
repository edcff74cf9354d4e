//! ICMP (RFC 792), ICMPv6 (RFC 4443), neighbour discovery (RFC 4861) and the
//! name server in router advertisements (RFC 8106).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use port::MacAddress;

use crate::link::{Ends, Link};
use crate::wire::{Header, IpPacket, be16, checksum, protocol, pseudo_header};

/// Most bytes of a packet that an error quotes: the error fits in every MTU.
const QUOTED: usize = 548;

/// How often the router is advertised to a guest that has IPv6 (RFC 4861 section
/// 6.2.1, MaxRtrAdvInterval).
pub(crate) const ADVERTISED_EVERY: Duration = Duration::from_secs(600);

/// Types.
const ECHO_REPLY_4: u8 = 0;
const UNREACHABLE_4: u8 = 3;
const ECHO_4: u8 = 8;
const UNREACHABLE_6: u8 = 1;
const TOO_BIG_6: u8 = 2;
const ECHO_6: u8 = 128;
const ECHO_REPLY_6: u8 = 129;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Why a packet does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Host,
    Port,
    Prohibited,
    /// Longer than the host's path carries, in bytes.
    TooBig(u16),
}

/// An echo request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Echo<'a> {
    pub(crate) id: u16,
    pub(crate) sequence: u16,
    pub(crate) data: &'a [u8],
}

impl<'a> Echo<'a> {
    /// Read an echo request, or a reply if `reply` is set.
    pub(crate) fn parse(message: &'a [u8], v4: bool, reply: bool) -> Option<Self> {
        let wanted = echo_type(v4, reply);
        if *message.first()? != wanted || *message.get(1)? != 0 {
            return None;
        }
        Some(Echo { id: be16(message, 4)?, sequence: be16(message, 6)?, data: message.get(8..)? })
    }

    /// The message, its checksum left 0.
    pub(crate) fn message(&self, v4: bool, reply: bool) -> Vec<u8> {
        let mut m = vec![echo_type(v4, reply), 0, 0, 0];
        m.extend(self.id.to_be_bytes());
        m.extend(self.sequence.to_be_bytes());
        m.extend(self.data);
        m
    }
}

fn echo_type(v4: bool, reply: bool) -> u8 {
    match (v4, reply) {
        (true, false) => ECHO_4,
        (true, true) => ECHO_REPLY_4,
        (false, false) => ECHO_6,
        (false, true) => ECHO_REPLY_6,
    }
}

/// Whether the checksum of a packet's message is right.
pub(crate) fn checksum_holds(packet: &IpPacket<'_>) -> bool {
    match packet.source {
        IpAddr::V4(_) => checksum(packet.payload) == 0,
        IpAddr::V6(_) => {
            let mut sum =
                pseudo_header(packet.source, packet.destination, protocol::ICMPV6, packet.payload.len());
            sum.add(packet.payload);
            sum.finish() == 0
        }
    }
}

impl Link {
    /// Let an ICMP message wait; its checksum field is 0 and is made here.
    pub(crate) fn icmp(&mut self, ends: Ends, mut message: Vec<u8>) {
        let protocol = if ends.to.is_ipv4() { protocol::ICMP } else { protocol::ICMPV6 };
        let sum = if ends.to.is_ipv4() {
            checksum(&message)
        } else {
            let mut sum = pseudo_header(ends.from, ends.to, protocol, message.len());
            sum.add(&message);
            sum.finish()
        };
        if let Some(field) = message.get_mut(2..4) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        let header = Header::ip(self.macs(), ends.from, ends.to, protocol, message.len());
        self.answer(header, message);
    }

    /// Tell the guest that a packet of its did not arrive; `quoted` starts at its IP header.
    pub(crate) fn unreachable(&mut self, to: IpAddr, why: Unreachable, quoted: &[u8]) {
        let from = self.addresses.router_for(to);
        let (kind, code, mtu) = match (to.is_ipv4(), why) {
            (true, Unreachable::Host) => (UNREACHABLE_4, 1, 0),
            (true, Unreachable::Port) => (UNREACHABLE_4, 3, 0),
            (true, Unreachable::TooBig(mtu)) => (UNREACHABLE_4, 4, mtu),
            (true, Unreachable::Prohibited) => (UNREACHABLE_4, 13, 0),
            (false, Unreachable::Host) => (UNREACHABLE_6, 3, 0),
            (false, Unreachable::Port) => (UNREACHABLE_6, 4, 0),
            (false, Unreachable::TooBig(mtu)) => (TOO_BIG_6, 0, mtu),
            (false, Unreachable::Prohibited) => (UNREACHABLE_6, 1, 0),
        };
        let mut message = vec![kind, code, 0, 0, 0, 0];
        message.extend(mtu.to_be_bytes());
        message.extend(quoted.get(..QUOTED).unwrap_or(quoted));
        self.icmp(Ends { from, to }, message);
    }

    /// The same for a datagram that is no longer at hand.
    pub(crate) fn unreachable_udp(&mut self, guest: SocketAddr, remote: SocketAddr, why: Unreachable) {
        let macs = self.macs();
        let mut packet = Header::ip(macs, guest.ip(), remote.ip(), protocol::UDP, 8);
        for field in [guest.port(), remote.port(), 8, 0] {
            packet.push(&field.to_be_bytes());
        }
        let quoted = packet.bytes().get(port::ETHERNET_HEADER..).unwrap_or_default().to_vec();
        self.unreachable(guest.ip(), why, &quoted);
    }

    /// Answer neighbour discovery; false if the message is of another kind.
    pub(crate) fn neighbour_discovery(&mut self, packet: &IpPacket<'_>) -> bool {
        let (IpAddr::V6(source), Some(&kind)) = (packet.source, packet.payload.first()) else { return false };
        // From another link, or not what it says (RFC 4861 section 6.1.1, 7.1.1).
        let valid = packet.hops == 255 && packet.payload.get(1) == Some(&0);
        match kind {
            ROUTER_SOLICITATION if valid => self.advertise_router(source),
            NEIGHBOUR_SOLICITATION if valid => {
                let target = packet.payload.get(8..).and_then(|b| b.first_chunk::<16>());
                if let Some(target) = target.map(|b| Ipv6Addr::from(*b)) {
                    self.advertise_neighbour(source, target);
                }
            }
            // 130 to 132 and 143 are of multicast listeners: there is nobody to tell.
            130..=137 | 143 => {}
            _ => return false,
        }
        true
    }

    fn advertise_neighbour(&mut self, to: Ipv6Addr, target: Ipv6Addr) {
        /// Router, solicited, override.
        const FLAGS: u8 = 0xe0;
        // Someone who makes sure that nobody has its address asks from nowhere.
        if !self.addresses.is_ours(target.into()) || to.is_unspecified() {
            return;
        }
        let mut m = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, FLAGS, 0, 0, 0];
        m.extend(target.octets());
        m.extend(link_address(2, self.addresses.mac));
        self.icmp(Ends { from: target.into(), to: to.into() }, m);
    }

    /// Advertise the router to all who listen. Nobody asks again before what was said ends.
    pub(crate) fn advertise_to_all(&mut self) {
        self.advertise_router(Ipv6Addr::UNSPECIFIED);
    }

    fn advertise_router(&mut self, to: Ipv6Addr) {
        /// Seconds the router and its name server are good for: many times [`ADVERTISED_EVERY`].
        const LIFETIME: u16 = 9000;
        /// Seconds the prefix is good for.
        const PREFIX_LIFETIME: u32 = 86_400;
        /// On this link, for addresses of one's own making.
        const PREFIX_FLAGS: u8 = 0xc0;
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let to = if to.is_unspecified() { all_nodes } else { to };
        let mut m = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
        m.extend(LIFETIME.to_be_bytes());
        m.extend([0; 8]);
        m.extend(link_address(1, self.addresses.mac));
        m.extend([5, 1, 0, 0]);
        m.extend(u32::from(self.mtu).to_be_bytes());
        m.extend([3, 4, 64, PREFIX_FLAGS]);
        m.extend(PREFIX_LIFETIME.to_be_bytes());
        m.extend(PREFIX_LIFETIME.to_be_bytes());
        m.extend([0; 4]);
        m.extend(self.addresses.prefix6.octets());
        m.extend([25, 3, 0, 0]);
        m.extend(u32::from(LIFETIME).to_be_bytes());
        m.extend(self.addresses.dns6.octets());
        self.icmp(Ends { from: self.addresses.router6.into(), to: to.into() }, m);
    }

    /// Answer ARP; also learns where the guest is.
    pub(crate) fn arp(&mut self, packet: &[u8]) {
        let ours = |a: Ipv4Addr| self.addresses.is_ours(a.into());
        if let Some((sender, reply)) = crate::wire::arp_reply(packet, self.addresses.mac, ours) {
            if !sender.is_multicast() {
                self.guest = sender;
            }
            self.answer(reply, Vec::new());
        }
    }
}

/// Option with an Ethernet address, of the source (1) or the target (2).
fn link_address(kind: u8, mac: MacAddress) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [kind, 1, a, b, c, d, e, f]
}
