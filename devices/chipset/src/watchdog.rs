//! A watchdog timer, driven by what the WDAT tells guests to do (hardware
//! watchdog timers design specification, table "watchdog action table").
//!
//! Our own register layout: the table is all that a driver knows of a watchdog.

use std::sync::Arc;

use device_model::{Clock, Device, Nanos, PortIo, PortRange, Timed};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

const NAME: &str = "watchdog";
/// Words of 16 bits; any value written to RESTART restarts the countdown.
const CONTROL: u16 = 0;
const LOAD: u16 = 2;
const COUNT: u16 = 4;
const RESTART: u16 = 6;
/// CONTROL: counting down. Software's.
const RUNNING: u16 = 1 << 0;
/// CONTROL: it has run out since this was last cleared, by writing one.
const EXPIRED: u16 = 1 << 1;

/// What to do when a watchdog runs out. Called with the chip locked, as
/// [`crate::PowerEvents`] are.
pub type WatchdogExpiry = Arc<dyn Fn() + Send + Sync>;

/// The saved state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchdogState {
    load: u16,
    expired: bool,
    deadline: Option<Nanos>,
}

/// The timer: stopped after power-up and reset, when only the note that it has
/// expired stays, so that the guest can find out why it was reset.
pub struct Watchdog {
    // Runtime glue.
    clock: Clock,
    expiry: WatchdogExpiry,
    // Volatile state.
    /// Counts from a restart to the end.
    load: u16,
    expired: bool,
    /// When it runs out, if it runs.
    deadline: Option<Nanos>,
}

impl Watchdog {
    /// Its registers.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0x660, 8, 0)];
    /// Nanoseconds in a count: 100 ms.
    pub const PERIOD: Nanos = 100_000_000;
    /// The longest countdown, almost two hours.
    pub const MAX_COUNT: u16 = u16::MAX;
    /// The countdown after reset: 30 s.
    const DEFAULT_LOAD: u16 = 300;

    /// A stopped timer.
    pub fn new(clock: Clock, expiry: WatchdogExpiry) -> Self {
        Watchdog { clock, expiry, load: Self::DEFAULT_LOAD, expired: false, deadline: None }
    }

    fn restart(&mut self) {
        self.deadline = Some(self.clock.now().saturating_add(u64::from(self.load) * Self::PERIOD));
    }

    fn count(&self) -> u16 {
        let Some(deadline) = self.deadline else { return self.load };
        let left = deadline.saturating_sub(self.clock.now()).div_ceil(Self::PERIOD);
        left.min(Self::MAX_COUNT.into()) as u16
    }
}

impl Device for Watchdog {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        self.load = Self::DEFAULT_LOAD;
        self.deadline = None;
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PortIo for Watchdog {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        if size != 2 {
            return u32::MAX;
        }
        let running = if self.deadline.is_some() { RUNNING } else { 0 };
        let expired = if self.expired { EXPIRED } else { 0 };
        match offset {
            CONTROL => (running | expired).into(),
            LOAD => self.load.into(),
            COUNT => self.count().into(),
            RESTART => 0,
            _ => u32::MAX,
        }
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        if size != 2 {
            return;
        }
        let value = value as u16;
        match offset {
            CONTROL => {
                self.expired &= value & EXPIRED == 0;
                match (value & RUNNING != 0, self.deadline) {
                    (true, None) => self.restart(),
                    (false, Some(_)) => self.deadline = None,
                    _ => {}
                }
            }
            // A countdown of nothing would run out before the guest's next instruction.
            LOAD => self.load = value.max(1),
            RESTART if self.deadline.is_some() => self.restart(),
            _ => {}
        }
    }
}

impl Timed for Watchdog {
    fn next_deadline(&self) -> Option<Nanos> {
        self.deadline
    }
    fn expire(&mut self, now: Nanos) {
        if self.deadline.is_some_and(|d| now >= d) {
            self.deadline = None;
            self.expired = true;
            (self.expiry)();
        }
    }
}

impl Saved for Watchdog {
    type State = WatchdogState;
    const VERSION: u16 = 1;

