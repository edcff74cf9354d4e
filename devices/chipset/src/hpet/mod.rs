//! The high precision event timer (IA-PC HPET specification 1.0a).

#[cfg(test)]
mod tests;
mod timer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use device_model::{Clock, Device, IrqLine, IrqSink, Mmio, Nanos, Timed};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use timer::{ENABLED, LEVEL, PERIODIC, Timer};

const NAME: &str = "hpet";
const TIMERS: usize = 3;
/// Nanoseconds of a tick: 100 MHz.
const TICK_NS: u64 = 10;
const TICK_FS: u64 = TICK_NS * 1_000_000;
/// GSIs that a timer can be routed to: those that PCI interrupts leave free.
const ROUTES: u32 = 0x00f0_0000;
/// Interrupts of one timer come no closer than this, in nanoseconds, so that a
/// tiny period cannot keep a host thread busy.
const MIN_INTERVAL_NS: u64 = 20_000;

/// Period, Intel, legacy routing, 64-bit counter, count of timers, revision.
const CAPABILITIES: u64 = TICK_FS << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;
const RUNNING: u64 = 1 << 0;
const LEGACY: u64 = 1 << 1;

const REG_CAPABILITIES: u64 = 0x000;
const REG_CONFIG: u64 = 0x010;
const REG_STATUS: u64 = 0x020;
const REG_COUNTER: u64 = 0x0f0;
const REG_TIMERS: u64 = 0x100;

/// The interrupt lines an HPET can drive.
pub struct HpetLines {
    /// Lines by GSI, 0-23.
    pub gsi: Vec<IrqLine>,
    /// Timer 0's line in legacy replacement mode.
    pub pit_irq0: IrqLine,
    /// Timer 1's line in legacy replacement mode.
    pub rtc_irq8: IrqLine,
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HpetState {
    config: u64,
    status: u64,
    base: u64,
    timers: [Timer; TIMERS],
    not_before: [u64; TIMERS],
}

/// The HPET.
pub struct Hpet {
    // Runtime glue.
    clock: Clock,
    lines: HpetLines,
    /// Legacy replacement routing is on; shared with the gates.
    legacy: Arc<AtomicBool>,
    // Volatile state.
    config: u64,
    status: u64,
    /// The counter while halted; while running, the counter minus the clock's ticks.
    base: u64,
    timers: [Timer; TIMERS],
    /// No interrupt of this timer before this time.
    not_before: [Nanos; TIMERS],
}

/// A line that is cut while legacy replacement routing is on.
struct Gate {
    line: IrqLine,
    legacy: Arc<AtomicBool>,
}

impl IrqSink for Gate {
    fn set_level(&self, _: u32, asserted: bool) {
        if !asserted || !self.legacy.load(Ordering::Relaxed) {
            self.line.set(asserted);
        }
    }
}

impl Hpet {
    /// Where PCs have it.
    pub const BASE: u64 = 0xfed0_0000;
    /// Bytes it decodes.
    pub const SIZE: u64 = 0x400;
    /// Event timer block ID for the ACPI table: the low half of the capabilities.
    pub const BLOCK_ID: u32 = CAPABILITIES as u32;

    /// An HPET after power-up: halted.
    pub fn new(clock: Clock, lines: HpetLines) -> Self {
        Hpet {
            clock,
            lines,
            legacy: Arc::default(),
            config: 0,
            status: 0,
            base: 0,
            timers: std::array::from_fn(|_| Timer::new()),
            not_before: [0; TIMERS],
        }
    }

    /// The PIT's or RTC's way to `line`: cut while this HPET replaces them.
    pub fn gate(&self, line: IrqLine) -> IrqLine {
        IrqLine::new(Arc::new(Gate { line, legacy: self.legacy.clone() }), 0)
    }

    fn running(&self) -> bool {
        self.config & RUNNING != 0
    }

    fn counter(&self, now: Nanos) -> u64 {
        match self.running() {
            true => self.base.wrapping_add(now / TICK_NS),
            false => self.base,
        }
    }

    fn line(&self, n: usize) -> Option<&IrqLine> {
        match (self.config & LEGACY != 0, n) {
            (true, 0) => Some(&self.lines.pit_irq0),
            (true, 1) => Some(&self.lines.rtc_irq8),
            _ if ROUTES & 1 << self.timers[n].route() == 0 => None,
            _ => self.lines.gsi.get(self.timers[n].route()),
        }
    }

    /// Let the timers whose comparator has matched interrupt.
    fn run(&mut self, now: Nanos) {
        if !self.running() {
            return;
        }
        let counter = self.counter(now);
        for n in 0..TIMERS {
            if now < self.not_before[n] || !self.timers[n].run(counter) || !self.timers[n].has(ENABLED) {
                continue;
            }
            if self.timers[n].has(PERIODIC) {
                self.not_before[n] = now.saturating_add(MIN_INTERVAL_NS);
            }
            if self.timers[n].has(LEVEL) {
                self.status |= 1 << n;
                self.drive(n);
            } else if let Some(line) = self.line(n) {
                line.pulse();
            }
        }
    }

    /// Put a level-triggered timer's status on its line.
    fn drive(&self, n: usize) {
        if let Some(line) = self.line(n) {
            line.set(self.status & 1 << n != 0);
        }
    }

    /// The timer and register within it.
    fn timer_register(register: u64) -> Option<(usize, u64)> {
        let n = (register.checked_sub(REG_TIMERS)? / 0x20) as usize;
        (n < TIMERS).then_some((n, register % 0x20))
    }

