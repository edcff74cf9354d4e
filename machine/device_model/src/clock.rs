//! The one clock from which all of a machine's time derives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use host_sys::{TIME_STAMP_FRACTION, TimeStampCounter};

/// Guest nanoseconds since the machine was powered on.
pub type Nanos = u64;

/// Bit of [`Inner::stops`]: the clock stands still.
const STANDS: u64 = 1;
/// Digits before the point of the fixed-point factors of [`scaled`].
const WHOLE: u32 = 64 - TIME_STAMP_FRACTION;

/// `count` times a factor with [`TIME_STAMP_FRACTION`] binary digits behind the point.
fn scaled(count: u64, factor: u64) -> u64 {
    ((u128::from(count << WHOLE) * u128::from(factor)) >> 64) as u64
}

/// What moves the clock.
#[derive(Debug)]
enum Source {
    /// The instructions executed: the current guest nanosecond.
    Virtual(AtomicU64),
    /// The host's monotonic clock, counted in nanoseconds from here.
    Monotonic(Instant),
    /// The host's time-stamp counter, and the guest's ticks in each of its own as a
    /// factor of [`scaled`].
    TimeStamp { counter: TimeStampCounter, origin: u64, nanos: u64, ticks: u64 },
}

#[derive(Debug)]
struct Inner {
    source: Source,
    /// Host time mode: twice the counts of the source that the clock has stood still
    /// so far, or, while it stands still, twice the count it stands at plus 1. One
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
/// clock all read it. Host mode follows the host's time-stamp counter where that
/// is a clock, else the host's monotonic clock. Virtual
/// mode only moves when [`Clock::advance`] is called (one nanosecond for each
/// instruction), so that runs are deterministic. Host mode can stand still
/// ([`Clock::stop`]) and go on where it stood. Cheap to clone; clones are the
/// same clock.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

/// The guest's TSC (before any vCPU's offset) as a function of the host's:
/// `base + ((host - origin << 3) * ticks >> 64)`, all modulo 2^64 but the product.
/// Right until the clock is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscOfHost {
    /// The host's TSC when the machine was powered on, later by the ticks it has stood still since.
    pub origin: u64,
    /// Guest ticks in one of the host, times 2^61. Never 0.
    pub ticks: u64,
    /// The guest's TSC at `origin`.
    pub base: u64,
}

impl Clock {
    /// Follow the host's time from now on, starting at 0.
    pub fn host(tsc_khz: u32) -> Self {
        Self::host_mode(tsc_khz, 0, TimeStampCounter::get().map(|c| (c, c.nanos_per_tick())))
    }

    /// As [`Clock::host`], with a TSC that starts at `tsc`: for engines whose
    /// guests always see the host's, which has the frequency `tsc_khz`.
    pub fn host_with_tsc(tsc_khz: u32, tsc: u64) -> Self {
        let nanos = (1_000_000_u128 << TIME_STAMP_FRACTION) / u128::from(tsc_khz.max(1));
        let known = TimeStampCounter::get().zip(u64::try_from(nanos).ok());
        Self::host_mode(tsc_khz, tsc, known)
    }

    /// `counter`: the host's, if it is a clock, and its nanoseconds a tick.
    fn host_mode(tsc_khz: u32, tsc_base: u64, counter: Option<(TimeStampCounter, u64)>) -> Self {
        let wall_base = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let source = counter.and_then(|(counter, nanos)| {
            let ticks = u64::try_from(u128::from(nanos) * u128::from(tsc_khz) / 1_000_000).ok()?;
            let origin = counter.now();
            (ticks != 0).then_some(Source::TimeStamp { counter, origin, nanos, ticks })
        });
        let source = source.unwrap_or_else(|| Source::Monotonic(Instant::now()));
        Self::new(source, wall_base, tsc_khz, tsc_base)
    }

    /// Virtual time starting at 0, with the given wall-clock start (UTC
    /// nanoseconds since 1970).
    pub fn virtual_time(tsc_khz: u32, wall_base: u64) -> Self {
        Self::new(Source::Virtual(AtomicU64::new(0)), wall_base, tsc_khz, 0)
    }

    fn new(source: Source, wall_base: u64, tsc_khz: u32, tsc_base: u64) -> Self {
        Clock(Arc::new(Inner {
            source,
            stops: AtomicU64::new(0),
            stood_still: AtomicU64::new(0),
            wall_base,
            tsc_khz,
            tsc_base,
        }))
    }

    /// Guest nanoseconds since power-on.
    pub fn now(&self) -> Nanos {
        self.nanos(self.count())
    }

    /// Counts of the source since power-on, without the stops.
    fn count(&self) -> u64 {
        loop {
            let stops = self.0.stops.load(Ordering::Acquire);
            if stops & STANDS != 0 {
                return stops >> 1;
            }
            let running = self.running();
            // A stop and a start between the two reads would make the result jump over the stop.
            if self.0.stops.load(Ordering::Acquire) == stops {
                return running.saturating_sub(stops >> 1);
            }
        }
    }

