//! The device between a driver and a daemon, both of the tests'.

mod daemon;

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use daemon::{Act, FEATURES};
use vhost_user_fs::{Backend, BackendError, FsConfig, Patience, VhostUserFs};
use virtio_core::VirtioDevice;
use virtio_core::mock::{Bench, BenchConfig, Response};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const INIT: u32 = 26;
const DESTROY: u32 = 38;

const EIO: i32 = 5;
const EROFS: i32 = 30;

/// A request of this opcode, number and content.
fn request(opcode: u32, unique: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[..4].copy_from_slice(&(40 + content.len() as u32).to_ne_bytes());
    bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
    bytes[8..16].copy_from_slice(&unique.to_ne_bytes());
    bytes.extend(content);
    bytes
}

fn opcode(request: &[u8]) -> u32 {
    u32::from_ne_bytes(request[4..8].try_into().unwrap())
}

/// The answer to a request: an error number, or 0 and content.
fn answer(request: &[u8], error: i32, content: &[u8]) -> Vec<u8> {
    let length = 16 + content.len() as u32;
    [&length.to_ne_bytes()[..], &(-error).to_ne_bytes(), &request[8..16], content].concat()
}

/// What the daemon has seen: queue and bytes of each request.
type Seen = Receiver<(u16, Vec<u8>)>;

/// A daemon that answers with what it was asked, or as it is told.
fn daemon(act: impl FnMut(&[u8]) -> Option<Act> + Send + 'static) -> (Backend, Seen) {
    patiently(Patience::default(), act)
}

/// The same, waited for so long.
fn patiently(
    patience: Patience,
    mut act: impl FnMut(&[u8]) -> Option<Act> + Send + 'static,
) -> (Backend, Seen) {
    let (tell, seen) = channel();
    let (stream, _) = daemon::start(
        FEATURES,
        Box::new(move |queue, bytes| {
            let _ = tell.send((queue, bytes.to_vec()));
            let echo = || match opcode(bytes) {
                FORGET => Act::Answer(Vec::new()),
                _ => Act::Answer(answer(bytes, 0, &bytes[40..])),
            };
            act(bytes).unwrap_or_else(echo)
        }),
    );
    (Backend::new(stream, None, patience).expect("they agree"), seen)
}

fn device(backend: Backend) -> VhostUserFs {
    VhostUserFs::new(FsConfig { tag: "share0", read_only: false }, backend).unwrap()
}

fn ask(bench: &mut Bench<VhostUserFs>, bytes: &[u8], room: u32) -> Response {
    bench.request(1, &[&bytes[..40], &bytes[40..]], &[16, room])
}

/// The error in an answer, whose request this was.
fn error(bytes: &[u8], response: &Response) -> i32 {
    assert_eq!(response.data[8..16], bytes[8..16], "whose answer it is");
    -i32::from_ne_bytes(response.data[4..8].try_into().unwrap())
}

#[test]
fn requests_and_answers_cross_whole_in_every_format() {
    let packed = BenchConfig { features: !0, inline: false };
    let inline = BenchConfig { inline: true, ..BenchConfig::default() };
    for config in [BenchConfig::default(), packed, inline] {
        let (backend, seen) = daemon(|_| None);
        let mut bench = Bench::new(device(backend), config);
        for (unique, length) in [(1, 1), (2, 39), (3, 40), (4, 41), (5, 5000), (6, 1 << 19)] {
            for opcode in [LOOKUP, WRITE] {
                let content: Vec<u8> = (0..length).map(|i| ((i * 31) >> 3) as u8).collect();
                let bytes = request(opcode, unique, &content);
                let response = ask(&mut bench, &bytes, length + 8);
                assert_eq!(seen.recv().unwrap(), (1, bytes.clone()));
                assert!(response.data == answer(&bytes, 0, &content), "{length} bytes");
            }
        }
        // Those without an answer, on the other queue.
        let bytes = request(FORGET, 9, &[1; 8]);
        assert_eq!(bench.request(0, &[&bytes], &[]).written, 0);
        assert_eq!(seen.recv().unwrap(), (0, bytes));
    }
}

