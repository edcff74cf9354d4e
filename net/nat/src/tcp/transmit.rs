//! Segments for the guest.

use std::io::{self, Read};
use std::net::SocketAddr;
use std::time::Instant;

use port::{Checksum, ETHERNET_HEADER, FrameSink, Offload, SegmentKind, Segments};

use crate::gate::Gate;
use crate::link::{Ends, Link};
use crate::tcp::connection::{Connection, FIRST_WAIT, SCALE, Stage};
use crate::wire::{Header, TcpFlags, TcpSegment, protocol, pseudo_header};

/// Frames of one connection before it is the next one's turn.
const TURN: u32 = 16;
const TCP_HEADER: usize = 20;
/// Place of the checksum in a TCP header.
const CHECKSUM: u16 = 16;

/// How a turn has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Nothing left to do.
    Idle,
    /// Others are to have their turn first.
    More,
    /// The guest has no room.
    NoRoom,
    /// The host's socket has failed.
    Failed,
}

/// Fields of a TCP header for the guest.
pub(super) struct Fields<'a> {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) acknowledge: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) options: &'a [u8],
}

impl Fields<'_> {
    /// All headers of a segment; `partial`: the checksum is left to the receiver.
    pub(super) fn header(&self, link: &Link, payload: &[&[u8]], partial: bool) -> Header {
        let length = TCP_HEADER + self.options.len() + payload.iter().map(|p| p.len()).sum::<usize>();
        let (from, to) = (self.from.ip(), self.to.ip());
        let mut header = Header::ip(link.macs(), from, to, protocol::TCP, length);
        let start = header.len();
        header.push(&self.from.port().to_be_bytes());
        header.push(&self.to.port().to_be_bytes());
        header.push(&self.sequence.to_be_bytes());
        header.push(&self.acknowledge.to_be_bytes());
        // Options are whole words.
        let words = ((TCP_HEADER + self.options.len()) / 4) as u8;
        header.push(&[words << 4, self.flags]);
        header.push(&self.window.to_be_bytes());
        header.push(&[0; 4]);
        header.push(self.options);
        let mut sum = pseudo_header(from, to, protocol::TCP, length);
        let at = start + usize::from(CHECKSUM);
        if partial {
            header.set16(at, sum.folded());
        } else {
            sum.add(header.bytes().get(start..).unwrap_or_default());
            payload.iter().for_each(|p| sum.add(p));
            header.set16(at, sum.finish());
        }
        header
    }
}

/// The reset that answers a segment of no connection (RFC 9293 section 3.10.7.1).
pub(super) fn refuse(link: &mut Link, ends: Ends, s: &TcpSegment<'_>) {
    if s.flags.has(TcpFlags::RST) {
        return;
    }
    let acked = s.flags.has(TcpFlags::ACK);
    let fields = Fields {
        from: SocketAddr::new(ends.from, s.destination),
        to: SocketAddr::new(ends.to, s.source),
        sequence: if acked { s.acknowledged } else { 0 },
        acknowledge: s.sequence.wrapping_add(s.sequence_len()),
        flags: TcpFlags::RST | TcpFlags::ACK,
        window: 0,
        options: &[],
    };
    let header = fields.header(link, &[], false);
    link.answer(header, Vec::new());
}

/// The longest segment that the link carries whole.
pub(super) fn link_mss(link: &Link, v4: bool) -> u16 {
    link.mtu - if v4 { 40 } else { 60 }
}

