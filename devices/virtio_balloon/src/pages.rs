//! Single pages joined into runs, so that the host is asked once for each run.

use guest_memory::{GuestMemory, PAGE_SIZE, RamOffset};

/// A run under construction, and what has been given back so far.
pub(crate) struct Runs<'a> {
    memory: &'a GuestMemory,
    /// First byte of the backing, and bytes.
    run: Option<(u64, u64)>,
    given: u64,
}

impl<'a> Runs<'a> {
    pub fn new(memory: &'a GuestMemory) -> Self {
        Runs { memory, run: None, given: 0 }
    }

    /// The page of this number. One that is not RAM is passed over.
    pub fn add(&mut self, number: u32) {
        let hit = self.memory.translate(u64::from(number) * PAGE_SIZE).filter(|hit| hit.writable);
        let Some(hit) = hit else { return };
        let at = hit.offset.0;
        match &mut self.run {
            Some((start, len)) if *start + *len == at => *len += PAGE_SIZE,
            // Linux takes pages from the top down.
            Some((start, len)) if at + PAGE_SIZE == *start => {
                *start = at;
                *len += PAGE_SIZE;
            }
            _ => {
                self.give_back();
                self.run = Some((at, PAGE_SIZE));
            }
        }
    }

    fn give_back(&mut self) {
        if let Some((start, len)) = self.run.take() {
            // A host that refuses keeps the pages: nothing is lost.
            self.given += self.memory.discard(RamOffset(start), len).unwrap_or(0);
        }
    }

    /// Bytes given back.
    pub fn finish(mut self) -> u64 {
        self.give_back();
        self.given
    }
}
