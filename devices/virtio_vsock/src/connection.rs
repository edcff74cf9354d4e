//! One connection: the host's stream, what it has not taken yet, and both credits.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use crate::BUFFER;

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The guest has been asked; a host program waits for `OK`.
    Asked,
    /// Bytes flow.
    Open,
}

/// Why a stream can no longer be used.
#[derive(Debug)]
pub(crate) struct Broken;

/// What reading from the host brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FromHost {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The host will send no more.
    End,
}

/// Bytes on their way to the host.
#[derive(Debug)]
pub(crate) struct Outlet {
    pub stream: UnixStream,
    pending: VecDeque<u8>,
}

impl Outlet {
    pub fn new(stream: UnixStream) -> Self {
        Outlet { stream, pending: VecDeque::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub fn len(&self) -> usize {
        self.pending.len()
    }

    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let mut done = 0;
        while done < bytes.len() {
            match self.stream.write(&bytes[done..]) {
                Ok(0) => return Err(Broken),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken),
            }
        }
        Ok(done)
    }

    /// Send bytes, or hold them; answers how many left at once. The caller has
    /// checked that they fit.
    pub fn send(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let done = if self.pending.is_empty() { self.write_some(bytes)? } else { 0 };
        self.pending.extend(&bytes[done..]);
        Ok(done)
    }

    /// Send what is held; answers how many bytes left.
    pub fn flush(&mut self) -> Result<usize, Broken> {
        let mut done = 0;
        while !self.pending.is_empty() {
            let held = std::mem::take(&mut self.pending);
            let written = self.write_some(held.as_slices().0);
            self.pending = held;
            let written = written?;
            if written == 0 {
                break;
            }
            self.pending.drain(..written);
            done += written;
        }
        Ok(done)
    }
}

/// A connection between a guest's port and a host's.
#[derive(Debug)]
pub(crate) struct Connection {
    pub stage: Stage,
    pub outlet: Outlet,
    /// What the event loop knows it by.
    pub token: u64,
    /// What it waits for there; None: not registered.
    pub registered: Option<rustix::event::epoll::EventFlags>,
    /// The host has sent all it will.
    pub host_done: bool,
    /// The guest will take no more.
    pub guest_deaf: bool,
    /// The guest has sent all it will.
    pub guest_done: bool,
    /// The guest's buffer, and how much its program has taken.
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// Bytes sent to the guest, and taken by the host; both run over.
    sent: u32,
    taken: u32,
    /// `taken` as the guest was last told.
    told: u32,
    /// An answer that tells it is under way.
    pub telling: bool,
}

impl Connection {
    pub fn new(stage: Stage, stream: UnixStream, token: u64) -> Self {
        Connection {
            stage,
            outlet: Outlet::new(stream),
            token,
            registered: None,
            host_done: false,
            guest_deaf: false,
            guest_done: false,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            sent: 0,
            taken: 0,
            told: 0,
            telling: false,
        }
    }

    /// What a packet of the guest says of its side.
    pub fn hear(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        self.peer_fwd_cnt = fwd_cnt;
    }

    /// What to tell the guest: how many bytes the host has taken.
    pub fn tell(&mut self) -> u32 {
        self.told = self.taken;
        self.taken
    }

    /// How many bytes may be sent to the guest. A guest that claims to have taken
    /// more than was sent gets none.
    pub fn credit(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_fwd_cnt))
    }

    /// The guest should be told of room: a quarter of the buffer is free that it
    /// does not know of.
    pub fn owes_credit(&self) -> bool {
        !self.telling && self.taken.wrapping_sub(self.told) >= BUFFER / 4
    }

    /// Bytes from the guest.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        // The guest has overdrawn its credit.
        if self.outlet.len() + bytes.len() > BUFFER as usize {
            return Err(Broken);
        }
        self.taken = self.taken.wrapping_add(self.outlet.send(bytes)? as u32);
        Ok(())
    }

    /// The host's stream has room.
    pub fn flush(&mut self) -> Result<(), Broken> {
        self.taken = self.taken.wrapping_add(self.outlet.flush()? as u32);
        Ok(())
    }

    /// Read for the guest.
    pub fn read(&mut self, to: &mut [u8]) -> Result<FromHost, Broken> {
        loop {
            match self.outlet.stream.read(to) {
                Ok(0) => return Ok(FromHost::End),
                Ok(n) => {
                    self.sent = self.sent.wrapping_add(n as u32);
                    return Ok(FromHost::Bytes(n));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(FromHost::Nothing),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken),
            }
        }
    }

    /// Whether bytes of the host are wanted now.
    pub fn wants_input(&self) -> bool {
        self.stage == Stage::Open && !self.host_done && !self.guest_deaf && self.credit() > 0
    }
}
