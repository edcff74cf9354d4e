//! One HPET comparator. Times are values of the main counter.

use saved_state::StateError;
use serde::{Deserialize, Serialize};

use super::{NAME, ROUTES};

pub(super) const LEVEL: u64 = 1 << 1;
pub(super) const ENABLED: u64 = 1 << 2;
pub(super) const PERIODIC: u64 = 1 << 3;
const VALUE_SET: u64 = 1 << 6;
const MODE_32: u64 = 1 << 8;
const ROUTE: u64 = 0x1f << 9;
const WRITABLE: u64 = LEVEL | ENABLED | PERIODIC | VALUE_SET | MODE_32 | ROUTE;
/// Periodic and 64-bit capable, and where it can be routed.
const CAPABILITIES: u64 = 1 << 4 | 1 << 5 | (ROUTES as u64) << 32;

/// Configuration and comparator; also the saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timer {
    /// Writable bits of the configuration register.
    pub(super) config: u64,
    comparator: u64,
    period: u64,
    /// Matches before this counter value are over.
    from: u64,
}

impl Timer {
    pub(super) fn new() -> Self {
        Timer { config: 0, comparator: u64::MAX, period: 0, from: 0 }
    }

    pub(super) fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    fn mask(&self) -> u64 {
        if self.has(MODE_32) { 0xffff_ffff } else { u64::MAX }
    }

    pub(super) fn route(&self) -> usize {
        ((self.config & ROUTE) >> 9) as usize
    }

    pub(super) fn config_register(&self) -> u64 {
        self.config & !VALUE_SET | CAPABILITIES
    }

    pub(super) fn write_config(&mut self, value: u64) {
        let mut new = value & WRITABLE;
        if ROUTES & 1 << ((new & ROUTE) >> 9) == 0 {
            // A route the timer does not have is not taken.
            new = new & !ROUTE | self.config & ROUTE;
        }
        self.config = new;
        self.comparator &= self.mask();
        self.period &= self.mask();
    }

    pub(super) fn comparator(&self) -> u64 {
        self.comparator
    }

    /// Write the bits of `mask`; `counter` is the main counter.
    pub(super) fn write_comparator(&mut self, value: u64, mask: u64, counter: u64) {
        let merge = |old: u64| (old & !mask | value & mask) & self.mask();
        let (comparator, period) = (merge(self.comparator), merge(self.period));
        if !self.has(PERIODIC) || self.has(VALUE_SET) {
            self.comparator = comparator;
        }
        if self.has(PERIODIC) {
            self.period = period;
        }
        self.config &= !VALUE_SET;
        self.restart(counter);
    }

    /// Matches from `counter` on count.
    pub(super) fn restart(&mut self, counter: u64) {
        self.from = counter;
    }

    /// Ticks from `from` to the next match.
    fn distance(&self) -> u64 {
        self.comparator.wrapping_sub(self.from) & self.mask()
    }

    /// The counter value of the next match; `None` when it is beyond 64 bits.
    fn next_match(&self) -> Option<u64> {
        self.from.checked_add(self.distance())
    }

    /// Ticks from the moment the counter was `base` (before `from`) to the next match.
    pub(super) fn ticks_since(&self, base: u64) -> Option<u64> {
        self.from.wrapping_sub(base).checked_add(self.distance())
    }

    /// Whether the comparator matched up to `counter`; goes on to the next match.
    pub(super) fn run(&mut self, counter: u64) -> bool {
        if counter < self.from.saturating_sub(1) {
            // The main counter has wrapped.
            self.from = 0;
        }
        let Some(at) = self.next_match().filter(|&at| at <= counter) else { return false };
        if self.has(PERIODIC) && self.period != 0 {
            let periods = (counter - at) / self.period + 1;
            self.comparator = self.comparator.wrapping_add(self.period.wrapping_mul(periods)) & self.mask();
        }
        self.from = counter.saturating_add(1);
        true
    }

    pub(super) fn check(&self) -> Result<(), StateError> {
        let Timer { config, comparator, period, from: _ } = self;
        StateError::check(config & !WRITABLE == 0, NAME, "config", *config, "writable bits")?;
        StateError::check(
            *comparator <= self.mask(),
            NAME,
            "comparator",
            *comparator,
            "32 bits in 32-bit mode",
        )?;
        StateError::check(*period <= self.mask(), NAME, "period", *period, "32 bits in 32-bit mode")?;
        let routed = self.route() == 0 || ROUTES & 1 << self.route() != 0;
        StateError::check(routed, NAME, "route", self.route() as u64, "GSI 20-23")
    }
}
