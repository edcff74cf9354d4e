use std::sync::atomic::{AtomicBool, Ordering};

use device_model::{Clock, IrqSink};
use proptest::prelude::*;

use super::receiver::CAPACITY;
use super::*;

#[derive(Default)]
struct Level(AtomicBool);
impl IrqSink for Level {
    fn set_level(&self, _: u32, asserted: bool) {
        self.0.store(asserted, Ordering::Relaxed);
    }
}

struct Fixture {
    clock: Clock,
    serial: Serial,
    out: Arc<Mutex<Vec<u8>>>,
    level: Arc<Level>,
}

impl Fixture {
    fn new() -> Self {
        let clock = Clock::virtual_time(1_000_000, 0);
        let (level, out) = (Arc::new(Level::default()), Arc::new(Mutex::new(Vec::new())));
        let to = out.clone();
        let sink = Box::new(move |b: &[u8]| to.lock().unwrap().extend_from_slice(b));
        let serial = Serial::new(clock.clone(), IrqLine::new(level.clone(), 4), sink);
        Fixture { clock, serial, out, level }
    }

    /// Let time pass as the board does: to the deadline, if there is one.
    fn wait(&mut self) -> bool {
        let Some(at) = self.serial.next_deadline() else { return false };
        self.clock.advance(at.saturating_sub(self.clock.now()));
        self.serial.expire(self.clock.now());
        true
    }

    /// Read bytes as long as the line status shows some, as a driver does.
    fn drain(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.serial.port_read(5, 1) & 1 != 0 {
            bytes.push(self.serial.port_read(0, 1) as u8);
        }
        bytes
    }
}