    fn save(&self) -> WatchdogState {
        let Watchdog { clock: _, expiry: _, load, expired, deadline } = self;
        WatchdogState { load: *load, expired: *expired, deadline: *deadline }
    }

    fn restore(&mut self, state: &WatchdogState) -> Result<(), StateError> {
        let WatchdogState { load, expired, deadline } = state;
        StateError::check(*load > 0, NAME, "countdown", *load, "1 to 65535")?;
        (self.load, self.expired, self.deadline) = (*load, *expired, *deadline);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn watchdog() -> (Watchdog, Clock, Arc<AtomicU32>) {
        let clock = Clock::virtual_time(1_000_000, 0);
        let ends = Arc::new(AtomicU32::new(0));
        let seen = ends.clone();
        let expiry: WatchdogExpiry = Arc::new(move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        (Watchdog::new(clock.clone(), expiry), clock, ends)
    }

    fn pass(w: &mut Watchdog, clock: &Clock, counts: u64) {
        clock.advance(counts * Watchdog::PERIOD);
        if w.next_deadline().is_some_and(|d| clock.now() >= d) {
            w.expire(clock.now());
        }
    }

    #[test]
    fn it_runs_out_unless_restarted() {
        let (mut w, clock, ends) = watchdog();
        pass(&mut w, &clock, 100_000);
        assert_eq!((ends.load(Ordering::Relaxed), w.port_read(COUNT, 2)), (0, 300), "stopped");
        w.port_write(LOAD, 2, 10);
        w.port_write(RESTART, 2, 1);
        assert_eq!(w.next_deadline(), None, "a restart does not start it");
        w.port_write(CONTROL, 2, RUNNING.into());
        for _ in 0..5 {
            pass(&mut w, &clock, 9);
            assert_eq!((w.port_read(COUNT, 2), w.port_read(CONTROL, 2)), (1, RUNNING.into()));
            w.port_write(CONTROL, 2, RUNNING.into());
            assert_eq!(w.port_read(COUNT, 2), 1, "starting what runs changes nothing");
            w.port_write(RESTART, 2, 0);
            assert_eq!(w.port_read(COUNT, 2), 10);
        }
        pass(&mut w, &clock, 10);
        assert_eq!((ends.load(Ordering::Relaxed), w.port_read(CONTROL, 2)), (1, EXPIRED.into()));
        pass(&mut w, &clock, 100);
        assert_eq!(ends.load(Ordering::Relaxed), 1);
        w.reset();
        assert_eq!(w.port_read(CONTROL, 2), EXPIRED.into(), "the cause outlives the reset");
        w.port_write(CONTROL, 2, EXPIRED.into());
        assert_eq!(w.port_read(CONTROL, 2), 0);
    }

    #[test]
    fn stopped_it_does_nothing() {
        let (mut w, clock, ends) = watchdog();
        w.port_write(CONTROL, 2, RUNNING.into());
        w.port_write(CONTROL, 2, 0);
        pass(&mut w, &clock, 1000);
        assert_eq!(ends.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn odd_accesses_and_values_do_no_harm() {
        let (mut w, clock, _) = watchdog();
        for size in [1, 4] {
            assert_eq!(w.port_read(COUNT, size), u32::MAX);
            w.port_write(CONTROL, size, 1);
        }
        assert_eq!((w.port_read(1, 2), w.port_read(8, 2), w.next_deadline()), (u32::MAX, u32::MAX, None));
        w.port_write(LOAD, 2, 0);
        w.port_write(CONTROL, 2, 1);
        assert_eq!(w.next_deadline(), Some(clock.now() + Watchdog::PERIOD));
    }

    #[test]
    fn state_goes_round_and_is_checked() {
        let (mut w, clock, ends) = watchdog();
        w.port_write(LOAD, 2, 7);
        w.port_write(CONTROL, 2, 1);
        let state = w.save();
        let (mut other, ..) = watchdog();
        other.restore(&state).unwrap();
        assert_eq!(other.save(), state);
        assert!(other.restore(&WatchdogState { load: 0, ..state }).is_err());
        pass(&mut w, &clock, 7);
        assert_eq!(ends.load(Ordering::Relaxed), 1);
    }
}
