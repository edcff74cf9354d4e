//! TCP: a table of connections and the sockets that listen for the guest.

mod connection;
mod dns_stream;
mod transmit;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use port::{FrameSink, Offload};

use crate::addresses::{DNS_PORT, Route};
use crate::gate::Gate;
use crate::link::{Ends, Link};
use crate::policy::{Destination, Reason, Transport};
use crate::poller::{Happened, Poller, Source};
use crate::ring::Budget;
use crate::slab::{Key, Slab};
use crate::sockets;
use crate::tcp::connection::{Connection, Fate, Stage};
use crate::tcp::transmit::{Turn, link_mss, refuse};
use crate::turns::Turns;
use crate::wire::{IpPacket, TcpFlags, TcpSegment};

/// Connections at a time: each is a descriptor of the host and up to 128 KiB of
/// buffers ([`crate::ring::SMALL`]) beyond those that all share.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
/// A connection that the guest has not touched for so long makes way for a new one.
const STALE: Duration = Duration::from_secs(300);
/// First of the ports that the router calls the guest from.
const FIRST_PORT: u16 = 49_152;

/// A host socket whose connections go to a port of the guest.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) listener: TcpListener,
    pub(crate) guest_port: u16,
}

/// What all transports are handed.
pub(crate) struct Around<'a> {
    pub(crate) link: &'a mut Link,
    pub(crate) gate: &'a mut Gate,
    pub(crate) poller: &'a mut Poller,
    pub(crate) now: Instant,
}

/// All connections.
pub(crate) struct Tcp {
    connections: Slab<Connection>,
    /// By guest and peer, as the guest sees them.
    by_ends: HashMap<(SocketAddr, SocketAddr), Key>,
    forwards: Vec<Forward>,
    budget: Budget,
    /// Those with something to do, in turn.
    ready: Turns<Key>,
    next_port: u16,
}

impl Tcp {
    pub(crate) fn new(forwards: Vec<Forward>) -> Self {
        Tcp {
            connections: Slab::new(MAX_CONNECTIONS),
            by_ends: HashMap::new(),
            forwards,
            budget: Budget::default(),
            ready: Turns::new(MAX_CONNECTIONS),
            next_port: FIRST_PORT,
        }
    }

    pub(crate) fn forwards(&self) -> &[Forward] {
        &self.forwards
    }

    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Forget all connections; their peers see resets.
    pub(crate) fn clear(&mut self, poller: &mut Poller) {
        for key in self.connections.keys() {
            if let Some(connection) = self.take(key, poller) {
                connection.reset_host();
            }
        }
        self.ready.clear();
    }

    fn take(&mut self, key: Key, poller: &mut Poller) -> Option<Connection> {
        let mut connection = self.connections.remove(key)?;
        poller.forget(&mut connection.timer, Source::Tcp(key));
        self.by_ends.remove(&(connection.guest, connection.remote));
        Some(connection)
    }

    /// A packet from the guest.
    pub(crate) fn packet(&mut self, packet: &IpPacket<'_>, offload: &Offload, around: &mut Around<'_>) {
        let Some(s) = TcpSegment::parse(packet, offload) else { return };
        let guest = SocketAddr::new(packet.source, s.source);
        let remote = SocketAddr::new(packet.destination, s.destination);
        let ends = Ends { from: packet.destination, to: packet.source };
        let Some(&key) = self.by_ends.get(&(guest, remote)) else {
            let opens =
                s.flags.has(TcpFlags::SYN) && !s.flags.has(TcpFlags::RST) && !s.flags.has(TcpFlags::ACK);
            if !(opens && self.open(guest, remote, &s, around)) {
                refuse(around.link, ends, &s);
            }
            return;
        };
        let Some(connection) = self.connections.get_mut(key) else { return };
        let most = link_mss(around.link, guest.is_ipv4());
        let fate = connection.segment(&s, most, around.gate, around.now);
        self.settle(key, fate, around);
    }

    /// The guest opens a connection; answers whether it may.
    fn open(
        &mut self,
        guest: SocketAddr,
        remote: SocketAddr,
        s: &TcpSegment<'_>,
        around: &mut Around<'_>,
    ) -> bool {
        let to = Destination { address: remote.ip(), port: remote.port(), transport: Transport::Tcp };
        let Ok(route) = around.gate.admit(&around.link.addresses, &to, around.now) else { return false };
        let host = match route {
            Route::Host(host) => host,
            Route::Resolver => match around.gate.resolver(0) {
                Some(resolver) => resolver,
                None => return false,
            },
        };
        if !self.make_room(around) {
            around.gate.tell(to, &Reason::Limit(MAX_CONNECTIONS));
            return false;
        }
        let Ok(stream) = sockets::connect_tcp(&host) else { return false };
        let most = link_mss(around.link, guest.is_ipv4());
        let mut connection =
            Connection::new((guest, remote), stream, Stage::Connecting, first(), &self.budget, around.now);
        connection.guest_syn(s, most);
        if route == Route::Resolver && remote.port() == DNS_PORT {
            connection.dns = Some(Box::default());
        }
        self.insert(connection, around)
    }