    /// The same, stops included.
    fn running(&self) -> u64 {
        match &self.0.source {
            Source::Virtual(now) => now.load(Ordering::Acquire),
            Source::Monotonic(origin) => origin.elapsed().as_nanos() as u64,
            Source::TimeStamp { counter, origin, .. } => counter.now().saturating_sub(*origin),
        }
    }

    /// Nanoseconds in `count` counts of the source.
    fn nanos(&self, count: u64) -> Nanos {
        match self.0.source {
            Source::TimeStamp { nanos, .. } => scaled(count, nanos),
            _ => count,
        }
    }

    /// Stand still from now on. Does nothing in virtual time, which only moves
    /// with instructions, and when the clock already stands still. No vCPU may be
    /// running: what it made of [`Clock::tsc_of_host`] would go on.
    pub fn stop(&self) {
        if !self.is_virtual() && !self.is_stopped() {
            self.0.stops.store(self.count() << 1 | STANDS, Ordering::Release);
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
        self.nanos(total).saturating_sub(self.nanos(before))
    }

    /// Whether the clock stands still until [`Clock::start`].
    pub fn is_stopped(&self) -> bool {
        self.0.stops.load(Ordering::Acquire) & STANDS != 0
    }

    /// For how many nanoseconds the clock has stood still, stops that ended only.
    pub fn stood_still(&self) -> u64 {
        self.nanos(self.0.stood_still.load(Ordering::Relaxed))
    }

    /// Whether time is virtual.
    pub fn is_virtual(&self) -> bool {
        matches!(self.0.source, Source::Virtual(_))
    }

    /// Move virtual time forward; does nothing in host mode.
    pub fn advance(&self, nanos: u64) {
        if let Source::Virtual(now) = &self.0.source {
            now.fetch_add(nanos, Ordering::AcqRel);
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
        match self.0.source {
            Source::TimeStamp { ticks, .. } => self.0.tsc_base.wrapping_add(scaled(self.count(), ticks)),
            _ => self.tsc_at(self.now()),
        }
    }

    /// How the TSC (before any vCPU's offset) follows from the host's, where it does
    /// and while the clock runs.
    pub fn tsc_of_host(&self) -> Option<TscOfHost> {
        let Source::TimeStamp { origin, ticks, .. } = self.0.source else { return None };
        let stops = self.0.stops.load(Ordering::Acquire);
        let origin = origin.wrapping_add(stops >> 1);
        (stops & STANDS == 0).then_some(TscOfHost { origin, ticks, base: self.0.tsc_base })
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

    /// As [`Clock::host`] makes them, on hosts with and without a counter that is a clock.
    fn both_sources(tsc_khz: u32, tsc: u64) -> Vec<Clock> {
        let counter = TimeStampCounter::get().map(|c| Some((c, c.nanos_per_tick())));
        counter.into_iter().chain([None]).map(|c| Clock::host_mode(tsc_khz, tsc, c)).collect()
    }

    #[test]
    fn either_source_keeps_the_hosts_time() {
        for c in both_sources(1_000_000, 0) {
            let (from, started) = (c.now(), Instant::now());
            std::thread::sleep(Duration::from_millis(30));
            let (passed, host) = (c.now() - from, started.elapsed().as_nanos() as u64);
            assert!(passed.abs_diff(host) < 1_000_000, "{passed} ns of {host}: {c:?}");
        }
    }

    #[test]
    fn the_tsc_is_what_the_time_says_at_every_frequency() {
        for khz in [1_000, 999_999, 1_000_000, 2_596_130, 7_000_000, 40_000_000] {
            for c in both_sources(khz, 77) {
                for _ in 0..1_000 {
                    let (before, tsc, after) = (c.now(), c.tsc(), c.now());
                    // The time is known to a nanosecond.
                    let least = c.tsc_at(before);
                    let most = c.tsc_at(after + 1) + 1;
                    assert!((least..=most).contains(&tsc), "{least} {tsc} {most} at {khz} kHz");
                }
            }
        }
    }

    #[test]
    fn engines_compute_the_same_tsc_from_the_hosts() {
        let Some(counter) = TimeStampCounter::get() else { return };
        for khz in [1_000, 1_000_000, 2_596_130] {
            let c = Clock::host_mode(khz, 5, Some((counter, counter.nanos_per_tick())));
            for _ in 0..3 {
                let m = c.tsc_of_host().expect("it runs");
                let computed = |host: u64| m.base + scaled(host - m.origin, m.ticks);
                let (low, tsc, high) = (counter.now(), c.tsc(), counter.now());
                assert!((computed(low)..=computed(high)).contains(&tsc), "{tsc} at {khz} kHz");
                c.stop();
                assert_eq!(c.tsc_of_host(), None);
                std::thread::sleep(Duration::from_millis(1));
                c.start();
            }
        }
        assert_eq!(Clock::virtual_time(1_000_000, 0).tsc_of_host(), None);
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
