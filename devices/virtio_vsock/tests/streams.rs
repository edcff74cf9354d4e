//! The device between a mock driver and the host's sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use virtio_core::VirtioDevice;
use virtio_core::mock::{Bench, BenchConfig};
use virtio_vsock::{BUFFER, HEADER, HOST_CID, Header, Operation, VirtioVsock, VsockConfig};

const CID: u64 = 7;
const PORT: u32 = 1234;
/// What the driver says its programs can hold.
const GUEST_BUFFER: u32 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("strata-vsock-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A driver with the host's sockets.
struct Machine {
    bench: Bench<VirtioVsock>,
    folder: Scratch,
    taken: u32,
    seen: Vec<(Header, Vec<u8>)>,
}

fn device(folder: &Scratch) -> VirtioVsock {
    let path = folder.0.join("v");
    let _ = std::fs::remove_file(&path);
    let listener = Some(UnixListener::bind(&path).unwrap());
    VirtioVsock::new(VsockConfig { cid: CID, listener, to_host: Some(path) }).unwrap()
}

impl Machine {
    fn new(name: &str) -> Self {
        let folder = Scratch::new(name);
        let mut bench = Bench::new(device(&folder), BenchConfig::default());
        for _ in 0..64 {
            bench.post(0, &[], &[4096]);
        }
        bench.kick(0);
        Machine { bench, folder, taken: 0, seen: Vec::new() }
    }

    fn header(&self, host: u32, op: Operation, len: usize) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: host,
            len: len as u32,
            kind: 1,
            op,
            flags: 0,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: self.taken,
        }
    }

    fn send(&mut self, header: Header, bytes: &[u8]) {
        self.bench.request(1, &[&header.encode(), bytes], &[]);
    }

    /// The next packet for the guest.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let start = Instant::now();
        loop {
            while let Some(r) = self.bench.poll(0) {
                let header = Header::decode(r.data[..HEADER].try_into().unwrap());
                assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, 1));
                assert_eq!(header.len as usize, r.data.len() - HEADER);
                self.seen.push((header, r.data[HEADER..].to_vec()));
                self.bench.post(0, &[], &[4096]);
                self.bench.kick(0);
            }
            if !self.seen.is_empty() {
                return self.seen.remove(0);
            }
            assert!(start.elapsed() < PATIENCE, "no packet");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn expect(&mut self, op: Operation) -> Header {
        let (header, bytes) = self.next();
        assert_eq!((header.op, bytes.len()), (op, 0), "{header:?}");
        header
    }

    /// A reset, perhaps behind news of room.
    fn expect_end(&mut self) {
        let mut op = Operation::CREDIT_UPDATE;
        while op == Operation::CREDIT_UPDATE {
            op = self.next().0.op;
        }
        assert_eq!(op, Operation::RST);
    }

    fn dial(&self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.0.join("v")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream
    }

    /// A connection made by the host.
    fn connected(&mut self) -> (UnixStream, u32) {
        let mut stream = self.dial(&format!("CONNECT {PORT}\n"));
        let request = self.expect(Operation::REQUEST);
        assert_eq!((request.dst_port, request.buf_alloc), (PORT, BUFFER));
        let host = request.src_port;
        self.send(self.header(host, Operation::RESPONSE, 0), &[]);
        let mut line = vec![0; format!("OK {host}\n").len()];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {host}\n").as_bytes());
        (stream, host)
    }
}

fn is_closed(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(n) => n == 0,
        // The device has not read all that was written.
        Err(e) => e.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn the_guest_has_its_identifier() {
    let mut m = Machine::new("cid");
    let mut config = [0xff; 12];
    m.bench.device.config_read(0, &mut config);
    assert_eq!(config, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for cid in [0, 2, u64::from(u32::MAX), u64::MAX] {
        assert!(VirtioVsock::new(VsockConfig { cid, listener: None, to_host: None }).is_err(), "{cid}");
    }
}

#[test]
fn bytes_flow_from_host_to_guest_within_its_credit() {
    let mut m = Machine::new("down");
    let (mut stream, host) = m.connected();
    let sent: Vec<u8> = (0..3 * GUEST_BUFFER).map(|i| ((i * 31) >> 3) as u8).collect();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        }
    });
    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        let (header, bytes) = m.next();
        assert_eq!(header.op, Operation::RW);
        seen.extend(bytes);
        assert!(seen.len() as u32 - m.taken <= GUEST_BUFFER, "beyond the guest's credit");
        if seen.len() as u32 - m.taken == GUEST_BUFFER {
            // The credit is used up: nothing comes until the guest says so.
            std::thread::sleep(Duration::from_millis(20));
            assert!(m.bench.poll(0).is_none());
            m.taken = seen.len() as u32;
            m.send(m.header(host, Operation::CREDIT_UPDATE, 0), &[]);
        }
    }
    assert!(seen == sent);
    m.taken = seen.len() as u32;
    m.send(m.header(host, Operation::CREDIT_UPDATE, 0), &[]);
    assert_eq!(m.expect(Operation::SHUTDOWN).flags, 2, "the host sends no more and still receives");
    // The other direction goes on, and ends in good order.
    m.send(m.header(host, Operation::RW, 3), b"end");
    let mut stream = writer.join().unwrap();
    let mut end = [0; 3];
    stream.read_exact(&mut end).unwrap();
    assert_eq!(&end, b"end");
    m.send(Header { flags: 3, ..m.header(host, Operation::SHUTDOWN, 0) }, &[]);
    m.expect(Operation::RST);
    assert!(is_closed(&mut stream));
}

