//! The packed ring (virtio 1.2, 2.8).

use std::sync::atomic::{Ordering, fence};

use guest_memory::{GuestMemory, RamOffset};

use super::descriptors::{Builder, DESCRIPTOR, INDIRECT, NEXT, Raw, Table, WRITE, indirect_table};
use super::{Position, QueueAddresses, place};
use crate::RingError;
use crate::chain::{Chain, Piece};

/// Descriptor flag: equals the driver's wrap counter when available.
const AVAILABLE: u16 = 1 << 7;
/// Descriptor flag: differs from the driver's wrap counter when available.
const USED: u16 = 1 << 15;
/// Offset of a descriptor's flags.
const FLAGS: u64 = 14;

/// Event suppression (2.8.10): notify always, never, or at a descriptor.
const EVENTS_ENABLE: u16 = 0;
const EVENTS_DISABLE: u16 = 1;
const EVENTS_AT: u16 = 2;
/// Wrap counter in an event suppression's offset.
const EVENT_WRAP: u16 = 1 << 15;

/// A place in the ring, with the wrap counter of whoever is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    fn forward(self, by: u16, size: u16) -> Place {
        let index = u32::from(self.index) + u32::from(by);
        match index.checked_sub(size.into()) {
            Some(index) => Place { index: index as u16, wrap: !self.wrap },
            None => Place { index: index as u16, wrap: self.wrap },
        }
    }

    fn back(self, by: u16, size: u16) -> Place {
        match self.index.checked_sub(by) {
            Some(index) => Place { index, wrap: self.wrap },
            None => Place { index: self.index + (size - by), wrap: !self.wrap },
        }
    }
}

/// The flags that show the driver a run of used descriptors.
pub(super) struct Unpublished {
    at: RamOffset,
    flags: u16,
}

/// Show what was stored.
pub(super) fn publish(memory: &GuestMemory, first: Option<Unpublished>) {
    if let Some(Unpublished { at, flags }) = first {
        // A release store: everything else comes first.
        memory.write(at, flags);
    }
}

#[derive(Debug)]
pub(super) struct Packed {
    // Static configuration.
    size: u16,
    event_idx: bool,
    indirect: bool,
    ring: RamOffset,
    /// What the driver wants to hear.
    driver_events: RamOffset,
    /// What the device wants to hear.
    device_events: RamOffset,
    // Volatile state.
    available: Place,
    used: Place,
    signalled: Option<u16>,
    /// Slots used since: with a ring's size of them the place says nothing any more.
    since: u32,
    quiet: bool,
}

impl Packed {
    pub fn new(
        memory: &GuestMemory,
        size: u16,
        at: &QueueAddresses,
        event_idx: bool,
        indirect: bool,
    ) -> Result<Self, RingError> {
        let start = Place { index: 0, wrap: true };
        Ok(Packed {
            size,
            event_idx,
            indirect,
            ring: place(memory, "descriptor ring", at.descriptors, DESCRIPTOR * u64::from(size), 16)?,
            driver_events: place(memory, "driver event suppression", at.driver, 4, 4)?,
            device_events: place(memory, "device event suppression", at.device, 4, 4)?,
            available: start,
            used: start,
            signalled: None,
            since: 0,
            quiet: false,
        })
    }

    /// Descriptors taken and not yet used.
    fn taken(&self) -> u16 {
        match self.available.wrap == self.used.wrap {
            true => self.available.index - self.used.index,
            false => self.size - self.used.index + self.available.index,
        }
    }

    fn flags_at(&self, memory: &GuestMemory, place: Place) -> u16 {
        memory.read(RamOffset(self.ring.0 + DESCRIPTOR * u64::from(place.index) + FLAGS))
    }

