//! User-mode NAT: a guest's packets become the host's sockets.
//!
//! No privilege is needed and nothing is to be installed. The guest sees a router
//! with DHCP, router advertisements, a name server and ICMP echo
//! ([`Addresses`]); what it sends to others leaves by sockets of the process, as
//! far as a [`Policy`] lets it. The NAT is a [`port::Port`]: a state machine over
//! non-blocking sockets that its owner's thread drives, with one descriptor to
//! wait for and no thread of its own.
//!
//! TCP is terminated by a small stack of our own (`tcp`): see `docs/network.md`
//! for why, and for what the wire to a guest spares it.

mod addresses;
mod config;
mod dhcp;
mod dns;
mod fragments;
mod gate;
mod icmp;
mod link;
mod names;
mod ping;
mod policy;
mod poller;
mod resolving;
mod ring;
mod slab;
mod sockets;
mod tcp;
mod turns;
mod udp;
mod wire;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::time::Instant;

use port::{Capabilities, FrameSink, MAX_FRAME, Offload, Offloads, Port};

pub use addresses::Addresses;
pub use config::{ForwardError, NatConfig, NatError, PortForward, host_resolvers};
pub use policy::{Destination, Policy, Reason, Rule, RuleError, Transport};

use dhcp::Offered;
use fragments::Fragments;
use gate::Gate;
use link::{Ends, Link};
use ping::Ping;
use poller::{Poller, Source};
use tcp::{Around, Tcp};
use udp::Udp;
use wire::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IpPacket, protocol};

/// Entries for fuzz targets to parsers that frames reach only through a socket.
#[doc(hidden)]
pub mod fuzzing {
    /// Take bytes as every message that is parsed.
    pub fn messages(bytes: &[u8]) {
        let _ = crate::dns::question(bytes);
        let _ = crate::dns::answers(bytes);
        let _ = crate::dns::refuse(bytes);
        let mut names = crate::names::Names::default();
        names.learn(bytes, std::time::Instant::now());
        let addresses = crate::Addresses::default();
        let offered = crate::dhcp::Offered {
            guest: addresses.guest,
            mask: addresses.mask(),
            gateway: addresses.gateway,
            dns: None,
            host_name: None,
            mtu: 1500,
        };
        let _ = crate::dhcp::answer(bytes, &offered);
    }
}

/// Ports of DHCP.
const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;

/// A guest's network, and the host's sockets behind it.
pub struct Nat {
    link: Link,
    gate: Gate,
    poller: Poller,
    fragments: Fragments,
    tcp: Tcp,
    udp: Udp,
    ping: Ping,
    offered: Offered,
    /// When the router is advertised next, to a guest that has IPv6.
    advertised_at: Option<Instant>,
    /// Datagrams go before segments the next time.
    udp_first: bool,
}

/// What it has and has refused, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatCounters {
    /// TCP connections that live.
    pub tcp_connections: usize,
    /// UDP flows that live.
    pub udp_flows: usize,
    /// Flows and names refused so far.
    pub refused: u64,
}

