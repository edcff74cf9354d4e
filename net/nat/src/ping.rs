//! Echo requests: answered here for the router, sent by the host's ping sockets for others.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::addresses::Route;
use crate::icmp::{Echo, Unreachable, checksum_holds};
use crate::link::Ends;
use crate::policy::{Destination, Transport};
use crate::poller::{Happened, Poller, Source};
use crate::slab::{Key, Slab};
use crate::sockets;
use crate::tcp::Around;
use crate::wire::IpPacket;

/// Flows at a time; the one idle longest makes way.
const MAX_FLOWS: usize = 64;
/// How long a flow lives without packets.
const LIFE: Duration = Duration::from_secs(30);
/// The longest reply that is passed on, in bytes: what fits in one frame of most links.
const MAX_REPLY: usize = 9000;

#[derive(Debug)]
struct Flow {
    guest: IpAddr,
    remote: IpAddr,
    /// The guest's identifier; the host's socket has its own.
    id: u16,
    socket: UdpSocket,
    used: Instant,
    timer: Option<Instant>,
}

/// All flows of echo requests.
pub(crate) struct Ping {
    flows: Slab<Flow>,
}

impl Ping {
    pub(crate) fn new() -> Self {
        Ping { flows: Slab::new(MAX_FLOWS) }
    }

    pub(crate) fn clear(&mut self, poller: &mut Poller) {
        for key in self.flows.keys() {
            self.remove(key, poller);
        }
    }

    fn remove(&mut self, key: Key, poller: &mut Poller) {
        if let Some(mut flow) = self.flows.remove(key) {
            poller.forget(&mut flow.timer, Source::Ping(key));
        }
    }

    /// An ICMP or ICMPv6 packet from the guest.
    pub(crate) fn packet(&mut self, packet: &IpPacket<'_>, around: &mut Around<'_>) {
        if !checksum_holds(packet) || around.link.neighbour_discovery(packet) {
            return;
        }
        let (guest, remote) = (packet.source, packet.destination);
        let v4 = guest.is_ipv4();
        let Some(echo) = Echo::parse(packet.payload, v4, false) else { return };
        if around.link.addresses.is_ours(remote) {
            return around.link.icmp(Ends { from: remote, to: guest }, echo.message(v4, true));
        }
        let known = self.flows.iter().find(|(_, f)| (f.guest, f.remote, f.id) == (guest, remote, echo.id));
        let key = match known {
            Some((key, _)) => Some(key),
            None => self.open(guest, remote, echo.id, around),
        };
        let Some(flow) = key.and_then(|k| self.flows.get_mut(k)) else {
            return around.link.unreachable(guest, Unreachable::Prohibited, packet.whole);
        };
        flow.used = around.now;
        if flow.socket.send(&echo.message(v4, false)).is_err() {
            around.link.unreachable(guest, Unreachable::Host, packet.whole);
        }
    }

    fn open(&mut self, guest: IpAddr, remote: IpAddr, id: u16, around: &mut Around<'_>) -> Option<Key> {
        let to = Destination { address: remote, port: 0, transport: Transport::Icmp };
        let Route::Host(host) = around.gate.admit(&around.link.addresses, &to, around.now).ok()? else {
            return None;
        };
        let socket = match sockets::connect_ping(&SocketAddr::new(host.ip(), 0)) {
            Ok(socket) => socket,
            Err(e) => {
                around.gate.note(|| {
                    format!("the host lets this user send no ping to {remote}: {e}; widen sysctl net.ipv4.ping_group_range")
                });
                return None;
            }
        };
        if self.flows.is_full() {
            let oldest = self.flows.iter().min_by_key(|(_, f)| f.used).map(|(key, _)| key)?;
            self.remove(oldest, around.poller);
        }
        let key = self.flows.next_key()?;
        around.poller.watch(&socket, Source::Ping(key)).ok()?;
        let mut flow = Flow { guest, remote, id, socket, used: around.now, timer: None };
        around.poller.wake_by(&mut flow.timer, around.now + LIFE, Source::Ping(key));
        self.flows.insert(flow)
    }

    /// Replies have arrived.
    pub(crate) fn socket_event(&mut self, key: Key, event: &Happened, around: &mut Around<'_>) {
        let Some(flow) = self.flows.get_mut(key).filter(|_| event.readable) else { return };
        let mut buffer = [0; MAX_REPLY];
        while let Ok(n) = flow.socket.recv(&mut buffer) {
            flow.used = around.now;
            let v4 = flow.guest.is_ipv4();
            if let Some(reply) = buffer.get(..n).and_then(|b| Echo::parse(b, v4, true)) {
                let message = Echo { id: flow.id, ..reply }.message(v4, true);
                around.link.icmp(Ends { from: flow.remote, to: flow.guest }, message);
            }
        }
    }

    /// A flow's deadline may have passed.
    pub(crate) fn expire(&mut self, key: Key, around: &mut Around<'_>) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        flow.timer = None;
        let end = flow.used + LIFE;
        if end <= around.now {
            self.remove(key, around.poller);
        } else {
            around.poller.wake_by(&mut flow.timer, end, Source::Ping(key));
        }
    }
}
