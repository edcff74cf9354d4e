//! The host processor's time-stamp counter, where it can serve as a clock.
// UNSAFE: RDTSC has no safe wrapper.
#![allow(unsafe_code, reason = "the home of RDTSC")]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The host's time-stamp counter as a clock: it ticks at one rate whatever the
/// processor does, and all processors read the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeStampCounter {
    nanos_per_tick: u64,
}

/// Binary digits behind the point of [`TimeStampCounter::nanos_per_tick`].
pub const FRACTION: u32 = 61;

/// How long the counter is compared with the monotonic clock. Both are read within
/// some 10 ns at either end, which makes the rate right to about 5 parts in a million.
const COMPARED: Duration = Duration::from_millis(3);

impl TimeStampCounter {
    /// The counter of this host, if it is a clock: the processor says that its rate
    /// is constant, and the kernel (which compares processors and watches them)
    /// keeps its own time by it. Its rate is found once for the process.
    pub fn get() -> Option<Self> {
        static KNOWN: OnceLock<Option<TimeStampCounter>> = OnceLock::new();
        *KNOWN.get_or_init(|| if is_clock() { Self::compare() } else { None })
    }

    /// The counter now.
    #[inline]
    pub fn now(self) -> u64 {
        read()
    }

    /// Nanoseconds a tick, times 2 to the power of [`FRACTION`].
    pub fn nanos_per_tick(self) -> u64 {
        self.nanos_per_tick
    }

    fn compare() -> Option<Self> {
        let (first, from) = tightest_pair();
        std::thread::sleep(COMPARED);
        let (last, to) = tightest_pair();
        let nanos = to.checked_duration_since(from)?.as_nanos();
        let ticks = u128::from(last.checked_sub(first).filter(|t| *t != 0)?);
        // Below 8 ns a tick, which leaves three digits before the point.
        let rate = u64::try_from((nanos << FRACTION) / ticks).ok()?;
        Some(TimeStampCounter { nanos_per_tick: rate })
    }
}

/// Counter and monotonic clock at the same moment, as nearly as can be told.
fn tightest_pair() -> (u64, Instant) {
    let once = || {
        let (before, at, after) = (read(), Instant::now(), read());
        let took = after.wrapping_sub(before);
        (took, before.wrapping_add(took / 2), at)
    };
    // An interruption in between sets the two apart.
    let pairs = (0..16).map(|_| once());
    pairs
        .min_by_key(|(took, ..)| *took)
        .map_or_else(|| (read(), Instant::now()), |(_, count, at)| (count, at))
}

#[cfg(target_arch = "x86_64")]
fn read() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and Linux lets user programs execute it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn read() -> u64 {
    0
}

#[cfg(target_arch = "x86_64")]
fn is_clock() -> bool {
    use std::arch::x86_64::__cpuid;
    // CPUID Fn8000_0007 EDX bit 8: the rate is constant in all power states.
    let constant = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx >> 8 & 1 != 0;
    let kept = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    constant && kept.is_ok_and(|name| name.trim() == "tsc")
}

#[cfg(not(target_arch = "x86_64"))]
fn is_clock() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_keeps_the_monotonic_clocks_time() {
        let Some(counter) = TimeStampCounter::get() else { return };
        assert_eq!(TimeStampCounter::get(), Some(counter), "the rate is found once");
        let (from, started) = tightest_pair();
        std::thread::sleep(Duration::from_millis(50));
        let (to, ended) = tightest_pair();
        let nanos = (u128::from(to - from) * u128::from(counter.nanos_per_tick())) >> FRACTION;
        let passed = (ended - started).as_nanos();
        // An interruption within all sixteen pairs is what the bound leaves room for.
        assert!(nanos.abs_diff(passed) < passed / 1000, "{nanos} ns by the counter, {passed} by the clock");
    }

    #[test]
    fn processors_read_the_same() {
        let Some(counter) = TimeStampCounter::get() else { return };
        let latest = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        let seen = latest.load(std::sync::atomic::Ordering::SeqCst);
                        let now = counter.now();
                        // RDTSC may be executed before the load in front of it.
                        assert!(now + 2_000 >= seen, "{now} after {seen}");
                        latest.fetch_max(now, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
    }
}
