//! Which sites foresee the addend of the page they load from, and how often that
//! was wrong: see [`crate::block::chase`].
//!
//! Sites share a few slots by the hash of their address. A wrong guess costs an exit,
//! a thousand times what a right one saves, so a slot that is wrong too often is
//! given up: for the processes that use it after that, too, until all code is dropped.

use std::time::{Duration, Instant};

/// Slots; a power of two.
pub(crate) const SLOTS: usize = 256;

/// No addend, nor an empty entry: what a slot holds that has met none.
pub(crate) const UNKNOWN: u64 = 1;

/// So many wrong guesses...
const MOST: u8 = 16;
/// ...in less than this, and the slot is given up: 0.1 % of the time, at 200 ns each,
/// because there are many slots, and processes that come and go miss in all of them.
const WITHIN: Duration = Duration::from_millis(4);

/// What is known of a slot.
#[derive(Clone, Copy)]
enum Slot {
    /// So many wrong guesses since then.
    Wrong(u8, Option<Instant>),
    GivenUp,
}

/// The slots of one vCPU.
pub(crate) struct Foresight {
    slots: Box<[Slot; SLOTS]>,
}

impl Default for Foresight {
    fn default() -> Self {
        Foresight { slots: Box::new([Slot::Wrong(0, None); SLOTS]) }
    }
}

/// The slot of the instruction at a linear address.
pub(crate) fn slot(va: u64) -> usize {
    (va.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SLOTS.ilog2())) as usize
}

impl Foresight {
    /// Whether the instruction at `va` should foresee.
    pub fn allows(&self, va: u64) -> bool {
        matches!(self.slots[slot(va)], Slot::Wrong(..))
    }

    /// It guessed wrong at `now`. Whether it should go on guessing.
    pub fn wrong(&mut self, va: u64, now: Instant) -> bool {
        let slot = &mut self.slots[slot(va)];
        let Slot::Wrong(count, since) = *slot else { return false };
        let first = since.unwrap_or(now);
        *slot = match count + 1 {
            MOST if now.saturating_duration_since(first) < WITHIN => Slot::GivenUp,
            MOST => Slot::Wrong(0, None),
            count => Slot::Wrong(count, Some(first)),
        };
        matches!(slot, Slot::Wrong(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: u64 = 0x40_1234;

    /// Wrong guesses of one site `apart` from each other until it is given up, at most `of`.
    fn check(apart: Duration, of: u32, expected: Option<u32>) {
        let mut f = Foresight::default();
        let began = Instant::now();
        let given_up = (1..=of).find(|n| !f.wrong(SITE, began + apart * *n));
        assert_eq!(given_up, expected, "{apart:?} apart");
        assert_eq!(f.allows(SITE), expected.is_none());
        let other = (1..).map(|n| SITE + n).find(|va| slot(*va) != slot(SITE)).expect("another slot");
        assert!(f.allows(other), "a site is given up alone");
    }

    #[test]
    fn a_site_that_is_often_wrong_is_given_up() {
        check(Duration::ZERO, 100, Some(16));
        check(Duration::from_micros(260), 100, Some(16));
        check(Duration::from_micros(270), 1000, None);
        check(Duration::from_secs(1), 1000, None);
    }
}
