//! The APIC timer (SDM volume 3, 12.5.4).

use device_model::{Clock, Nanos};

/// Nanoseconds of one tick before division: the bus clock is 1 GHz, which is
/// also what the hypervisor CPUID leaf states.
const BUS_TICK_NS: u64 = 1;
/// Periodic timers fire no more often than this, in nanoseconds, so that a tiny
/// count cannot keep a host thread busy.
pub(super) const MIN_PERIOD_NS: u64 = 20_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl TimerMode {
    /// Bits 18:17 of the LVT entry; the reserved value counts as one-shot.
    pub(super) fn of(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::OneShot,
        }
    }
}

/// Counting state; the mode lies in the LVT.
#[derive(Debug, Clone, Default)]
pub(super) struct Timer {
    pub(super) initial: u32,
    /// Divide configuration register.
    pub(super) divide: u32,
    /// When the current period began; modulo 2^64, since a change of rate can put it before power-on.
    pub(super) start: Nanos,
    /// One-shot: it has counted down.
    pub(super) over: bool,
    /// IA32_TSC_DEADLINE in the clock's ticks, 0 when disarmed.
    pub(super) tsc_deadline: u64,
}

impl Timer {
    fn tick_ns(&self) -> u64 {
        let field = self.divide & 3 | self.divide >> 1 & 4;
        BUS_TICK_NS << ((field + 1) & 7)
    }

    /// Length of a countdown; at most 2^32 * 128.
    fn period_ns(&self) -> u64 {
        u64::from(self.initial) * self.tick_ns()
    }

    pub(super) fn deadline(&self, mode: TimerMode, clock: &Clock) -> Option<Nanos> {
        match mode {
            TimerMode::TscDeadline if self.tsc_deadline != 0 => Some(clock.time_of_tsc(self.tsc_deadline)),
            TimerMode::OneShot if self.initial != 0 && !self.over => {
                Some(self.start.wrapping_add(self.period_ns()))
            }
            TimerMode::Periodic if self.initial != 0 && !self.over => {
                Some(self.start.wrapping_add(self.period_ns().max(MIN_PERIOD_NS)))
            }
            _ => None,
        }
    }

    pub(super) fn current_count(&self, mode: TimerMode, now: Nanos) -> u32 {
        if self.initial == 0 {
            return 0;
        }
        let ticks = now.wrapping_sub(self.start) / self.tick_ns();
        match mode {
            TimerMode::TscDeadline => 0,
            // A one-shot count that has ended stays at zero until the next initial
            // count, in periodic mode too.
            TimerMode::OneShot | TimerMode::Periodic if self.over => 0,
            TimerMode::OneShot => self.initial - ticks.min(u64::from(self.initial)) as u32,
            TimerMode::Periodic => self.initial - (ticks % u64::from(self.initial)) as u32,
        }
    }

    pub(super) fn set_initial(&mut self, mode: TimerMode, value: u32, now: Nanos) {
        if mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = value;
        self.start = now;
        self.over = false;
    }

    /// The count goes on from where it is, at the new rate.
    pub(super) fn set_divide(&mut self, mode: TimerMode, value: u32, now: Nanos) {
        let done = u64::from(self.initial) - u64::from(self.current_count(mode, now).min(self.initial));
        self.divide = value;
        self.start = now.wrapping_sub(done * self.tick_ns());
    }

    /// A change to or from TSC-deadline mode disarms the timer.
    pub(super) fn change_mode(&mut self, from: TimerMode, to: TimerMode) {
        if from != to && (from == TimerMode::TscDeadline || to == TimerMode::TscDeadline) {
            self.initial = 0;
            self.over = false;
            self.tsc_deadline = 0;
        }
    }

    /// The deadline has passed: go on to the next period or stop. Missed periods are skipped.
    pub(super) fn expired(&mut self, mode: TimerMode, now: Nanos) {
        match mode {
            TimerMode::TscDeadline => self.tsc_deadline = 0,
            TimerMode::OneShot => self.over = true,
            TimerMode::Periodic => {
                let period = self.period_ns().max(1);
                self.start = now.wrapping_sub(now.wrapping_sub(self.start) % period);
            }
        }
    }
}
