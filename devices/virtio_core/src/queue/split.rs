//! The split ring (virtio 1.2, 2.7).

use std::sync::atomic::{Ordering, fence};

use guest_memory::{GuestMemory, RamOffset};

use super::descriptors::{Builder, INDIRECT, NEXT, Raw, Table, WRITE, indirect_table};
use super::{Position, QueueAddresses, place};
use crate::RingError;
use crate::chain::{Chain, Piece};

/// Available ring: the driver wants no interrupts.
const NO_INTERRUPT: u16 = 1;
/// Used ring: the device wants no doorbells.
const NO_NOTIFY: u16 = 1;

/// Where the three parts are.
#[derive(Debug)]
pub(super) struct Split {
    // Static configuration.
    size: u16,
    event_idx: bool,
    indirect: bool,
    descriptors: RamOffset,
    available: RamOffset,
    used: RamOffset,
    // Volatile state.
    next_available: u16,
    next_used: u16,
    /// `next_used` when the driver was last asked whether it wants to hear.
    signalled: Option<u16>,
    /// Elements published since: with so many that the index comes round, it says nothing.
    since: u32,
    /// Doorbells are suppressed.
    quiet: bool,
}

impl Split {
    pub fn new(
        memory: &GuestMemory,
        size: u16,
        at: &QueueAddresses,
        event_idx: bool,
        indirect: bool,
    ) -> Result<Self, RingError> {
        if !size.is_power_of_two() {
            return Err(RingError::Size(size));
        }
        let n = u64::from(size);
        Ok(Split {
            size,
            event_idx,
            indirect,
            descriptors: place(memory, "descriptor table", at.descriptors, 16 * n, 16)?,
            available: place(memory, "available ring", at.driver, 6 + 2 * n, 2)?,
            used: place(memory, "used ring", at.device, 6 + 8 * n, 4)?,
            next_available: 0,
            next_used: 0,
            signalled: None,
            since: 0,
            quiet: false,
        })
    }

    /// Buffers that are there to be taken.
    pub fn waiting(&self, memory: &GuestMemory) -> Result<u16, RingError> {
        let index: u16 = memory.read(RamOffset(self.available.0 + 2));
        let waiting = index.wrapping_sub(self.next_available);
        match waiting > self.size {
            true => Err(RingError::Available { index, expected: self.next_available }),
            false => Ok(waiting),
        }
    }

    pub fn pop(&mut self, memory: &GuestMemory, pieces: Vec<Piece>) -> Result<Chain, RingError> {
        if self.next_available.wrapping_sub(self.next_used) >= self.size {
            return Err(RingError::Taken(self.size));
        }
        let slot = u64::from(self.next_available % self.size);
        let head: u16 = memory.read(RamOffset(self.available.0 + 4 + 2 * slot));
        let chain = self.walk(memory, head, pieces)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(chain)
    }

    fn walk(&self, memory: &GuestMemory, head: u16, pieces: Vec<Piece>) -> Result<Chain, RingError> {
        let mut builder = Builder::new(memory, pieces);
        let mut table = Table { at: self.descriptors, len: self.size };
        let (mut nested, mut index, mut steps) = (false, head, 0);
        loop {
            if index >= table.len {
                return Err(RingError::Index { index, len: table.len.into() });
            }
            steps += 1;
            if steps > table.len {
                return Err(RingError::TooLong(table.len.into()));
            }
            let d = Raw::read(memory, table.at, index);
            let (flags, next) = (d.a, d.b);
            if flags & INDIRECT != 0 {
                if nested || !self.indirect || flags & NEXT != 0 {
                    return Err(RingError::Indirect { address: d.address, len: d.len });
                }
                table = indirect_table(memory, &d)?;
                (nested, index, steps) = (true, 0, 0);
                continue;
            }
            builder.add(d.address, d.len, flags & WRITE != 0)?;
            if flags & NEXT == 0 {
                return Ok(builder.finish(head, 1));
            }
            index = next;
        }
    }

    pub fn put_back(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// Store a used element `ahead` of the next one; [`Split::publish`] shows it.
    pub fn store_used(&self, memory: &GuestMemory, ahead: u16, id: u16, written: u32) {
        let slot = u64::from(self.next_used.wrapping_add(ahead) % self.size);
        memory.write(RamOffset(self.used.0 + 4 + 8 * slot), u64::from(id) | u64::from(written) << 32);
    }

    pub fn publish(&mut self, memory: &GuestMemory, count: u16) {
        self.next_used = self.next_used.wrapping_add(count);
        self.since = self.since.saturating_add(count.into());
        // A release store: the elements come first.
        memory.write(RamOffset(self.used.0 + 2), self.next_used);
    }

    /// Whether the driver wants to hear of what was published since it last was asked.
    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> bool {
        let since = std::mem::take(&mut self.since);
        let before = self.signalled.replace(self.next_used).filter(|_| since <= u16::MAX.into());
        if before == Some(self.next_used) {
            return false;
        }
        // The used index before the driver's wish: the driver stores its wish, then looks at the index.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return memory.read::<u16>(self.available) & NO_INTERRUPT == 0;
        }
        let event: u16 = memory.read(RamOffset(self.available.0 + 4 + 2 * u64::from(self.size)));
        before.is_none_or(|old| super::crossed(event, self.next_used, old))
    }

    /// Ask for a doorbell at the next buffer.
    pub fn ask_for_doorbells(&mut self, memory: &GuestMemory) {
        self.quiet = false;
        match self.event_idx {
            true => {
                memory.write(RamOffset(self.used.0 + 4 + 8 * u64::from(self.size)), self.next_available);
            }
            false => _ = memory.write(self.used, 0u16),
        }
        fence(Ordering::SeqCst);
    }

    /// No doorbells, please: the device is at work. With event indices the index
    /// asked for last lies behind, which says the same.
    pub fn suppress_doorbells(&mut self, memory: &GuestMemory) {
        if !self.quiet {
            self.quiet = true;
            if !self.event_idx {
                memory.write(self.used, NO_NOTIFY);
            }
        }
    }

    pub fn position(&self) -> Position {
        Position {
            next_available: self.next_available,
            next_used: self.next_used,
            available_wrap: false,
            used_wrap: false,
            signalled: self.signalled.filter(|_| self.since == 0),
        }
    }

    pub fn restore(&mut self, p: &Position) -> Result<(), RingError> {
        let Position { next_available, next_used, available_wrap, used_wrap, signalled } = *p;
        // Taken and not yet used: no more than there are buffers.
        if next_available.wrapping_sub(next_used) > self.size || available_wrap || used_wrap {
            return Err(RingError::Position(next_available));
        }
        (self.next_available, self.next_used, self.signalled, self.since) =
            (next_available, next_used, signalled, 0);
        Ok(())
    }
}