    fn read_register(&self, register: u64, now: Nanos) -> u64 {
        match register {
            REG_CAPABILITIES => CAPABILITIES,
            REG_CONFIG => self.config,
            REG_STATUS => self.status,
            REG_COUNTER => self.counter(now),
            _ => match Self::timer_register(register) {
                Some((n, 0)) => self.timers[n].config_register(),
                Some((n, 8)) => self.timers[n].comparator(),
                _ => 0,
            },
        }
    }

    /// Write the bits of `mask`.
    fn write_register(&mut self, register: u64, value: u64, mask: u64, now: Nanos) {
        let merged = self.read_register(register, now) & !mask | value & mask;
        match register {
            REG_CONFIG => self.write_config(merged & (RUNNING | LEGACY), now),
            REG_STATUS => {
                let cleared = self.status & value & mask;
                self.status &= !cleared;
                (0..TIMERS).filter(|n| cleared & 1 << n != 0).for_each(|n| self.drive(n));
            }
            // The counter can be set only while it is halted.
            REG_COUNTER if !self.running() => {
                self.base = merged;
                self.restart(merged);
            }
            _ => match Self::timer_register(register) {
                Some((n, 0)) => self.write_timer_config(n, merged),
                Some((n, 8)) => {
                    let counter = self.counter(now);
                    self.timers[n].write_comparator(value, mask, counter);
                }
                _ => {}
            },
        }
    }

    fn restart(&mut self, counter: u64) {
        self.timers.iter_mut().for_each(|t| t.restart(counter));
    }

    fn write_config(&mut self, config: u64, now: Nanos) {
        let counter = self.counter(now);
        let was_running = self.running();
        self.release_lines();
        self.config = config;
        self.legacy.store(config & LEGACY != 0, Ordering::Relaxed);
        match (was_running, self.running()) {
            (false, true) => {
                self.base = counter.wrapping_sub(now / TICK_NS);
                self.restart(counter);
            }
            (true, false) => self.base = counter,
            _ => {}
        }
        (0..TIMERS).for_each(|n| self.drive_if_level(n));
    }

    fn write_timer_config(&mut self, n: usize, value: u64) {
        self.release(n);
        self.timers[n].write_config(value);
        if !self.timers[n].has(LEVEL) || !self.timers[n].has(ENABLED) {
            self.status &= !(1 << n);
        }
        self.drive_if_level(n);
    }

    fn drive_if_level(&self, n: usize) {
        if self.status & 1 << n != 0 {
            self.drive(n);
        }
    }

    /// Release a line that is held, before its routing changes.
    fn release(&self, n: usize) {
        if let Some(line) = self.line(n).filter(|_| self.status & 1 << n != 0) {
            line.set(false);
        }
    }

    fn release_lines(&self) {
        (0..TIMERS).for_each(|n| self.release(n));
    }
}

impl Device for Hpet {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        self.release_lines();
        self.config = 0;
        self.status = 0;
        self.base = 0;
        self.timers = std::array::from_fn(|_| Timer::new());
        self.not_before = [0; TIMERS];
        self.legacy.store(false, Ordering::Relaxed);
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

/// Bits of a register's 64 that an access covers.
fn covered(offset: u64, size: u8) -> (u64, u32) {
    let shift = (offset & 7) as u32 * 8;
    let mask = if size >= 8 { u64::MAX } else { (1 << (u32::from(size) * 8)) - 1 };
    (mask, shift)
}

impl Mmio for Hpet {
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64 {
        let now = self.clock.now();
        self.run(now);
        let (mask, shift) = covered(offset, size);
        self.read_register(offset & !7, now) >> shift & mask
    }

    /// Registers take 32- and 64-bit writes.
    fn mmio_write(&mut self, offset: u64, size: u8, value: u64) {
        let now = self.clock.now();
        self.run(now);
        if size >= 4 {
            let (mask, shift) = covered(offset, size);
            self.write_register(offset & !7, value << shift, mask << shift, now);
        }
    }
}

impl Timed for Hpet {
    fn next_deadline(&self) -> Option<Nanos> {
        if !self.running() {
            return None;
        }
        // A running counter is base plus clock ticks, both modulo 2^64.
        let time_of = |t: &Timer| t.ticks_since(self.base)?.checked_mul(TICK_NS);
        let timers = self.timers.iter().zip(self.not_before).filter(|(t, _)| t.has(ENABLED));
        timers.filter_map(|(t, not_before)| time_of(t).map(|at| at.max(not_before))).min()
    }
    fn expire(&mut self, now: Nanos) {
        self.run(now);
    }
}

impl Saved for Hpet {
    type State = HpetState;
    const VERSION: u16 = 1;

    fn save(&self) -> HpetState {
        let Hpet { clock: _, lines: _, legacy: _, config, status, base, timers, not_before } = self;
        HpetState {
            config: *config,
            status: *status,
            base: *base,
            timers: timers.clone(),
            not_before: *not_before,
        }
    }

    fn restore(&mut self, state: &HpetState) -> Result<(), StateError> {
        let HpetState { config, status, base, timers, not_before } = state;
        StateError::check(config & !(RUNNING | LEGACY) == 0, NAME, "config", *config, "bits 1-0")?;
        StateError::check(status >> TIMERS == 0, NAME, "status", *status, "a bit for each timer")?;
        timers.iter().try_for_each(Timer::check)?;
        self.release_lines();
        self.config = *config;
        self.status = *status;
        self.base = *base;
        self.timers = timers.clone();
        self.not_before = *not_before;
        self.legacy.store(config & LEGACY != 0, Ordering::Relaxed);
        (0..TIMERS).for_each(|n| self.drive_if_level(n));
        Ok(())
    }
}
