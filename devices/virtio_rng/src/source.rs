//! Where the bytes come from.

use rustix::rand::{GetRandomFlags, getrandom};
use saved_state::StateError;

/// Bytes that one getrandom(2) gives without being interrupted.
const HOST_PIECE: usize = 256;

/// A source of random bytes.
#[derive(Debug)]
pub enum Source {
    /// The host kernel's generator.
    Host,
    /// A function of this number, for machines in virtual time, whose runs repeat.
    /// Not random at all.
    Seeded(u64),
}

impl Source {
    /// Fill `to`; false if the host refuses.
    pub(crate) fn fill(&mut self, to: &mut [u8]) -> bool {
        match self {
            Source::Host => to.chunks_mut(HOST_PIECE).all(|piece| {
                let len = piece.len();
                getrandom(piece, GetRandomFlags::empty()).is_ok_and(|n| n == len)
            }),
            Source::Seeded(state) => {
                for piece in to.chunks_mut(8) {
                    let len = piece.len();
                    piece.copy_from_slice(&next(state).to_le_bytes()[..len]);
                }
                true
            }
        }
    }

    pub(crate) fn save(&self) -> Vec<u8> {
        match self {
            Source::Host => Vec::new(),
            Source::Seeded(state) => state.to_le_bytes().to_vec(),
        }
    }

    pub(crate) fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        match (self, <[u8; 8]>::try_from(saved)) {
            (Source::Host, _) if saved.is_empty() => {}
            (Source::Seeded(state), Ok(bytes)) => *state = u64::from_le_bytes(bytes),
            _ => {
                return StateError::check(
                    false,
                    crate::NAME,
                    "source",
                    saved.len() as u64,
                    "the same kind of source",
                );
            }
        }
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
