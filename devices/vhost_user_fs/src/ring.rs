//! The driver's side of a split queue (virtio 1.2, section 2.7) and its buffers, in
//! memory that is shared with a daemon.
//!
//! Each request has a slot: descriptors and a buffer of its own, the request first
//! and room for the answer behind it. What the daemon says of a slot is checked; the
//! rest of what it writes is only the answer's content.

use guest_memory::{GuestMemory, RamOffset};

/// Requests with the daemon at once. More wait in the guest's queue.
pub(crate) const SLOTS: u16 = 16;
/// Descriptors of a slot: a request in three parts, an answer in two.
const SLOT_DESCRIPTORS: u16 = 8;
/// Descriptors of the ring.
pub(crate) const RING_SIZE: u16 = SLOTS * SLOT_DESCRIPTORS;

/// Places from the ring's beginning, aligned as the standard wants them.
const AVAILABLE: u64 = 16 * RING_SIZE as u64;
/// See [`AVAILABLE`].
const USED: u64 = 4096;
/// Bytes of a ring.
pub(crate) const RING_BYTES: u64 = 8192;

/// Descriptor flags: another follows, and the daemon writes.
const NEXT: u16 = 1;
/// See [`NEXT`].
const WRITE: u16 = 2;

/// The daemon has said something of a slot that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has answered request {id} of its ring with {length} bytes, which cannot be")]
pub(crate) struct Nonsense {
    id: u32,
    length: u32,
}

/// A request with the daemon.
#[derive(Debug)]
struct Sent<T> {
    /// Bytes of the request, behind which the answer goes.
    request: u32,
    /// Bytes of room for the answer.
    room: u32,
    owner: T,
}

/// A ring and its buffers; `T` is what is known of each request.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    // Static configuration.
    memory: GuestMemory,
    ring: u64,
    buffers: u64,
    /// Bytes of a slot's buffer.
    slot_bytes: u64,
    // Volatile state.
    sent: Vec<Option<Sent<T>>>,
    available: u16,
    used: u16,
}

impl<T> Ring<T> {
    /// A ring at `ring`, which is zero, with its buffers at `buffers`.
    pub fn new(memory: GuestMemory, ring: u64, buffers: u64, slot_bytes: u64) -> Self {
        let sent = (0..SLOTS).map(|_| None).collect();
        Ring { memory, ring, buffers, slot_bytes, sent, available: 0, used: 0 }
    }

    /// Where its parts are: descriptors, available ring, used ring.
    pub fn parts(&self) -> [u64; 3] {
        [self.ring, self.ring + AVAILABLE, self.ring + USED]
    }

    /// Whether another request fits.
    pub fn has_room(&self) -> bool {
        self.sent.iter().any(Option::is_none)
    }

    /// Whether the daemon has requests.
    pub fn is_busy(&self) -> bool {
        self.sent.iter().any(Option::is_some)
    }

    /// The most bytes of a request and its answer together.
    pub fn capacity(&self) -> u64 {
        self.slot_bytes
    }

    /// Make a request available. `parts` are the lengths of its first parts, which
    /// daemons like to have apart; `answer` that of the answer's. Gives the owner back
    /// when nothing is free or it does not fit.
    pub fn send(
        &mut self,
        request: &[u8],
        parts: &[usize],
        room: u32,
        answer: u32,
        owner: T,
    ) -> Result<(), T> {
        let slot = self.sent.iter().position(Option::is_none);
        let Some(slot) = slot.filter(|_| request.len() as u64 + u64::from(room) <= self.slot_bytes) else {
            return Err(owner);
        };
        let buffer = self.buffer(slot);
        self.memory.write_bytes(RamOffset(buffer), request);
        let mut list = Vec::with_capacity(usize::from(SLOT_DESCRIPTORS));
        let mut at = 0;
        for part in parts.iter().copied().chain([request.len()]) {
            let length = part.min(request.len() - at);
            list.push((buffer + at as u64, length as u32, 0));
            at += length;
        }
        let behind = buffer + at as u64;
        let first = answer.min(room);
        list.push((behind, first, WRITE));
        list.push((behind + u64::from(first), room - first, WRITE));
        list.retain(|piece| piece.1 > 0);
        self.describe(slot, &list);
        self.sent[slot] = Some(Sent { request: request.len() as u32, room, owner });
        let entry = self.ring + AVAILABLE + 4 + 2 * u64::from(self.available % RING_SIZE);
        self.memory.write(RamOffset(entry), slot as u16 * SLOT_DESCRIPTORS);
        self.available = self.available.wrapping_add(1);
        // Release order: what is available is whole.
        self.memory.write(RamOffset(self.ring + AVAILABLE + 2), self.available);
        Ok(())
    }

    fn describe(&self, slot: usize, list: &[(u64, u32, u16)]) {
        let head = slot as u16 * SLOT_DESCRIPTORS;
        for (index, &(address, length, flags)) in (head..).zip(list) {
            let last = usize::from(index - head) + 1 == list.len();
            let at = self.ring + 16 * u64::from(index);
            self.memory.write(RamOffset(at), address);
            self.memory.write(RamOffset(at + 8), length);
            self.memory.write(RamOffset(at + 12), if last { flags } else { flags | NEXT });
            self.memory.write(RamOffset(at + 14), if last { 0 } else { index + 1 });
        }
    }

    fn buffer(&self, slot: usize) -> u64 {
        self.buffers + self.slot_bytes * slot as u64
    }