#[test]
fn more_requests_than_the_daemon_takes_at_once_are_all_served() {
    let (backend, _seen) = daemon(|_| None);
    let mut bench = Bench::new(device(backend), BenchConfig::default());
    for round in 0..20u64 {
        let ids: Vec<_> = (0..100u64)
            .map(|n| {
                let bytes = request(READ, round * 100 + n, &n.to_ne_bytes());
                (bench.post(1, &[&bytes], &[16, 8]), answer(&bytes, 0, &n.to_ne_bytes()))
            })
            .collect();
        bench.kick(1);
        let mut answers: Vec<_> = (0..100).map(|_| bench.wait(1)).map(|r| (r.id, r.data)).collect();
        let mut expect = ids;
        answers.sort();
        expect.sort();
        assert!(answers == expect);
    }
}

#[test]
fn a_daemon_that_ends_or_goes_wrong_is_errors_and_no_hang() {
    for (name, inline) in
        [("dies", false), ("dies", true), ("lies", false), ("misnames", false), ("lies", true)]
    {
        let (backend, _seen) = daemon(move |bytes| match (opcode(bytes), name) {
            (LOOKUP, _) => Some(Act::Hold),
            (READ, "dies") => Some(Act::Die),
            (READ, "lies") => Some(Act::Say(0, u32::MAX)),
            (READ, _) => Some(Act::Say(3, 0)),
            _ => None,
        });
        let mut bench = Bench::new(device(backend), BenchConfig { inline, ..BenchConfig::default() });
        let held = request(LOOKUP, 1, b"a\0");
        let id = (!inline).then(|| bench.post(1, &[&held], &[16, 100]));
        bench.kick(1);
        let deadly = request(READ, 2, &[0; 40]);
        let other = bench.post(1, &[&deadly], &[16, 100]);
        bench.kick(1);
        for (id, bytes) in id.map(|id| (id, &held)).into_iter().chain([(other, &deadly)]) {
            let response = bench.wait(1);
            assert_eq!(response.id, id, "in their order");
            assert_eq!((error(bytes, &response), response.written), (EIO, 16), "{name}");
        }
        // And all that comes later, also after a reset.
        for round in 0..2 {
            for unique in 3..40 {
                let bytes = request(OPEN, unique, &[0; 8]);
                let response = ask(&mut bench, &bytes, 100);
                assert_eq!((error(&bytes, &response), response.written), (EIO, 16), "{name} {round}");
            }
            let bytes = request(FORGET, 9, &[1; 8]);
            assert_eq!(bench.request(0, &[&bytes], &[]).written, 0);
            let queues = bench.device.quiesce();
            bench.device.reset();
            bench.go_on(queues);
        }
    }
}

#[test]
fn a_daemon_that_hangs_is_errors_when_patience_ends() {
    let patience = Patience { requests: Duration::from_secs(1), ..Patience::default() };
    for inline in [false, true] {
        // Two requests stay with it, one on each queue, and one in between is answered.
        let (backend, seen) = patiently(patience, |bytes| (opcode(bytes) != OPEN).then_some(Act::Hold));
        let mut bench = Bench::new(device(backend), BenchConfig { inline, ..BenchConfig::default() });
        let start = Instant::now();
        if !inline {
            let answered = request(OPEN, 1, &[0; 8]);
            assert_eq!(error(&answered, &ask(&mut bench, &answered, 100)), 0);
        }
        let held = request(LOOKUP, 2, b"a\0");
        bench.post(1, &[&held], &[16, 100]);
        bench.post(0, &[&request(FORGET, 3, &[1; 8])], &[]);
        (0..2).for_each(|queue| bench.kick(queue));
        if !inline {
            (0..3).for_each(|_| assert!(seen.recv_timeout(Duration::from_secs(10)).is_ok()));
            assert!(bench.poll(1).is_none() && bench.poll(0).is_none(), "a guest waits as long as it takes");
        }
        let queues = bench.device.quiesce();
        let took = start.elapsed();
        assert!(took >= patience.requests && took < Duration::from_secs(10), "{took:?}");
        let response = bench.wait(1);
        assert_eq!((error(&held, &response), response.written), (EIO, 16));
        bench.wait(0);
        // From then on without a wait, also for a daemon that has woken up.
        bench.go_on(queues);
        let start = Instant::now();
        for unique in 4..50 {
            let bytes = request(OPEN, unique, &[0; 8]);
            assert_eq!(error(&bytes, &ask(&mut bench, &bytes, 100)), EIO);
        }
        drop(bench.device.quiesce());
        assert!(start.elapsed() < patience.requests, "it waits again");
    }
}

