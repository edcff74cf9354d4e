//! The MC146818 real-time clock and CMOS memory.

mod calendar;
#[cfg(test)]
mod tests;

use device_model::{Clock, Device, IrqLine, Nanos, PortIo, PortRange, Timed};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::byte_ports;
use calendar::Civil;

const NAME: &str = "rtc";
const SECOND: u64 = 1_000_000_000;
/// Time between the update-in-progress flag and the update, in nanoseconds.
const UPDATE_WARNING: u64 = 244_000;
/// The periodic interrupt's base clock.
const CRYSTAL_HZ: u128 = 32_768;

const SECONDS: usize = 0x00;
const SECONDS_ALARM: usize = 0x01;
const MINUTES: usize = 0x02;
const MINUTES_ALARM: usize = 0x03;
const HOURS: usize = 0x04;
const HOURS_ALARM: usize = 0x05;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const REG_A: usize = 0x0a;
const REG_B: usize = 0x0b;
const REG_C: usize = 0x0c;
const REG_D: usize = 0x0d;
/// Where the FADT says the century is.
const CENTURY: usize = 0x32;

const A_UPDATING: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_INTERRUPT: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
const C_FLAGS: u8 = C_PERIODIC | C_ALARM | C_UPDATE;
/// VRT: memory and time are valid.
const D_VALID: u8 = 0x80;
/// Alarm values from here on match anything.
const ANY: u8 = 0xc0;

/// What the CMOS memory tells firmware.
#[derive(Debug, Clone, Copy, Default)]
pub struct RtcConfig {
    /// Bytes of RAM from address 0.
    pub ram_below_4g: u64,
    /// Bytes of RAM from 4 GiB.
    pub ram_above_4g: u64,
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    cmos: Vec<u8>,
    index: u8,
    offset: i64,
    flags: u8,
    seen: u64,
}

/// The RTC.
pub struct Rtc {
    // Runtime glue.
    clock: Clock,
    irq8: IrqLine,
    // Volatile state.
    /// Battery-backed bytes. The time is kept as `offset` unless B_SET is on.
    cmos: [u8; 128],
    index: u8,
    /// Seconds the guest has set its clock ahead of the machine's UTC.
    offset: i64,
    /// Register C.
    flags: u8,
    /// Guest time up to which events are in `flags`.
    seen: Nanos,
}

impl Rtc {
    /// Index and data.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0x70, 2, 0)];

    /// A clock that shows UTC. `irq8` is a level.
    pub fn new(clock: Clock, irq8: IrqLine, config: RtcConfig) -> Self {
        let seen = clock.now();
        let cmos = Self::memory(&config);
        Rtc { clock, irq8, cmos, index: 0, offset: 0, flags: 0, seen }
    }

    fn memory(config: &RtcConfig) -> [u8; 128] {
        let mut cmos = [0u8; 128];
        cmos[REG_A] = 0x26;
        cmos[REG_B] = B_24_HOURS;
        cmos[REG_D] = D_VALID;
        let mut word = |at: usize, value: u64, most: u64| {
            cmos[at..at + 2].copy_from_slice(&(value.min(most) as u16).to_le_bytes());
        };
        let kib = config.ram_below_4g >> 10;
        word(0x15, kib, 640);
        word(0x17, kib.saturating_sub(1024), 0xffff);
        word(0x30, kib.saturating_sub(1024), 0xffff);
        word(0x34, (config.ram_below_4g >> 16).saturating_sub(256), 0xffff);
        let above = (config.ram_above_4g >> 16).min(0xff_ffff).to_le_bytes();
        cmos[0x5b..0x5e].copy_from_slice(&above[..3]);
        // Equipment: coprocessor, PS/2 mouse.
        cmos[0x14] = 0x06;
        let sum: u16 = cmos[0x10..0x2e].iter().map(|&b| u16::from(b)).sum();
        cmos[0x2e..0x30].copy_from_slice(&sum.to_be_bytes());
        cmos
    }

    /// Set a CMOS byte that firmware reads, such as the boot order; the time and
    /// control registers (below 0x0e) and addresses above 0x7f are left alone.
    pub fn set_cmos(&mut self, address: u8, value: u8) {
        if (0x0e..0x80).contains(&address) {
            self.cmos[usize::from(address)] = value;
        }
    }

    /// UTC nanoseconds as the chip keeps it.
    fn wall(&self, now: Nanos) -> i128 {
        i128::from(self.clock.wall_at(now)) + i128::from(self.offset) * i128::from(SECOND)
    }

    fn seconds(&self, now: Nanos) -> i64 {
        self.wall(now).div_euclid(i128::from(SECOND)) as i64
    }

    /// Nanoseconds into the current second.
    fn fraction(&self, now: Nanos) -> u64 {
        self.wall(now).rem_euclid(i128::from(SECOND)) as u64
    }

