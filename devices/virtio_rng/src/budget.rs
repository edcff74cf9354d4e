//! How much may be given: a bucket that fills at a rate.

use std::time::{Duration, Instant};

use crate::MAX_REQUEST;

/// Bytes that may be given now. Holds a second's worth at most.
pub(crate) struct Budget {
    rate: u64,
    tokens: u64,
    filled: Instant,
}

impl Budget {
    /// A full bucket of `rate` bytes a second, at least 1.
    pub fn new(rate: u64, now: Instant) -> Self {
        let rate = rate.max(1);
        Budget { rate, tokens: rate, filled: now }
    }

    /// Bytes that may be given now, at most `most`.
    pub fn available(&mut self, now: Instant, most: usize) -> usize {
        let passed = now.saturating_duration_since(self.filled).min(Duration::from_secs(1));
        let more = (u128::from(self.rate) * passed.as_nanos() / 1_000_000_000) as u64;
        if more > 0 {
            self.tokens = self.tokens.saturating_add(more).min(self.rate);
            self.filled = now;
        }
        usize::try_from(self.tokens).unwrap_or(most).min(most)
    }

    /// So many were given.
    pub fn spend(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub(bytes as u64);
    }

    /// When there is a good portion again.
    pub fn recovered(&self) -> Instant {
        let portion = self.rate.min(MAX_REQUEST as u64).saturating_sub(self.tokens);
        self.filled
            + Duration::from_nanos((u128::from(portion) * 1_000_000_000 / u128::from(self.rate)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_kept_and_never_more_than_a_second_is_saved_up() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut b = Budget::new(1000, start);
        assert_eq!(b.available(start, 4000), 1000);
        b.spend(1000);
        assert_eq!(b.available(start, 4000), 0);
        assert_eq!(b.recovered(), at(1000), "a second's worth is less than a request");
        assert_eq!(b.available(at(250), 4000), 250);
        b.spend(300);
        assert_eq!(b.available(at(250), 4000), 0);
        assert_eq!(b.available(at(90_000), 4000), 1000);
        assert_eq!(b.available(at(90_000), 10), 10);
    }
}
