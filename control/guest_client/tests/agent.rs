//! The client against the embedded agent, through what a socket device does.

use std::ffi::OsStr;
use std::io::{Cursor, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use agent_protocol::{Frames, Hello, ToHost};
use guest_client::{Ending, Exec, FailureKind, Guest, GuestError, Streams};

struct Machine {
    folder: PathBuf,
    agent: Child,
}

impl Machine {
    fn start(name: &str) -> (Self, Guest) {
        let folder = std::env::temp_dir().join(format!("strata-client-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("agent");
        std::fs::write(&program, guest_agent::bytes()).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        // A process that another test is just starting may hold the file as this one wrote it.
        let start = || Command::new(&program).arg("unix").arg(folder.join("a")).spawn();
        let agent = (0..1000)
            .find_map(|_| match start() {
                Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(1));
                    None
                }
                started => Some(started.unwrap()),
            })
            .unwrap();
        let listener = UnixListener::bind(folder.join("v")).unwrap();
        let to = folder.join("a");
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let to = to.clone();
                std::thread::spawn(move || switch(stream, &to));
            }
        });
        let guest = Guest::new(&folder.join("v"), Duration::from_secs(20));
        (Machine { folder, agent }, guest)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// What the socket device does with one program of the host.
fn switch(mut host: UnixStream, to: &std::path::Path) {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        if host.read_exact(&mut byte).is_err() {
            return;
        }
        line.push(byte[0]);
    }
    assert_eq!(line, b"CONNECT 1020\n");
    // Nobody listens: the connection is closed.
    let Ok(agent) = UnixStream::connect(to) else { return };
    host.write_all(b"OK 1073741824\n").unwrap();
    let carry = |mut from: UnixStream, mut to: UnixStream| {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        })
    };
    carry(host.try_clone().unwrap(), agent.try_clone().unwrap());
    carry(agent, host);
}

fn shell(script: &str) -> Exec {
    Exec { argv: ["sh", "-c", script].map(|s| s.as_bytes().to_vec()).to_vec(), ..Exec::default() }
}

fn run(guest: &Guest, exec: Exec, input: Option<Vec<u8>>) -> (Vec<u8>, Vec<u8>, Result<Ending, GuestError>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let stdin = input.map(|bytes| Box::new(Cursor::new(bytes)) as Box<dyn Read + Send>);
    let ending = guest.exec(exec, Streams { stdin, stdout: &mut stdout, stderr: &mut stderr }, drop);
    (stdout, stderr, ending)
}

