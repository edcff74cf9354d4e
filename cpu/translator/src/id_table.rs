//! A hash table of numbers whose keys are kept elsewhere: four bytes a slot.
//!
//! A slot has eight bits of the hash besides the number, since looking at a key that turns
//! out to be another's costs a miss of the host's cache.

/// Bits of a number.
const NUMBER: u32 = 24;
const SMALLEST: usize = 1024;

/// A number and its hash's tag; or none.
#[derive(Clone, Copy, PartialEq)]
struct Slot(u32);

impl Slot {
    const FREE: Slot = Slot(u32::MAX);

    /// A number below [`IdTable::NUMBERS`] under a hash.
    fn new(hash: u64, id: u32) -> Slot {
        Slot(Slot::tag(hash) << NUMBER | id)
    }

    /// The highest bits: a slot's place is by the lowest.
    fn tag(hash: u64) -> u32 {
        (hash >> 56) as u32
    }

    fn may_be_of(self, hash: u64) -> bool {
        self.0 >> NUMBER == Slot::tag(hash)
    }

    fn id(self) -> u32 {
        self.0 & IdTable::NUMBERS
    }
}

/// Numbers by the hash of what they stand for.
#[derive(Default)]
pub(crate) struct IdTable {
    /// Linear probing; a power of two of them, a quarter free at least.
    slots: Vec<Slot>,
    used: usize,
}

impl IdTable {
    /// All that are added are below it.
    pub const NUMBERS: u32 = (1 << NUMBER) - 1;

    fn probe(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.slots.len().wrapping_sub(1);
        let first = hash as usize;
        (0..self.slots.len()).map(move |n| first.wrapping_add(n) & mask)
    }

    /// The number under `hash` that `is` the one.
    pub fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let taken = self.probe(hash).map(|at| self.slots[at]).take_while(|slot| *slot != Slot::FREE);
        taken.filter(|slot| slot.may_be_of(hash)).map(Slot::id).find(|id| is(*id))
    }

    /// Add a number. `hash_of` gives the hash of one added before, or `None` when it
    /// is not wanted any more: nothing else is ever removed.
    pub fn insert(&mut self, hash: u64, id: u32, hash_of: impl Fn(u32) -> Option<u64>) {
        debug_assert!(id < Self::NUMBERS, "{id} does not fit a slot");
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let taken = self.slots.iter().filter(|slot| **slot != Slot::FREE);
            let wanted: Vec<u32> = taken.map(|slot| slot.id()).filter(|id| hash_of(*id).is_some()).collect();
            let room = ((wanted.len() + 1) * 2).next_power_of_two().max(SMALLEST);
            self.slots = vec![Slot::FREE; room];
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

    /// Put a number in the first slot that is free or holds one that is not wanted, of
    /// those that may be under the same hash.
    fn put(&mut self, hash: u64, id: u32, unwanted: impl Fn(u32) -> bool) {
        let fits = |slot: Slot| slot == Slot::FREE || slot.may_be_of(hash) && unwanted(slot.id());
        if let Some(at) = self.probe(hash).find(|at| fits(self.slots[*at])) {
            self.used += usize::from(self.slots[at] == Slot::FREE);
            self.slots[at] = Slot::new(hash, id);
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
