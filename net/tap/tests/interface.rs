//! Frames through a real interface, in a network of the test's own.

use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use port::{FrameSink, Offload, Port};
use tap::Tap;

struct Frames(Vec<Vec<u8>>);

impl FrameSink for Frames {
    fn room(&mut self) -> bool {
        true
    }
    fn take(&mut self, parts: &[&[u8]], _offload: &Offload) {
        self.0.push(parts.concat());
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// Wait for a frame that satisfies a condition.
fn wait(ports: &mut [Tap], wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let start = Instant::now();
    loop {
        let mut frames = Frames(Vec::new());
        ports.iter_mut().for_each(|p| p.receive(&mut frames));
        if let Some(frame) = frames.0.into_iter().find(|f| wanted(f)) {
            return frame;
        }
        assert!(start.elapsed() < Duration::from_secs(10), "no such frame");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Answers in place: addresses and ports change sides, which changes no checksum.
fn turn_round(frame: &mut [u8]) {
    let swap = |f: &mut [u8], a: usize, b: usize, n: usize| (0..n).for_each(|i| f.swap(a + i, b + i));
    swap(frame, 0, 6, 6);
    swap(frame, 26, 30, 4);
    swap(frame, 34, 36, 2);
}

/// Set where `inside` is in a network of its own.
const OWN_NETWORK: &str = "STRATA_TEST_OWN_NETWORK";

/// Run this test's `inside` in a network of its own: nothing of the host is touched.
#[test]
fn frames_cross_an_interface() {
    let exe = std::env::current_exe().expect("a test has a path");
    let inside = ["--ignored", "--exact", "inside", "--nocapture", "--test-threads=1"];
    if !Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|s| s.success()) {
        println!("skipped: a network of one's own needs root and unshare(1)");
        return;
    }
    let output = Command::new("unshare")
        .arg("--net")
        .arg(exe)
        .args(inside)
        .env(OWN_NETWORK, "1")
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    text.lines().filter(|l| l.starts_with("skipped")).for_each(|l| println!("{l}"));
}

#[test]
#[ignore = "started by the other test, in a network of its own"]
fn inside() {
    if std::env::var_os(OWN_NETWORK).is_none() {
        return println!("skipped: for the other test to start");
    }
    for queues in [1, 2] {
        let name = format!("strata{queues}");
        let mut ports = match Tap::open(&name, queues) {
            Ok(ports) => ports,
            Err(e) => {
                println!("skipped: {e}");
                return;
            }
        };
        ip(&format!("addr add 192.0.2.1/24 dev {name}"));
        ip(&format!("link set {name} up"));
        ip(&format!("neigh add 192.0.2.2 lladdr 52:54:00:00:00:02 dev {name} nud permanent"));
        let socket = UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.send_to(b"are you there?", "192.0.2.2:7").unwrap();
        let mut frame = wait(&mut ports, |f| f.ends_with(b"are you there?"));
        turn_round(&mut frame);
        ports[0].send(&frame, &Offload::NONE);
        let mut answer = [0; 64];
        let (n, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!((&answer[..n], from.to_string().as_str()), (&b"are you there?"[..], "192.0.2.2:7"));
        drop(ports);
    }
}

#[test]
fn what_is_wrong_is_named() {
    let error = |name: &str, queues| Tap::open(name, queues).map(|_| ()).expect_err("refused").to_string();
    assert!(error("x", 0).contains("0 queues"));
    assert!(error("x", 17).contains("16"));
    let long = error("a-name-that-is-too-long", 1);
    assert!(long.contains("a-name-that-is-too-long") || long.contains("/dev/net/tun"), "{long}");
}