#[test]
fn a_daemon_that_does_not_speak_is_refused_when_patience_ends() {
    let (stream, _silent) = std::os::unix::net::UnixStream::pair().unwrap();
    let start = Instant::now();
    let patience = Patience { agreement: Duration::from_millis(100), ..Patience::default() };
    assert!(matches!(Backend::new(stream, None, patience), Err(BackendError::Late(_))));
    assert!((Duration::from_millis(100)..Duration::from_secs(10)).contains(&start.elapsed()));
}

#[test]
fn a_guest_that_may_only_read_changes_nothing() {
    let (backend, seen) = daemon(|_| None);
    let read_only = VhostUserFs::new(FsConfig { tag: "x", read_only: true }, backend).unwrap();
    let mut bench = Bench::new(read_only, BenchConfig::default());
    for (n, (code, flags, expect)) in (1..).zip([
        (WRITE, 0, EROFS),
        (OPEN, 0, 0),
        (OPEN, 2, EROFS),
        (4, 0, EROFS),
        (51, 0, EROFS),
        (READ, 1, 0),
    ]) {
        let bytes = request(code, n, &u64::to_ne_bytes(flags));
        let response = ask(&mut bench, &bytes, 100);
        assert_eq!(error(&bytes, &response), expect, "opcode {code} {flags}");
        assert_eq!(seen.try_recv().is_ok(), expect == 0, "what is refused is not passed on");
    }
}

#[test]
fn a_reset_makes_the_daemon_forget_before_the_next_guest_asks() {
    let (backend, seen) = daemon(|_| None);
    let mut bench = Bench::new(device(backend), BenchConfig::default());
    assert_eq!(bench.device.save(), [0], "nobody has mounted it");
    ask(&mut bench, &request(INIT, 1, &[0; 56]), 100);
    let queues = bench.device.quiesce();
    assert_eq!(bench.device.save(), [1]);
    bench.go_on(queues);
    ask(&mut bench, &request(LOOKUP, 2, b"a\0"), 100);
    let queues = bench.device.quiesce();
    bench.device.reset();
    assert_eq!(bench.device.save(), [0]);
    bench.go_on(queues);
    ask(&mut bench, &request(INIT, 3, &[0; 56]), 100);
    let codes: Vec<_> = seen.try_iter().map(|(_, bytes)| opcode(&bytes)).collect();
    assert_eq!(codes, [INIT, LOOKUP, DESTROY, INIT]);
    // A guest that says goodbye needs none of that.
    ask(&mut bench, &request(DESTROY, 4, &[]), 100);
    drop(bench.device.quiesce());
    assert_eq!(bench.device.save(), [0]);
    bench.device.reset();
    assert_eq!(seen.try_iter().map(|(_, bytes)| opcode(&bytes)).collect::<Vec<_>>(), [DESTROY]);
    assert!(bench.device.restore(&[1]).is_err() && bench.device.restore(&[]).is_err());
    bench.device.restore(&[0]).unwrap();
}

#[test]
fn a_driver_that_breaks_the_rules_has_to_reset() {
    let short = request(READ, 1, &[])[..39].to_vec();
    let lies = [request(READ, 1, &[]), vec![0]].concat();
    for bytes in [short, lies, request(READ, 1, &vec![0; 2 << 20])] {
        let (backend, seen) = daemon(|_| None);
        let mut bench = Bench::new(device(backend), BenchConfig::default());
        bench.post(1, &[&bytes], &[16]);
        bench.kick(1);
        bench.until("a wish for a reset", |b| b.interrupts.needs_reset());
        assert!(seen.try_recv().is_err(), "{} bytes", bytes.len());
    }
}

#[test]
fn what_is_no_daemon_is_told_at_once() {
    let (stream, other) = std::os::unix::net::UnixStream::pair().unwrap();
    drop(other);
    assert!(matches!(Backend::new(stream, None, Patience::default()), Err(BackendError::Protocol(_))));
    let (stream, _) = daemon::start(1 << 30, Box::new(|_, _| Act::Hold));
    assert!(matches!(Backend::new(stream, None, Patience::default()), Err(BackendError::Features(_))));
}

#[test]
fn a_daemon_of_the_oldest_kind_serves() {
    let (stream, _) = daemon::start(1 << 32, Box::new(|_, bytes| Act::Answer(answer(bytes, 0, b"!"))));
    let mut bench =
        Bench::new(device(Backend::new(stream, None, Patience::default()).unwrap()), BenchConfig::default());
    let bytes = request(LOOKUP, 1, b"a\0");
    assert_eq!(ask(&mut bench, &bytes, 100).data, answer(&bytes, 0, b"!"));
}
