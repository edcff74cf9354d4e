use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use device_model::IrqSink;
use proptest::prelude::*;

use super::*;

/// 2026-11-21 12:34:56 UTC, a Saturday.
const START: u64 = 1_795_264_496;

#[derive(Default)]
struct Level(AtomicBool);
impl IrqSink for Level {
    fn set_level(&self, _: u32, asserted: bool) {
        self.0.store(asserted, Ordering::Relaxed);
    }
}

struct Fixture {
    rtc: Rtc,
    clock: Clock,
    level: Arc<Level>,
}

impl Fixture {
    fn new() -> Self {
        let clock = Clock::virtual_time(1_000_000, START * SECOND);
        let level = Arc::new(Level::default());
        let config = RtcConfig { ram_below_4g: 3 << 30, ram_above_4g: 5 << 30 };
        Fixture { rtc: Rtc::new(clock.clone(), IrqLine::new(level.clone(), 8), config), clock, level }
    }
    fn read(&mut self, register: usize) -> u8 {
        self.rtc.port_write(0, 1, register as u32);
        self.rtc.port_read(1, 1) as u8
    }
    fn write(&mut self, register: usize, value: u8) {
        self.rtc.port_write(0, 1, register as u32);
        self.rtc.port_write(1, 1, value.into());
    }
    fn to(&mut self, at: Nanos) {
        self.clock.advance(at - self.clock.now());
        self.rtc.expire(at);
    }
    fn irq(&self) -> bool {
        self.level.0.load(Ordering::Relaxed)
    }
    /// Year, month, day, weekday, hour, minute, second as read.
    fn time(&mut self) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|r| self.read(r))
    }
}

#[test]
fn formats() {
    // (register B, what the registers say)
    for (b, expected) in [
        (0x02, [0x20, 0x26, 0x11, 0x21, 7, 0x12, 0x34, 0x56]),
        (0x06, [20, 26, 11, 21, 7, 12, 34, 56]),
        (0x00, [0x20, 0x26, 0x11, 0x21, 7, 0x92, 0x34, 0x56]),
        (0x04, [20, 26, 11, 21, 7, 0x8c, 34, 56]),
    ] {
        let mut f = Fixture::new();
        f.write(REG_B, b);
        assert_eq!(f.time(), expected, "register B {b:#x}");
    }
}

#[test]
fn setting_the_time() {
    let mut f = Fixture::new();
    f.write(REG_B, 0x82);
    for (register, value) in [
        (CENTURY, 0x19),
        (YEAR, 0x99),
        (MONTH, 0x12),
        (DAY, 0x31),
        (HOURS, 0x23),
        (MINUTES, 0x59),
        (SECONDS, 0x58),
    ] {
        f.write(register, value);
    }
    f.to(10 * SECOND);
    assert_eq!(f.read(SECONDS), 0x58, "SET stops updates");
    f.write(REG_B, 0x02);
    f.to(12 * SECOND);
    assert_eq!(f.time(), [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]);
    f.write(MINUTES, 0x30);
    f.to(13 * SECOND);
    assert_eq!(f.time(), [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x30, 0x01], "without SET as well");
}

#[test]
fn update_in_progress_precedes_the_update() {
    let mut f = Fixture::new();
    for (at, uip) in [(SECOND / 2, 0), (SECOND - 245_000, 0), (SECOND - 100_000, 0x80), (SECOND + 1, 0)] {
        f.to(at);
        assert_eq!(f.read(REG_A), 0x26 | uip, "at {at}");
    }
    f.write(REG_B, 0x82);
    f.to(2 * SECOND - 1);
    assert_eq!(f.read(REG_A), 0x26);
}

