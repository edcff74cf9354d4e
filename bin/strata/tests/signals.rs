//! Commands that wait for something else end by the signals that ask for it.

mod support;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use support::{Host, PATIENCE};

/// What a user, a session's end and a supervisor send.
const SIGNALS: [Signal; 4] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT];

/// Those that processes started from here do not ignore: a shell without job control has what
/// it starts in the background ignore SIGINT and SIGQUIT, and whatever that starts.
fn signals() -> impl Iterator<Item = Signal> {
    let status = std::fs::read_to_string("/proc/self/status").expect("readable");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("always there");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a mask");
    SIGNALS.into_iter().filter(move |s| ignored >> (s.as_raw() - 1) & 1 == 0)
}

/// Send a signal and expect that the process ends by it.
fn check_ends_by(signal: Signal, mut child: Child) {
    kill_process(Pid::from_child(&child), signal).expect("our child");
    let start = Instant::now();
    while start.elapsed() < PATIENCE / 4 {
        if let Some(status) = child.try_wait().expect("a child") {
            assert_eq!(status.signal(), Some(signal.as_raw()), "{status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("{signal:?} does not end it");
}

#[test]
fn a_console_that_is_no_terminal_can_be_left() {
    let host = Host::new("leave-console");
    // `mov dx, 0x3f8; mov al, '!'; out dx, al; jmp $`
    let firmware = host.firmware("fw", &[0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xeb, 0xfe]);
    host.check(&["run", "-d", "--name", "web", "--memory", "2M", "--firmware", &firmware], 0);
    for signal in signals() {
        let mut command = host.command(&["console", "web"]);
        let mut console = command.stdout(Stdio::piped()).spawn().expect("the built command starts");
        // It is connected once it shows what the guest has said.
        let mut shown = [0];
        console.stdout.as_mut().expect("piped").read_exact(&mut shown).expect("the guest said something");
        check_ends_by(signal, console);
    }
}

#[test]
fn a_run_that_waits_for_the_guests_files_can_be_broken_off() {
    let host = Host::new("leave-run");
    let cache = host.0.join("cache");
    std::fs::create_dir_all(&cache).expect("writable");
    // As another process has it that fetches them.
    let lock = File::create(cache.join("lock")).expect("writable");
    flock(&lock, FlockOperation::LockExclusive).expect("nobody else's");
    for signal in signals() {
        let mut command = host.command(&["run"]);
        let mut run = command.stderr(Stdio::piped()).spawn().expect("the built command starts");
        let mut said = BufReader::new(run.stderr.take().expect("piped"));
        let mut line = String::new();
        while !line.contains("waiting for it") {
            line.clear();
            assert_ne!(said.read_line(&mut line).expect("text"), 0, "it does not wait");
        }
        check_ends_by(signal, run);
    }
}
