//! UDP: flows with idle time limits, DNS queries among them, and host sockets
//! whose datagrams go to the guest.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use port::{FrameSink, Offload, SegmentKind};

use crate::addresses::Route;
use crate::dns;
use crate::icmp::Unreachable;
use crate::link::Ends;
use crate::policy::{Destination, Transport};
use crate::poller::{Happened, Source};
use crate::resolving::Resolving;
use crate::slab::{Key, Slab};
use crate::sockets;
use crate::tcp::Around;
use crate::turns::Turns;
use crate::wire::{IpPacket, UdpDatagram};

/// Flows at a time: each is a descriptor of the host. The one idle longest makes way.
pub(crate) const MAX_FLOWS: usize = 1024;
/// How long a flow lives that nobody has answered (as Linux's conntrack has it).
const UNANSWERED: Duration = Duration::from_secs(30);
/// How long one lives that was answered.
const ANSWERED: Duration = Duration::from_secs(180);
/// How long a DNS query waits.
const QUERY: Duration = Duration::from_secs(15);
/// Datagrams of one socket before it is the next one's turn.
const TURN: usize = 64;
/// Datagrams that one frame is cut into.
const MAX_SEGMENTS: usize = 64;
/// The longest datagram.
const MAX_DATAGRAM: usize = 65_535;
/// First of the ports from which the router speaks to the guest.
const FIRST_PORT: u16 = 49_152;

/// A host socket whose datagrams go to a port of the guest.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) socket: UdpSocket,
    pub(crate) guest_port: u16,
}

#[derive(Debug)]
enum Way {
    /// To one peer.
    Peer(UdpSocket),
    /// To the host's resolvers.
    Resolver(Resolving),
    /// Back to who has sent to a forward.
    Back { forward: u32, peer: SocketAddr },
}

impl Way {
    /// The socket that is the flow's own.
    fn socket(&self) -> Option<&UdpSocket> {
        match self {
            Way::Peer(socket) => Some(socket),
            Way::Resolver(resolving) => Some(resolving.socket()),
            Way::Back { .. } => None,
        }
    }
}

#[derive(Debug)]
struct Flow {
    guest: SocketAddr,
    /// The peer as the guest sees it.
    remote: SocketAddr,
    way: Way,
    answered: bool,
    used: Instant,
    timer: Option<Instant>,
    queued: bool,
}

impl Flow {
    fn life(&self) -> Duration {
        match (&self.way, self.answered) {
            (Way::Resolver(_), _) => QUERY,
            (_, true) => ANSWERED,
            (_, false) => UNANSWERED,
        }
    }
}

/// All flows.
pub(crate) struct Udp {
    flows: Slab<Flow>,
    by_ends: HashMap<(SocketAddr, SocketAddr), Key>,
    forwards: Vec<Forward>,
    ready: Turns<Source>,
    next_port: u16,
    buffer: Vec<u8>,
}

impl Udp {
    pub(crate) fn new(forwards: Vec<Forward>) -> Self {
        Udp {
            flows: Slab::new(MAX_FLOWS),
            by_ends: HashMap::new(),
            ready: Turns::new(MAX_FLOWS + forwards.len()),
            forwards,
            next_port: FIRST_PORT,
            buffer: vec![0; MAX_DATAGRAM],
        }
    }