impl Connection {
    fn fields<'a>(&self, sequence: u32, flags: u8, options: &'a [u8]) -> Fields<'a> {
        let scale = if self.scale.is_some() && flags & TcpFlags::SYN == 0 { SCALE } else { 0 };
        Fields {
            from: self.remote,
            to: self.guest,
            sequence,
            acknowledge: if flags & TcpFlags::ACK != 0 { self.inbound.next } else { 0 },
            flags,
            window: (self.window() >> scale).min(u16::MAX.into()) as u16,
            options,
        }
    }

    /// Tell the guest that the connection is reset.
    pub(super) fn reset_guest(&self, link: &mut Link) {
        if self.stage == Stage::Calling {
            return;
        }
        let sequence = self.outbound.unacked.wrapping_add(self.outbound.sent_most);
        let header = self.fields(sequence, TcpFlags::RST | TcpFlags::ACK, &[]).header(link, &[], false);
        link.answer(header, Vec::new());
    }

    /// Acknowledge the guest's FIN if it came last: nothing else will.
    pub(super) fn acknowledge_last(&self, link: &mut Link) {
        if self.ack_due {
            let newest = self.outbound.unacked.wrapping_add(self.outbound.sent_most);
            let header = self.fields(newest, TcpFlags::ACK, &[]).header(link, &[], false);
            link.answer(header, Vec::new());
        }
    }

    /// Do what is to be done for the guest.
    pub(super) fn turn(
        &mut self,
        link: &mut Link,
        gate: &mut Gate,
        sink: &mut dyn FrameSink,
        now: Instant,
    ) -> Turn {
        if self.syn_due {
            if !sink.room() {
                return Turn::NoRoom;
            }
            self.send_syn(link, sink, now);
        }
        let mut frames = 0;
        while self.stage == Stage::Open {
            let read = match self.read_host(gate, now) {
                Ok(n) => n,
                Err(_) => return Turn::Failed,
            };
            let before = frames;
            while frames < TURN && self.sendable(link) > 0 {
                if !sink.room() {
                    return Turn::NoRoom;
                }
                self.send_data(link, sink, now);
                frames += 1;
            }
            if frames >= TURN {
                return Turn::More;
            }
            if read == 0 && frames == before {
                break;
            }
        }
        self.finish_turn(link, sink, now)
    }

    /// FIN, and acknowledgements that no data carried.
    fn finish_turn(&mut self, link: &mut Link, sink: &mut dyn FrameSink, now: Instant) -> Turn {
        if self.stage != Stage::Open {
            return Turn::Idle;
        }
        let out = &self.outbound;
        let all_sent = out.sent as usize == out.ring.len();
        if out.finished && all_sent && !out.fin_acked {
            if !sink.room() {
                return Turn::NoRoom;
            }
            let sequence = out.unacked.wrapping_add(out.sent);
            self.send_bare(link, sink, sequence, TcpFlags::FIN | TcpFlags::ACK);
            self.outbound.sent += 1;
            self.outbound.sent_most = self.outbound.sent_most.max(self.outbound.sent);
            self.retry_at.get_or_insert(now + FIRST_WAIT);
        }
        // A window that stays closed is asked for: its opening may have been lost.
        if self.outbound.window == 0 && !self.outbound.ring.is_empty() {
            self.retry_at.get_or_insert(now + FIRST_WAIT);
        }
        if self.ack_due || self.probe_due {
            if !sink.room() {
                return Turn::NoRoom;
            }
            // An old sequence number makes the guest answer. Else it is the newest, even while
            // older data are sent again: an acknowledgement with an old one is not believed.
            let newest = self.outbound.unacked.wrapping_add(self.outbound.sent_most);
            let sequence = if self.probe_due { self.outbound.unacked.wrapping_sub(1) } else { newest };
            self.send_bare(link, sink, sequence, TcpFlags::ACK);
            self.probe_due = false;
        }
        Turn::Idle
    }

    /// Read from the host's socket what fits.
    fn read_host(&mut self, gate: &mut Gate, now: Instant) -> io::Result<usize> {
        let out = &mut self.outbound;
        if !self.readable || out.finished || out.ring.free() == 0 {
            return Ok(0);
        }
        let before = out.ring.len();
        match out.ring.fill(|to| self.stream.read_vectored(to)) {
            Ok(0) => {
                out.finished = true;
                self.readable = false;
                Ok(0)
            }
            Ok(n) => {
                if let Some(dns) = &mut self.dns {
                    for part in out.ring.slices(before, n) {
                        dns.answers.pass(part, |answer| {
                            gate.learn(answer, now);
                            true
                        });
                    }
                }
                // Short of what fits: the socket is empty, and the next bytes will be told. So
                // will the end, unless it has been told already.
                self.readable = self.hung_up || out.ring.free() == 0;
                self.moved = now;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(0)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Bytes of the next segment.
    fn sendable(&self, link: &Link) -> usize {
        let out = &self.outbound;
        let sent = out.sent as usize;
        let waiting = out.ring.len().saturating_sub(sent);
        let window = (out.window as usize).saturating_sub(sent);
        let mss = usize::from(self.mss);
        let v4 = self.guest.is_ipv4();
        let many = if v4 { link.takes.tcp4 } else { link.takes.tcp6 };
        // Total length of IPv4 and payload length of IPv6 have 16 bits; whole segments.
        let longest = usize::from(u16::MAX) - TCP_HEADER - if v4 { 20 } else { 0 };
        let most = if many { longest - longest % mss } else { mss };
        waiting.min(window).min(most)
    }

    fn send_data(&mut self, link: &Link, sink: &mut dyn FrameSink, now: Instant) {
        let length = self.sendable(link);
        let out = &self.outbound;
        let parts = out.ring.slices(out.sent as usize, length);
        let last = out.sent as usize + length == out.ring.len();
        let flags = TcpFlags::ACK | if last { TcpFlags::PSH } else { 0 };
        let fields = self.fields(out.unacked.wrapping_add(out.sent), flags, &[]);
        let partial = link.takes.checksum;
        let header = fields.header(link, &parts, partial);
        let offload = self.offload(header.len(), length, partial);
        sink.take(&[header.bytes(), parts[0], parts[1]], &offload);
        self.outbound.sent += length as u32;
        self.outbound.sent_most = self.outbound.sent_most.max(self.outbound.sent);
        self.retry_at.get_or_insert(now + FIRST_WAIT);
        self.told();
    }

    /// What is left to the guest for a segment of this length.
    fn offload(&self, headers: usize, length: usize, partial: bool) -> Offload {
        if !partial {
            return Offload::NONE;
        }
        let v4 = self.guest.is_ipv4();
        let start = ETHERNET_HEADER + if v4 { 20 } else { 40 };
        let kind = if v4 { SegmentKind::Tcp4 } else { SegmentKind::Tcp6 };
        let segments = Segments { kind, size: self.mss, header_len: headers as u16, ecn: false };
        Offload {
            checksum: Checksum::Partial { start: start as u16, offset: CHECKSUM },
            segments: (length > usize::from(self.mss)).then_some(segments),
        }
    }

    fn send_bare(&mut self, link: &Link, sink: &mut dyn FrameSink, sequence: u32, flags: u8) {
        let partial = link.takes.checksum;
        let header = self.fields(sequence, flags, &[]).header(link, &[], partial);
        sink.take(&[header.bytes()], &self.offload(header.len(), 0, partial));
        self.told();
    }

    fn send_syn(&mut self, link: &Link, sink: &mut dyn FrameSink, now: Instant) {
        let [mss_high, mss_low] = link_mss(link, self.guest.is_ipv4()).to_be_bytes();
        let accepting = self.stage == Stage::Accepting;
        // Segment size; scale, if the guest has one (RFC 7323 section 2.2), behind a filler.
        let options = [2, 4, mss_high, mss_low, 1, 3, 3, SCALE];
        let scales = !accepting || self.scale.is_some();
        let options = options.get(..if scales { 8 } else { 4 }).unwrap_or_default();
        let flags = TcpFlags::SYN | if accepting { TcpFlags::ACK } else { 0 };
        let partial = link.takes.checksum;
        let header = self.fields(self.outbound.unacked, flags, options).header(link, &[], partial);
        sink.take(&[header.bytes()], &self.offload(header.len(), 0, partial));
        self.syn_due = false;
        self.retry_at.get_or_insert(now + FIRST_WAIT);
        self.told();
    }

    /// The guest has been told what has arrived, and the window.
    fn told(&mut self) {
        self.ack_due = false;
        self.inbound.edge = self.inbound.next.wrapping_add(self.window());
    }
}
