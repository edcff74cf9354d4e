//! All connections of a guest, and what packets and the host's sockets do to them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::connection::{Broken, Connection, FromHost, Outlet, Stage};
use crate::door::{Door, Said};
use crate::packet::{HOST_CID, Header, NO_RECEIVE, NO_SEND, Operation, STREAM};
use crate::{BUFFER, MAX_CONNECTIONS};

/// Packets for the guest that carry no bytes, held until it has room for them.
pub(crate) const MAX_ANSWERS: usize = 1024;
/// Programs let in before others get their turn.
const ACCEPTS: usize = 16;
/// Events taken at once.
const EVENTS: usize = 64;
/// What the listener is known by; connections count up from the next.
const LISTENER: u64 = 0;
/// Where the host's ports of connections to the guest begin, as in Firecracker.
const FIRST_PORT: u32 = 1 << 30;

/// A connection's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub host: u32,
    pub guest: u32,
}

/// A packet without bytes on its way to the guest.
#[derive(Debug, Clone, Copy)]
struct Answer {
    key: Key,
    op: Operation,
    flags: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Switch {
    // Static configuration.
    cid: u64,
    /// The path that ports are added to, if the guest may reach the host.
    to_host: Option<PathBuf>,
    // Runtime glue.
    epoll: OwnedFd,
    listener: Option<UnixListener>,
    // Volatile state.
    connections: BTreeMap<Key, Connection>,
    tokens: BTreeMap<u64, Key>,
    /// What the host has yet to take of connections that the guest has ended.
    lingering: BTreeMap<u64, Outlet>,
    door: Door,
    answers: VecDeque<Answer>,
    /// Connections with bytes for the guest, in turn.
    readable: VecDeque<Key>,
    next_token: u64,
    next_port: u32,
    /// Without a thread nobody listens to the host.
    pub inline: bool,
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    // A program that does not accept must not hold the worker up.
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_os_str().as_bytes())?)?;
    Ok(UnixStream::from(socket))
}

impl Switch {
    pub fn new(cid: u64, listener: Option<UnixListener>, to_host: Option<PathBuf>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
            epoll::add(&epoll, listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        }
        Ok(Switch {
            cid,
            to_host,
            epoll,
            listener,
            connections: BTreeMap::new(),
            tokens: BTreeMap::new(),
            lingering: BTreeMap::new(),
            door: Door::default(),
            answers: VecDeque::new(),
            readable: VecDeque::new(),
            next_token: LISTENER + 1,
            next_port: FIRST_PORT,
            inline: false,
        })
    }

