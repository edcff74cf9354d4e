//! One 8254 counter. All time is in ticks of the input clock since power-on.

use saved_state::StateError;
use serde::{Deserialize, Serialize};

use super::NAME;

/// How counts are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Access {
    Low,
    High,
    Word,
}

/// What the counting element does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Counting {
    /// A control word was written, but no count.
    Idle,
    /// Modes 1 and 5: loaded, waiting for the gate to rise.
    Armed,
    /// Since this tick.
    Since(u64),
    /// The gate is low after so many ticks.
    Paused(u64),
}

/// One counter; also its saved form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// 0-5.
    mode: u8,
    bcd: bool,
    access: Access,
    /// Period in ticks, 1-65536.
    count: u32,
    /// Modes 2 and 3: the count that the next period begins with.
    next_count: Option<u32>,
    pub(super) counting: Counting,
    gate: bool,
    /// Low byte of a count whose high byte has not been written.
    write_low: Option<u8>,
    /// Word access: the next read gives the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    pub(super) fn new(gate: bool) -> Self {
        Channel {
            mode: 0,
            bcd: false,
            access: Access::Word,
            count: 0x1_0000,
            next_count: None,
            counting: Counting::Idle,
            gate,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    pub(super) fn gate(&self) -> bool {
        self.gate
    }

    pub(super) fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn triggered(&self) -> bool {
        matches!(self.mode, 1 | 5)
    }

    /// One is illegal for the periodic modes; a period of two keeps them defined.
    fn least_count(&self) -> u32 {
        if self.periodic() { 2 } else { 1 }
    }

    /// Ticks since the count was loaded.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.counting {
            Counting::Since(start) => Some(now.saturating_sub(start)),
            Counting::Paused(elapsed) => Some(elapsed),
            Counting::Idle | Counting::Armed => None,
        }
    }

    /// Bring a waiting count into effect once the running period is over.
    pub(super) fn settle(&mut self, now: u64) {
        if let (Some(next), Counting::Since(start)) = (self.next_count, self.counting) {
            let end = start.saturating_add(u64::from(self.count));
            if now >= end {
                self.count = next;
                self.next_count = None;
                self.counting = Counting::Since(end);
            }
        }
    }

    /// The OUT pin.
    pub(super) fn out(&self, now: u64) -> bool {
        let count = u64::from(self.count);
        let Some(t) = self.elapsed(now) else { return self.mode != 0 };
        match self.mode {
            0 => t >= count,
            1 => t >= count,
            // A paused rate generator holds OUT high.
            2 | 3 if !self.gate => true,
            2 => t % count != count - 1,
            3 => t % count < count.div_ceil(2),
            _ => t != count,
        }
    }

    /// The first tick after `now` at which OUT rises.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        let Counting::Since(start) = self.counting else { return None };
        let count = u64::from(self.count);
        let first = start.saturating_add(count);
        match self.mode {
            _ if first > now => Some(first),
            2 | 3 => Some(now + count - (now - start) % count),
            _ => None,
        }
    }

    /// The counter as it would be read, already in BCD where asked for.
    fn value(&self, now: u64) -> u16 {
        let count = u64::from(self.count);
        let base = if self.bcd { 10_000 } else { 0x1_0000 };
        let left = match self.elapsed(now) {
            None => count,
            Some(t) => match self.mode {
                2 => count - t % count,
                // Counts down by two, twice in a period; odd counts from one less.
                3 => (count & !1).saturating_sub(2 * t % count.max(2)).max(count & 1),
                // Goes on through zero.
                _ => (count % base + base - t % base) % base,
            },
        };
        match self.bcd {
            true => to_bcd((left % base) as u16),
            false => left as u16,
        }
    }

    fn status(&self, now: u64) -> u8 {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Word => 3,
        };
        let null_count = self.counting == Counting::Idle || self.next_count.is_some();
        u8::from(self.out(now)) << 7
            | u8::from(null_count) << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    pub(super) fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.value(now));
        }
    }

    pub(super) fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(now));
        }
    }

    /// A control word (not a latch command) for this counter.
    pub(super) fn control(&mut self, word: u8) {
        let mode = word >> 1 & 7;
        self.mode = if mode > 5 { mode - 4 } else { mode };
        self.bcd = word & 1 != 0;
        self.access = match word >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Word,
        };
        self.counting = Counting::Idle;
        self.count = self.least_count().max(self.count);
        self.next_count = None;
        self.write_low = None;
        self.read_high = false;
        self.latched_count = None;
        self.latched_status = None;
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let value = self.latched_count.unwrap_or_else(|| self.value(now));
        let [low, high] = value.to_le_bytes();
        let (byte, last) = match (self.access, self.read_high) {
            (Access::Low, _) => (low, true),
            (Access::High, _) => (high, true),
            (Access::Word, false) => (low, false),
            (Access::Word, true) => (high, true),
        };
        self.read_high = self.access == Access::Word && !last;
        if last {
            self.latched_count = None;
        }
        byte
    }

    pub(super) fn write(&mut self, value: u8, now: u64) {
        match (self.access, self.write_low) {
            (Access::Low, _) => self.load(u16::from(value), now),
            (Access::High, _) => self.load(u16::from(value) << 8, now),
            (Access::Word, None) => {
                self.write_low = Some(value);
                if self.mode == 0 {
                    // The first byte stops mode 0 and OUT goes low.
                    self.counting = Counting::Idle;
                }
            }
            (Access::Word, Some(low)) => {
                self.write_low = None;
                self.load(u16::from_le_bytes([low, value]), now);
            }
        }
    }

    fn load(&mut self, value: u16, now: u64) {
        let count = match (value, self.bcd) {
            (0, true) => 10_000,
            (0, false) => 0x1_0000,
            (v, true) => from_bcd(v),
            (v, false) => u32::from(v),
        };
        let count = self.least_count().max(count);
        match self.counting {
            Counting::Since(_) | Counting::Paused(_) if self.periodic() => self.next_count = Some(count),
            // A running one-shot keeps its count until the next trigger.
            Counting::Since(_) if self.triggered() => self.next_count = Some(count),
            _ => {
                self.count = count;
                self.counting = match (self.triggered(), self.gate) {
                    (true, _) => Counting::Armed,
                    (false, true) => Counting::Since(now),
                    (false, false) => Counting::Paused(0),
                };
            }
        }
    }

    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        let (rises, falls) = (gate && !self.gate, !gate && self.gate);
        self.gate = gate;
        match self.counting {
            Counting::Idle => {}
            _ if self.triggered() && rises => self.reload(now),
            _ if self.triggered() => {}
            Counting::Since(start) if falls => self.counting = Counting::Paused(now.saturating_sub(start)),
            // The periodic modes begin anew, the others go on.
            Counting::Paused(_) if rises && self.periodic() => self.reload(now),
            Counting::Paused(elapsed) if rises => {
                self.counting = Counting::Since(now.saturating_sub(elapsed));
            }
            _ => {}
        }
    }

    fn reload(&mut self, now: u64) {
        self.count = self.next_count.take().unwrap_or(self.count);
        self.counting = Counting::Since(now);
    }

    pub(super) fn check(&self) -> Result<(), StateError> {
        let Channel {
            mode,
            bcd: _,
            access: _,
            count,
            next_count,
            counting: _,
            gate: _,
            write_low: _,
            read_high: _,
            latched_count: _,
            latched_status: _,
        } = self;
        StateError::check(*mode <= 5, NAME, "mode", *mode, "0-5")?;
        for count in [Some(*count), *next_count].into_iter().flatten() {
            StateError::check((1..=0x1_0000).contains(&count), NAME, "count", count, "1-65536")?;
            StateError::check(
                !self.periodic() || count > 1,
                NAME,
                "count",
                count,
                "2-65536 in modes 2 and 3",
            )?;
        }
        Ok(())
    }
}

fn to_bcd(v: u16) -> u16 {
    (0..4).fold(0, |bcd, digit| bcd | (v / 10u16.pow(digit) % 10) << (4 * digit))
}

/// Digits above nine count as what they are.
fn from_bcd(v: u16) -> u32 {
    (0..4).map(|digit| u32::from(v >> (4 * digit) & 0xf) * 10u32.pow(digit)).sum::<u32>().min(0x1_0000)
}
