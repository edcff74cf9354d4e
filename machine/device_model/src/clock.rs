//! The one clock from which all of a machine's time derives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Guest nanoseconds since the machine was powered on.
pub type Nanos = u64;

#[derive(Debug)]
struct Inner {
    /// Host time mode: the host instant of guest nanosecond `base`.
    origin: Instant,
    base: u64,
    /// Virtual time mode: the current guest nanosecond.
    virtual_now: Option<AtomicU64>,
    /// UTC nanoseconds since 1970 at guest nanosecond 0.
    wall_base: u64,
    tsc_khz: u32,
    /// TSC at guest nanosecond 0.
    tsc_base: u64,
}

/// The machine's clock: TSC, PIT, HPET, APIC timer, RTC and the paravirtual
/// clock all read it. Host mode follows the host's monotonic clock. Virtual
/// mode only moves when [`Clock::advance`] is called (one nanosecond for each
/// instruction), so that runs are deterministic. Cheap to clone; clones are the
/// same clock.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

impl Clock {
    /// Follow the host's monotonic clock from now on, starting at 0.
    pub fn host(tsc_khz: u32) -> Self {
        Self::host_with_tsc(tsc_khz, 0)
    }

    /// As [`Clock::host`], with a TSC that starts at `tsc`: for engines whose
    /// guests always see the host's.
    pub fn host_with_tsc(tsc_khz: u32, tsc: u64) -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        Clock(Arc::new(Inner {
            origin: Instant::now(),
            base: 0,
            virtual_now: None,
            wall_base: wall,
            tsc_khz,
            tsc_base: tsc,
        }))
    }

    /// Virtual time starting at 0, with the given wall-clock start (UTC
    /// nanoseconds since 1970).
    pub fn virtual_time(tsc_khz: u32, wall_base: u64) -> Self {
        Clock(Arc::new(Inner {
            origin: Instant::now(),
            base: 0,
            virtual_now: Some(AtomicU64::new(0)),
            wall_base,
            tsc_khz,
            tsc_base: 0,
        }))
    }

    /// Guest nanoseconds since power-on.
    pub fn now(&self) -> Nanos {
        match &self.0.virtual_now {
            Some(t) => t.load(Ordering::Acquire),
            None => self.0.base + self.0.origin.elapsed().as_nanos() as u64,
        }
    }

    /// Whether time is virtual.
    pub fn is_virtual(&self) -> bool {
        self.0.virtual_now.is_some()
    }

    /// Move virtual time forward; does nothing in host mode.
    pub fn advance(&self, nanos: u64) {
        if let Some(t) = &self.0.virtual_now {
            t.fetch_add(nanos, Ordering::AcqRel);
        }
    }

    /// TSC frequency in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.0.tsc_khz
    }

    /// TSC ticks at guest time `now`, before any vCPU's offset.
    pub fn tsc_at(&self, now: Nanos) -> u64 {
        self.0.tsc_base.wrapping_add((u128::from(now) * u128::from(self.0.tsc_khz) / 1_000_000) as u64)
    }

    /// TSC ticks now, before any vCPU's offset.
    pub fn tsc(&self) -> u64 {
        self.tsc_at(self.now())
    }

    /// Guest time at which the TSC (before offset) reaches `ticks`, rounded up;
    /// 0 if it was there at power-on.
    pub fn time_of_tsc(&self, ticks: u64) -> Nanos {
        let ticks = ticks.saturating_sub(self.0.tsc_base);
        (u128::from(ticks) * 1_000_000).div_ceil(u128::from(self.0.tsc_khz)).min(u128::from(u64::MAX)) as u64
    }

    /// UTC nanoseconds since 1970 at guest time `now`.
    pub fn wall_at(&self, now: Nanos) -> u64 {
        self.0.wall_base.wrapping_add(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tsc_and_time_agree_whatever_the_tsc_starts_at() {
        for base in [0, 7_432_219_486_706] {
            let c = Clock::host_with_tsc(2_596_130, base);
            assert_eq!(c.tsc_at(0), base);
            for now in [1, 999, 1_000_000_007] {
                let ticks = c.tsc_at(now);
                assert!(c.time_of_tsc(ticks).abs_diff(now) <= 1, "{now} ns is tick {ticks}");
            }
            assert_eq!(c.time_of_tsc(base / 2), 0, "a deadline before power-on has passed");
        }
    }
}
