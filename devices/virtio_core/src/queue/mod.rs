//! Queues, the device's side.

mod descriptors;
mod packed;
mod split;

use guest_memory::{GuestMemory, RamOffset};
use serde::{Deserialize, Serialize};

use crate::chain::{Chain, Piece};
use crate::{Interrupt, MAX_QUEUE_SIZE, RingError, features};
use packed::Packed;
use split::Split;

/// Lists of pieces kept for the next chains.
const SPARE_LISTS: usize = 64;

/// Where the driver has put a queue's parts, guest-physical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueAddresses {
    /// Descriptor table, or packed descriptor ring.
    pub descriptors: u64,
    /// Driver area: available ring, or driver event suppression.
    pub driver: u64,
    /// Device area: used ring, or device event suppression.
    pub device: u64,
}

/// How far a queue has come: all of its state that is not in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Split: free-running index. Packed: place in the ring.
    pub next_available: u16,
    /// The same for used buffers.
    pub next_used: u16,
    /// Packed: wrap counters.
    pub available_wrap: bool,
    /// See `available_wrap`.
    pub used_wrap: bool,
    /// Where the driver was last asked whether it wants an interrupt.
    pub signalled: Option<u16>,
}

/// What a queue is made of.
#[derive(Debug, Clone, Copy)]
pub struct QueueConfig {
    /// Its number.
    pub index: u16,
    /// Descriptors, at most [`MAX_QUEUE_SIZE`].
    pub size: u16,
    /// Its place.
    pub addresses: QueueAddresses,
    /// Negotiated features; the core's decide on the format.
    pub features: u64,
}

#[derive(Debug)]
enum Ring {
    Split(Split),
    Packed(Packed),
}

/// The device's side of a virtqueue, in either format.
///
/// The pattern of a device: [`Queue::pop`] until it answers `None`, which also
/// asks the driver to ring for the next buffer; [`Queue::complete`] each chain
/// in any order; [`Queue::signal`] once at the end. A driver that breaks the
/// rules sets DEVICE_NEEDS_RESET and makes the queue silent.
#[derive(Debug)]
pub struct Queue {
    // Static configuration.
    memory: GuestMemory,
    config: QueueConfig,
    // Runtime glue.
    interrupt: Interrupt,
    spare: Vec<Vec<Piece>>,
    // Volatile state.
    ring: Ring,
    broken: bool,
}

/// Find a part of a ring.
fn place(
    memory: &GuestMemory,
    part: &'static str,
    address: u64,
    len: u64,
    align: u64,
) -> Result<RamOffset, RingError> {
    let hit = descriptors::contiguous(memory, address, len).filter(|hit| hit.1 && address % align == 0);
    hit.map(|hit| hit.0).ok_or(RingError::Place { part, address, len })
}

/// Whether index `event` has been passed on the way from `old` to `new` (2.7.10).
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

impl Queue {
    /// A queue that the driver has set up; at its beginning, or at `position`.
    ///
    /// # Errors
    /// When its size, place or position is not one it could have.
    pub fn new(
        memory: GuestMemory,
        config: QueueConfig,
        interrupt: Interrupt,
        position: Option<&Position>,
    ) -> Result<Self, RingError> {
        let QueueConfig { size, addresses, features, .. } = config;
        if size == 0 || size > MAX_QUEUE_SIZE {
            return Err(RingError::Size(size));
        }
        let event_idx = features & features::EVENT_IDX != 0;
        let indirect = features & features::INDIRECT_DESC != 0;
        let mut ring = match features & features::RING_PACKED != 0 {
            true => Ring::Packed(Packed::new(&memory, size, &addresses, event_idx, indirect)?),
            false => Ring::Split(Split::new(&memory, size, &addresses, event_idx, indirect)?),
        };
        if let Some(p) = position {
            match &mut ring {
                Ring::Split(r) => r.restore(p)?,
                Ring::Packed(r) => r.restore(p)?,
            }
        }
        Ok(Queue { memory, config, interrupt, spare: Vec::new(), ring, broken: false })
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.config.index
    }

