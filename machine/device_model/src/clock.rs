//! The one clock from which all of a machine's time derives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Guest nanoseconds since the machine was powered on.
pub type Nanos = u64;

/// Bit of [`Inner::stops`]: the clock stands still.
const STANDS: u64 = 1;

#[derive(Debug)]
struct Inner {
    /// Host time mode: the host instant of guest nanosecond `base`.
    origin: Instant,
    base: u64,
    /// Virtual time mode: the current guest nanosecond.
    virtual_now: Option<AtomicU64>,
    /// Host time mode: twice the nanoseconds the clock has stood still so far, or,
    /// while it stands still, twice the guest nanosecond it stands at plus 1. One
    /// word, so that a reader cannot mix two moments.
    stops: AtomicU64,
    /// The same total, kept while the clock stands still.
    stood_still: AtomicU64,
    /// UTC nanoseconds since 1970 at guest nanosecond 0.
    wall_base: u64,
    tsc_khz: u32,
    /// TSC at guest nanosecond 0.
    tsc_base: u64,
}

/// The machine's clock: TSC, PIT, HPET, APIC timer, RTC and the paravirtual
/// clock all read it. Host mode follows the host's monotonic clock. Virtual
/// mode only moves when [`Clock::advance`] is called (one nanosecond for each
/// instruction), so that runs are deterministic. Host mode can stand still
/// ([`Clock::stop`]) and go on where it stood. Cheap to clone; clones are the
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
            stops: AtomicU64::new(0),
            stood_still: AtomicU64::new(0),
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
            stops: AtomicU64::new(0),
            stood_still: AtomicU64::new(0),
            wall_base,
            tsc_khz,
            tsc_base: 0,
        }))
    }

    /// Guest nanoseconds since power-on.
    pub fn now(&self) -> Nanos {
        match &self.0.virtual_now {
            Some(t) => t.load(Ordering::Acquire),
            None => loop {
                let stops = self.0.stops.load(Ordering::Acquire);
                if stops & STANDS != 0 {
                    return stops >> 1;
                }
                let running = self.running();
                // A stop and a start between the two reads would make the result jump over the stop.
                if self.0.stops.load(Ordering::Acquire) == stops {
                    return running.saturating_sub(stops >> 1);
                }
            },
        }
    }

    /// Nanoseconds since power-on, stops included.
    fn running(&self) -> u64 {
        self.0.base + self.0.origin.elapsed().as_nanos() as u64
    }

    /// Stand still from now on. Does nothing in virtual time, which only moves
    /// with instructions, and when the clock already stands still.
    pub fn stop(&self) {
        if !self.is_virtual() && !self.is_stopped() {
            self.0.stops.store(self.now() << 1 | STANDS, Ordering::Release);
        }
    }

    /// Go on from where the clock stands; answers for how many nanoseconds it
    /// stood still, 0 if it did not.
    pub fn start(&self) -> u64 {
        let stops = self.0.stops.load(Ordering::Acquire);
        if stops & STANDS == 0 {
            return 0;
        }
        let (stood_at, before) = (stops >> 1, self.0.stood_still.load(Ordering::Relaxed));
        let total = self.running().saturating_sub(stood_at);
        self.0.stood_still.store(total, Ordering::Relaxed);
        self.0.stops.store(total << 1, Ordering::Release);
        total.saturating_sub(before)
    }

    /// Whether the clock stands still until [`Clock::start`].
    pub fn is_stopped(&self) -> bool {
        self.0.stops.load(Ordering::Acquire) & STANDS != 0
    }

    /// For how many nanoseconds the clock has stood still, stops that ended only.
    pub fn stood_still(&self) -> u64 {
        self.0.stood_still.load(Ordering::Relaxed)
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
        const MILLISECOND: u64 = 1_000_000;
        // now * khz / MILLISECOND without the width that product would need.
        let khz = u64::from(self.0.tsc_khz);
        let whole = (now / MILLISECOND).wrapping_mul(khz);
        self.0.tsc_base.wrapping_add(whole).wrapping_add(now % MILLISECOND * khz / MILLISECOND)
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
    use std::time::Duration;

    #[test]
    fn a_stopped_clock_stands_and_goes_on_where_it_stood() {
        let c = Clock::host(1_000_000);
        let mut stood = 0;
        for _ in 0..3 {
            c.stop();
            let (at, ticks) = (c.now(), c.tsc());
            std::thread::sleep(Duration::from_millis(20));
            assert!(c.is_stopped());
            assert_eq!((c.now(), c.tsc()), (at, ticks));
            stood += c.start();
            assert_eq!(c.stood_still(), stood);
            let after = c.now();
            assert!(after >= at && after - at < 15_000_000, "{} ns passed over a stop", after - at);
            std::thread::sleep(Duration::from_millis(2));
            assert!(c.now() >= after + 2_000_000);
        }
        assert!(stood >= 60_000_000);
        assert_eq!(c.start(), 0);
    }

    #[test]
    fn readers_see_no_jump_and_no_step_back_while_the_clock_stops_and_starts() {
        let c = Clock::host(1_000_000);
        let reader = std::thread::spawn({
            let c = c.clone();
            move || {
                let mut last = 0;
                while c.stood_still() < 40_000_000 {
                    let now = c.now();
                    // A step back of less than a reading's duration is the two readings' order.
                    assert!(now + 1_000_000 >= last, "from {last} back to {now}");
                    last = last.max(now);
                }
                last
            }
        });
        while c.stood_still() < 40_000_000 {
            c.stop();
            std::thread::sleep(Duration::from_micros(500));
            c.start();
            std::thread::sleep(Duration::from_micros(50));
        }
        let last = reader.join().unwrap();
        assert!(last <= c.now());
    }

    #[test]
    fn virtual_time_is_not_stopped() {
        let c = Clock::virtual_time(1_000_000, 0);
        c.stop();
        c.advance(5);
        assert_eq!((c.now(), c.is_stopped(), c.start()), (5, false, 0));
    }

    #[test]
    fn tsc_and_time_agree_whatever_the_tsc_starts_at() {
        for base in [0, 7_432_219_486_706] {
            let c = Clock::host_with_tsc(2_596_130, base);
            assert_eq!(c.tsc_at(0), base);
            for now in [1, 999, 1_000_000_007, u64::MAX / 3] {
                let ticks = c.tsc_at(now);
                let exact = u128::from(now) * 2_596_130 / 1_000_000 + u128::from(base);
                assert_eq!(ticks, exact as u64, "{now} ns");
                let wraps = exact > u128::from(u64::MAX);
                assert!(wraps || c.time_of_tsc(ticks).abs_diff(now) <= 1, "{now} ns is tick {ticks}");
            }
            assert_eq!(c.time_of_tsc(base / 2), 0, "a deadline before power-on has passed");
        }
    }
}
