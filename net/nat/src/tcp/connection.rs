//! One TCP connection: the guest's half of it, spliced to a socket of the host.
//!
//! The wire to the guest neither loses nor reorders, except that a guest may drop
//! what it got. So there is no congestion window, no reordering queue and no
//! selective acknowledgement: the guest's window and the host's socket set the
//! pace, and what is lost is sent again from where it is missing.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::gate::Gate;
use crate::ring::{Budget, Ring};
use crate::sockets;
use crate::tcp::dns_stream::DnsStream;
use crate::wire::{TcpFlags, TcpSegment};

/// The first wait for an acknowledgement; it doubles up to [`MAX_WAIT`].
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(4);
/// A guest that has not opened a connection after so many attempts (a minute) never will.
/// Open connections wait for ever: a machine may be paused.
const MAX_SYNS: u32 = 18;
/// An idle connection keeps its buffers for so long.
const KEEP_BUFFERS: Duration = Duration::from_secs(5);
/// Window scale that is offered: 8 MiB can be told.
pub(super) const SCALE: u8 = 7;
/// Segment size of a guest that names none (RFC 9293 section 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// The least that is believed: smaller ones would make a frame of each byte.
const LEAST_MSS: u16 = 88;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The guest's SYN waits for the host's connection.
    Connecting,
    /// SYN and ACK are on their way to the guest.
    Accepting,
    /// A connection from the host: SYN is on its way to the guest.
    Calling,
    Open,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// Both sides have ended it.
    Done,
    /// Reset, told to the host's peer.
    ResetHost,
    /// Reset, told to both.
    ResetBoth,
}

/// From the guest.
#[derive(Debug)]
pub(super) struct Inbound {
    /// Sequence number expected next.
    pub(super) next: u32,
    /// First sequence number beyond the window that was told.
    pub(super) edge: u32,
    /// What the host's socket has not taken yet.
    pub(super) ring: Ring,
    /// FIN has come.
    finished: bool,
    /// And was passed on.
    shut: bool,
}

/// To the guest.
#[derive(Debug)]
pub(super) struct Outbound {
    /// First sequence number not acknowledged; the ring starts there.
    pub(super) unacked: u32,
    /// Sequence numbers after it that are sent, FIN included.
    pub(super) sent: u32,
    /// The most that was ever sent: what may be acknowledged.
    pub(super) sent_most: u32,
    pub(super) ring: Ring,
    pub(super) window: u32,
    /// The host's peer has ended.
    pub(super) finished: bool,
    pub(super) fin_acked: bool,
    duplicates: u32,
}

#[derive(Debug)]
pub(crate) struct Connection {
    // Static configuration.
    pub(super) guest: SocketAddr,
    /// The peer as the guest sees it.
    pub(super) remote: SocketAddr,
    pub(super) mss: u16,
    /// Shift of the windows that the guest tells; `None`: neither side scales.
    pub(super) scale: Option<u8>,
    // Runtime glue.
    pub(super) stream: TcpStream,
    pub(super) dns: Option<Box<DnsStream>>,
    /// What it has asked the poller for.
    pub(super) timer: Option<Instant>,
    /// In the list of those with something to do.
    pub(super) queued: bool,
    // Volatile state.
    pub(super) stage: Stage,
    pub(super) inbound: Inbound,
    pub(super) outbound: Outbound,
    pub(super) readable: bool,
    writable: bool,
    pub(super) hung_up: bool,
    pub(super) syn_due: bool,
    pub(super) ack_due: bool,
    pub(super) probe_due: bool,
    pub(super) retry_at: Option<Instant>,
    retries: u32,
    /// When the guest was last heard of.
    pub(super) heard: Instant,
    /// When data last moved.
    pub(super) moved: Instant,
}

