//! Flows by number. A number is never mistaken for a later flow in the same place.

/// Names an entry; the generation tells it from earlier ones in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    index: u32,
    generation: u32,
}

/// Bits of a generation in a packed key.
const GENERATION: u32 = (1 << 24) - 1;

impl Key {
    /// As a number below 2^56, for epoll.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn unpack(packed: u64) -> Key {
        Key { index: packed as u32, generation: (packed >> 32) as u32 & GENERATION }
    }
}

/// Entries with stable keys; never more than its limit.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    limit: usize,
}

impl<T> Slab<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Slab { entries: Vec::new(), free: Vec::new(), limit }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// The key the next entry will have.
    pub(crate) fn next_key(&self) -> Option<Key> {
        if self.is_full() {
            return None;
        }
        let index = self.free.last().copied().unwrap_or(self.entries.len() as u32);
        let generation = self.entries.get(index as usize).map_or(0, |e| e.0);
        Some(Key { index, generation })
    }

    pub(crate) fn insert(&mut self, value: T) -> Option<Key> {
        let key = self.next_key()?;
        match self.free.pop().and_then(|i| self.entries.get_mut(i as usize)) {
            Some(entry) => entry.1 = Some(value),
            None => self.entries.push((0, Some(value))),
        }
        Some(key)
    }

    /// Whether there is an entry with this key.
    pub(crate) fn contains(&self, key: Key) -> bool {
        self.entries.get(key.index as usize).is_some_and(|e| e.0 == key.generation && e.1.is_some())
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (generation, value) = self.entries.get_mut(key.index as usize)?;
        value.as_mut().filter(|_| *generation == key.generation)
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, value) = self.entries.get_mut(key.index as usize)?;
        if *generation != key.generation {
            return None;
        }
        let value = value.take()?;
        *generation = (*generation + 1) & GENERATION;
        self.free.push(key.index);
        Some(value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, (generation, value))| {
            Some((Key { index: index as u32, generation: *generation }, value.as_ref()?))
        })
    }

    pub(crate) fn keys(&self) -> Vec<Key> {
        self.iter().map(|e| e.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_the_gone_find_nothing_and_the_limit_holds() {
        let mut slab = Slab::new(2);
        let a = slab.insert('a').unwrap();
        let b = slab.insert('b').unwrap();
        assert!(slab.insert('c').is_none() && slab.is_full());
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        let c = slab.insert('c').unwrap();
        assert_eq!(slab.get_mut(a), None);
        assert!(slab.contains(b) && slab.contains(c) && !slab.contains(a));
        assert_eq!(slab.get_mut(c).copied(), Some('c'));
        assert_eq!(Key::unpack(c.pack()), c);
        assert_eq!(slab.keys(), [c, b]);
    }
}
