//! A machine that waits for room on the host.
//!
//! A request for which the host had no room stays in its queue while the machine is
//! paused; it is executed again when the machine is resumed: by somebody, or here
//! when the disk's file system has more room than it had.

use std::sync::Arc;
use std::time::{Duration, Instant};

use board::{Board, MachineEvent};

/// How often the host is asked.
const LOOK: Duration = Duration::from_secs(1);
/// What must be free: the longest request has so many bytes, and an image's tables
/// grow with it.
const ENOUGH: u64 = 2 << 20;

/// Why a machine does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullDisk {
    /// The disk's place in the specification.
    pub disk: usize,
    /// What its file system had left when the request failed.
    room: Option<u64>,
    /// When to look next.
    next: Instant,
}

impl FullDisk {
    pub(crate) fn new(board: &Board, disk: usize) -> Self {
        FullDisk { disk, room: room(board, disk), next: Instant::now() + LOOK }
    }

    /// When to look next.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Whether there is room now; looks again later if not.
    pub(crate) fn has_room(&mut self, board: &Board) -> bool {
        self.next = Instant::now() + LOOK;
        is_enough(self.room, room(board, self.disk))
    }
}

fn room(board: &Board, disk: usize) -> Option<u64> {
    board.disk(disk)?.room()
}

/// A quota does not show: without more room than before, nothing has changed.
fn is_enough(before: Option<u64>, now: Option<u64>) -> bool {
    matches!((before, now), (Some(before), Some(now)) if now > before && now >= ENOUGH)
}

/// Take events of full disks out of the machine's queue; the others stay in order.
pub(crate) fn forget_events(board: &Arc<Board>) {
    let others: Vec<_> = std::iter::from_fn(|| board.event_queue().poll())
        .filter(|e| !matches!(e, MachineEvent::DiskFull { .. }))
        .collect();
    others.into_iter().for_each(|e| board.events().post(e));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_goes_on_when_there_is_more_room_and_enough() {
        for (before, now, goes) in [
            (Some(0), Some(0), false),
            (Some(0), Some(ENOUGH - 1), false),
            (Some(0), Some(ENOUGH), true),
            (Some(ENOUGH), Some(ENOUGH), false),
            (Some(1 << 40), Some((1 << 40) + 4096), true),
            (None, Some(1 << 40), false),
            (Some(0), None, false),
        ] {
            assert_eq!(is_enough(before, now), goes, "{before:?} then {now:?}");
        }
    }
}