    pub(crate) fn forwards(&self) -> &[Forward] {
        &self.forwards
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(crate) fn clear(&mut self, poller: &mut crate::poller::Poller) {
        for key in self.flows.keys() {
            self.remove(key, poller);
        }
        self.ready.clear();
    }

    fn remove(&mut self, key: Key, poller: &mut crate::poller::Poller) -> Option<Flow> {
        let mut flow = self.flows.remove(key)?;
        poller.forget(&mut flow.timer, Source::Udp(key));
        self.by_ends.remove(&(flow.guest, flow.remote));
        Some(flow)
    }

    /// A packet from the guest.
    pub(crate) fn packet(&mut self, packet: &IpPacket<'_>, offload: &Offload, around: &mut Around<'_>) {
        let Some(datagram) = UdpDatagram::parse(packet, offload) else { return };
        let guest = SocketAddr::new(packet.source, datagram.source);
        let remote = SocketAddr::new(packet.destination, datagram.destination);
        let key = match self.by_ends.get(&(guest, remote)) {
            Some(key) => *key,
            None => match self.open(guest, remote, around) {
                Some(key) => key,
                None => return around.link.unreachable(guest.ip(), Unreachable::Prohibited, packet.whole),
            },
        };
        let size = match offload.segments {
            Some(s) if s.kind == SegmentKind::UdpDatagrams => usize::from(s.size),
            _ => MAX_DATAGRAM,
        };
        if datagram.payload.is_empty() {
            return self.send(key, &[], packet, around);
        }
        for part in datagram.payload.chunks(size.max(1)).take(MAX_SEGMENTS) {
            self.send(key, part, packet, around);
        }
    }

    /// A flow for a first datagram, if there may be one.
    fn open(&mut self, guest: SocketAddr, remote: SocketAddr, around: &mut Around<'_>) -> Option<Key> {
        let to = Destination { address: remote.ip(), port: remote.port(), transport: Transport::Udp };
        let way = match around.gate.admit(&around.link.addresses, &to, around.now).ok()? {
            Route::Host(host) => Way::Peer(sockets::connect_udp(&host).ok()?),
            Route::Resolver => Way::Resolver(Resolving::new(around.gate)?),
        };
        self.insert(guest, remote, way, around)
    }

    fn insert(
        &mut self,
        guest: SocketAddr,
        remote: SocketAddr,
        way: Way,
        around: &mut Around<'_>,
    ) -> Option<Key> {
        if self.flows.is_full() {
            let oldest = self.flows.iter().min_by_key(|(_, f)| f.used).map(|(key, _)| key)?;
            self.remove(oldest, around.poller);
        }
        let key = self.flows.next_key()?;
        if let Some(socket) = way.socket() {
            around.poller.watch(socket, Source::Udp(key)).ok()?;
        }
        let mut flow =
            Flow { guest, remote, way, answered: false, used: around.now, timer: None, queued: false };
        let end = around.now + flow.life();
        around.poller.wake_by(&mut flow.timer, end, Source::Udp(key));
        self.flows.insert(flow);
        self.by_ends.insert((guest, remote), key);
        Some(key)
    }

    /// Send a datagram of the guest's on its way.
    fn send(&mut self, key: Key, payload: &[u8], packet: &IpPacket<'_>, around: &mut Around<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.used = around.now;
        let sent = match &mut flow.way {
            Way::Peer(socket) => socket.send(payload).map(|_| ()),
            Way::Resolver(resolving) => {
                if !around.gate.admit_query(payload) {
                    let ends = Ends { from: flow.remote.ip(), to: flow.guest.ip() };
                    if let Some(refusal) = dns::refuse(payload) {
                        let ports = (flow.remote.port(), flow.guest.port());
                        around.link.answer_udp(around.link.guest, ends, ports, refusal);
                    }
                    return;
                }
                let poller = &*around.poller;
                resolving.ask(payload, around.gate, |socket| poller.watch(socket, Source::Udp(key)))
            }
            Way::Back { forward, peer } => match self.forwards.get(*forward as usize) {
                Some(f) => f.socket.send_to(payload, *peer).map(|_| ()),
                None => return,
            },
        };
        let Err(e) = sent else { return };
        let why = match e.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::MSGSIZE) => Unreachable::TooBig(around.link.mtu),
            Some(rustix::io::Errno::CONNREFUSED) => Unreachable::Port,
            // A full buffer: lost, as datagrams are.
            Some(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) | None => return,
            Some(_) => Unreachable::Host,
        };
        around.link.unreachable(packet.source, why, packet.whole);
    }

    /// Something has arrived at a socket.
    pub(crate) fn socket_event(&mut self, event: &Happened) {
        if !event.readable {
            return;
        }
        match event.source {
            Source::Udp(key) => {
                let Some(flow) = self.flows.get_mut(key) else { return };
                if std::mem::replace(&mut flow.queued, true) {
                    return;
                }
            }
            other if self.ready.contains(other) => return,
            _ => {}
        }
        self.ready.push(event.source, |source| match source {
            Source::Udp(key) => self.flows.contains(key),
            _ => true,
        });
    }

    /// A flow's deadline may have passed.
    pub(crate) fn expire(&mut self, key: Key, around: &mut Around<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.timer = None;
        let end = flow.used + flow.life();
        if end <= around.now {
            self.remove(key, around.poller);
        } else {
            around.poller.wake_by(&mut flow.timer, end, Source::Udp(key));
        }
    }

    /// Entries of the list of sockets that wait for their next turn.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Whether some sockets wait for their next turn.
    pub(crate) fn has_more(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Give each socket at which something has arrived a turn; false when the guest has no room.
    pub(crate) fn transmit(&mut self, sink: &mut dyn FrameSink, around: &mut Around<'_>) -> bool {
        for _ in 0..self.ready.len() {
            let Some(source) = self.ready.front() else { break };
            let drained = match source {
                Source::Udp(key) => self.drain_flow(key, sink, around),
                Source::UdpListener(forward) => self.drain_forward(forward, sink, around),
                _ => Some(true),
            };
            let Some(empty) = drained else { return false };
            if empty
                && let Source::Udp(key) = source
                && let Some(flow) = self.flows.get_mut(key)
            {
                flow.queued = false;
            }
            self.ready.next(!empty);
        }
        true
    }

    /// Whether a flow's socket is empty; `None` when the guest has no room.
    fn drain_flow(&mut self, key: Key, sink: &mut dyn FrameSink, around: &mut Around<'_>) -> Option<bool> {
        for _ in 0..TURN {
            let Some(flow) = self.flows.get_mut(key) else { return Some(true) };
            let Some(socket) = flow.way.socket() else { return Some(true) };
            if !sink.room() {
                return None;
            }
            let n = match socket.recv(&mut self.buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Some(true),
                Err(e) => {
                    if e.kind() == io::ErrorKind::ConnectionRefused {
                        around.link.unreachable_udp(flow.guest, flow.remote, Unreachable::Port);
                    }
                    continue;
                }
            };
            let payload = self.buffer.get_mut(..n).unwrap_or_default();
            if let Way::Resolver(resolving) = &mut flow.way {
                if !resolving.answers(payload) {
                    continue;
                }
                around.gate.learn(payload, around.now);
            }
            (flow.used, flow.answered) = (around.now, true);
            let ends = Ends { from: flow.remote.ip(), to: flow.guest.ip() };
            around.link.udp(sink, ends, (flow.remote.port(), flow.guest.port()), payload);
        }
        Some(false)
    }

    /// The same for a forward.
    fn drain_forward(
        &mut self,
        forward: u32,
        sink: &mut dyn FrameSink,
        around: &mut Around<'_>,
    ) -> Option<bool> {
        for _ in 0..TURN {
            let Some(f) = self.forwards.get(forward as usize) else { return Some(true) };
            if !sink.room() {
                return None;
            }
            let guest_port = f.guest_port;
            let (n, peer) = match f.socket.recv_from(&mut self.buffer) {
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Some(true),
                Err(_) => continue,
            };
            let guest = SocketAddr::new(IpAddr::V4(around.link.addresses.guest), guest_port);
            let Some(key) = self.flow_back(forward, peer, guest, around) else { continue };
            let Some(flow) = self.flows.get_mut(key) else { continue };
            (flow.used, flow.answered) = (around.now, true);
            let ends = Ends { from: flow.remote.ip(), to: guest.ip() };
            let payload = self.buffer.get(..n).unwrap_or_default();
            around.link.udp(sink, ends, (flow.remote.port(), guest.port()), payload);
        }
        Some(false)
    }

    /// The flow by which the guest answers a peer of a forward.
    fn flow_back(
        &mut self,
        forward: u32,
        peer: SocketAddr,
        guest: SocketAddr,
        around: &mut Around<'_>,
    ) -> Option<Key> {
        let same =
            |f: &Flow| matches!(&f.way, Way::Back { forward: g, peer: p } if *g == forward && *p == peer);
        if let Some((key, _)) = self.flows.iter().find(|(_, f)| same(f)) {
            return Some(key);
        }
        // There are more ports than flows.
        let remote = loop {
            let remote = SocketAddr::new(IpAddr::V4(around.link.addresses.gateway), self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.by_ends.contains_key(&(guest, remote)) {
                break remote;
            }
        };
        self.insert(guest, remote, Way::Back { forward, peer }, around)
    }
}
