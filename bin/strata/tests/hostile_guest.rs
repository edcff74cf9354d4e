//! What a guest and its agent cannot do to the commands of the host: the built program
//! from outside, with a socket of the test's own where the guest's agent would be.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use support::{Host, PATIENCE};

/// `jmp $`
const DEAF: &[u8] = &[0xeb, 0xfe];

/// A frame with a greeting is so long; kinds of others.
const HELLO: usize = 15;
const STARTED: u8 = 64;
const FAILED: u8 = 71;

/// Frames of the agent's protocol (guest/agent_protocol): length, kind, payload.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_le_bytes()[..], &[kind], payload].concat()
}

struct Machine<'a> {
    host: &'a Host,
    child: Child,
}

impl Machine<'_> {
    /// A machine "g" whose guest reads nothing, and whose console can be had.
    fn start(host: &Host) -> Machine<'_> {
        let firmware = host.firmware("deaf.fw", DEAF);
        let line =
            ["run", "--name", "g", "--memory", "2M", "--timeout", "5m", "--engine", "interp", "--firmware"];
        let mut command = host.command(&[&line[..], &[&firmware]].concat());
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the built command");
        let machine = Machine { host, child };
        let start = Instant::now();
        while machine.directory().is_none_or(|d| UnixStream::connect(d.join("control.sock")).is_err()) {
            assert!(start.elapsed() < PATIENCE, "it does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        machine
    }

    fn directory(&self) -> Option<PathBuf> {
        let list = self.host.json(&["ps", "--format", "json"]);
        Some(self.host.0.join("run").join(list[0]["id"].as_str()?))
    }

    /// Answer the host's connections to the guest with these frames, and then nothing.
    fn agent(&self, answer: Vec<u8>) {
        let path = self.directory().expect("it runs").join("vsock.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).expect("writable");
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let mut line = [0; "CONNECT 1020\n".len()];
                let hello = stream.read_exact(&mut line).and_then(|()| stream.write_all(b"OK 1\n"));
                let mut greeting = [0; HELLO];
                let _ = hello.and_then(|()| stream.read_exact(&mut greeting));
                // The greeting of both sides is the same.
                let _ = stream.write_all(&greeting).and_then(|()| stream.write_all(&answer));
                held.push(stream);
            }
        });
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(child: &mut Child, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    loop {
        match child.try_wait().expect("a child") {
            Some(status) => return status.code(),
            None if start.elapsed() > limit => return None,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[test]
fn an_error_of_a_guest_does_not_reach_the_terminal_as_it_is() {
    let host = Host::new("escapes");
    let machine = Machine::start(&host);
    let text = b"no \x1b]52;c;eA==\x07\xc2\x9b2J";
    let failed = [&[0][..], &(text.len() as u32).to_le_bytes(), text].concat();
    machine.agent(frame(FAILED, &failed));
    let said = host.check(&["cp", "g:/x", "."], 2);
    assert!(said.contains("no \\u{1b}]52;c;eA==\\u{7}\\u{9b}2J"), "{said:?}");
    assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
}

#[test]
fn a_command_of_a_silent_guest_can_be_left() {
    let host = Host::new("left");
    let machine = Machine::start(&host);
    machine.agent(frame(STARTED, &[1, 0, 0, 0]));
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut exec = host.command(&["exec", "g", "--", "true"]).spawn().expect("the built command");
        let pid = rustix::process::Pid::from_child(&exec);
        // Until it is started, one is enough: the second may find it gone.
        std::thread::sleep(Duration::from_secs(1));
        for _ in 0..2 {
            rustix::process::kill_process(pid, signal).expect("our child");
            std::thread::sleep(Duration::from_millis(100));
        }
        let status = ended(&mut exec, Duration::from_secs(5));
        let _ = exec.kill();
        assert_eq!(status, Some(128 + signal.as_raw()));
    }
}

#[test]
fn facts_of_a_silent_agent_are_left_out() {
    let host = Host::new("facts");
    let machine = Machine::start(&host);
    machine.agent(Vec::new());
    let mut inspect =
        host.command(&["inspect", "g"]).stdout(Stdio::null()).spawn().expect("the built command");
    let status = ended(&mut inspect, Duration::from_secs(20));
    let _ = inspect.kill();
    assert_eq!(status, Some(0));
}

#[test]
fn a_guest_that_reads_nothing_leaves_the_control_socket_to_others() {
    let host = Host::new("deaf");
    let machine = Machine::start(&host);
    let socket = machine.directory().expect("it runs").join("control.sock");
    let attach = |typed: &[u8]| {
        let mut stream = UnixStream::connect(&socket).expect("it listens");
        let _ = stream.write_all(b"{\"version\":1,\"action\":\"console\"}\n");
        let mut answer = [0; 64];
        let _ = stream.read(&mut answer);
        stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a socket");
        let _ = stream.write_all(typed);
    };
    // More than the guest's port holds.
    attach(&vec![b'x'; 200_000]);
    (0..20).for_each(|_| attach(b"x"));
    let said = host.check(&["stop", "--timeout", "1s", "g"], 0);
    assert!(said.contains("g: ended"), "it was not killed: {said}");
}