impl Connection {
    /// A connection that either side opens; `first` is the sequence number of its SYN to the guest.
    pub(super) fn new(
        ends: (SocketAddr, SocketAddr),
        stream: TcpStream,
        stage: Stage,
        first: u32,
        budget: &Budget,
        now: Instant,
    ) -> Self {
        Connection {
            guest: ends.0,
            remote: ends.1,
            mss: DEFAULT_MSS,
            scale: None,
            stream,
            dns: None,
            timer: None,
            queued: false,
            stage,
            inbound: Inbound {
                next: 0,
                edge: 0,
                ring: Ring::new(budget.clone()),
                finished: false,
                shut: false,
            },
            outbound: Outbound {
                unacked: first,
                sent: 0,
                sent_most: 0,
                ring: Ring::new(budget.clone()),
                window: 0,
                finished: false,
                fin_acked: false,
                duplicates: 0,
            },
            readable: false,
            writable: false,
            hung_up: false,
            syn_due: false,
            ack_due: false,
            probe_due: false,
            retry_at: None,
            retries: 0,
            heard: now,
            moved: now,
        }
    }

    /// Learn what the guest's SYN says. `most` is the segment size of its link.
    pub(super) fn guest_syn(&mut self, s: &TcpSegment<'_>, most: u16) {
        self.mss = s.mss.unwrap_or(DEFAULT_MSS).clamp(LEAST_MSS, most);
        self.scale = s.scale;
        self.inbound.next = s.sequence.wrapping_add(1);
        self.inbound.edge = self.inbound.next;
        // Windows of a SYN are not scaled.
        self.outbound.window = u32::from(s.window);
    }

    /// The window to be told, in bytes.
    pub(super) fn window(&self) -> u32 {
        let most = if self.scale.is_some() { u32::from(u16::MAX) << SCALE } else { u32::from(u16::MAX) };
        (self.inbound.ring.free() as u32).min(most)
    }

    /// A segment from the guest.
    pub(super) fn segment(&mut self, s: &TcpSegment<'_>, most: u16, gate: &mut Gate, now: Instant) -> Fate {
        self.heard = now;
        let acknowledges_syn =
            s.flags.has(TcpFlags::ACK) && s.acknowledged == self.outbound.unacked.wrapping_add(1);
        match self.stage {
            Stage::Connecting if s.flags.has(TcpFlags::RST) => return Fate::ResetHost,
            // The SYN again: the host is still connecting.
            Stage::Connecting => return Fate::Keep,
            Stage::Accepting => {
                if s.flags.has(TcpFlags::RST) {
                    return if s.sequence == self.inbound.next { Fate::ResetHost } else { Fate::Keep };
                }
                if s.flags.has(TcpFlags::SYN) {
                    self.syn_due = true;
                    return Fate::Keep;
                }
                if !acknowledges_syn {
                    return Fate::Keep;
                }
            }
            Stage::Calling => {
                if s.flags.has(TcpFlags::RST) {
                    return if acknowledges_syn { Fate::ResetHost } else { Fate::Keep };
                }
                if !acknowledges_syn || !s.flags.has(TcpFlags::SYN) {
                    return Fate::Keep;
                }
                self.guest_syn(s, most);
                self.ack_due = true;
            }
            Stage::Open => return self.established(s, gate, now),
        }
        let opened_by_guest = self.stage == Stage::Accepting;
        self.stage = Stage::Open;
        self.outbound.unacked = s.acknowledged;
        (self.retries, self.retry_at, self.syn_due) = (0, None, false);
        if opened_by_guest { self.established(s, gate, now) } else { Fate::Keep }
    }