#[test]
fn interrupts() {
    // (register A, register B, alarm h:m:s, first deadline, flags in register C)
    for (a, b, alarm, deadline, flags) in [
        (0x26, 0x12, [0, 0, 0], Some(SECOND), 0x90),
        (0x26, 0x42, [0, 0, 0], Some(976_563), 0xc0),
        (0x2f, 0x42, [0, 0, 0], Some(SECOND / 2), 0xc0),
        (0x21, 0x42, [0, 0, 0], Some(3_906_250), 0xc0),
        (0x20, 0x42, [0, 0, 0], None, 0),
        (0x20, 0x22, [0x12, 0x35, 0x10], Some(14 * SECOND), 0xb0),
        (0x20, 0x22, [0x12, 0x34, 0x56], Some(86_400 * SECOND), 0xb0),
        (0x20, 0x22, [0xff, 0xff, 0x05], Some(9 * SECOND), 0xb0),
        (0x20, 0x22, [0xc0, 0x00, 0x00], Some((25 * 60 + 4) * SECOND), 0xb0),
        (0x20, 0x22, [0x12, 0x34, 0x99], None, 0),
        (0x20, 0xb2, [0xff, 0xff, 0xff], None, 0),
        (0x26, 0x02, [0xff, 0xff, 0xff], None, 0),
    ] {
        let mut f = Fixture::new();
        for (register, value) in
            [(HOURS_ALARM, alarm[0]), (MINUTES_ALARM, alarm[1]), (SECONDS_ALARM, alarm[2])]
        {
            f.write(register, value);
        }
        f.write(REG_A, a);
        f.write(REG_B, b);
        let name = format!("A {a:#x}, B {b:#x}, alarm {alarm:x?}");
        let due = f.rtc.next_deadline();
        assert_eq!(due, deadline, "{name}");
        let Some(due) = due else { continue };
        f.to(due - 1);
        assert!(!f.irq(), "{name}");
        f.to(due);
        assert!(f.irq(), "{name}");
        // The periodic flag comes with the others when its rate is set.
        assert_eq!(f.read(REG_C) & !(0x40 & !b), flags, "{name}");
        assert!(!f.irq(), "{name}");
        assert_eq!(f.read(REG_C), 0, "{name}: reading cleared it");
    }
}

#[test]
fn an_unread_interrupt_needs_no_more_wake_ups() {
    let mut f = Fixture::new();
    f.write(REG_B, 0x42);
    f.to(f.rtc.next_deadline().unwrap());
    assert_eq!(f.rtc.next_deadline(), None);
    f.read(REG_C);
    assert!(f.rtc.next_deadline().is_some());
}

#[test]
fn flags_without_enables_can_be_polled() {
    let mut f = Fixture::new();
    f.write(REG_A, 0x26);
    f.to(5 * SECOND);
    assert_eq!(f.read(REG_C), 0x50);
    assert!(!f.irq());
}

#[test]
fn memory_sizes_and_bytes() {
    let mut f = Fixture::new();
    let mut word = |at: usize| u16::from(f.read(at)) | u16::from(f.read(at + 1)) << 8;
    assert_eq!((word(0x15), word(0x17), word(0x34), word(0x5b)), (640, 0xffff, 0xbf00, 0x4000));
    assert_eq!(f.read(0x5d), 1);
    f.write(0x0f, 0x5a);
    assert_eq!(f.read(0x0f), 0x5a);
    f.write(REG_D, 0);
    assert_eq!(f.read(REG_D), 0x80);
    f.write(0xff, 3);
    assert_eq!(f.read(0x7f), 3, "bit 7 of the index is not the chip's");
}

#[test]
fn state_goes_round_and_is_checked() {
    let mut f = Fixture::new();
    f.write(REG_B, 0x12);
    f.write(DAY, 0x05);
    f.to(SECOND);
    let state = f.rtc.save();
    let mut other = Fixture::new();
    other.rtc.restore(&state).unwrap();
    assert!(other.irq());
    assert_eq!(other.rtc.save(), state);
    for damage in [
        (|s: &mut RtcState| s.cmos.truncate(127)) as fn(&mut RtcState),
        |s| s.index = 0x80,
        |s| s.offset = i64::MIN,
        |s| s.flags = 1,
        |s| s.cmos[REG_A] = 0x80,
    ] {
        let mut bad = state.clone();
        damage(&mut bad);
        assert!(other.rtc.restore(&bad).is_err());
        assert_eq!(other.rtc.save(), state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_accesses(ops in proptest::collection::vec((0u8..4, any::<u8>(), any::<u8>(), 0u64..1 << 44), 1..200)) {
        let mut f = Fixture::new();
        for (what, register, value, nanos) in ops {
            match what {
                0 => f.write(usize::from(register % 16), value),
                1 => f.write(usize::from(register), value),
                2 => _ = f.read(usize::from(register)),
                _ => {
                    f.clock.advance(nanos);
                    f.rtc.expire(f.clock.now());
                    if let Some(next) = f.rtc.next_deadline() {
                        prop_assert!(next > f.clock.now());
                    }
                }
            }
        }
        let state = f.rtc.save();
        prop_assert!(f.rtc.restore(&state).is_ok());
    }
}