    /// Readable when [`Switch::host_events`] has something to do.
    pub fn source(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Connections there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Forget all connections: the guest has.
    pub fn reset(&mut self) {
        // Closing a stream takes it out of the event loop too.
        self.connections.clear();
        self.tokens.clear();
        self.lingering.clear();
        self.door.clear();
        self.answers.clear();
        self.readable.clear();
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn answer(&mut self, key: Key, op: Operation, flags: u32) {
        self.answers.push_back(Answer { key, op, flags });
    }

    /// Whether so many answers wait that the guest is to take some first.
    pub fn is_congested(&self) -> bool {
        self.answers.len() >= MAX_ANSWERS
    }

    // Towards the guest.

    /// Whether there is a packet for the guest.
    pub fn has_packet(&self) -> bool {
        !self.answers.is_empty() || !self.readable.is_empty()
    }

    /// The next packet for the guest: its header; `room` takes its bytes.
    pub fn next_packet(&mut self, room: &mut [u8]) -> Option<(Header, usize)> {
        while let Some(answer) = self.answers.pop_front() {
            if let Some(header) = self.header_of(answer) {
                return Some((header, 0));
            }
        }
        while let Some(key) = self.readable.pop_front() {
            if let Some(packet) = self.read(key, room) {
                return Some(packet);
            }
        }
        None
    }

    fn header(&mut self, key: Key, op: Operation, flags: u32, len: u32) -> Header {
        let fwd_cnt = self.connections.get_mut(&key).map_or(0, Connection::tell);
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: key.host,
            dst_port: key.guest,
            len,
            kind: STREAM,
            op,
            flags,
            buf_alloc: BUFFER,
            fwd_cnt,
        }
    }

    fn header_of(&mut self, answer: Answer) -> Option<Header> {
        let Answer { key, op, flags } = answer;
        if op == Operation::CREDIT_UPDATE {
            // The connection may have ended.
            self.connections.get_mut(&key)?.telling = false;
        }
        Some(self.header(key, op, flags, 0))
    }

    /// Read from one connection.
    fn read(&mut self, key: Key, room: &mut [u8]) -> Option<(Header, usize)> {
        let connection = self.connections.get_mut(&key)?;
        if !connection.wants_input() {
            self.wait(key);
            return None;
        }
        let most = room.len().min(connection.credit() as usize);
        match connection.read(&mut room[..most]) {
            Ok(FromHost::Bytes(n)) => {
                // Others first, then this one again.
                self.readable.push_back(key);
                Some((self.header(key, Operation::RW, 0, n as u32), n))
            }
            Ok(FromHost::Nothing) => {
                self.wait(key);
                None
            }
            Ok(FromHost::End) => {
                connection.host_done = true;
                // A program that is gone takes nothing any more either.
                let gone = is_gone(&connection.outlet.stream);
                self.wait(key);
                let flags = if gone { NO_SEND | NO_RECEIVE } else { NO_SEND };
                Some((self.header(key, Operation::SHUTDOWN, flags, 0), 0))
            }
            Err(Broken) => {
                self.end(key);
                Some((self.header(key, Operation::RST, 0, 0), 0))
            }
        }
    }

    // From the guest.

    /// A packet of the guest. `bytes` is None if they are not all there.
    pub fn guest_packet(&mut self, header: &Header, bytes: Option<&[u8]>) {
        if header.dst_cid != HOST_CID || header.src_cid != self.cid {
            // Nobody to answer: it names another guest, or says to be one.
            return;
        }
        let key = Key { host: header.dst_port, guest: header.src_port };
        let Some(bytes) = bytes.filter(|_| header.kind == STREAM) else {
            return self.refuse(key, header.op);
        };
        if header.op == Operation::REQUEST {
            return self.guest_request(key, header);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return self.refuse(key, header.op);
        };
        connection.hear(header.buf_alloc, header.fwd_cnt);
        let result = match header.op {
            Operation::RESPONSE if connection.stage == Stage::Asked => {
                connection.stage = Stage::Open;
                greet(connection, key)
            }
            Operation::RW if connection.stage == Stage::Open && !connection.guest_done => {
                connection.receive(bytes)
            }
            Operation::SHUTDOWN if connection.stage == Stage::Open => {
                connection.guest_deaf |= header.flags & NO_RECEIVE != 0;
                connection.guest_done |= header.flags & NO_SEND != 0;
                Ok(())
            }
            Operation::CREDIT_UPDATE => Ok(()),
            Operation::CREDIT_REQUEST => {
                if !connection.telling {
                    connection.telling = true;
                    self.answer(key, Operation::CREDIT_UPDATE, 0);
                }
                Ok(())
            }
            Operation::RST => return self.guest_is_gone(key),
            _ => Err(Broken),
        };
        match result {
            Ok(()) => self.settle(key),
            Err(Broken) => self.abort(key),
        }
    }

    /// There is no such connection. A reset is not answered by a reset.
    fn refuse(&mut self, key: Key, op: Operation) {
        self.end(key);
        if op != Operation::RST {
            self.answer(key, Operation::RST, 0);
        }
    }

    fn guest_request(&mut self, key: Key, header: &Header) {
        let room = self.connections.len() + self.lingering.len() < MAX_CONNECTIONS;
        let wanted = self.to_host.as_ref().filter(|_| room && !self.inline);
        let stream = wanted.and_then(|base| {
            let mut path = base.clone().into_os_string();
            path.push(format!("_{}", key.host));
            connect(Path::new(&path)).ok()
        });
        let Some(stream) = stream.filter(|_| !self.connections.contains_key(&key)) else {
            return self.refuse(key, Operation::REQUEST);
        };
        self.open(key, Stage::Open, stream);
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.hear(header.buf_alloc, header.fwd_cnt);
        }
        self.answer(key, Operation::RESPONSE, 0);
        self.settle(key);
    }

    /// The guest has ended the connection; what it sent before is still the host's.
    fn guest_is_gone(&mut self, key: Key) {
        let Some(connection) = self.take(key) else { return };
        let Connection { outlet, token, registered, .. } = connection;
        if outlet.is_empty() {
            return;
        }
        let data = EventData::new_u64(token);
        let waits = match registered {
            Some(_) => epoll::modify(&self.epoll, &outlet.stream, data, EventFlags::OUT),
            None => epoll::add(&self.epoll, &outlet.stream, data, EventFlags::OUT),
        };
        if waits.is_ok() {
            self.lingering.insert(token, outlet);
        }
    }

    // Connections as such.

    fn open(&mut self, key: Key, stage: Stage, stream: UnixStream) {
        let token = self.token();
        self.tokens.insert(token, key);
        self.connections.insert(key, Connection::new(stage, stream, token));
    }

    /// Take a connection out.
    fn take(&mut self, key: Key) -> Option<Connection> {
        let connection = self.connections.remove(&key)?;
        self.tokens.remove(&connection.token);
        self.readable.retain(|k| *k != key);
        Some(connection)
    }

