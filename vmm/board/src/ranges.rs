//! Which device claims an address: sorted, disjoint ranges.

/// One claimed range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Addresses claimed, at least 1.
    pub len: u64,
    /// Who claims it.
    pub slot: usize,
    /// What the device sees as the offset of `start`.
    pub offset: u64,
}

/// Two devices claim the same address: a mistake in the board's device list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict(pub Range, pub Range);

/// Ranges in ascending order; lookup is a binary search.
#[derive(Debug, Default)]
pub struct RangeTable(Vec<Range>);

impl RangeTable {
    /// Add a range.
    ///
    /// # Errors
    /// When it is empty, wraps, or overlaps one that is there.
    pub fn insert(&mut self, new: Range) -> Result<(), Conflict> {
        let end = new.start.checked_add(new.len).filter(|_| new.len > 0).ok_or(Conflict(new, new))?;
        let at = self.0.partition_point(|r| r.start < new.start);
        let before = at.checked_sub(1).map(|i| self.0[i]).filter(|r| r.start + r.len > new.start);
        let after = self.0.get(at).copied().filter(|r| r.start < end);
        match before.or(after) {
            Some(other) => Err(Conflict(new, other)),
            None => {
                self.0.insert(at, new);
                Ok(())
            }
        }
    }

    /// The range that holds `address`.
    #[inline]
    pub fn find(&self, address: u64) -> Option<Range> {
        let at = self.0.partition_point(|r| r.start <= address);
        let r = *self.0.get(at.checked_sub(1)?)?;
        (address - r.start < r.len).then_some(r)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, len: u64, slot: usize) -> Range {
        Range { start, len, slot, offset: 0 }
    }

    #[test]
    fn lookups_find_exactly_the_claimed_addresses() {
        let mut t = RangeTable::default();
        for r in [range(0x70, 2, 1), range(0x20, 2, 2), range(0x60, 1, 3), range(0x64, 1, 3)] {
            t.insert(r).unwrap();
        }
        let cases = [(0x1f, None), (0x20, Some(2)), (0x21, Some(2)), (0x22, None), (0x60, Some(3))];
        for (address, slot) in
            cases.into_iter().chain([(0x61, None), (0x64, Some(3)), (0x71, Some(1)), (0x72, None)])
        {
            assert_eq!(t.find(address).map(|r| r.slot), slot, "{address:#x}");
        }
    }

    #[test]
    fn overlaps_and_empty_ranges_are_refused() {
        let mut t = RangeTable::default();
        t.insert(range(0x100, 0x10, 0)).unwrap();
        for bad in [
            range(0xf8, 9, 1),
            range(0x10f, 1, 1),
            range(0x100, 0x10, 1),
            range(0x90, 0x200, 1),
            range(0, 0, 1),
        ] {
            assert!(t.insert(bad).is_err(), "{bad:?}");
        }
        assert!(t.insert(range(u64::MAX, 2, 1)).is_err());
        t.insert(range(0xf8, 8, 1)).unwrap();
        t.insert(range(0x110, 1, 1)).unwrap();
    }
}