    /// Make sure that there is room for one more.
    fn make_room(&mut self, around: &mut Around<'_>) -> bool {
        if !self.connections.is_full() {
            return true;
        }
        let oldest = self.connections.iter().min_by_key(|(_, c)| c.heard).map(|(key, c)| (key, c.heard));
        match oldest {
            Some((key, heard)) if around.now.duration_since(heard) >= STALE => {
                self.settle(key, Fate::ResetBoth, around);
                true
            }
            _ => false,
        }
    }

    fn insert(&mut self, connection: Connection, around: &mut Around<'_>) -> bool {
        let ends = (connection.guest, connection.remote);
        let Some(key) = self.connections.next_key() else { return false };
        if around.poller.watch(&connection.stream, Source::Tcp(key)).is_err() {
            return false;
        }
        self.connections.insert(connection);
        self.by_ends.insert(ends, key);
        true
    }

    /// Connections wait at a listening socket.
    pub(crate) fn accept(&mut self, forward: u32, around: &mut Around<'_>) {
        loop {
            let Some(f) = self.forwards.get(forward as usize) else { return };
            let guest_port = f.guest_port;
            let stream = match f.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                // What waits behind an error such as too many descriptors comes with the next one.
                Err(_) => return,
            };
            if !self.make_room(around) {
                around.gate.note(|| {
                    format!(
                        "a connection to guest port {guest_port} is refused: all {MAX_CONNECTIONS} are in use"
                    )
                });
                sockets::reset_tcp(stream);
                continue;
            }
            self.call(stream, guest_port, around);
        }
    }

    /// Call the guest for a connection that the host has accepted.
    fn call(&mut self, stream: TcpStream, guest_port: u16, around: &mut Around<'_>) {
        let addresses = around.link.addresses;
        let guest = SocketAddr::new(IpAddr::V4(addresses.guest), guest_port);
        if stream.set_nonblocking(true).and_then(|()| sockets::prepare_tcp(&stream)).is_err() {
            return;
        }
        // There are more ports than connections.
        let remote = loop {
            let remote = SocketAddr::new(IpAddr::V4(addresses.gateway), self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.by_ends.contains_key(&(guest, remote)) {
                break remote;
            }
        };
        let mut connection =
            Connection::new((guest, remote), stream, Stage::Calling, first(), &self.budget, around.now);
        // To be told that we scale; the guest's answer says whether it does.
        connection.scale = Some(0);
        connection.syn_due = true;
        if self.insert(connection, around)
            && let Some(&key) = self.by_ends.get(&(guest, remote))
        {
            self.settle(key, Fate::Keep, around);
        }
    }

    /// A connection's socket has changed.
    pub(crate) fn socket_event(&mut self, key: Key, event: &Happened, around: &mut Around<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let fate = connection.socket_event(event.readable, event.writable, event.hung_up);
        self.settle(key, fate, around);
    }

    /// A connection's deadline has passed.
    pub(crate) fn expire(&mut self, key: Key, around: &mut Around<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.timer = None;
        let fate = connection.expire(around.now).err().unwrap_or(Fate::Keep);
        self.settle(key, fate, around);
    }

    /// What has happened to a connection is done; see to what follows from it.
    fn settle(&mut self, key: Key, fate: Fate, around: &mut Around<'_>) {
        if fate == Fate::Keep {
            let Some(connection) = self.connections.get_mut(key) else { return };
            if !connection.queued {
                connection.queued = true;
                self.ready.push(key, |other| self.connections.contains(other));
            }
            self.set_timer(key, around);
            return;
        }
        let Some(connection) = self.take(key, around.poller) else { return };
        match fate {
            Fate::Keep => {}
            Fate::Done => connection.acknowledge_last(around.link),
            Fate::ResetHost => connection.reset_host(),
            Fate::ResetBoth => {
                connection.reset_guest(around.link);
                connection.reset_host();
            }
        }
    }

    fn set_timer(&mut self, key: Key, around: &mut Around<'_>) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if let Some(when) = connection.next_deadline(around.now) {
            around.poller.wake_by(&mut connection.timer, when, Source::Tcp(key));
        }
    }

    /// Entries of the list of connections that wait for their next turn.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Whether some connections wait for their next turn.
    pub(crate) fn has_more(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Give each connection with something to do a turn; false when the guest has no room.
    pub(crate) fn transmit(&mut self, sink: &mut dyn FrameSink, around: &mut Around<'_>) -> bool {
        for _ in 0..self.ready.len() {
            let Some(key) = self.ready.front() else { break };
            let Some(connection) = self.connections.get_mut(key) else {
                self.ready.next(false);
                continue;
            };
            let turn = connection.turn(around.link, around.gate, sink, around.now);
            match turn {
                Turn::NoRoom => return false,
                Turn::Idle | Turn::Failed => connection.queued = false,
                Turn::More => {}
            }
            self.ready.next(turn == Turn::More);
            if turn == Turn::Failed {
                self.settle(key, Fate::ResetBoth, around);
            } else {
                self.set_timer(key, around);
            }
        }
        true
    }
}

/// A first sequence number that nobody can guess (RFC 9293 section 3.4.1).
fn first() -> u32 {
    host_sys::entropy().map_or(0x5eed_5eed, |e| e as u32)
}