enum Step {
    W(u16, u32),
    R(u16, u32),
    In(&'static [u8]),
    Irq(bool),
    /// Until the next bytes have come; whether there are any.
    Wait(bool),
    /// Read the line status so often, whatever it is.
    Poll(u8),
}
use Step::*;

fn check(name: &str, steps: &[Step]) {
    let mut f = Fixture::new();
    for (i, step) in steps.iter().enumerate() {
        match *step {
            W(offset, value) => f.serial.port_write(offset, 1, value),
            R(offset, value) => {
                let seen = f.serial.port_read(offset, 1);
                assert_eq!(seen, value, "{name}, step {i}: {seen:#x}");
            }
            In(bytes) => assert_eq!(f.serial.input().push_input(bytes), bytes.len()),
            Wait(any) => assert_eq!(f.wait(), any, "{name}, step {i}"),
            Poll(times) => (0..times).for_each(|_| _ = f.serial.port_read(5, 1)),
            Irq(level) => assert_eq!(f.level.0.load(Ordering::Relaxed), level, "{name}, step {i}"),
        }
    }
}

#[test]
fn scenarios() {
    check("power-up", &[R(1, 0), R(2, 1), R(3, 0), R(4, 0), R(5, 0x60), R(6, 0xb0), R(7, 0)]);
    check("divisor", &[W(3, 0x83), R(0, 12), W(0, 1), W(1, 2), R(0, 1), R(1, 2), W(3, 3), R(1, 0), R(3, 3)]);
    check("scratch", &[W(7, 0x5a), R(7, 0x5a)]);
    check(
        "transmitter empty",
        &[
            W(4, 8),
            Irq(false),
            W(1, 2),
            Irq(true),
            R(2, 2),
            Irq(false),
            R(2, 1),
            W(0, 65),
            Irq(true),
            W(0, 66),
            R(2, 2),
            Irq(false),
            W(1, 0),
            W(1, 2),
            Irq(true),
        ],
    );
    check("OUT2 gates the interrupt", &[W(1, 2), Irq(false), W(4, 8), Irq(true), W(4, 0), Irq(false)]);
    check(
        "receiving without FIFO",
        &[
            W(4, 8),
            W(1, 1),
            In(b"ab"),
            Irq(true),
            R(2, 4),
            R(5, 0x61),
            R(0, 97),
            Irq(false),
            Wait(true),
            Irq(true),
            R(0, 98),
            Irq(false),
            Wait(false),
            R(5, 0x60),
            R(0, 0),
        ],
    );
    check(
        "trigger level and timeout",
        &[
            W(4, 8),
            W(2, 0x41),
            W(1, 1),
            In(b"abc"),
            Irq(true),
            R(2, 0xcc),
            In(b"d"),
            Wait(true),
            R(2, 0xc4),
            R(0, 97),
            R(2, 0xcc),
            W(1, 0),
            W(2, 0x43),
            R(2, 0xc1),
            R(5, 0x60),
            Irq(false),
        ],
    );
    check("FIFO bits", &[W(2, 1), R(2, 0xc1), W(2, 0), R(2, 1)]);
    check(
        "loopback",
        &[
            W(4, 0x1a),
            R(6, 0x92),
            R(6, 0x90),
            W(0, 0x42),
            R(5, 0x61),
            W(0, 0x43),
            R(5, 0x63),
            R(5, 0x61),
            R(0, 0x42),
            W(4, 0x14),
            R(6, 0x49),
            W(4, 0x10),
            R(6, 0x04),
        ],
    );
    check(
        "line status interrupt",
        &[W(4, 0x18), W(1, 4), W(0, 1), Irq(false), W(0, 2), Irq(true), R(2, 6), R(5, 0x63), Irq(false)],
    );
    check(
        "modem status interrupt",
        &[
            W(4, 0x18),
            R(6, 0x83),
            W(1, 8),
            Irq(false),
            W(4, 0x1a),
            Irq(true),
            R(2, 0),
            R(6, 0x91),
            Irq(false),
        ],
    );
}

/// What is typed before the guest receives, or while it does not, is not lost.
#[test]
fn input_waits_for_the_guest() {
    check("nobody receives", &[In(b"x"), Wait(false), R(5, 0x60), W(0, 65), R(5, 0x60), R(0, 0), R(5, 0x60)]);
    check("the interrupt is enabled", &[In(b"x"), W(1, 1), R(5, 0x61), R(0, 120)]);
    check("loopback", &[W(1, 1), W(4, 0x10), In(b"x"), Wait(false), R(5, 0x60), W(4, 0), R(5, 0x61)]);
    // Loopback finds an empty receiver, and what was in it comes again.
    check("loopback later", &[W(1, 1), In(b"x"), W(4, 0x10), R(5, 0x60), W(4, 0), Wait(true), R(0, 120)]);
    check("polling", &[In(b"xy"), Poll(4), R(5, 0x61), R(0, 120), R(5, 0x60), Wait(true), R(0, 121)]);
    // Sending by polling is not polling for input.
    check("sending", &[In(b"x"), Poll(2), W(0, 65), Poll(2), W(0, 66), Poll(2), W(0, 67), R(5, 0x60)]);
    // A driver that starts clears the FIFO, and reads status and data to be sure.
    check(
        "start of a driver",
        &[
            W(2, 1),
            W(1, 1),
            In(b"abc"),
            R(5, 0x61),
            W(1, 0),
            W(2, 1),
            W(2, 7),
            W(2, 0),
            R(5, 0x60),
            R(0, 0),
            R(5, 0x60),
            R(0, 0),
            W(2, 1),
            W(1, 1),
            Wait(true),
            R(0, 97),
            R(0, 98),
            R(0, 99),
        ],
    );
    // RTS means something once it was raised.
    check(
        "request to send",
        &[W(1, 1), W(4, 2), W(4, 0), In(b"x"), Wait(false), R(5, 0x60), W(4, 2), R(5, 0x61)],
    );
}

/// All input arrives in order, at the pace of the line, whatever the guest does
/// to its driver meanwhile.
#[test]
fn nothing_is_lost() {
    let mut f = Fixture::new();
    let sent: Vec<u8> = (0..200_000u32).map(|n| (n * 7 / 3) as u8).collect();
    let (mut left, mut seen, mut rounds) = (&sent[..], Vec::new(), 0u32);
    while seen.len() < sent.len() {
        left = &left[f.serial.input().push_input(left)..];
        match rounds % 5000 {
            0 => {
                [(1, 0), (2, 7), (2, 0), (2, 1), (1, 1)].iter().for_each(|w| f.serial.port_write(w.0, 1, w.1))
            }
            2000 => f.serial.reset(),
            2001 => [(2, 1), (4, 2), (1, 1)].iter().for_each(|w| f.serial.port_write(w.0, 1, w.1)),
            3000 => f.serial.port_write(4, 1, 0),
            3001 => f.serial.port_write(4, 1, 2),
            _ => {
                f.wait();
            }
        }
        // Sometimes the guest is slow.
        if rounds % 3 != 0 {
            seen.extend(f.drain());
        }
        rounds += 1;
        assert!(rounds < 1_000_000, "{} bytes have come", seen.len());
    }
    assert_eq!(seen, sent);
    // Each reset may forget up to a FIFO's time.
    assert!(f.clock.now() >= 199_000 * 86_806, "{} ns", f.clock.now());
}

#[test]
fn output_arrives_and_input_is_bounded() {
    let mut f = Fixture::new();
    b"hello".iter().for_each(|&b| f.serial.port_write(0, 1, b.into()));
    assert_eq!(*f.out.lock().unwrap(), b"hello");
    let input = f.serial.input();
    assert_eq!(input.push_input(&[0; CAPACITY + 1]), CAPACITY);
    f.serial.port_write(1, 1, 1);
    assert_eq!(input.push_input(b"abc"), 0, "the byte in the receiver counts");
    f.serial.port_read(0, 1);
    assert_eq!(input.push_input(b"abc"), 1);
}

#[test]
fn state_goes_round_and_is_checked() {
    let mut f = Fixture::new();
    f.serial.port_write(4, 1, 8);
    f.serial.port_write(1, 1, 3);
    f.serial.input().push_input(b"abc");
    let state = f.serial.save();
    let mut other = Fixture::new();
    other.serial.restore(&state).unwrap();
    assert!(other.level.0.load(Ordering::Relaxed));
    assert_eq!(other.serial.save(), state);
    for damage in [
        (|s: &mut SerialState| s.ier = 0x10) as fn(&mut SerialState),
        |s| s.fcr = 2,
        |s| s.mcr = 0x20,
        |s| s.received = vec![0; 2],
        |s| s.looped = 2,
        |s| s.input = vec![0; CAPACITY + 1],
    ] {
        let mut bad = state.clone();
        damage(&mut bad);
        assert!(other.serial.restore(&bad).is_err());
        assert_eq!(other.serial.save(), state);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_accesses(ops in proptest::collection::vec((0u8..3, any::<u16>(), any::<u32>()), 1..200)) {
        let mut f = Fixture::new();
        for (what, offset, value) in ops {
            let size = 1 << (value >> 30).min(2);
            match what {
                0 => f.serial.port_write(offset % 9, size, value),
                1 => _ = f.serial.port_read(offset % 9, size),
                _ => _ = f.serial.input().push_input(&value.to_le_bytes()),
            }
        }
        let state = f.serial.save();
        prop_assert!(f.serial.restore(&state).is_ok());
    }
}
