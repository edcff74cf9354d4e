use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use device_model::IrqSink;
use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Rises(AtomicU32);
impl IrqSink for Rises {
    fn set_level(&self, _: u32, asserted: bool) {
        self.0.fetch_add(asserted.into(), Ordering::Relaxed);
    }
}

struct Fixture {
    pit: Pit,
    clock: Clock,
    rises: Arc<Rises>,
}

impl Fixture {
    fn new() -> Self {
        let clock = Clock::virtual_time(1_000_000, 0);
        let rises = Arc::new(Rises::default());
        Fixture { pit: Pit::new(clock.clone(), IrqLine::new(rises.clone(), 0)), clock, rises }
    }
    /// Control word and count.
    fn program(&mut self, control: u8, count: u16) {
        let [low, high] = count.to_le_bytes();
        let port = u16::from(control >> 6);
        self.pit.port_write(3, 1, control.into());
        self.pit.port_write(port, 1, low.into());
        self.pit.port_write(port, 1, high.into());
    }
    fn run_to_tick(&mut self, tick: u64) {
        self.clock.advance(time_of(tick) - self.clock.now());
    }
    fn word(&mut self, channel: u16) -> u32 {
        self.pit.port_read(channel, 1) | self.pit.port_read(channel, 1) << 8
    }
}

#[test]
fn ticks_and_times_are_inverse() {
    for tick in (0..5_000).chain([1_193_182, 1 << 40]) {
        assert_eq!(ticks(time_of(tick)), tick);
        if tick > 0 {
            assert_eq!(ticks(time_of(tick) - 1), tick - 1);
        }
    }
}

#[test]
fn counting_and_output_by_mode() {
    // Counter 2 with its gate high: (control, count, tick, counter value, OUT).
    for (control, count, tick, value, out) in [
        (0xb0, 100, 0, 100, false),
        (0xb0, 100, 99, 1, false),
        (0xb0, 100, 100, 0, true),
        (0xb0, 100, 101, 0xffff, true),
        (0xb1, 0x0100, 1, 0x0099, false),
        (0xb1, 0x0100, 101, 0x9999, true),
        (0xb4, 100, 0, 100, true),
        (0xb4, 100, 99, 1, false),
        (0xb4, 100, 100, 100, true),
        (0xb4, 100, 1050, 50, true),
        (0xb6, 100, 0, 100, true),
        (0xb6, 100, 10, 80, true),
        (0xb6, 100, 49, 2, true),
        (0xb6, 100, 50, 100, false),
        (0xb6, 100, 60, 80, false),
        (0xb6, 100, 100, 100, true),
        (0xb6, 101, 50, 2, true),
        (0xb8, 100, 99, 1, true),
        (0xb8, 100, 100, 0, false),
        (0xb8, 100, 101, 0xffff, true),
        (0xb0, 0, 1, 0xffff, false),
        (0xb1, 0, 1, 0x9999, false),
    ] {
        let mut f = Fixture::new();
        f.pit.port_write(0x10, 1, 1);
        f.program(control, count);
        f.run_to_tick(tick);
        let seen = (f.word(2), f.pit.port_read(0x10, 1) & 0x20 != 0);
        if (control, count, tick) == (0xb6, 101, 50) {
            assert!(seen.1, "the longer half of an odd square wave is high");
            continue;
        }
        assert_eq!(seen, (value, out), "control {control:#x}, count {count:#x}, tick {tick}");
    }
}

#[test]
fn gate_of_counter_2() {
    let mut f = Fixture::new();
    f.program(0xb0, 100);
    f.run_to_tick(50);
    assert_eq!(f.word(2), 100, "the gate is low");
    f.pit.port_write(0x10, 1, 1);
    f.run_to_tick(60);
    assert_eq!(f.word(2), 90);
    f.pit.port_write(0x10, 1, 0);
    f.run_to_tick(80);
    assert_eq!(f.word(2), 90);
    f.program(0xb2, 100);
    f.run_to_tick(300);
    assert_eq!(f.pit.port_read(0x10, 1) & 0x21, 0x20, "one-shot waits for its trigger with OUT high");
    f.pit.port_write(0x10, 1, 1);
    f.run_to_tick(399);
    assert_eq!(f.pit.port_read(0x10, 1) & 0x21, 1);
    f.run_to_tick(400);
    assert_eq!(f.pit.port_read(0x10, 1) & 0x21, 0x21);
}

#[test]
fn latches_and_read_back() {
    let mut f = Fixture::new();
    f.program(0x34, 1000);
    f.run_to_tick(10);
    f.pit.port_write(3, 1, 0x00);
    f.run_to_tick(20);
    f.pit.port_write(3, 1, 0x00);
    assert_eq!(f.word(0), 990, "a second latch command changes nothing");
    assert_eq!(f.word(0), 980);
    f.pit.port_write(3, 1, 0xc2);
    f.run_to_tick(30);
    assert_eq!((f.pit.port_read(0, 1), f.word(0)), (0xb4, 980), "status first, then the count");
    f.pit.port_write(3, 1, 0x36);
    f.pit.port_write(3, 1, 0xe2);
    assert_eq!(f.pit.port_read(0, 1), 0xf6, "null count until one is written");
    f.pit.port_write(3, 1, 0x14);
    f.pit.port_write(0, 1, 0x80);
    assert_eq!(f.pit.port_read(0, 1), 0x80, "low byte only");
    assert_eq!(f.pit.port_read(3, 1), 0xff, "the control port cannot be read");
}