#[test]
fn bytes_flow_from_guest_to_host_and_credit_comes_back() {
    let mut m = Machine::new("up");
    let (mut stream, host) = m.connected();
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).unwrap();
        seen
    });
    let sent: Vec<u8> = (0..8 * BUFFER).map(|i| ((i * 17) >> 2) as u8).collect();
    let (mut at, mut told) = (0u32, 0u32);
    while (at as usize) < sent.len() {
        let n = (BUFFER - (at - told)).min(32 << 10).min(sent.len() as u32 - at);
        if n == 0 {
            let (header, _) = m.next();
            assert_eq!(header.op, Operation::CREDIT_UPDATE);
            told = header.fwd_cnt;
            continue;
        }
        let bytes = sent[at as usize..][..n as usize].to_vec();
        m.send(m.header(host, Operation::RW, bytes.len()), &bytes);
        at += n;
    }
    m.send(Header { flags: 3, ..m.header(host, Operation::SHUTDOWN, 0) }, &[]);
    m.expect_end();
    assert!(reader.join().unwrap() == sent);
}

#[test]
fn what_the_guest_sent_before_its_reset_still_arrives() {
    let mut m = Machine::new("linger");
    let (mut stream, host) = m.connected();
    // More than the socket's buffer, so that some waits in the device.
    let bytes = vec![5; BUFFER as usize];
    let mut taken = 0;
    for _ in 0..4 {
        m.send(m.header(host, Operation::RW, bytes.len()), &bytes);
        m.send(m.header(host, Operation::CREDIT_REQUEST, 0), &[]);
        taken = m.expect(Operation::CREDIT_UPDATE).fwd_cnt;
        if taken % BUFFER != 0 {
            break;
        }
    }
    assert!(taken % BUFFER != 0, "the socket takes everything");
    m.send(m.header(host, Operation::RST, 0), &[]);
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).unwrap();
    assert!(seen.len() as u32 >= taken && seen.len() % bytes.len() == 0, "{} of {taken}", seen.len());
}

#[test]
fn a_guest_that_overdraws_its_credit_is_reset() {
    let mut m = Machine::new("greedy");
    let (_stream, host) = m.connected();
    let bytes = vec![5; BUFFER as usize];
    // What the socket does not take is held, once.
    for _ in 0..4 {
        m.send(m.header(host, Operation::RW, bytes.len()), &bytes);
    }
    m.expect_end();
    assert_eq!(m.next().0.op, Operation::RST, "later packets are of no connection");
}

#[test]
fn guest_programs_reach_the_hosts_sockets_by_port() {
    let mut m = Machine::new("out");
    m.send(m.header(80, Operation::REQUEST, 0), &[]);
    m.expect(Operation::RST);
    let listener = UnixListener::bind(m.folder.0.join("v_80")).unwrap();
    m.send(m.header(80, Operation::REQUEST, 0), &[]);
    m.expect(Operation::RESPONSE);
    let mut stream = listener.accept().unwrap().0;
    stream.write_all(b"hello").unwrap();
    assert_eq!(m.next().1, b"hello");
    drop(stream);
    assert_eq!(m.expect(Operation::SHUTDOWN).flags, 3);
    // The same port again, while the old connection stands: both end.
    m.send(m.header(80, Operation::REQUEST, 0), &[]);
    m.expect(Operation::RST);
}

