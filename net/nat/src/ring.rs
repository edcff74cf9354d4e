//! Bytes of a connection on their way, with a cap over all connections.

use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes a connection may have on its way in one direction: some 64 KiB frames, so
/// that neither side waits for the other.
pub(crate) const LARGE: usize = 512 << 10;
/// The same when memory is short: the largest frame fits.
pub(crate) const SMALL: usize = 64 << 10;
/// Bytes for large buffers, of all connections together.
const LARGE_TOTAL: usize = 64 << 20;

/// Memory that the large buffers of all connections share.
///
/// Connections that find it used up get [`SMALL`] buffers: 1,024 connections with
/// two of them are another 128 MiB at most, touched only as far as used.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Default for Budget {
    fn default() -> Self {
        Budget(Arc::new(AtomicUsize::new(LARGE_TOTAL)))
    }
}

/// A byte queue. It has memory only while it holds something.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
    budget: Budget,
}

impl Ring {
    pub(crate) fn new(budget: Budget) -> Self {
        Ring { bytes: Box::default(), start: 0, len: 0, budget }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes it can take; a promise only once it has memory.
    pub(crate) fn free(&self) -> usize {
        let size = if self.bytes.is_empty() { LARGE } else { self.bytes.len() };
        size - self.len
    }

    /// Whether it holds memory, even if nothing in it.
    pub(crate) fn has_memory(&self) -> bool {
        !self.bytes.is_empty()
    }

    fn provide(&mut self) {
        if !self.bytes.is_empty() {
            return;
        }
        // One thread owns all rings: nothing is ordered by the counter.
        let left = self.budget.0.load(Ordering::Relaxed);
        let size = if left >= LARGE { LARGE } else { SMALL };
        if size == LARGE {
            self.budget.0.fetch_sub(LARGE, Ordering::Relaxed);
        }
        // Zero pages: the host gives memory when they are touched.
        self.bytes = vec![0; size].into_boxed_slice();
        self.start = 0;
    }

    /// Give memory back. What it holds is lost.
    pub(crate) fn release(&mut self) {
        if self.bytes.len() == LARGE {
            self.budget.0.fetch_add(LARGE, Ordering::Relaxed);
        }
        self.bytes = Box::default();
        (self.start, self.len) = (0, 0);
    }

    /// Let `read` fill free space; it answers how many bytes it wrote.
    pub(crate) fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        self.provide();
        let size = self.bytes.len();
        let end = self.start + self.len;
        let free = size - self.len;
        let n = if end >= size {
            let at = end - size;
            read(&mut [IoSliceMut::new(&mut self.bytes[at..at + free])])?
        } else {
            let (before, after) = self.bytes.split_at_mut(end);
            let wrapped = &mut before[..self.start];
            read(&mut [IoSliceMut::new(after), IoSliceMut::new(wrapped)])?
        };
        self.len += n.min(free);
        Ok(n)
    }

    /// Append as much as fits; answers how much.
    pub(crate) fn push(&mut self, from: &[u8]) -> usize {
        let copied = self.fill(|to| {
            let mut rest = from;
            for part in to {
                let n = rest.len().min(part.len());
                let (now, later) = rest.split_at(n);
                part[..n].copy_from_slice(now);
                rest = later;
            }
            Ok::<_, std::convert::Infallible>(from.len() - rest.len())
        });
        copied.unwrap_or(0)
    }

    /// Bytes from `offset` on, in up to two pieces.
    pub(crate) fn slices(&self, offset: usize, length: usize) -> [&[u8]; 2] {
        let length = length.min(self.len.saturating_sub(offset));
        let size = self.bytes.len();
        if length == 0 {
            return [&[], &[]];
        }
        let at = (self.start + offset) % size;
        let first = length.min(size - at);
        [&self.bytes[at..at + first], &self.bytes[..length - first]]
    }

    /// Drop bytes from the front.
    pub(crate) fn consume(&mut self, n: usize) {
        let n = n.min(self.len);
        self.len -= n;
        self.start =
            if self.len == 0 || self.bytes.is_empty() { 0 } else { (self.start + n) % self.bytes.len() };
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn it_is_a_queue(steps in proptest::collection::vec((any::<bool>(), 0usize..400_000), 1..40)) {
            let mut ring = Ring::new(Budget::default());
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (push, n) in steps {
                if push {
                    let bytes: Vec<u8> = (0..n).map(|_| { next = next.wrapping_add(7); next }).collect();
                    let took = ring.push(&bytes);
                    prop_assert_eq!(took, n.min(LARGE - model.len()));
                    model.extend(&bytes[..took]);
                } else {
                    let offset = n / 3;
                    let seen = ring.slices(offset, n).concat();
                    let expect: Vec<u8> = model.iter().skip(offset).take(n).copied().collect();
                    prop_assert!(seen == expect);
                    ring.consume(n);
                    model.drain(..n.min(model.len()));
                }
                prop_assert_eq!(ring.len(), model.len());
            }
        }
    }

    #[test]
    fn when_memory_is_short_buffers_are_small_and_none_is_lost() {
        let budget = Budget::default();
        let mut rings: Vec<Ring> = (0..LARGE_TOTAL / LARGE + 1).map(|_| Ring::new(budget.clone())).collect();
        for ring in &mut rings {
            ring.push(b"x");
        }
        assert_eq!(rings.last().map(Ring::free), Some(SMALL - 1));
        drop(rings);
        assert_eq!(budget.0.load(Ordering::Relaxed), LARGE_TOTAL);
    }
}