#[test]
fn commands_have_their_streams_and_status() {
    let (_machine, guest) = Machine::start("exec");
    let (out, err, ending) = run(&guest, shell("cat; echo e >&2; exit 9"), Some(b"a\0\xff".to_vec()));
    assert_eq!((out.as_slice(), err.as_slice()), (b"a\0\xff".as_slice(), b"e\n".as_slice()));
    assert_eq!(ending.unwrap(), Ending::Status(9));
    // Input that nobody reads holds nothing up.
    let (_, _, ending) = run(&guest, shell("exit 4"), Some(vec![0; 4 << 20]));
    assert_eq!(ending.unwrap(), Ending::Status(4));
    let much: Vec<u8> = (0..10 << 20).map(|i: u32| (i.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect();
    let (out, _, ending) = run(&guest, shell("cat"), Some(much.clone()));
    assert!(out == much && ending.unwrap() == Ending::Status(0));
    let missing = run(&guest, Exec { argv: vec![b"none-such".to_vec()], ..Exec::default() }, None).2;
    assert_eq!(missing.unwrap_err().kind(), Some(FailureKind::NotFound));
}

#[test]
fn a_command_can_be_signalled() {
    let (_machine, guest) = Machine::start("signal");
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let streams = Streams { stdin: None, stdout: &mut stdout, stderr: &mut stderr };
    let ending = guest.exec(shell("sleep 60"), streams, |control| control.signal(15).unwrap());
    assert_eq!(ending.unwrap(), Ending::Signal(15));
}

#[test]
fn output_that_cannot_be_written_ends_the_call() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (_machine, guest) = Machine::start("full");
    let streams = Streams { stdin: None, stdout: &mut Full, stderr: &mut std::io::sink() };
    let error = guest.exec(shell("yes"), streams, drop).unwrap_err();
    assert!(matches!(error, GuestError::Host(e) if e.kind() == std::io::ErrorKind::BrokenPipe));
}

#[test]
fn trees_come_and_go_with_their_progress() {
    let (machine, guest) = Machine::start("copy");
    let from = machine.folder.join("from");
    std::fs::create_dir_all(from.join("d")).unwrap();
    std::fs::write(from.join("d/f"), vec![3; 1 << 20]).unwrap();
    let path = |name: &str| machine.folder.join(name).to_str().unwrap().as_bytes().to_vec();
    let mut seen = 0;
    let copied = guest.copy_in(&from, &path("to"), &mut |n| seen = n).unwrap();
    assert_eq!((copied.bytes, seen), (1 << 20, 1 << 20));
    let mut total = None;
    guest
        .copy_out(&path("to/d/f"), &machine.folder.join("g"), OsStr::new("m"), &mut |_, t| total = t)
        .unwrap();
    assert_eq!(total, Some(1 << 20));
    assert_eq!(std::fs::read(machine.folder.join("g")).unwrap(), vec![3; 1 << 20]);
    // Into a folder, by the name of what was asked for, and a nameless one as it is told.
    let (asked_for, folder) = (path("to/d"), machine.folder.join("folder"));
    std::fs::create_dir(&folder).unwrap();
    for asked in [asked_for.clone(), [&asked_for[..], b"/.."].concat()] {
        guest.copy_out(&asked, &folder, OsStr::new("m"), &mut |_, _| ()).unwrap();
    }
    assert!(folder.join("d/f").is_file() && folder.join("m/d/f").is_file());
    // Failures of either side: the guest's reach the host behind what it sends.
    let there = guest.copy_in(&from, &path("none/x"), &mut |_| ()).unwrap_err();
    assert_eq!(there.kind(), Some(FailureKind::NotFound), "{there}");
    let there = guest.copy_out(&path("none"), &machine.folder, OsStr::new("m"), &mut |_, _| ()).unwrap_err();
    assert_eq!(there.kind(), Some(FailureKind::NotFound), "{there}");
    let here = guest.copy_in(&machine.folder.join("none"), &path("x"), &mut |_| ()).unwrap_err();
    assert!(matches!(here, GuestError::Host(_)), "{here}");
}

#[test]
fn a_guest_without_an_agent_is_told_with_a_remedy() {
    let (machine, _) = Machine::start("silent");
    let listener = UnixListener::bind(machine.folder.join("w")).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let guest = Guest::new(&machine.folder.join("w"), Duration::from_millis(300));
    let error = guest.facts().unwrap_err().to_string();
    assert!(error.contains("no agent") && error.contains("; "), "{error}");
    let guest = Guest::new(&machine.folder.join("nothing"), Duration::from_millis(300));
    let error = guest.facts().unwrap_err().to_string();
    assert!(error.contains("nothing") && error.contains("--vsock"), "{error}");
}

#[test]
fn a_guest_tells_its_facts() {
    let (_machine, guest) = Machine::start("facts");
    let facts = guest.facts().unwrap();
    assert!(facts.memory > 0 && !facts.kernel.is_empty());
}

/// An agent that greets, byte by byte at this pace, says `then`, and then nothing.
fn silent_agent(name: &str, pace: Duration, then: &[ToHost]) -> (PathBuf, Guest) {
    let folder = std::env::temp_dir().join(format!("strata-client-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let listener = UnixListener::bind(folder.join("v")).unwrap();
    let hello = Frames::encode(&Hello::ours()).unwrap();
    let then: Vec<u8> = then.iter().flat_map(|m| Frames::encode(m).unwrap()).collect();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut line = [0; "CONNECT 1020\n".len()];
            stream.read_exact(&mut line).unwrap();
            stream.write_all(b"OK 1\n").unwrap();
            // The host may have given up.
            for byte in &hello {
                let _ = stream.write_all(&[*byte]);
                std::thread::sleep(pace);
            }
            let _ = stream.write_all(&then);
            held.push(stream);
        }
    });
    let guest = Guest::new(&folder.join("v"), Duration::from_millis(400));
    (folder, guest)
}

#[test]
fn an_agent_that_falls_silent_is_not_waited_for() {
    let limit = Duration::from_secs(20);
    for (name, pace) in [("mute", Duration::ZERO), ("drip", Duration::from_millis(300))] {
        let (folder, guest) = silent_agent(name, pace, &[]);
        let (done, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let failed = |e: GuestError| matches!(e, GuestError::Stalled(_) | GuestError::Silent(_));
            let facts = guest.facts().map_err(failed).map(drop);
            let exec = run(&guest, shell("true"), None).2.map_err(failed).map(drop);
            done.send([facts, exec]).unwrap();
        });
        assert_eq!(wait.recv_timeout(limit).expect("it gives up"), [Err(true); 2], "{name}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn signals_do_not_wait_for_an_agent_that_does_not_read() {
    let (folder, guest) = silent_agent("deaf", Duration::ZERO, &[ToHost::Started(1)]);
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        // More input than the connection holds.
        let stdin = Some(Box::new(std::io::repeat(7)) as Box<dyn Read + Send>);
        let streams = Streams { stdin, stdout: &mut stdout, stderr: &mut stderr };
        let started = |control: guest_client::Control| {
            let refused = (0..100_000).any(|_| matches!(control.signal(15), Err(GuestError::Full)));
            done.send(refused).unwrap();
        };
        drop(guest.exec(shell("sleep 60"), streams, started));
    });
    assert!(wait.recv_timeout(Duration::from_secs(20)).expect("no signal waits"));
    std::fs::remove_dir_all(folder).unwrap();
}
