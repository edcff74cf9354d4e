//! The 8254 interval timer and the system control port 0x61 beside it.

mod channel;
#[cfg(test)]
mod tests;

use device_model::{Clock, Device, IrqLine, Nanos, PortIo, PortRange, Timed};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::byte_ports;
use channel::Channel;

const NAME: &str = "pit";
/// Input clock in Hz.
const FREQUENCY: u128 = 1_193_182;
/// Ticks between memory refreshes (15.085 us), seen as a toggling bit.
const REFRESH_TICKS: u64 = 18;
const SPEAKER: usize = 2;
/// Least ticks between interrupts of a periodic mode, 20 us: a shorter period would
/// keep the host busy without the guest doing anything.
const MIN_INTERVAL_TICKS: u64 = 24;

/// Ticks of the input clock up to guest time `now`. Exact, so that no period drifts.
fn ticks(now: Nanos) -> u64 {
    (u128::from(now) * FREQUENCY / 1_000_000_000) as u64
}

/// Guest time of a tick, rounded up so that `ticks(time_of(t)) == t`.
fn time_of(tick: u64) -> Nanos {
    u64::try_from((u128::from(tick) * 1_000_000_000).div_ceil(FREQUENCY)).unwrap_or(Nanos::MAX)
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    channels: [Channel; 3],
    speaker_data: bool,
    next_irq: Option<u64>,
    not_before: u64,
}

/// The PIT: counter 0 interrupts, 1 is memory refresh of old, 2 is the speaker's.
pub struct Pit {
    // Runtime glue.
    clock: Clock,
    irq0: IrqLine,
    // Volatile state.
    channels: [Channel; 3],
    /// Port 0x61 bit 1.
    speaker_data: bool,
    /// Tick at which counter 0 interrupts next: when OUT rises, or at `not_before`.
    next_irq: Option<u64>,
    /// Periodic modes interrupt no sooner than at this tick.
    not_before: u64,
}

impl Pit {
    /// Counters and mode, system control port.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0x40, 4, 0), PortRange::new(0x61, 1, 0x10)];

    /// A PIT after power-up. `irq0` gets an edge whenever counter 0's output rises.
    pub fn new(clock: Clock, irq0: IrqLine) -> Self {
        Pit { clock, irq0, channels: Self::idle(), speaker_data: false, next_irq: None, not_before: 0 }
    }

    fn idle() -> [Channel; 3] {
        [Channel::new(true), Channel::new(true), Channel::new(false)]
    }

    fn control(&mut self, word: u8, now: u64) {
        let select = usize::from(word >> 6);
        if let Some(channel) = self.channels.get_mut(select) {
            match word & 0x30 {
                0 => channel.latch_count(now),
                _ => channel.control(word),
            }
            return;
        }
        // Read-back; active-low bits choose what is latched.
        for (i, channel) in self.channels.iter_mut().enumerate() {
            if word & 2 << i != 0 {
                if word & 0x20 == 0 {
                    channel.latch_count(now);
                }
                if word & 0x10 == 0 {
                    channel.latch_status(now);
                }
            }
        }
    }

    fn read(&mut self, offset: u16, now: u64) -> u8 {
        match offset {
            0..=2 => self.channels[usize::from(offset)].read(now),
            0x10 => {
                let speaker = &self.channels[SPEAKER];
                u8::from(speaker.gate())
                    | u8::from(self.speaker_data) << 1
                    | ((now / REFRESH_TICKS % 2) as u8) << 4
                    | u8::from(speaker.out(now)) << 5
            }
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u16, value: u8, now: u64) {
        match offset {
            0..=2 => self.channels[usize::from(offset)].write(value, now),
            3 => self.control(value, now),
            0x10 => {
                self.channels[SPEAKER].set_gate(value & 1 != 0, now);
                self.speaker_data = value & 2 != 0;
            }
            _ => {}
        }
    }

    fn settle(&mut self, now: u64) {
        self.channels.iter_mut().for_each(|c| c.settle(now));
    }

    /// Fire if OUT 0 has risen, then find the next rise. Missed periods make one edge.
    fn run(&mut self, now: u64) {
        let fire = self.next_irq.is_some_and(|tick| tick <= now);
        self.settle(now);
        if fire {
            self.not_before = now.saturating_add(MIN_INTERVAL_TICKS);
            self.irq0.pulse();
        }
        self.find_next(now);
    }

    fn find_next(&mut self, now: u64) {
        let channel = &self.channels[0];
        let least = if channel.periodic() { self.not_before } else { 0 };
        self.next_irq = channel.next_rise(now).map(|rise| rise.max(least));
    }
}

impl Device for Pit {
    fn name(&self) -> &'static str {
        NAME
    }
    fn reset(&mut self) {
        self.channels = Self::idle();
        self.speaker_data = false;
        self.next_irq = None;
        self.not_before = 0;
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PortIo for Pit {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        let now = ticks(self.clock.now());
        self.settle(now);
        byte_ports::read(offset, size, |o| self.read(o, now))
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let now = ticks(self.clock.now());
        // What is due is due under the old programming.
        self.run(now);
        byte_ports::write(offset, size, value, |o, v| self.write(o, v, now));
        self.find_next(now);
    }
}

impl Timed for Pit {
    fn next_deadline(&self) -> Option<Nanos> {
        self.next_irq.map(time_of)
    }
    fn expire(&mut self, now: Nanos) {
        self.run(ticks(now));
    }
}

impl Saved for Pit {
    type State = PitState;
    const VERSION: u16 = 2;

    fn save(&self) -> PitState {
        let Pit { clock: _, irq0: _, channels, speaker_data, next_irq, not_before } = self;
        PitState {
            channels: channels.clone(),
            speaker_data: *speaker_data,
            next_irq: *next_irq,
            not_before: *not_before,
        }
    }

    fn restore(&mut self, state: &PitState) -> Result<(), StateError> {
        let PitState { channels, speaker_data, next_irq, not_before } = state;
        channels.iter().try_for_each(Channel::check)?;
        for channel in &channels[..2] {
            StateError::check(channel.gate(), NAME, "gate", channel.gate(), "high on counters 0 and 1")?;
        }
        self.channels = channels.clone();
        self.speaker_data = *speaker_data;
        self.next_irq = *next_irq;
        self.not_before = *not_before;
        Ok(())
    }
}
