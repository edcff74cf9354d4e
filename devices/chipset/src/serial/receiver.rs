//! The receiving half of the port, and the line before it.
//!
//! The other end of the line is a person or a pipe that can wait, so nothing it
//! sends may be lost. It sends when the guest receives: its receive interrupt is
//! enabled, or it polls. Before, as while a kernel boots, and in loopback, input
//! waits on the line. What a driver clears from the FIFO unread is sent again.
//! A guest that uses RTS holds input back with it. And bytes come at a line's
//! pace, not all at once: an interrupt handler that could read for ever would
//! fill the buffers of the system above it.

use std::collections::VecDeque;

use device_model::Nanos;

/// Bytes that the receiver's FIFO holds.
pub(super) const FIFO: usize = 16;
/// Most bytes that wait for the guest, on the line and in the receiver.
pub(super) const CAPACITY: usize = 64 << 10;
/// Time of a character: ten bits at 115,200 bits a second. A slower line that
/// the guest may have chosen would only keep people waiting.
const CHARACTER: Nanos = 86_806;
/// So many reads of the line status with no other access between are a guest
/// that polls for input; one that polls to send writes a byte between two.
const POLLS: u8 = 4;

/// What has to hold for bytes to leave the line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    /// FIFO enabled.
    pub fifo: bool,
    /// Receive interrupt enabled.
    pub interrupt: bool,
    /// Request to send.
    pub rts: bool,
    /// Loopback mode.
    pub looped: bool,
}

#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// The FIFO, or the one holding register.
    pub fifo: VecDeque<u8>,
    /// How many of the FIFO's first bytes the guest sent itself in loopback.
    pub looped: usize,
    /// What the other end has still to send.
    pub waiting: VecDeque<u8>,
    /// The guest has raised RTS since its reset: it means something.
    pub uses_rts: bool,
    /// It polls for input.
    pub polls: bool,
    /// Reads of the line status in a row.
    pub status_reads: u8,
    /// When the bytes last sent have passed.
    pub free_at: Nanos,
}

impl Receiver {
    /// Offer bytes; answers how many were taken.
    pub fn offer(&mut self, bytes: &[u8]) -> usize {
        let held = self.waiting.len() + self.fifo.len();
        let n = bytes.len().min(CAPACITY.saturating_sub(held));
        self.waiting.extend(&bytes[..n]);
        n
    }

    /// Room in the FIFO.
    pub fn room(&self, line: Line) -> usize {
        let size = if line.fifo { FIFO } else { 1 };
        size.saturating_sub(self.fifo.len())
    }

    /// When bytes can move from the line to the FIFO, if they can.
    pub fn next_deadline(&self, line: Line) -> Option<Nanos> {
        let receives = (line.interrupt || self.polls) && !line.looped && (line.rts || !self.uses_rts);
        (receives && self.room(line) > 0 && !self.waiting.is_empty()).then_some(self.free_at)
    }

    /// Move what can move now.
    pub fn refill(&mut self, line: Line, now: Nanos) {
        if self.next_deadline(line).is_some_and(|at| at <= now) {
            let n = self.room(line).min(self.waiting.len());
            self.fifo.extend(self.waiting.drain(..n));
            self.free_at = now.saturating_add(CHARACTER * n as u64);
        }
    }

    /// The guest reads a byte.
    pub fn take(&mut self) -> u8 {
        self.looped = self.looped.saturating_sub(1);
        self.fifo.pop_front().unwrap_or(0)
    }

    /// The guest sends itself a byte; false if there is no room.
    pub fn send_back(&mut self, line: Line, byte: u8) -> bool {
        let room = self.room(line) > 0;
        if room {
            self.fifo.push_back(byte);
            self.looped += 1;
        }
        room
    }

    /// Empty the FIFO. What came over the line is sent again.
    pub fn clear(&mut self) {
        self.fifo.drain(..self.looped.min(self.fifo.len()));
        self.looped = 0;
        while let Some(byte) = self.fifo.pop_back() {
            self.waiting.push_front(byte);
        }
    }

    /// The guest has read the line status.
    pub fn status_read(&mut self) {
        self.status_reads = self.status_reads.saturating_add(1);
        self.polls |= self.status_reads >= POLLS;
    }

    /// It has done something else.
    pub fn other_access(&mut self) {
        self.status_reads = 0;
    }

    /// It sets its receiver up anew.
    pub fn set_up(&mut self) {
        self.polls = false;
    }

    /// Power-up; what the other end has sent and nobody read waits.
    pub fn reset(&mut self) {
        self.clear();
        *self = Receiver { waiting: std::mem::take(&mut self.waiting), ..Receiver::default() };
    }
}