    fn established(&mut self, s: &TcpSegment<'_>, gate: &mut Gate, now: Instant) -> Fate {
        if s.flags.has(TcpFlags::RST) {
            let within = s.sequence.wrapping_sub(self.inbound.next) <= self.window();
            self.ack_due |= !within;
            return if within { Fate::ResetHost } else { Fate::Keep };
        }
        if s.flags.has(TcpFlags::SYN) || !s.flags.has(TcpFlags::ACK) {
            // A SYN here is an old one, or someone guessing (RFC 5961).
            self.ack_due = true;
            return Fate::Keep;
        }
        let newly = s.acknowledged.wrapping_sub(self.outbound.unacked);
        if newly <= self.outbound.sent_most {
            let window = u32::from(s.window) << self.scale.unwrap_or(0);
            let nothing_else = s.sequence_len() == 0 && window == self.outbound.window;
            self.outbound.window = window;
            if newly > 0 {
                self.acknowledged(newly, now);
            } else if nothing_else && self.outbound.sent_most > 0 && window > 0 {
                // Any number of them may come.
                self.outbound.duplicates = self.outbound.duplicates.saturating_add(1);
                if self.outbound.duplicates == 3 {
                    self.outbound.sent = 0;
                }
            }
        } else if newly < 1 << 31 {
            // What was never sent.
            self.ack_due = true;
            return Fate::Keep;
        }
        if s.sequence_len() > 0 {
            return self.data(s, gate, now);
        }
        // Someone who makes sure that the connection lives uses an old number.
        self.ack_due |= s.sequence != self.inbound.next;
        self.fate()
    }

    /// The guest has so much more.
    fn acknowledged(&mut self, newly: u32, now: Instant) {
        let out = &mut self.outbound;
        let data = (newly as usize).min(out.ring.len());
        out.ring.consume(data);
        out.fin_acked |= newly as usize > data;
        out.unacked = out.unacked.wrapping_add(newly);
        out.sent = out.sent.saturating_sub(newly);
        out.sent_most -= newly;
        out.duplicates = 0;
        self.retries = 0;
        self.retry_at = (out.sent_most > 0).then_some(now + FIRST_WAIT);
        self.moved = now;
    }

    /// Data and FIN of a segment.
    fn data(&mut self, s: &TcpSegment<'_>, gate: &mut Gate, now: Instant) -> Fate {
        self.ack_due = true;
        let old = self.inbound.next.wrapping_sub(s.sequence);
        // From beyond what is expected, or wholly old.
        if old >= 1 << 31 || old as usize > s.payload.len() || self.inbound.finished {
            return self.fate();
        }
        let new = s.payload.get(old as usize..).unwrap_or_default();
        let taken = match self.pass_on(new, gate) {
            Ok(taken) => taken,
            Err(_) => return Fate::ResetBoth,
        };
        self.inbound.next = self.inbound.next.wrapping_add(taken as u32);
        self.moved = now;
        if taken == new.len() && s.flags.has(TcpFlags::FIN) {
            self.inbound.finished = true;
            self.inbound.next = self.inbound.next.wrapping_add(1);
            return self.finish_inbound();
        }
        Fate::Keep
    }