    /// Its number of descriptors.
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// The memory its buffers are in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// How far it has come, for saved state.
    pub fn position(&self) -> Position {
        match &self.ring {
            Ring::Split(r) => r.position(),
            Ring::Packed(r) => r.position(),
        }
    }

    /// Whether the driver broke the rules: nothing comes out until a reset.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Give up on the driver.
    pub fn fail(&mut self, why: &dyn std::fmt::Display) {
        self.broken = true;
        self.interrupt.fail(&format_args!("queue {}: {why}", self.config.index));
    }

    fn waiting(&self) -> Result<bool, RingError> {
        match &self.ring {
            Ring::Split(r) => Ok(r.waiting(&self.memory)? > 0),
            Ring::Packed(r) => Ok(r.waiting(&self.memory)),
        }
    }

    /// Whether [`Queue::pop`] would find a buffer; asks for no doorbell.
    pub fn has_available(&self) -> bool {
        !self.broken && self.waiting().unwrap_or(false)
    }

    /// Take the next buffer. `None`: there is none, and the driver has been asked
    /// to ring when there is.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.broken {
            return None;
        }
        match self.try_pop() {
            Ok(chain) => chain,
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn try_pop(&mut self) -> Result<Option<Chain>, RingError> {
        if !self.waiting()? {
            match &mut self.ring {
                Ring::Split(r) => r.ask_for_doorbells(&self.memory),
                Ring::Packed(r) => r.ask_for_doorbells(&self.memory),
            }
            // One that came before the driver saw the wish rings no bell.
            if !self.waiting()? {
                return Ok(None);
            }
        }
        let pieces = self.spare.pop().unwrap_or_default();
        let chain = match &mut self.ring {
            Ring::Split(r) => {
                r.suppress_doorbells(&self.memory);
                r.pop(&self.memory, pieces)?
            }
            Ring::Packed(r) => {
                r.suppress_doorbells(&self.memory);
                r.pop(&self.memory, pieces)?
            }
        };
        Ok(Some(chain))
    }

    /// Undo the last [`Queue::pop`]. Several are undone last first, and only when
    /// nothing taken after them has been completed.
    pub fn put_back(&mut self, chain: Chain) {
        match &mut self.ring {
            Ring::Split(r) => r.put_back(),
            Ring::Packed(r) => r.put_back(chain.slots),
        }
        self.recycle(chain);
    }

    fn recycle(&mut self, chain: Chain) {
        if self.spare.len() < SPARE_LISTS {
            let mut pieces = chain.pieces;
            pieces.clear();
            self.spare.push(pieces);
        }
    }

    /// Give a buffer back; `written` bytes of its writable part have been written
    /// from its beginning.
    pub fn complete(&mut self, chain: Chain, written: u32) {
        self.complete_all([(chain, written)]);
    }

    /// Give several buffers back so that the driver sees all of them at once, as
    /// the parts of one packet.
    pub fn complete_all(&mut self, chains: impl IntoIterator<Item = (Chain, u32)>) {
        if self.broken {
            return;
        }
        let (mut count, mut first) = (0, None);
        for (chain, written) in chains {
            match &mut self.ring {
                Ring::Split(r) => r.store_used(&self.memory, count, chain.id, written),
                Ring::Packed(r) => r.store_used(&self.memory, &mut first, &chain, written),
            }
            count += 1;
            self.recycle(chain);
        }
        match &mut self.ring {
            Ring::Split(r) => r.publish(&self.memory, count),
            Ring::Packed(_) => packed::publish(&self.memory, first),
        }
    }

    /// Interrupt the driver if it wants to hear of what was completed. Answers
    /// whether it did.
    pub fn signal(&mut self) -> bool {
        let wanted = !self.broken
            && match &mut self.ring {
                Ring::Split(r) => r.wants_interrupt(&self.memory),
                Ring::Packed(r) => r.wants_interrupt(&self.memory),
            };
        if wanted {
            self.interrupt.queue_used(self.config.index);
        }
        wanted
    }
}
