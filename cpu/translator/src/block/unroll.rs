//! Short loops, of which a block has two rounds.
//!
//! A block that goes back to its own start looks at the token each time, which in a loop
//! of a few instructions is a good part of the work. So the block of such a loop has its
//! instructions twice; the branch that ends the first round is turned around, to leave
//! where the loop ends.
//!
//! Only in user code: a system's loops seldom run long, and most code is the system's.

use iced_x86::{ConditionCode, Instruction, OpKind};

use super::facts::Known;
use super::{Builder, MAX_INSTRUCTIONS};

/// Most instructions of one round, and most guest bytes.
const MOST: usize = 16;
const MOST_BYTES: u64 = 100;
const _: () = assert!(2 * MOST <= MAX_INSTRUCTIONS, "two rounds fit");

impl Builder<'_> {
    /// Whether a conditional branch, the last of `count` instructions, leads back to the
    /// block's start, not far away.
    pub(super) fn is_short_loop(&self, i: &Instruction, count: usize) -> bool {
        let r = self.r;
        let ordinary = r.mode.user && !r.mode.narrow && r.mode.longest > 1;
        let branch = i.op0_kind() == OpKind::NearBranch64 && i.near_branch_target() == r.va;
        ordinary
            && branch
            && (2..=MOST).contains(&count)
            && i.next_ip().wrapping_sub(r.va) <= MOST_BYTES
            && i.condition_code() != ConditionCode::None
            && !(i.is_loop() || i.is_jcx_short())
            && r.vigilant.is_none()
            && r.straddling.is_none()
    }

    /// The instructions of both rounds; how many they are.
    pub(super) fn unroll(&mut self, list: &mut [Instruction], known: &mut [Known], count: usize) -> usize {
        list.copy_within(..count, count);
        known.copy_within(..count, count);
        self.turns_at = count.checked_sub(1);
        2 * count
    }

    /// Whether the current instruction is the branch between the rounds.
    pub(super) fn turns(&self) -> bool {
        self.turns_at == Some(self.index.into())
    }
}
