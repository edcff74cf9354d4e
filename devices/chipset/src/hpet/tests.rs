use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Levels by line, and how often each rose.
#[derive(Default)]
struct Lines(Mutex<([bool; 32], [u32; 32])>);
impl IrqSink for Lines {
    fn set_level(&self, line: u32, asserted: bool) {
        let (levels, rises) = &mut *self.0.lock().unwrap();
        rises[line as usize] += u32::from(asserted && !levels[line as usize]);
        levels[line as usize] = asserted;
    }
}

struct Fixture {
    hpet: Hpet,
    clock: Clock,
    lines: Arc<Lines>,
}

const CONFIG: u64 = 0x10;
const STATUS: u64 = 0x20;
const COUNTER: u64 = 0xf0;
const T0: u64 = 0x100;
const PIT: usize = 30;
const RTC: usize = 31;

impl Fixture {
    fn new() -> Self {
        let (clock, lines) = (Clock::virtual_time(1_000_000, 0), Arc::new(Lines::default()));
        let line = |n: u32| IrqLine::new(lines.clone(), n);
        let all = HpetLines { gsi: (0..24).map(line).collect(), pit_irq0: line(30), rtc_irq8: line(31) };
        Fixture { hpet: Hpet::new(clock.clone(), all), clock, lines }
    }
    fn w(&mut self, register: u64, value: u64) {
        self.hpet.mmio_write(register, 8, value);
    }
    fn r(&mut self, register: u64) -> u64 {
        self.hpet.mmio_read(register, 8)
    }
    fn to(&mut self, at: Nanos) {
        self.clock.advance(at - self.clock.now());
        self.hpet.expire(at);
    }
    fn rises(&self, line: usize) -> u32 {
        self.lines.0.lock().unwrap().1[line]
    }
    fn level(&self, line: usize) -> bool {
        self.lines.0.lock().unwrap().0[line]
    }
}

#[test]
fn registers() {
    let mut f = Fixture::new();
    assert_eq!(f.r(0), 0x0098_9680_8086_a201);
    assert_eq!(f.hpet.mmio_read(4, 4), 10_000_000);
    f.w(COUNTER, 500);
    f.w(CONFIG, 1);
    f.to(1000);
    assert_eq!(f.r(COUNTER), 600);
    f.w(COUNTER, 0);
    assert_eq!(f.r(COUNTER), 600, "cannot be set while it runs");
    f.w(CONFIG, 0);
    f.to(5000);
    assert_eq!(f.r(COUNTER), 600, "halted");
    f.w(CONFIG, 1);
    f.to(6000);
    assert_eq!(f.r(COUNTER), 700);
    f.w(T0, u64::MAX);
    assert_eq!(f.r(T0), 0x00f0_0000_0000_013e, "route 31 does not exist; FSB is not there");
    f.w(T0, 21 << 9);
    assert_eq!(f.r(T0), 0x00f0_0000_0000_0030 | 21 << 9);
    assert_eq!(f.r(T0 + 0x60), 0, "three timers");
}

#[test]
fn one_shot_and_periodic() {
    let mut f = Fixture::new();
    f.w(CONFIG, 1);
    f.w(T0, 20 << 9 | ENABLED);
    f.w(T0 + 8, 10_000);
    assert_eq!(f.hpet.next_deadline(), Some(100_000));
    f.to(99_999);
    assert_eq!(f.rises(20), 0);
    f.to(100_000);
    assert_eq!((f.rises(20), f.hpet.next_deadline()), (1, None));
    // Periodic: first at 20000, then every 3000 ticks.
    f.w(T0, 20 << 9 | ENABLED | PERIODIC | 1 << 6);
    f.w(T0 + 8, 20_000);
    f.w(T0 + 8, 3_000);
    for at in [200_000, 230_000, 260_000] {
        assert_eq!(f.hpet.next_deadline(), Some(at));
        f.to(at);
    }
    assert_eq!((f.rises(20), f.r(T0 + 8)), (4, 29_000));
    f.to(1_000_000);
    assert_eq!((f.rises(20), f.r(T0 + 8)), (5, 101_000), "missed periods make one interrupt, the grid stays");
    // A tiny period is held to the minimum interval.
    f.w(T0, 20 << 9 | ENABLED | PERIODIC | 1 << 6);
    f.w(T0 + 8, 1);
    f.to(2_000_000);
    f.w(T0 + 8, 1);
    f.to(3_000_000);
    let next = f.hpet.next_deadline();
    assert!(next.is_none_or(|n| n >= 3_000_000), "{next:?}");
}

