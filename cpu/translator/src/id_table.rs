//! A hash table of numbers whose keys are kept elsewhere: four bytes a slot.

const FREE: u32 = u32::MAX;
const SMALLEST: usize = 1024;

/// Numbers by the hash of what they stand for.
#[derive(Default)]
pub(crate) struct IdTable {
    /// Linear probing; a power of two of them, a quarter free at least.
    slots: Vec<u32>,
    used: usize,
}

impl IdTable {
    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.slots.len().wrapping_sub(1);
        let first = hash as usize;
        (0..self.slots.len()).map(move |n| first.wrapping_add(n) & mask)
    }

    /// The number under `hash` that `is` the one.
    pub fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.probe(hash).map(|at| self.slots[at]).take_while(|id| *id != FREE).find(|id| is(*id))
    }

    /// Add a number. `hash_of` gives the hash of one added before, or `None` when it
    /// is not wanted any more: nothing else is ever removed.
    pub fn insert(&mut self, hash: u64, id: u32, hash_of: impl Fn(u32) -> Option<u64>) {
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let wanted: Vec<u32> =
                self.slots.iter().copied().filter(|id| *id != FREE && hash_of(*id).is_some()).collect();
            let room = ((wanted.len() + 1) * 2).next_power_of_two().max(SMALLEST);
            self.slots = vec![FREE; room];
            self.used = 0;
            for id in wanted {
                if let Some(hash) = hash_of(id) {
                    self.put(hash, id, |_| false);
                }
            }
        }
        // Code that changes all the time leaves one number after another under one hash.
        self.put(hash, id, |other| hash_of(other).is_none());
    }

    /// Put a number in the first slot that is free or holds one that is not wanted.
    fn put(&mut self, hash: u64, id: u32, unwanted: impl Fn(u32) -> bool) {
        let slot = self.probe(hash).find(|at| self.slots[*at] == FREE || unwanted(self.slots[*at]));
        if let Some(at) = slot {
            self.used += usize::from(self.slots[at] == FREE);
            self.slots[at] = id;
        }
    }

    /// Slots there are.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Remove everything.
    pub fn clear(&mut self) {
        *self = IdTable::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_follow_each_other_under_one_hash_share_a_slot() {
        let mut t = IdTable::default();
        for id in 0..1000 {
            t.insert(5, id, |_| None);
        }
        assert_eq!(t.used, 1);
        assert_eq!(t.find(5, |id| id == 999), Some(999));
    }

    /// Ten numbers share each hash; every third is no longer wanted.
    #[test]
    fn numbers_are_found_until_they_are_not_wanted() {
        let mut t = IdTable::default();
        let hash = |id: u32| u64::from(id / 10).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let wanted = |id: u32| !id.is_multiple_of(3);
        for id in 0..20_000 {
            t.insert(hash(id), id, |id| wanted(id).then(|| hash(id)));
        }
        for id in (0..20_000).filter(|id| wanted(*id)) {
            assert_eq!(t.find(hash(id), |found| found == id), Some(id));
        }
        assert_eq!(t.find(hash(7), |found| found == 20_001), None);
        assert!(t.slots.len() <= 32_768, "unwanted numbers take room: {} slots", t.slots.len());
        t.clear();
        assert_eq!(t.find(hash(7), |_| true), None);
    }
}