impl Nat {
    /// A NAT with its listening sockets. It allows the process the descriptors it may need.
    ///
    /// # Errors
    /// When the host refuses a descriptor, or a port to listen at.
    pub fn new(config: NatConfig) -> Result<Nat, NatError> {
        let NatConfig {
            addresses,
            guest_mac,
            mtu,
            host_name,
            forwards,
            policy,
            host_loopback,
            resolvers,
            log,
        } = config;
        if mtu < port::MIN_MTU {
            return Err(NatError::Mtu(mtu));
        }
        sockets::allow_descriptors((tcp::MAX_CONNECTIONS + udp::MAX_FLOWS + forwards.len()) as u64);
        let poller = Poller::new().map_err(NatError::Poller)?;
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for forward in &forwards {
            let failed = |cause| NatError::Listen { forward: forward.to_string(), cause };
            let guest_port = forward.guest_port;
            match forward.transport {
                Transport::Udp => {
                    let socket = sockets::listen_udp(&forward.host).map_err(failed)?;
                    poller.watch(&socket, Source::UdpListener(udp.len() as u32)).map_err(failed)?;
                    udp.push(udp::Forward { socket, guest_port });
                }
                _ => {
                    let listener = sockets::listen_tcp(&forward.host).map_err(failed)?;
                    poller.watch(&listener, Source::TcpListener(tcp.len() as u32)).map_err(failed)?;
                    tcp.push(tcp::Forward { listener, guest_port });
                }
            }
        }
        let gate = Gate::new(policy, host_loopback, resolvers, log);
        let offered = Offered {
            guest: addresses.guest,
            mask: addresses.mask(),
            gateway: addresses.gateway,
            dns: (gate.resolvers() > 0).then_some(addresses.dns),
            host_name,
            mtu,
        };
        Ok(Nat {
            link: Link::new(addresses, guest_mac, mtu),
            gate,
            poller,
            fragments: Fragments::default(),
            tcp: Tcp::new(tcp),
            udp: Udp::new(udp),
            ping: Ping::new(),
            offered,
            advertised_at: None,
            udp_first: true,
        })
    }

    /// Where its listening sockets are, in the order of the forwards of each transport.
    pub fn listening(&self) -> Vec<(Transport, std::net::SocketAddr)> {
        let tcp = self.tcp.forwards().iter().filter_map(|f| f.listener.local_addr().ok());
        let udp = self.udp.forwards().iter().filter_map(|f| f.socket.local_addr().ok());
        tcp.map(|a| (Transport::Tcp, a)).chain(udp.map(|a| (Transport::Udp, a))).collect()
    }

    /// What it has and has refused.
    pub fn counters(&self) -> NatCounters {
        NatCounters {
            tcp_connections: self.tcp.len(),
            udp_flows: self.udp.len(),
            refused: self.gate.refused(),
        }
    }

    fn ip(&mut self, packet: &IpPacket<'_>, offload: &Offload, ethernet: &Ethernet<'_>) {
        let now = Instant::now();
        if packet.source.is_ipv6() {
            // Whatever it sends: after a restart of the machine it need not ask for a router again.
            let next = now + icmp::ADVERTISED_EVERY;
            self.poller.wake_by(&mut self.advertised_at, next, Source::Advertisement);
        }
        if packet.fragment.is_some() {
            // Only packets without work left to do are fragments.
            if let Some(payload) = self.fragments.add(packet, now) {
                self.transport(&packet.reassembled(&payload), &Offload::NONE, ethernet, now);
            }
        } else {
            self.transport(packet, offload, ethernet, now);
        }
    }

    fn transport(&mut self, packet: &IpPacket<'_>, offload: &Offload, ethernet: &Ethernet<'_>, now: Instant) {
        if packet.protocol == protocol::UDP && self.dhcp(packet, offload, ethernet) {
            return;
        }
        let to_group = match packet.destination {
            IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
            IpAddr::V6(a) => a.is_multicast(),
        };
        let Nat { link, gate, poller, .. } = self;
        let mut around = Around { link, gate, poller, now };
        match packet.protocol {
            protocol::ICMPV6 | protocol::ICMP => self.ping.packet(packet, &mut around),
            // To all on the link, where there is nobody else.
            _ if to_group || ethernet.destination.is_multicast() => {}
            protocol::TCP => self.tcp.packet(packet, offload, &mut around),
            protocol::UDP => self.udp.packet(packet, offload, &mut around),
            _ => {}
        }
    }