    fn stopped(&self) -> bool {
        // SET, or the divider chain held in reset or off its rate.
        self.cmos[REG_B] & B_SET != 0 || self.cmos[REG_A] & 0x70 != 0x20
    }

    fn encode(&self, v: u8) -> u8 {
        if self.cmos[REG_B] & B_BINARY != 0 { v } else { (v / 10 * 16) + v % 10 }
    }

    fn decode(&self, v: u8) -> u8 {
        if self.cmos[REG_B] & B_BINARY != 0 { v } else { (v >> 4).wrapping_mul(10).wrapping_add(v & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.cmos[REG_B] & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, v: u8) -> u8 {
        if self.cmos[REG_B] & B_24_HOURS != 0 {
            return self.decode(v);
        }
        self.decode(v & 0x7f) % 12 + if v & 0x80 != 0 { 12 } else { 0 }
    }

    /// Write the time at `now` into the registers.
    fn latch_time(&mut self, now: Nanos) {
        let c = Civil::from_seconds(self.seconds(now));
        let year = c.year.rem_euclid(10_000);
        for (register, value) in [
            (SECONDS, self.encode(c.second)),
            (MINUTES, self.encode(c.minute)),
            (HOURS, self.encode_hour(c.hour)),
            (WEEKDAY, self.encode(c.weekday())),
            (DAY, self.encode(c.day)),
            (MONTH, self.encode(c.month)),
            (YEAR, self.encode((year % 100) as u8)),
            (CENTURY, self.encode((year / 100) as u8)),
        ] {
            self.cmos[register] = value;
        }
    }

    /// Take the time from the registers.
    fn set_time(&mut self, now: Nanos) {
        let c = Civil {
            year: i64::from(self.decode(self.cmos[CENTURY])) * 100 + i64::from(self.decode(self.cmos[YEAR])),
            month: self.decode(self.cmos[MONTH]).clamp(1, 12),
            day: self.decode(self.cmos[DAY]).clamp(1, 31),
            hour: self.decode_hour(self.cmos[HOURS]),
            minute: self.decode(self.cmos[MINUTES]),
            second: self.decode(self.cmos[SECONDS]),
        };
        self.offset = 0;
        self.offset = c.seconds() - self.seconds(now);
    }

    /// The periodic interrupt's interval in crystal ticks; `None` when off.
    fn periodic_ticks(&self) -> Option<u64> {
        match self.cmos[REG_A] & 0xf {
            0 => None,
            // The two fastest settings repeat slower ones.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    fn crystal(now: Nanos) -> u64 {
        (u128::from(now) * CRYSTAL_HZ / u128::from(SECOND)) as u64
    }

    fn crystal_time(tick: u64) -> Nanos {
        (u128::from(tick) * u128::from(SECOND)).div_ceil(CRYSTAL_HZ) as u64
    }

    /// Seconds from second-of-time `from` (exclusive) to the alarm's next match, at most a day.
    fn alarm_after(&self, from: i64) -> Option<u64> {
        let field = |register: usize, most: u8, decoded: u8| match self.cmos[register] {
            v if v >= ANY => Some(None),
            _ if decoded <= most => Some(Some(i64::from(decoded))),
            _ => None,
        };
        let second = field(SECONDS_ALARM, 59, self.decode(self.cmos[SECONDS_ALARM]))?;
        let minute = field(MINUTES_ALARM, 59, self.decode(self.cmos[MINUTES_ALARM]))?;
        let hour = field(HOURS_ALARM, 23, self.decode_hour(self.cmos[HOURS_ALARM]))?;
        let start = from.rem_euclid(86_400) + 1;
        let mut t = start;
        // Skips whole hours and minutes: at most 24 + 60 + 60 steps a day.
        while t <= start + 86_400 {
            if hour.is_some_and(|h| t / 3600 % 24 != h) {
                t = (t / 3600 + 1) * 3600;
            } else if minute.is_some_and(|m| t / 60 % 60 != m) {
                t = (t / 60 + 1) * 60;
            } else if second.is_some_and(|s| t % 60 != s) {
                t += 1;
            } else {
                return Some((t - start + 1) as u64);
            }
        }
        None
    }

    /// Note the events between `seen` and `now`.
    fn advance(&mut self, now: Nanos) {
        let (since, now) = (self.seen, now.max(self.seen));
        self.seen = now;
        let periods = |p: u64| Self::crystal(now) / p > Self::crystal(since) / p;
        if self.periodic_ticks().is_some_and(periods) {
            self.flags |= C_PERIODIC;
        }
        if !self.stopped() {
            let (before, after) = (self.seconds(since), self.seconds(now));
            if after > before {
                self.flags |= C_UPDATE;
                if self.alarm_after(before).is_some_and(|s| s <= (after - before) as u64) {
                    self.flags |= C_ALARM;
                }
            }
        }
        self.drive();
    }

    fn drive(&mut self) {
        let active = self.flags & self.cmos[REG_B] & C_FLAGS != 0;
        self.flags = self.flags & C_FLAGS | if active { C_INTERRUPT } else { 0 };
        self.irq8.set(active);
    }

    fn read(&mut self, register: usize, now: Nanos) -> u8 {
        match register {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                if !self.stopped() {
                    self.latch_time(now);
                }
                self.cmos[register]
            }
            REG_A => {
                let updating = !self.stopped() && self.fraction(now) >= SECOND - UPDATE_WARNING;
                self.cmos[REG_A] | if updating { A_UPDATING } else { 0 }
            }
            REG_C => {
                let flags = std::mem::take(&mut self.flags);
                self.drive();
                flags
            }
            _ => self.cmos[register],
        }
    }

    fn write(&mut self, register: usize, value: u8, now: Nanos) {
        match register {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                if self.stopped() {
                    self.cmos[register] = value;
                } else {
                    self.latch_time(now);
                    self.cmos[register] = value;
                    self.set_time(now);
                }
            }
            REG_A | REG_B => {
                if !self.stopped() {
                    self.latch_time(now);
                }
                let was_stopped = self.stopped();
                self.cmos[register] = value & if register == REG_A { 0x7f } else { 0xff };
                if value & B_SET != 0 && register == REG_B {
                    // SET also clears update-ended interrupt enable.
                    self.cmos[REG_B] &= !C_UPDATE;
                }
                if was_stopped && !self.stopped() {
                    self.set_time(now);
                }
                self.drive();
            }
            REG_C | REG_D => {}
            _ => self.cmos[register] = value,
        }
    }
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        NAME
    }
    /// The battery keeps memory and time; interrupts are disabled (MC146818, RESET pin).
    fn reset(&mut self) {
        self.cmos[REG_B] &= !C_FLAGS;
        self.index = 0;
        self.flags = 0;
        self.drive();
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PortIo for Rtc {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let now = self.clock.now();
        self.advance(now);
        byte_ports::read(offset, size, |o| match o {
            1 => self.read(usize::from(self.index), now),
            _ => 0xff,
        })
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let now = self.clock.now();
        self.advance(now);
        byte_ports::write(offset, size, value, |o, v| match o {
            // Bit 7 masks NMI, which this machine leaves to the local APICs.
            0 => self.index = v & 0x7f,
            1 => self.write(usize::from(self.index), v, now),
            _ => {}
        });
    }
}

impl Timed for Rtc {
    fn next_deadline(&self) -> Option<Nanos> {
        let enabled = self.cmos[REG_B] & C_FLAGS & !self.flags;
        let now = self.seen;
        let periodic = self
            .periodic_ticks()
            .filter(|_| enabled & C_PERIODIC != 0)
            .map(|p| Self::crystal_time((Self::crystal(now) / p + 1) * p));
        let update_in = SECOND - self.fraction(now);
        let running = |flag| !self.stopped() && enabled & flag != 0;
        let update = running(C_UPDATE).then_some(1);
        let alarm = running(C_ALARM).then(|| self.alarm_after(self.seconds(now))).flatten();
        let second = |n: u64| now.saturating_add(update_in).saturating_add((n - 1) * SECOND);
        [periodic, update.map(second), alarm.map(second)].into_iter().flatten().min()
    }
    fn expire(&mut self, now: Nanos) {
        self.advance(now);
    }
}

impl Saved for Rtc {
    type State = RtcState;
    const VERSION: u16 = 1;