    /// Whether there is a buffer to be taken.
    pub fn waiting(&self, memory: &GuestMemory) -> bool {
        let flags = self.flags_at(memory, self.available);
        let wrap = self.available.wrap;
        (flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap
    }

    /// Take the buffer that [`Packed::waiting`] has seen.
    pub fn pop(&mut self, memory: &GuestMemory, pieces: Vec<Piece>) -> Result<Chain, RingError> {
        let mut builder = Builder::new(memory, pieces);
        let (mut at, mut slots) = (self.available, 0);
        let taken = self.taken();
        loop {
            if slots == self.size {
                return Err(RingError::TooLong(self.size.into()));
            }
            if slots + taken == self.size {
                return Err(RingError::Taken(self.size));
            }
            let d = Raw::read(memory, self.ring, at.index);
            let (id, flags) = (d.a, d.b);
            slots += 1;
            at = at.forward(1, self.size);
            if flags & INDIRECT != 0 {
                if !self.indirect || flags & NEXT != 0 {
                    return Err(RingError::Indirect { address: d.address, len: d.len });
                }
                Self::walk_table(memory, indirect_table(memory, &d)?, &mut builder)?;
            } else {
                builder.add(d.address, d.len, flags & WRITE != 0)?;
            }
            if flags & NEXT == 0 {
                self.available = at;
                return Ok(builder.finish(id, slots));
            }
        }
    }

    /// All descriptors of an indirect table, in order; only WRITE means something there.
    fn walk_table(memory: &GuestMemory, table: Table, builder: &mut Builder<'_>) -> Result<(), RingError> {
        for index in 0..table.len {
            let d = Raw::read(memory, table.at, index);
            if d.b & INDIRECT != 0 {
                return Err(RingError::Indirect { address: d.address, len: d.len });
            }
            builder.add(d.address, d.len, d.b & WRITE != 0)?;
        }
        Ok(())
    }

    pub fn put_back(&mut self, slots: u16) {
        self.available = self.available.back(slots, self.size);
    }

    /// Store a used descriptor. It shows at once, but the first of several only
    /// with [`publish`], which gets what is put into `first`.
    pub fn store_used(
        &mut self,
        memory: &GuestMemory,
        first: &mut Option<Unpublished>,
        chain: &Chain,
        written: u32,
    ) {
        let at = RamOffset(self.ring.0 + DESCRIPTOR * u64::from(self.used.index));
        let mut flags = if self.used.wrap { AVAILABLE | USED } else { 0 };
        if written > 0 {
            flags |= WRITE;
        }
        memory.write(RamOffset(at.0 + 8), written);
        memory.write(RamOffset(at.0 + 12), chain.id);
        match first {
            None => *first = Some(Unpublished { at: RamOffset(at.0 + FLAGS), flags }),
            Some(_) => _ = memory.write(RamOffset(at.0 + FLAGS), flags),
        }
        self.used = self.used.forward(chain.slots, self.size);
        self.since = self.since.saturating_add(chain.slots.into());
    }

    pub fn wants_interrupt(&mut self, memory: &GuestMemory) -> bool {
        // The wrap counter makes a whole round differ from none.
        let now = self.used.index | if self.used.wrap { EVENT_WRAP } else { 0 };
        let since = std::mem::take(&mut self.since);
        let before = self.signalled.replace(now).filter(|_| since < self.size.into());
        if before == Some(now) {
            return false;
        }
        fence(Ordering::SeqCst);
        let wish: u32 = memory.read(self.driver_events);
        let (event, flags) = (wish as u16, (wish >> 16) as u16 & 3);
        match flags {
            EVENTS_DISABLE => false,
            EVENTS_AT if self.event_idx => before.is_none_or(|old| self.crossed(event, old)),
            _ => true,
        }
    }

    /// Whether the driver's event lies between the place last signalled and this one.
    fn crossed(&self, event: u16, old: u16) -> bool {
        // Places of the last round lie a ring's size lower.
        let from_now = |place: u16| {
            let index = place & !EVENT_WRAP;
            match (place & EVENT_WRAP != 0) == self.used.wrap {
                true => index,
                false => index.wrapping_sub(self.size),
            }
        };
        super::crossed(from_now(event), self.used.index, from_now(old))
    }

    pub fn ask_for_doorbells(&mut self, memory: &GuestMemory) {
        self.quiet = false;
        let wish = match self.event_idx {
            true => {
                let wrap = if self.available.wrap { EVENT_WRAP } else { 0 };
                u32::from(self.available.index | wrap) | u32::from(EVENTS_AT) << 16
            }
            false => u32::from(EVENTS_ENABLE) << 16,
        };
        memory.write(self.device_events, wish);
        fence(Ordering::SeqCst);
    }

    pub fn suppress_doorbells(&mut self, memory: &GuestMemory) {
        if !self.quiet {
            self.quiet = true;
            memory.write(self.device_events, u32::from(EVENTS_DISABLE) << 16);
        }
    }

    pub fn position(&self) -> Position {
        Position {
            next_available: self.available.index,
            next_used: self.used.index,
            available_wrap: self.available.wrap,
            used_wrap: self.used.wrap,
            signalled: self.signalled.filter(|_| self.since == 0),
        }
    }

    pub fn restore(&mut self, p: &Position) -> Result<(), RingError> {
        let Position { next_available, next_used, available_wrap, used_wrap, signalled } = *p;
        let (available, used) = (
            Place { index: next_available, wrap: available_wrap },
            Place { index: next_used, wrap: used_wrap },
        );
        for index in [next_available, next_used].into_iter().chain(signalled.map(|s| s & !EVENT_WRAP)) {
            if index >= self.size {
                return Err(RingError::Position(index));
            }
        }
        // Used never overtakes available.
        let behind = if available.wrap == used.wrap {
            used.index <= available.index
        } else {
            used.index >= available.index
        };
        if !behind {
            return Err(RingError::Position(next_used));
        }
        (self.available, self.used, self.signalled, self.since) = (available, used, signalled, 0);
        Ok(())
    }
}