    /// Answer DHCP; false if the packet is something else.
    fn dhcp(&mut self, packet: &IpPacket<'_>, offload: &Offload, ethernet: &Ethernet<'_>) -> bool {
        let gateway = IpAddr::V4(self.link.addresses.gateway);
        if packet.destination != IpAddr::V4(Ipv4Addr::BROADCAST) && packet.destination != gateway {
            return false;
        }
        let Some(request) = wire::UdpDatagram::parse(packet, offload) else { return false };
        if request.destination != DHCP_SERVER {
            return false;
        }
        if let Some((_, reply)) = dhcp::answer(request.payload, &self.offered) {
            let ends = Ends { from: gateway, to: Ipv4Addr::BROADCAST.into() };
            // Who asks may not be the station it asks for.
            self.link.answer_udp(ethernet.source, ends, (DHCP_SERVER, DHCP_CLIENT), reply);
        }
        true
    }

    /// Take what has happened to sockets and deadlines; answers whether there may be more.
    fn take_events(&mut self, now: Instant) -> bool {
        let list = self.poller.happened();
        let Nat { link, gate, poller, .. } = self;
        let mut around = Around { link, gate, poller, now };
        for event in &list {
            match event.source {
                Source::Timer => {}
                Source::TcpListener(forward) => self.tcp.accept(forward, &mut around),
                Source::Tcp(key) => self.tcp.socket_event(key, event, &mut around),
                Source::Udp(_) | Source::UdpListener(_) => self.udp.socket_event(event),
                Source::Ping(key) => self.ping.socket_event(key, event, &mut around),
                Source::Advertisement => {}
            }
        }
        while let Some(source) = around.poller.expired(now) {
            match source {
                Source::Tcp(key) => self.tcp.expire(key, &mut around),
                Source::Udp(key) => self.udp.expire(key, &mut around),
                Source::Ping(key) => self.ping.expire(key, &mut around),
                Source::Advertisement => {
                    self.advertised_at = None;
                    around.link.advertise_to_all();
                    let next = now + icmp::ADVERTISED_EVERY;
                    around.poller.wake_by(&mut self.advertised_at, next, Source::Advertisement);
                }
                Source::Timer | Source::TcpListener(_) | Source::UdpListener(_) => {}
            }
        }
        Poller::may_have_more(&list)
    }
}

impl Port for Nat {
    fn capabilities(&self) -> Capabilities {
        let accepts = Offloads {
            checksum: true,
            tcp4: true,
            tcp6: true,
            ecn: true,
            udp_fragments: true,
            udp_datagrams: true,
        };
        let gives = Offloads { checksum: true, tcp4: true, tcp6: true, ..Offloads::NONE };
        Capabilities { accepts, gives, mtu: self.link.mtu }
    }

    fn set_receiver(&mut self, takes: Offloads) {
        let gives = self.capabilities().gives.and(takes);
        self.link.takes = if takes.checksum { gives } else { Offloads::NONE };
    }

    fn send(&mut self, frame: &[u8], offload: &Offload) {
        let Some(ethernet) = Ethernet::parse(frame).filter(|_| frame.len() <= MAX_FRAME) else { return };
        let ours = ethernet.destination == self.link.addresses.mac || ethernet.destination.is_multicast();
        if !ours || ethernet.source.is_multicast() {
            return;
        }
        let packet = match ethernet.ethertype {
            ETHERTYPE_ARP => return self.link.arp(ethernet.payload),
            ETHERTYPE_IPV4 => IpPacket::parse_v4(ethernet.payload),
            ETHERTYPE_IPV6 => IpPacket::parse_v6(ethernet.payload),
            _ => None,
        };
        if let Some(packet) = packet {
            self.link.guest = ethernet.source;
            self.ip(&packet, offload, &ethernet);
        }
    }

