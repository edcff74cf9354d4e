//! Completion queues (4.1, 4.6).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use guest_memory::GuestMemory;
use serde::{Deserialize, Serialize};

use crate::interrupts::Interrupts;
use crate::spec::{CQE_SIZE, Status};
use crate::submission::Submission;

/// What a completion says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Command identifier.
    pub cid: u16,
    /// The command's status.
    pub status: Status,
    /// Command-specific result, dword 0.
    pub result: u32,
}

struct State {
    tail: u16,
    /// The driver's, as last rung.
    head: u16,
    phase: bool,
    /// Entries promised to commands that are being executed.
    promised: u16,
    /// A submission queue waits for room.
    starved: bool,
}

/// A completion queue as plain values, taken while nothing is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionState {
    pub base: u64,
    pub entries: u16,
    pub vector: Option<u16>,
    pub tail: u16,
    pub head: u16,
    pub phase: bool,
}

impl CompletionState {
    /// A fresh queue at a place.
    pub fn fresh((base, entries): (u64, u16), vector: Option<u16>) -> Self {
        CompletionState { base, entries, vector, tail: 0, head: 0, phase: true }
    }
}

/// A completion queue. Several submission queues may share it.
pub struct CompletionQueue {
    // Static configuration.
    base: u64,
    entries: u16,
    /// The interrupt vector, if the driver wants interrupts.
    vector: Option<u16>,
    // Runtime glue.
    memory: GuestMemory,
    interrupts: Interrupts,
    /// Who completes here: woken when there is room again.
    users: Mutex<Vec<Weak<Submission>>>,
    // Volatile state.
    state: Mutex<State>,
}

impl CompletionQueue {
    pub fn new(state: CompletionState, memory: GuestMemory, interrupts: Interrupts) -> Self {
        let CompletionState { base, entries, vector, tail, head, phase } = state;
        let state = State { tail, head, phase, promised: 0, starved: false };
        CompletionQueue {
            base,
            entries,
            vector,
            memory,
            interrupts,
            users: Mutex::default(),
            state: Mutex::new(state),
        }
    }

    /// Its state. Submission queues stand still: nothing is promised, and they look
    /// for room anew when they go on.
    pub fn save(&self) -> CompletionState {
        let CompletionQueue { base, entries, vector, memory: _, interrupts: _, users: _, state: _ } = self;
        let s = self.lock();
        let State { tail, head, phase, promised: _, starved: _ } = &*s;
        CompletionState {
            base: *base,
            entries: *entries,
            vector: *vector,
            tail: *tail,
            head: *head,
            phase: *phase,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn users(&self) -> MutexGuard<'_, Vec<Weak<Submission>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A submission queue completes here.
    pub fn add_user(&self, queue: &Arc<Submission>) {
        self.users().push(Arc::downgrade(queue));
    }

    /// Whether a submission queue completes here.
    pub fn is_used(&self) -> bool {
        let mut users = self.users();
        users.retain(|u| u.strong_count() > 0);
        !users.is_empty()
    }

    /// Promise an entry to a command. False: the queue is full; the submission
    /// queue is woken when it is not.
    pub fn promise(&self) -> bool {
        let mut s = self.lock();
        let used = (s.tail + self.entries - s.head) % self.entries;
        if used + s.promised + 1 >= self.entries {
            s.starved = true;
            return false;
        }
        s.promised += 1;
        true
    }

    /// Take a promise back.
    pub fn withdraw(&self) {
        let mut s = self.lock();
        s.promised = s.promised.saturating_sub(1);
    }

    /// Put a promised completion into the queue. The driver sees it by its phase.
    pub fn post(&self, sq_id: u16, sq_head: u16, completion: Completion) {
        let mut s = self.lock();
        s.promised = s.promised.saturating_sub(1);
        let at = self.base + u64::from(s.tail) * CQE_SIZE;
        // The place was RAM when the queue was made.
        if let Some(hit) = self.memory.translate(at).filter(|h| h.len >= CQE_SIZE && h.writable) {
            let status = u32::from(completion.status.field()) << 17 | u32::from(s.phase) << 16;
            let mut entry = [0; CQE_SIZE as usize];
            entry[..4].copy_from_slice(&completion.result.to_le_bytes());
            entry[8..10].copy_from_slice(&sq_head.to_le_bytes());
            entry[10..12].copy_from_slice(&sq_id.to_le_bytes());
            self.memory.write_bytes(hit.offset, &entry[..12]);
            let last = guest_memory::RamOffset(hit.offset.0 + 12);
            // With the phase, and so last: the driver takes the entry from here on.
            self.memory.write::<u32>(last, status | u32::from(completion.cid));
        }
        s.tail += 1;
        if s.tail == self.entries {
            s.tail = 0;
            s.phase = !s.phase;
        }
    }

    /// Tell the driver, if it wants to hear and there is something it has not seen.
    pub fn signal(&self) {
        let waiting = {
            let s = self.lock();
            s.tail != s.head
        };
        if let Some(vector) = self.vector.filter(|_| waiting) {
            self.interrupts.trigger(vector);
        }
    }

    /// The driver has taken entries up to `head`. False: no such entry.
    pub fn ring(&self, head: u16) -> bool {
        if head >= self.entries {
            return false;
        }
        let starved = {
            let mut s = self.lock();
            s.head = head;
            std::mem::take(&mut s.starved)
        };
        if starved {
            self.users().iter().filter_map(Weak::upgrade).for_each(|queue| queue.wake());
        }
        true
    }
}