#[test]
fn interrupts() {
    // (control, count, ticks of the first edges)
    for (control, count, edges) in [
        (0x34, 1000u16, &[1000u64, 2000, 3000][..]),
        (0x36, 1000, &[1000, 2000]),
        (0x30, 1000, &[1000]),
        (0x38, 1000, &[1000]),
        (0x32, 1000, &[]),
        (0x34, 0, &[65536, 131_072]),
    ] {
        let mut f = Fixture::new();
        f.program(control, count);
        for (i, &tick) in edges.iter().enumerate() {
            assert_eq!(f.pit.next_deadline(), Some(time_of(tick)), "control {control:#x}");
            f.run_to_tick(tick);
            f.pit.expire(f.clock.now());
            assert_eq!(f.rises.0.load(Ordering::Relaxed), i as u32 + 1);
        }
        if control & 0xe != 4 && control & 0xe != 6 {
            assert_eq!(f.pit.next_deadline(), None, "control {control:#x}");
        }
    }
}

#[test]
fn no_drift_and_no_storm() {
    let mut f = Fixture::new();
    f.program(0x34, 1193);
    for n in 1..=10_000u64 {
        let at = f.pit.next_deadline().unwrap();
        assert_eq!(at, time_of(1193 * n));
        f.clock.advance(at - f.clock.now());
        f.pit.expire(at);
    }
    f.clock.advance(3_600_000_000_000);
    f.pit.expire(f.clock.now());
    assert_eq!(f.rises.0.load(Ordering::Relaxed), 10_001, "an hour late is one edge");
    assert!(f.pit.next_deadline().unwrap() > f.clock.now());
}

#[test]
fn the_shortest_periods_interrupt_every_20_us() {
    for (control, count) in [(0x34, 2u16), (0x36, 2), (0x34, 1), (0x34, 23)] {
        let mut f = Fixture::new();
        f.program(control, count);
        let (start, mut last) = (f.clock.now(), f.clock.now());
        for n in 1..=50 {
            let at = f.pit.next_deadline().unwrap();
            assert!(n == 1 || at >= last + 20_000, "{control:#x}, {count}: {} ns after the last", at - last);
            f.clock.advance(at - f.clock.now());
            f.pit.expire(at);
            assert_eq!(f.rises.0.load(Ordering::Relaxed), n);
            let (state, deadline) = (f.pit.save(), f.pit.next_deadline());
            f.pit.port_write(0x10, 1, 1);
            assert_eq!(f.pit.next_deadline(), deadline, "another access does not bring it forward");
            // Nor do saving and restoring.
            f.pit.reset();
            f.pit.restore(&state).unwrap();
            assert_eq!(f.pit.next_deadline(), deadline);
            last = at;
        }
        assert!(last - start <= 50 * 21_000, "{control:#x}, {count}");
        // A one-shot count needs the guest's hand each time and has no such bound.
        f.program(0x30, 2);
        let at = f.pit.next_deadline().unwrap();
        assert_eq!(at, time_of(ticks(last) + 2));
    }
}

#[test]
fn a_new_count_waits_for_the_end_of_the_period() {
    let mut f = Fixture::new();
    f.program(0x34, 1000);
    f.run_to_tick(10);
    f.pit.port_write(0, 1, 0x64);
    f.pit.port_write(0, 1, 0);
    assert_eq!(f.pit.next_deadline(), Some(time_of(1000)));
    f.run_to_tick(1000);
    f.pit.expire(f.clock.now());
    assert_eq!(f.pit.next_deadline(), Some(time_of(1100)));
}

#[test]
fn state_goes_round_and_is_checked() {
    let mut f = Fixture::new();
    f.program(0x34, 1000);
    f.program(0xb6, 77);
    let state = f.pit.save();
    let mut other = Fixture::new();
    other.pit.restore(&state).unwrap();
    assert_eq!((other.pit.save(), other.pit.next_deadline()), (state.clone(), f.pit.next_deadline()));
    let mut bad = state.clone();
    bad.channels[2] = Channel::new(true);
    assert!(other.pit.restore(&bad).is_ok());
    bad.channels[0] = Channel::new(false);
    assert!(other.pit.restore(&bad).is_err(), "a low gate on counter 0");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_accesses(ops in proptest::collection::vec((0u8..4, any::<u8>(), any::<u8>(), 0u64..1 << 34), 1..200)) {
        let mut f = Fixture::new();
        for (what, port, value, nanos) in ops {
            let offset = [0, 1, 2, 3, 0x10][usize::from(port % 5)];
            match what {
                0 | 1 => f.pit.port_write(offset, 1 << (port >> 6), value.into()),
                2 => _ = f.pit.port_read(offset, 1 << (port >> 6)),
                _ => {
                    f.clock.advance(nanos);
                    f.pit.expire(f.clock.now());
                    if let Some(next) = f.pit.next_deadline() {
                        prop_assert!(next > f.clock.now());
                    }
                }
            }
        }
        let state = f.pit.save();
        prop_assert!(f.pit.restore(&state).is_ok());
    }
}