    fn receive(&mut self, sink: &mut dyn FrameSink) {
        let mut now = Instant::now();
        let mut room = true;
        while self.take_events(now) && room {
            room = self.transmit(sink, now);
            now = Instant::now();
        }
        room = room && self.transmit(sink, now);
        // What is left for want of room is asked for when there is room; the rest at once.
        let more = room && (self.tcp.has_more() || self.udp.has_more());
        self.poller.arm(now, more);
    }

    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.poller.fd()
    }

    fn reset(&mut self) {
        self.tcp.clear(&mut self.poller);
        self.udp.clear(&mut self.poller);
        self.ping.clear(&mut self.poller);
        self.fragments.clear();
        self.link.clear();
        self.poller.forget(&mut self.advertised_at, Source::Advertisement);
    }
}

impl Nat {
    /// Give each flow its turn; false when the guest has no room.
    fn transmit(&mut self, sink: &mut dyn FrameSink, now: Instant) -> bool {
        let Nat { link, gate, poller, .. } = self;
        if !link.flush(sink) {
            return false;
        }
        let mut around = Around { link, gate, poller, now };
        let mut turn = |udp| match udp {
            true => self.udp.transmit(sink, &mut around),
            false => self.tcp.transmit(sink, &mut around),
        };
        let room = turn(self.udp_first) && turn(!self.udp_first);
        // Either may use up all room there ever is: they take turns at it.
        self.udp_first ^= !room;
        room && self.link.flush(sink)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    /// Keeps who the router advertisements are for.
    #[derive(Default)]
    struct Advertised(Vec<Ipv6Addr>);

    impl FrameSink for Advertised {
        fn room(&mut self) -> bool {
            true
        }
        fn take(&mut self, parts: &[&[u8]], _: &Offload) {
            let frame = parts.concat();
            let packet = IpPacket::parse_v6(&frame[port::ETHERNET_HEADER..]).expect("IPv6");
            if let (IpAddr::V6(to), Some(134)) = (packet.destination, packet.payload.first()) {
                self.0.push(to);
            }
        }
    }

    const NOBODY: [Ipv6Addr; 0] = [];

    /// Whom the router is advertised to at this time.
    fn advertised(nat: &mut Nat, at: Instant) -> Vec<Ipv6Addr> {
        let mut sink = Advertised::default();
        nat.take_events(at);
        nat.transmit(&mut sink, at);
        sink.0
    }

    #[test]
    fn the_router_is_advertised_again_and_again_to_a_guest_with_ipv6() {
        let mut nat = Nat::new(NatConfig::default()).unwrap();
        let every = icmp::ADVERTISED_EVERY;
        let (guest, all) =
            (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
        let begin = Instant::now();
        assert_eq!(advertised(&mut nat, begin + 20 * every), NOBODY, "a guest without IPv6 is not woken");
        assert_eq!(nat.advertised_at, None);
        // A solicitation for a router, then one for a neighbour, as a restored guest may send.
        for (kind, answered) in [(133, vec![guest]), (135, vec![])] {
            let (mac, router) = nat.link.macs();
            let router6 = nat.link.addresses.router6;
            let mut message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &guest.octets()].concat();
            let mut sum = wire::pseudo_header(guest.into(), router6.into(), protocol::ICMPV6, message.len());
            sum.add(&message);
            message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
            let ends = (router, mac);
            let header =
                wire::Header::ip(ends, guest.into(), router6.into(), protocol::ICMPV6, message.len());
            let mut frame = [header.bytes(), &message].concat();
            // The hop limit of its link (RFC 4861 section 6.1.1).
            frame[port::ETHERNET_HEADER + 7] = 255;
            nat.send(&frame, &Offload::NONE);
            let sent = Instant::now();
            assert_eq!(advertised(&mut nat, sent), answered);
            assert_eq!(advertised(&mut nat, sent + every / 2), NOBODY);
            assert_eq!(advertised(&mut nat, sent + every), [all]);
            assert_eq!(advertised(&mut nat, sent + every + every / 2), NOBODY);
            assert_eq!(advertised(&mut nat, sent + 2 * every), [all]);
            nat.reset();
            assert_eq!(advertised(&mut nat, sent + 4 * every), NOBODY, "a new guest has not asked");
        }
    }
}
