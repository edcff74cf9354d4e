//! The console, driven by the mock driver.

use std::sync::Mutex;

use virtio_core::features;
use virtio_core::mock::{Bench, BenchConfig};

use super::*;
use crate::control::{Control, event};

/// Output, and openings as `+` and `-`.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl PortOutput for Log {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes);
    }
    fn set_open(&mut self, open: bool) {
        self.0.lock().unwrap().push(if open { b'+' } else { b'-' });
    }
}

impl Log {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

fn console(logs: &[Log; 2]) -> Console {
    let port =
        |name: &str, console, log: &Log| Port { name: name.into(), console, output: Box::new(log.clone()) };
    Console::new(vec![port("", true, &logs[0]), port("org.strata.test", false, &logs[1])])
}

fn bench(accept: u64) -> (Bench<Console>, ConsoleHandle, [Log; 2]) {
    let logs = <[Log; 2]>::default();
    let device = console(&logs);
    let handle = device.handle();
    let features = features::VERSION_1 | accept;
    (Bench::new(device, BenchConfig { features, inline: false }), handle, logs)
}

fn tell(b: &mut Bench<Console>, port: u32, event: u16, value: u16) {
    let message = Control { port, event, value }.encode(&[]);
    b.request(3, &[&message], &[]);
}

/// The next control message, for which a buffer has been posted.
fn hear(b: &mut Bench<Console>) -> (Control, Vec<u8>) {
    let data = b.wait(2).data;
    let (head, rest) = data.split_first_chunk().unwrap();
    (Control::parse(*head), rest.to_vec())
}

#[test]
fn a_plain_driver_has_one_port() {
    let (mut b, handle, logs) = bench(feature::SIZE);
    b.request(1, &[b"hel", b"lo"], &[]);
    assert_eq!(logs[0].take(), "hello");
    assert_eq!(handle.input(0, b"typed"), 5);
    assert_eq!(b.request(0, &[], &[3]).data, b"typ");
    assert_eq!(b.request(0, &[], &[100]).data, b"ed");
    b.post(0, &[], &[100]);
    b.kick(0);
    handle.input(0, b"late");
    assert_eq!(b.wait(0).data, b"late");
    assert_eq!(handle.input(0, &[0; INPUT_BUFFER + 9]), INPUT_BUFFER);
    assert_eq!(handle.input(0, b"x"), 0, "no more room");
}

#[test]
fn sizes_and_emergency_writes_are_in_the_configuration() {
    let (mut b, handle, logs) = bench(feature::SIZE);
    handle.resize(132, 43);
    assert_eq!(b.interrupts.take_config(), 1);
    let mut config = [0; 12];
    b.device.config_read(0, &mut config);
    assert_eq!(config, [132, 0, 43, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let mut plain = console(&logs);
    plain.config_write(8, &[b'!', 0, 0, 0]);
    plain.config_write(4, b"?");
    assert_eq!(logs[0].take(), "!");
}

#[test]
fn ports_introduce_themselves_and_are_opened_and_closed() {
    let (mut b, handle, logs) = bench(feature::SIZE | feature::MULTIPORT);
    for _ in 0..20 {
        b.post(2, &[], &[100]);
    }
    b.kick(2);
    tell(&mut b, 0, event::DEVICE_READY, 1);
    let expect = |b: &mut Bench<Console>, list: &[(u32, u16, u16, &[u8])]| {
        for &(port, event, value, rest) in list {
            assert_eq!(hear(b), (Control { port, event, value }, rest.to_vec()));
        }
    };
    expect(&mut b, &[(0, event::PORT_ADD, 0, b""), (1, event::PORT_ADD, 0, b"")]);
    tell(&mut b, 0, event::PORT_READY, 1);
    expect(
        &mut b,
        &[
            (0, event::CONSOLE_PORT, 1, b""),
            (0, event::RESIZE, 0, &[80, 0, 25, 0]),
            (0, event::PORT_OPEN, 1, b""),
        ],
    );
    tell(&mut b, 1, event::PORT_READY, 1);
    expect(&mut b, &[(1, event::PORT_NAME, 1, b"org.strata.test"), (1, event::PORT_OPEN, 1, b"")]);
    handle.resize(100, 30);
    expect(&mut b, &[(0, event::RESIZE, 0, &[100, 0, 30, 0])]);
    // A channel keeps its bytes until a program opens it.
    b.post(4, &[], &[100]);
    b.kick(4);
    handle.input(1, b"question");
    tell(&mut b, 99, event::PORT_OPEN, 1);
    tell(&mut b, 1, event::PORT_READY, 0);
    assert_eq!(b.poll(4), None);
    tell(&mut b, 1, event::PORT_OPEN, 1);
    assert_eq!(b.wait(4).data, b"question");
    assert!(handle.is_open(1));
    b.request(5, &[b"answer"], &[]);
    tell(&mut b, 1, event::PORT_OPEN, 0);
    b.request(3, &[b"short"], &[]);
    assert_eq!((logs[1].take().as_str(), handle.is_open(1)), ("+answer-", false));
    assert!(!b.interrupts.needs_reset());
}

#[test]
fn a_terminal_alone_has_no_control_messages() {
    let log = Log::default();
    let device = Console::terminal(Box::new(log.clone()));
    let handle = device.handle();
    let mut b = Bench::new(device, BenchConfig::default());
    assert_eq!((b.device.features() & feature::MULTIPORT, b.queues.len()), (0, 2));
    handle.resize(132, 43);
    handle.set_connected(0, false);
    b.until("the change", |b| b.interrupts.take_config() == 1);
    handle.input(0, b"typed");
    assert_eq!(b.request(0, &[], &[100]).data, b"typed");
    b.request(1, &[b"shown"], &[]);
    assert_eq!(log.take(), "shown");
}

#[test]
fn the_driver_hears_who_is_at_the_other_end() {
    let (mut b, handle, _) = bench(feature::MULTIPORT);
    for _ in 0..20 {
        b.post(2, &[], &[100]);
    }
    b.kick(2);
    handle.set_connected(1, false);
    tell(&mut b, 0, event::DEVICE_READY, 1);
    tell(&mut b, 1, event::PORT_READY, 1);
    handle.set_connected(1, true);
    handle.set_connected(1, true);
    let mut opens = Vec::new();
    while opens.last() != Some(&1) {
        let (head, _) = hear(&mut b);
        if head.event == event::PORT_OPEN {
            opens.push(head.value);
        }
    }
    assert!(opens.contains(&0), "{opens:?}");
    handle.set_connected(1, false);
    assert_eq!(hear(&mut b).0, Control { port: 1, event: event::PORT_OPEN, value: 0 });
}

#[test]
fn a_restored_console_keeps_ports_open_and_input() {
    let (mut b, handle, logs) = bench(feature::MULTIPORT);
    tell(&mut b, 1, event::PORT_OPEN, 1);
    handle.input(1, b"kept");
    tell(&mut b, 1, event::PORT_READY, 1);
    let fresh = console(&logs);
    let second = fresh.handle();
    b.replace(fresh);
    assert!(second.is_open(1));
    assert_eq!(b.request(4, &[], &[10]).data, b"kept");
    b.post(2, &[], &[100]);
    b.kick(2);
    assert_eq!(hear(&mut b).0.event, event::PORT_NAME, "messages that waited come too");
    let mut other =
        Console::new(vec![Port { name: String::new(), console: true, output: Box::new(Log::default()) }]);
    b.device.quiesce();
    assert!(other.restore(&b.device.save()).is_err() && other.restore(&[1]).is_err());
    b.device.reset();
    assert_eq!(logs[1].take(), "+-");
}

#[test]
fn a_driver_that_takes_no_messages_does_not_make_them_pile_up() {
    let (mut b, _, _) = bench(feature::MULTIPORT);
    for _ in 0..500 {
        tell(&mut b, 0, event::DEVICE_READY, 1);
    }
    for _ in 0..40 {
        b.post(2, &[], &[8]);
    }
    b.kick(2);
    for _ in 0..40 {
        assert_eq!(hear(&mut b).0.event, event::PORT_ADD);
    }
}