#[test]
fn hosts_that_say_something_else_or_want_nobody_are_sent_away() {
    let mut m = Machine::new("door");
    for line in ["GET / HTTP/1.1\r\n", "CONNECT x\n", "CONNECT 99999999999999999999999\n"] {
        assert!(is_closed(&mut m.dial(line)), "{line}");
    }
    let mut refused = m.dial("CONNECT 5\n");
    let request = m.expect(Operation::REQUEST);
    let rst = Header { src_port: 5, ..m.header(request.src_port, Operation::RST, 0) };
    m.send(rst, &[]);
    assert!(is_closed(&mut refused));
    // A program that leaves before the guest has answered.
    drop(m.dial("CONNECT 6\n"));
    m.expect(Operation::REQUEST);
    m.expect(Operation::RST);
}

#[test]
fn stray_and_malformed_packets_are_reset_and_harm_nothing() {
    let mut m = Machine::new("stray");
    let stray = m.header(9, Operation::RW, 0);
    for op in
        [Operation::RESPONSE, Operation::RW, Operation::SHUTDOWN, Operation::CREDIT_UPDATE, Operation(99)]
    {
        m.send(Header { op, ..stray }, &[]);
        assert_eq!(m.expect(Operation::RST).src_port, 9);
    }
    m.send(Header { kind: 2, ..stray }, &[]);
    m.expect(Operation::RST);
    m.send(Header { len: 5, ..stray }, b"1234");
    m.expect(Operation::RST);
    m.send(Header { len: u32::MAX, ..stray }, b"1234");
    m.expect(Operation::RST);
    // Resets and other guests' packets are not answered.
    m.send(Header { op: Operation::RST, ..stray }, &[]);
    m.send(Header { src_cid: CID + 1, ..stray }, &[]);
    m.send(Header { dst_cid: 5, ..stray }, &[]);
    let (_stream, _) = m.connected();
    assert!(!m.bench.interrupts.needs_reset());
    // Less than a header: the driver is at fault.
    m.bench.post(1, &[&[0; 43]], &[]);
    m.bench.kick(1);
    let start = Instant::now();
    while !m.bench.interrupts.needs_reset() && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(m.bench.interrupts.needs_reset());
}

#[test]
fn answers_wait_for_room_and_packets_for_answers() {
    let folder = Scratch::new("full");
    let mut bench = Bench::new(device(&folder), BenchConfig::default());
    let header = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 1,
        dst_port: 2,
        len: 0,
        kind: 1,
        op: Operation::RW,
        flags: 0,
        buf_alloc: 0,
        fwd_cnt: 0,
    };
    // Without receive buffers: the device stops taking packets.
    let mut sent = 0u32;
    let mut taken = 0u32;
    loop {
        while bench.queues[1].outstanding() < 200 {
            bench.post(1, &[&Header { dst_port: sent, ..header }.encode()], &[]);
            sent += 1;
        }
        bench.kick(1);
        std::thread::sleep(Duration::from_millis(20));
        let before = taken;
        while bench.poll(1).is_some() {
            taken += 1;
        }
        if taken == before {
            break;
        }
    }
    assert_eq!(taken, 1024);
    // All of them are answered in order once there is room.
    for port in 0..sent {
        let header = loop {
            if let Some(r) = bench.poll(0) {
                break Header::decode(r.data[..HEADER].try_into().unwrap());
            }
            if bench.queues[0].outstanding() == 0 {
                bench.post(0, &[], &[64]);
                bench.kick(0);
            }
            std::thread::yield_now();
        };
        assert_eq!((header.op, header.src_port), (Operation::RST, port));
    }
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut m = Machine::new("restore");
    let (mut stream, _) = m.connected();
    m.bench.post(2, &[], &[8]);
    m.bench.kick(2);
    let fresh = device(&m.folder);
    m.bench.replace(fresh);
    let start = Instant::now();
    let event = loop {
        if let Some(r) = m.bench.poll(2) {
            break r;
        }
        assert!(start.elapsed() < PATIENCE, "no event");
        std::thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(event.data, [0; 4]);
    assert!(is_closed(&mut stream));
    m.connected();
    // Without connections there is nothing to tell.
    let mut m = Machine::new("restore2");
    m.bench.post(2, &[], &[8]);
    m.bench.kick(2);
    let fresh = device(&m.folder);
    m.bench.replace(fresh);
    m.connected();
    assert!(m.bench.poll(2).is_none());
}

#[test]
fn a_saved_state_of_another_kind_is_refused() {
    let mut device = VirtioVsock::new(VsockConfig { cid: CID, listener: None, to_host: None }).unwrap();
    for state in [&[][..], &[2], &[0, 0]] {
        assert!(device.restore(state).is_err(), "{state:?}");
    }
    assert!(device.restore(&[1]).is_ok());
}
