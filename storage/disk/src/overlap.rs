//! Several reads and writes of a queue under way at once.

use std::collections::VecDeque;

use guest_memory::GuestMemory;
use serde::{Deserialize, Serialize};

use crate::{Disk, DiskError, Segment};

/// How a device's reads and writes reach a raw image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aio {
    /// By the thread of each queue, one after another.
    #[default]
    Threads,
    /// By io_uring, several of a queue at once; as [`Aio::Threads`] where the host
    /// has or allows none.
    IoUring,
}

/// A read or a write of whole blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Whose it is. Each is larger than the one before it.
    pub tag: u64,
    /// From guest memory to the disk.
    pub write: bool,
    /// First byte on the disk.
    pub offset: u64,
    /// Where in guest memory.
    pub segments: Vec<Segment>,
}

impl Transfer {
    /// Do it alone.
    pub(crate) fn execute<D: Disk + ?Sized>(&self, disk: &D, memory: &GuestMemory) -> Result<(), DiskError> {
        match self.write {
            true => disk.write_guest(self.offset, memory, &self.segments),
            false => disk.read_guest(self.offset, memory, &self.segments),
        }
    }
}

/// A device's queue, as [`Disk::transfer_all`] sees it.
pub trait Transfers {
    /// Take the next transfer, if there is one now. It is asked again when others are
    /// done.
    fn next(&mut self) -> Option<Transfer>;

    /// A transfer is done or has failed.
    fn done(&mut self, tag: u64, result: Result<(), DiskError>);

    /// Nothing more is done for the moment: the time to tell the driver.
    fn pause(&mut self) {}

    /// Whether a write without room is held ([`DiskError::NoSpace`]) rather than failed.
    fn holds(&self) -> bool;
}

/// Most transfers taken and not answered: those that are done and wait for an earlier
/// write as well, of which a hostile driver could have any number.
const MOST_TAKEN: usize = 256;

struct Entry {
    tag: u64,
    write: bool,
    answered: bool,
    result: Option<Result<(), DiskError>>,
}

/// When transfers are answered: as soon as they are done, but never before a write
/// that was taken earlier. So a write that finds no room can go back into its queue
/// with all behind it, none of which the driver has seen done; they are executed
/// again.
pub(crate) struct Order {
    holds: bool,
    is_full: bool,
    /// Those not answered, and some that are between them, by tag.
    entries: VecDeque<Entry>,
}

impl Order {
    pub fn new(holds: bool) -> Self {
        Order { holds, is_full: false, entries: VecDeque::new() }
    }

    /// Whether more are to be taken: no write is held, and not too many wait.
    pub fn takes_more(&self) -> bool {
        !self.is_full && self.entries.len() < MOST_TAKEN
    }

    /// A transfer has been taken.
    pub fn begin(&mut self, transfer: &Transfer) {
        let (tag, write) = (transfer.tag, transfer.write);
        self.entries.push_back(Entry { tag, write, answered: false, result: None });
    }

    /// A transfer is done: answer what can be.
    pub fn finish(&mut self, tag: u64, result: Result<(), DiskError>, to: &mut dyn Transfers) {
        let has_no_room = matches!(result, Err(DiskError::NoSpace));
        if let Some(entry) = self.entries.iter_mut().find(|e| e.tag == tag) {
            self.is_full |= self.holds && entry.write && has_no_room;
            entry.result = Some(result);
        }
        for entry in self.entries.iter_mut().filter(|e| !e.answered) {
            match entry.result.take() {
                None if entry.write => break,
                None => {}
                Some(Err(DiskError::NoSpace)) if self.holds && entry.write => {
                    entry.result = Some(Err(DiskError::NoSpace));
                    break;
                }
                Some(result) => {
                    entry.answered = true;
                    to.done(entry.tag, result);
                }
            }
        }
        while self.entries.front().is_some_and(|e| e.answered) {
            self.entries.pop_front();
        }
    }
}

/// [`Disk::transfer_all`], one after another.
pub(crate) fn serial<D: Disk + ?Sized>(disk: &D, memory: &GuestMemory, transfers: &mut dyn Transfers) {
    let mut order = Order::new(transfers.holds());
    while order.takes_more()
        && let Some(transfer) = transfers.next()
    {
        order.begin(&transfer);
        order.finish(transfer.tag, transfer.execute(disk, memory), transfers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<(u64, bool)>);

    impl Transfers for Seen {
        fn next(&mut self) -> Option<Transfer> {
            None
        }
        fn done(&mut self, tag: u64, result: Result<(), DiskError>) {
            self.0.push((tag, result.is_ok()));
        }
        fn holds(&self) -> bool {
            true
        }
    }

    /// `kinds`: a letter for each transfer, `r` or `w`. `ends`: which end, and
    /// whether there is room for it.
    fn check(holds: bool, kinds: &str, ends: &[(u64, bool)], expect: &[(u64, bool)], is_full: bool) {
        let (mut order, mut seen) = (Order::new(holds), Seen::default());
        for (tag, kind) in kinds.chars().enumerate() {
            let write = kind == 'w';
            order.begin(&Transfer { tag: tag as u64, write, offset: 0, segments: Vec::new() });
        }
        for &(tag, fits) in ends {
            order.finish(tag, if fits { Ok(()) } else { Err(DiskError::NoSpace) }, &mut seen);
        }
        assert_eq!((&seen.0[..], order.is_full), (expect, is_full), "{kinds} {ends:?}");
    }

    #[test]
    fn nothing_is_answered_before_an_earlier_write() {
        let ok = |tags: &[u64]| tags.iter().map(|t| (*t, true)).collect::<Vec<_>>();
        check(true, "rrr", &ok(&[2, 0, 1]), &ok(&[2, 0, 1]), false);
        check(true, "rwrw", &ok(&[2, 3, 1]), &ok(&[1, 2, 3]), false);
        check(true, "wrw", &ok(&[1, 2]), &[], false);
        check(true, "wrw", &ok(&[2, 0, 1]), &ok(&[0, 2, 1]), false);
        // The second finds no room: what is behind it is not answered, what is before it is.
        let ends = [(3, true), (2, true), (1, false), (0, true)];
        check(true, "rwrw", &ends, &[(0, true)], true);
        check(false, "rwrw", &ends, &[(1, false), (2, true), (3, true), (0, true)], false);
        // A read is never held: what is behind it may have been answered.
        check(true, "rr", &[(1, true), (0, false)], &[(1, true), (0, false)], false);
        // Two without room, the later one heard of first.
        check(true, "www", &[(2, false), (0, true), (1, false)], &[(0, true)], true);
    }
}