    /// The next answer, and whose it is.
    pub fn receive(&mut self) -> Result<Option<(T, Vec<u8>)>, Nonsense> {
        // Acquire order: what is used is whole.
        let used: u16 = self.memory.read(RamOffset(self.ring + USED + 2));
        if used == self.used {
            return Ok(None);
        }
        let entry = self.ring + USED + 4 + 8 * u64::from(self.used % RING_SIZE);
        let id: u32 = self.memory.read(RamOffset(entry));
        let length: u32 = self.memory.read(RamOffset(entry + 4));
        let nonsense = Nonsense { id, length };
        let slot = usize::try_from(id / u32::from(SLOT_DESCRIPTORS)).unwrap_or(usize::MAX);
        let sent = self.sent.get_mut(slot).filter(|_| id % u32::from(SLOT_DESCRIPTORS) == 0);
        let taken = sent.and_then(|sent| sent.take_if(|s| length <= s.room)).ok_or(nonsense)?;
        self.used = self.used.wrapping_add(1);
        let mut answer = vec![0; length as usize];
        let at = self.buffer(slot) + u64::from(taken.request);
        self.memory.read_bytes(RamOffset(at), &mut answer);
        Ok(Some((taken.owner, answer)))
    }

    /// Give up on the daemon: whose requests it had.
    pub fn abandon(&mut self) -> Vec<T> {
        self.sent.iter_mut().filter_map(Option::take).map(|s| s.owner).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring<u32> {
        let memory = GuestMemory::flat(RING_BYTES + 256 * u64::from(SLOTS)).unwrap();
        Ring::new(memory, 0, RING_BYTES, 256)
    }

    /// What the daemon does with a slot.
    fn answer(ring: &Ring<u32>, count: u16, id: u32, length: u32) {
        let entry = USED + 4 + 8 * u64::from(count.wrapping_sub(1) % RING_SIZE);
        ring.memory.write(RamOffset(entry), id);
        ring.memory.write(RamOffset(entry + 4), length);
        ring.memory.write(RamOffset(USED + 2), count);
    }

    #[test]
    fn a_request_lies_in_parts_and_its_answer_behind_it() {
        let mut ring = ring();
        assert_eq!(ring.send(b"headargsdata", &[4, 4], 20, 16, 1), Ok(()));
        let descriptor = |index: u64| {
            let at = 16 * index;
            let (address, length) =
                (ring.memory.read::<u64>(RamOffset(at)), ring.memory.read::<u32>(RamOffset(at + 8)));
            let (flags, next) =
                (ring.memory.read::<u16>(RamOffset(at + 12)), ring.memory.read::<u16>(RamOffset(at + 14)));
            (address - RING_BYTES, length, flags, next)
        };
        let expect =
            [(0, 4, NEXT, 1), (4, 4, NEXT, 2), (8, 4, NEXT, 3), (12, 16, NEXT | WRITE, 4), (28, 4, WRITE, 0)];
        assert_eq!([0, 1, 2, 3, 4].map(descriptor), expect);
        assert_eq!(ring.send(b"forget", &[40], 0, 16, 2), Ok(()));
        assert_eq!(
            (ring.memory.read::<u32>(RamOffset(16 * 8 + 8)), ring.memory.read::<u16>(RamOffset(16 * 8 + 12))),
            (6, 0)
        );
        ring.memory.write_bytes(RamOffset(RING_BYTES + 12), b"answer");
        answer(&ring, 1, 8, 0);
        answer(&ring, 2, 0, 6);
        assert_eq!(ring.receive(), Ok(Some((2, Vec::new()))), "in any order");
        assert_eq!(ring.receive(), Ok(Some((1, b"answer".to_vec()))));
        assert_eq!((ring.receive(), ring.is_busy()), (Ok(None), false));
    }

    #[test]
    fn slots_are_used_again_and_what_does_not_fit_comes_back() {
        let mut ring = ring();
        assert_eq!(ring.send(&[0; 200], &[], 57, 16, 9), Err(9));
        for round in 0..5000u32 {
            for _ in 0..SLOTS {
                assert!(ring.has_room() && ring.send(&[1; 40], &[40], 16, 16, round).is_ok());
            }
            assert_eq!((ring.has_room(), ring.send(&[1; 40], &[40], 16, 16, 9)), (false, Err(9)));
            for slot in 0..u32::from(SLOTS) {
                let count = (round * u32::from(SLOTS) + slot + 1) as u16;
                answer(&ring, count, slot * u32::from(SLOT_DESCRIPTORS), 16);
                assert_eq!(ring.receive().map(|a| a.map(|a| a.0)), Ok(Some(round)));
            }
        }
    }

    proptest::proptest! {
        /// Whatever is in the used ring, each request comes back once, with no more than its room.
        #[test]
        fn any_used_ring_gives_each_request_back_once(
            used in proptest::collection::vec((0..200u32, 0..40u32), 0..40),
            count in 0..40u16,
            sent in 0..u32::from(SLOTS),
        ) {
            let mut ring = ring();
            (0..sent).for_each(|n| ring.send(&[1; 40], &[40], n, 16, n).unwrap());
            for (place, (id, length)) in (1u16..).zip(used) {
                answer(&ring, place, id, length);
            }
            ring.memory.write(RamOffset(USED + 2), count);
            let mut back = Vec::new();
            while let Ok(Some((owner, bytes))) = ring.receive() {
                assert!(bytes.len() as u32 <= owner);
                back.push(owner);
            }
            back.extend(ring.abandon());
            back.sort_unstable();
            assert_eq!(back, (0..sent).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_daemon_that_talks_nonsense_is_not_believed() {
        for (id, length) in [(1, 0), (8, 0), (u32::MAX, 0), (128, 0), (0, 17), (0, u32::MAX)] {
            let mut ring = ring();
            ring.send(&[1; 40], &[40], 16, 16, 5).unwrap();
            answer(&ring, 1, id, length);
            assert_eq!(ring.receive(), Err(Nonsense { id, length }));
            assert_eq!(ring.abandon(), [5], "the request can still be answered");
        }
    }
}