    /// End a connection without a word to the guest.
    fn end(&mut self, key: Key) {
        drop(self.take(key));
    }

    /// End a connection that no longer works.
    fn abort(&mut self, key: Key) {
        if self.take(key).is_some() {
            self.answer(key, Operation::RST, 0);
        }
    }

    /// Do what follows from a change: pass ends on, tell of room, wait for what is next.
    fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        if connection.guest_done && connection.outlet.is_empty() {
            if connection.guest_deaf {
                return self.abort(key);
            }
            // It may be gone already.
            let _ = connection.outlet.stream.shutdown(Shutdown::Write);
        }
        if connection.owes_credit() {
            connection.telling = true;
            self.answer(key, Operation::CREDIT_UPDATE, 0);
        }
        self.wait(key);
    }

    /// Register what a connection waits for. One that waits for nothing is taken
    /// out, for a hang-up would be told over and over.
    fn wait(&mut self, key: Key) {
        let is_next = self.readable.contains(&key);
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, connection.wants_input() && !is_next);
        flags.set(EventFlags::OUT, !connection.outlet.is_empty());
        // Whether the program that asked still waits is told without being asked for.
        let wanted = (!flags.is_empty() || connection.stage == Stage::Asked).then_some(flags);
        if wanted == connection.registered {
            return;
        }
        let (stream, data) = (&connection.outlet.stream, EventData::new_u64(connection.token));
        let result = match (connection.registered, wanted) {
            (None, Some(flags)) => epoll::add(&self.epoll, stream, data, flags),
            (Some(_), Some(flags)) => epoll::modify(&self.epoll, stream, data, flags),
            (_, None) => epoll::delete(&self.epoll, stream),
        };
        connection.registered = wanted;
        if result.is_err() {
            self.abort(key);
        }
    }

    // From the host.

    /// Take what the host's sockets have.
    pub fn host_events(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // A signal: it will be told again.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now));
        for event in events {
            let (token, flags) = (event.data.u64(), event.flags);
            if token == LISTENER {
                self.let_in();
            } else if let Some(key) = self.tokens.get(&token).copied() {
                self.connection_event(key, flags);
            } else if let Some(said) = self.door.listen(token) {
                self.visitor(said);
            } else if let Some(outlet) = self.lingering.get_mut(&token)
                && (outlet.flush().is_err() || outlet.is_empty())
            {
                self.lingering.remove(&token);
            }
        }
    }

    fn let_in(&mut self) {
        for _ in 0..ACCEPTS {
            let accepted = self.listener.as_ref().map(UnixListener::accept);
            let Some(Ok((stream, _))) = accepted else { return };
            let token = self.token();
            let ready = stream.set_nonblocking(true).is_ok()
                && epoll::add(&self.epoll, &stream, EventData::new_u64(token), EventFlags::IN).is_ok();
            if ready {
                self.door.enter(token, stream);
            }
        }
    }

    fn visitor(&mut self, said: Said) {
        let Said::Port(port, stream) = said else { return };
        // Dropped: the program sees that it is refused.
        if self.connections.len() + self.lingering.len() >= MAX_CONNECTIONS || self.is_congested() {
            return;
        }
        let _ = epoll::delete(&self.epoll, &stream);
        let mut key = Key { host: self.next_port, guest: port };
        // Fewer connections than ports: one is free.
        while self.connections.contains_key(&key) {
            key.host = key.host.wrapping_add(1).max(FIRST_PORT);
        }
        self.next_port = key.host.wrapping_add(1).max(FIRST_PORT);
        self.open(key, Stage::Asked, stream);
        self.answer(key, Operation::REQUEST, 0);
        self.wait(key);
    }

    fn connection_event(&mut self, key: Key, flags: EventFlags) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let dead = connection.stage == Stage::Asked && gone
            || flags.contains(EventFlags::OUT) && connection.flush().is_err()
            || flags.contains(EventFlags::ERR);
        if dead {
            return self.abort(key);
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP) && connection.wants_input() {
            if !self.readable.contains(&key) {
                self.readable.push_back(key);
            }
        } else if gone && connection.host_done && connection.outlet.is_empty() {
            return self.abort(key);
        }
        self.settle(key);
    }
}

/// Tell the host's program that it is connected.
fn greet(connection: &mut Connection, key: Key) -> Result<(), Broken> {
    let line = format!("OK {}\n", key.host);
    // Nothing has been written to the stream before: a line fits.
    match connection.outlet.send(line.as_bytes()) {
        Ok(n) if n == line.len() => Ok(()),
        _ => Err(Broken),
    }
}

/// Whether both directions of a stream have ended.
fn is_gone(stream: &UnixStream) -> bool {
    let mut poll = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut poll, Some(&now)).is_ok()
        && poll[0].revents().contains(rustix::event::PollFlags::HUP)
}
