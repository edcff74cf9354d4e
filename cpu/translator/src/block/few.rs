//! A list of at most four things, without an allocation.

/// Up to four of `T`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Few<T> {
    items: [T; 4],
    len: u8,
}

impl<T: Default + Copy> Default for Few<T> {
    fn default() -> Self {
        Few { items: [T::default(); 4], len: 0 }
    }
}

impl<T> Few<T> {
    /// Add one. False: there is no room.
    #[must_use]
    pub fn push(&mut self, item: T) -> bool {
        let Some(slot) = self.items.get_mut(usize::from(self.len)) else { return false };
        *slot = item;
        self.len += 1;
        true
    }
}

impl<T> std::ops::Deref for Few<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.items[..usize::from(self.len)]
    }
}

impl<T> std::ops::DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items[..usize::from(self.len)]
    }
}