#[test]
fn thirty_two_bit_mode_wraps() {
    let mut f = Fixture::new();
    f.w(COUNTER, 0xffff_fff0);
    f.w(CONFIG, 1);
    f.w(T0, 22 << 9 | ENABLED | 1 << 8);
    f.hpet.mmio_write(T0 + 8, 4, 0x10);
    assert_eq!(f.hpet.next_deadline(), Some(320));
    f.to(320);
    assert_eq!(f.rises(22), 1);
    assert_eq!(f.hpet.next_deadline(), Some(320 + (1 << 32) * 10));
}

#[test]
fn level_and_status() {
    let mut f = Fixture::new();
    f.w(CONFIG, 1);
    f.w(T0 + 0x20, 23 << 9 | ENABLED | LEVEL);
    f.w(T0 + 0x28, 10);
    f.to(100);
    assert_eq!((f.level(23), f.r(STATUS)), (true, 2));
    f.w(STATUS, 1);
    assert!(f.level(23));
    f.w(T0 + 0x20, 22 << 9 | ENABLED | LEVEL);
    assert_eq!((f.level(23), f.level(22)), (false, true), "the level follows the route");
    f.w(STATUS, 2);
    assert_eq!((f.level(22), f.r(STATUS)), (false, 0));
}

#[test]
fn legacy_replacement() {
    let mut f = Fixture::new();
    let gated = f.hpet.gate(IrqLine::new(f.lines.clone(), 5));
    gated.pulse();
    f.w(CONFIG, 3);
    gated.pulse();
    assert_eq!(f.rises(5), 1, "the PIT is cut off");
    for (n, line) in [(0, PIT), (1, RTC), (2, 20)] {
        f.w(T0 + 0x20 * n, 20 << 9 | ENABLED);
        f.w(T0 + 0x20 * n + 8, 1000);
        assert_eq!(f.rises(line), 0);
    }
    f.to(10_000);
    assert_eq!((f.rises(PIT), f.rises(RTC), f.rises(20)), (1, 1, 1));
    f.hpet.reset();
    gated.pulse();
    assert_eq!(f.rises(5), 2);
}

#[test]
fn state_goes_round_and_is_checked() {
    let mut f = Fixture::new();
    f.w(CONFIG, 3);
    f.w(T0, 20 << 9 | ENABLED | PERIODIC | 1 << 6);
    f.w(T0 + 8, 5000);
    let state = f.hpet.save();
    let mut other = Fixture::new();
    other.hpet.restore(&state).unwrap();
    assert_eq!((other.hpet.save(), other.hpet.next_deadline()), (state.clone(), Some(50_000)));
    for damage in [
        (|s: &mut HpetState| s.config = 4) as fn(&mut HpetState),
        |s| s.status = 8,
        |s| s.timers[1].config = 1 << 14,
        |s| s.timers[1].config = 3 << 9,
    ] {
        let mut bad = state.clone();
        damage(&mut bad);
        assert!(other.hpet.restore(&bad).is_err());
        assert_eq!(other.hpet.save(), state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_accesses(ops in proptest::collection::vec((0u8..4, any::<u8>(), any::<u64>(), 0u64..1 << 40), 1..200)) {
        let mut f = Fixture::new();
        for (what, register, value, nanos) in ops {
            let size = 1 << (value & 3);
            let offset = (u64::from(register) * 4) & !(u64::from(size) - 1);
            match what {
                0 => f.hpet.mmio_write(offset, size, value),
                1 => f.w([CONFIG, COUNTER, T0, T0 + 8, T0 + 0x20, T0 + 0x28][usize::from(register % 6)], value >> (register % 60)),
                2 => _ = f.hpet.mmio_read(offset, size),
                _ => {
                    f.clock.advance(nanos);
                    f.hpet.expire(f.clock.now());
                    if let Some(next) = f.hpet.next_deadline() {
                        prop_assert!(next > f.clock.now());
                    }
                }
            }
        }
        let state = f.hpet.save();
        prop_assert!(f.hpet.restore(&state).is_ok());
    }
}