    /// Give data to the host's socket, or keep it for the socket; answers how much was taken.
    fn pass_on(&mut self, data: &[u8], gate: &mut Gate) -> io::Result<usize> {
        if let Some(dns) = &mut self.dns {
            let room = self.inbound.ring.free();
            let data = data.get(..room).unwrap_or(data);
            if !dns.queries.pass(data, |query| gate.admit_query(query)) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            let taken = self.inbound.ring.push(data);
            self.flush_inbound()?;
            return Ok(taken);
        }
        let mut taken = 0;
        if self.inbound.ring.is_empty() {
            taken = match self.stream.write(data) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                Err(e) => return Err(e),
            };
        }
        if let Some(rest) = data.get(taken..).filter(|r| !r.is_empty()) {
            self.writable = false;
            taken += self.inbound.ring.push(rest);
        }
        Ok(taken)
    }

    /// Give what is kept to the host's socket.
    fn flush_inbound(&mut self) -> io::Result<()> {
        let ring = &mut self.inbound.ring;
        while !ring.is_empty() {
            let parts = ring.slices(0, ring.len()).map(io::IoSlice::new);
            match self.stream.write_vectored(&parts) {
                Ok(n) => ring.consume(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        // The guest is told when there is much more room than it knows of.
        let edge = self.inbound.next.wrapping_add(self.window());
        let more = edge.wrapping_sub(self.inbound.edge);
        if more < 1 << 31 && more as usize >= self.inbound.ring.free() / 4 {
            self.ack_due = true;
        }
        Ok(())
    }

    /// Pass the guest's FIN on when all its data are.
    fn finish_inbound(&mut self) -> Fate {
        if self.inbound.finished && !self.inbound.shut && self.inbound.ring.is_empty() {
            self.inbound.shut = true;
            // A peer that is gone already is noticed by reading.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        self.fate()
    }

    fn fate(&self) -> Fate {
        if self.inbound.shut && self.outbound.fin_acked { Fate::Done } else { Fate::Keep }
    }

    /// The host's socket has changed.
    pub(super) fn socket_event(&mut self, readable: bool, writable: bool, hung_up: bool) -> Fate {
        self.readable |= readable;
        self.hung_up |= hung_up;
        if !writable {
            return Fate::Keep;
        }
        self.writable = true;
        if self.stage == Stage::Connecting {
            match rustix::net::sockopt::socket_error(&self.stream) {
                Ok(Ok(())) => {
                    self.stage = Stage::Accepting;
                    self.syn_due = true;
                }
                // At once: a guest would take an unreachable host for a passing trouble.
                _ => return Fate::ResetBoth,
            }
        }
        match self.flush_inbound() {
            Ok(()) => self.finish_inbound(),
            Err(_) => Fate::ResetBoth,
        }
    }

    /// A deadline may have passed; answers when to come again.
    pub(super) fn expire(&mut self, now: Instant) -> Result<Option<Instant>, Fate> {
        if self.retry_at.is_some_and(|t| t <= now) {
            self.retries = self.retries.saturating_add(1);
            self.retry_at = Some(now + (FIRST_WAIT * (1 << self.retries.min(8))).min(MAX_WAIT));
            match self.stage {
                Stage::Connecting => {}
                Stage::Accepting | Stage::Calling if self.retries > MAX_SYNS => return Err(Fate::ResetHost),
                Stage::Accepting | Stage::Calling => self.syn_due = true,
                Stage::Open => {
                    self.outbound.sent = 0;
                    self.probe_due = self.outbound.window == 0;
                }
            }
        }
        let idle = self.inbound.ring.is_empty() && self.outbound.ring.is_empty();
        if idle && now.duration_since(self.moved) >= KEEP_BUFFERS {
            self.inbound.ring.release();
            self.outbound.ring.release();
        }
        Ok(self.next_deadline(now))
    }

    /// When it wants to be called again.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let buffers = self.inbound.ring.has_memory() || self.outbound.ring.has_memory();
        let release = buffers.then(|| (self.moved + KEEP_BUFFERS).max(now + FIRST_WAIT));
        self.retry_at.into_iter().chain(release).min()
    }

    /// Close the socket so that the host's peer sees a reset.
    pub(super) fn reset_host(self) {
        sockets::reset_tcp(self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    #[test]
    fn any_number_of_duplicates_is_survived() {
        let log = std::sync::Arc::new(rate_log::RateLog::new("network"));
        let mut gate = Gate::new(Policy::default(), true, Vec::new(), log);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ends, now) = (([10, 0, 2, 15], 1).into(), Instant::now());
        let ends: (SocketAddr, SocketAddr) = (ends, ([10, 0, 2, 2], 2).into());
        let mut connection = Connection::new(ends, stream, Stage::Open, 7, &Budget::default(), now);
        connection.outbound.ring.push(b"data");
        (connection.outbound.sent, connection.outbound.sent_most, connection.outbound.window) = (4, 4, 9);
        let duplicate = TcpSegment {
            source: 1,
            destination: 2,
            sequence: 0,
            acknowledged: 7,
            flags: TcpFlags(TcpFlags::ACK),
            window: 9,
            mss: None,
            scale: None,
            payload: &[],
        };
        for _ in 0..3 {
            assert_eq!(connection.outbound.sent, 4);
            assert_eq!(connection.segment(&duplicate, 1460, &mut gate, now), Fate::Keep);
        }
        assert_eq!(connection.outbound.sent, 0, "three are a loss: all is sent again");
        connection.outbound.duplicates = u32::MAX;
        assert_eq!(connection.segment(&duplicate, 1460, &mut gate, now), Fate::Keep);
    }
}