    fn save(&self) -> RtcState {
        let Rtc { clock: _, irq8: _, cmos, index, offset, flags, seen } = self;
        RtcState { cmos: cmos.to_vec(), index: *index, offset: *offset, flags: *flags, seen: *seen }
    }

    fn restore(&mut self, state: &RtcState) -> Result<(), StateError> {
        /// Thirty thousand years: more than the registers can express, and no overflow.
        const MAX_OFFSET: u64 = 1_000_000_000_000;
        let RtcState { cmos, index, offset, flags, seen } = state;
        let cmos: [u8; 128] = cmos.as_slice().try_into().map_err(|_| StateError::OutOfRange {
            device: NAME,
            field: "cmos",
            value: cmos.len() as u64,
            allowed: "128 bytes",
        })?;
        StateError::check(cmos[REG_A] & A_UPDATING == 0, NAME, "register A", cmos[REG_A], "bit 7 clear")?;
        StateError::check(*index < 0x80, NAME, "index", *index, "0-127")?;
        StateError::check(
            offset.unsigned_abs() <= MAX_OFFSET,
            NAME,
            "offset",
            *offset as u64,
            "thirty thousand years",
        )?;
        StateError::check(flags & !(C_FLAGS | C_INTERRUPT) == 0, NAME, "flags", *flags, "bits 7-4")?;
        self.cmos = cmos;
        self.index = *index;
        self.offset = *offset;
        self.flags = *flags;
        self.seen = *seen;
        self.drive();
        Ok(())
    }
}
