//! The agent's program over a Unix socket, as the host speaks to it over vsock.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use agent_protocol::{
    Channel, ChannelError, Ending, Exec, Failure, FailureKind, Receiver, STDIN_WINDOW, Size, ToGuest, ToHost,
    TreeItem, TreeName,
};

struct Agent {
    process: Child,
    folder: PathBuf,
}

impl Agent {
    fn start(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("strata-agent-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata-agent"));
        let process = command.arg("unix").arg(folder.join("s")).spawn().unwrap();
        let agent = Agent { process, folder };
        while UnixStream::connect(agent.folder.join("s")).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        agent
    }

    fn connect(&self) -> Channel<UnixStream> {
        let mut channel = Channel::new(UnixStream::connect(self.folder.join("s")).unwrap());
        channel.greet().unwrap();
        channel
    }

    fn ask(&self, request: ToGuest) -> Channel<UnixStream> {
        let mut channel = self.connect();
        channel.send(&request).unwrap();
        channel
    }

    /// Run to the end; answers output, errors and the last message.
    fn run(&self, exec: Exec) -> (Vec<u8>, Vec<u8>, ToHost) {
        finish(&mut self.ask(ToGuest::Exec(exec)))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn finish(channel: &mut Channel<UnixStream>) -> (Vec<u8>, Vec<u8>, ToHost) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match channel.receive::<ToHost>().unwrap() {
            ToHost::Stdout(bytes) => out.extend(bytes),
            ToHost::Stderr(bytes) => err.extend(bytes),
            last if last.is_last() => return (out, err, last),
            _ => {}
        }
    }
}

fn shell(script: &str) -> Exec {
    let argv = ["sh", "-c", script].map(|s| s.as_bytes().to_vec()).to_vec();
    Exec { argv, ..Exec::default() }
}

#[test]
fn every_status_and_signal_is_exact() {
    let agent = Agent::start("status");
    for status in (0..=255).step_by(5) {
        let (_, _, last) = agent.run(shell(&format!("exit {status}")));
        assert_eq!(last, ToHost::Ended(Ending::Status(status)));
    }
    for signal in [1, 2, 9, 15] {
        let (_, _, last) = agent.run(shell(&format!("kill -{signal} $$; sleep 9")));
        assert_eq!(last, ToHost::Ended(Ending::Signal(signal)));
    }
}

#[test]
fn output_errors_environment_and_directory_are_the_commands() {
    let agent = Agent::start("streams");
    let script = "printf 'a\\0b'; printf e >&2; printf '%s' \"$X\" \"$PWD\" \"$HOME\"";
    let exec = Exec { env: vec![b"X=1=2".to_vec()], directory: b"/usr".to_vec(), ..shell(script) };
    let (out, err, last) = agent.run(exec);
    let home = std::env::var("HOME").unwrap_or_default();
    assert_eq!(out, [b"a\0b1=2/usr".as_slice(), home.as_bytes()].concat());
    assert_eq!((err.as_slice(), last), (b"e".as_slice(), ToHost::Ended(Ending::Status(0))));
}

#[test]
fn what_cannot_be_started_is_told_by_its_kind() {
    let agent = Agent::start("missing");
    let check = |exec: Exec, kind: FailureKind, text: &str| match agent.run(exec).2 {
        ToHost::Failed(Failure { kind: k, text: t }) => assert!(k == kind && t.contains(text), "{k:?} {t}"),
        other => panic!("{other:?}"),
    };
    let program = |name: &str| Exec { argv: vec![name.as_bytes().to_vec()], ..Exec::default() };
    check(program("no-such-program"), FailureKind::NotFound, "no-such-program");
    check(program("/etc/passwd"), FailureKind::Refused, "/etc/passwd");
    check(program(""), FailureKind::Other, "program");
    check(Exec { user: b"nobody-here".to_vec(), ..shell("") }, FailureKind::NotFound, "nobody-here");
    check(Exec { directory: b"/none".to_vec(), ..shell("") }, FailureKind::NotFound, "/none");
    check(Exec { env: vec![b"x".to_vec()], ..shell("") }, FailureKind::Other, "NAME=value");
}

#[test]
fn much_input_comes_back_unchanged() {
    let agent = Agent::start("cat");
    let sent: Vec<u8> = (0..10 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let exec = Exec { stdin: true, ..shell("cat") };
    let mut channel = agent.ask(ToGuest::Exec(exec));
    let (mut at, mut window, mut seen) = (0, STDIN_WINDOW, Vec::new());
    let last = loop {
        while window > 0 && at < sent.len() {
            let n = window.min(60_000).min(sent.len() - at);
            channel.send(&ToGuest::Stdin(sent[at..at + n].to_vec())).unwrap();
            (at, window) = (at + n, window - n);
            if at == sent.len() {
                channel.send(&ToGuest::StdinEnd).unwrap();
            }
        }
        match channel.receive::<ToHost>().unwrap() {
            ToHost::Stdout(bytes) => seen.extend(bytes),
            ToHost::StdinCredit(n) => window += n as usize,
            last if last.is_last() => break last,
            _ => {}
        }
    };
    assert_eq!(last, ToHost::Ended(Ending::Status(0)));
    assert!(seen == sent, "{} of {} bytes", seen.len(), sent.len());
}

#[test]
fn signals_pass_input_that_nobody_reads() {
    let agent = Agent::start("signal");
    let script = "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.05; done";
    let mut channel = agent.ask(ToGuest::Exec(Exec { stdin: true, ..shell(script) }));
    for _ in 0..STDIN_WINDOW / 32768 {
        channel.send(&ToGuest::Stdin(vec![0; 32768])).unwrap();
    }
    while channel.receive::<ToHost>().unwrap() != ToHost::Stdout(b"ready\n".to_vec()) {}
    channel.send(&ToGuest::Signal(2)).unwrap();
    let (out, _, last) = finish(&mut channel);
    assert_eq!((out.as_slice(), last), (b"caught\n".as_slice(), ToHost::Ended(Ending::Status(7))));
}

#[test]
fn input_beyond_the_window_ends_the_connection() {
    let agent = Agent::start("window");
    let mut channel = agent.ask(ToGuest::Exec(Exec { stdin: true, ..shell("sleep 20") }));
    for _ in 0..STDIN_WINDOW / 32768 + 3 {
        if channel.send(&ToGuest::Stdin(vec![0; 32768])).is_err() {
            break;
        }
    }
    let ended = loop {
        match channel.receive::<ToHost>() {
            Ok(ToHost::Started(_) | ToHost::StdinCredit(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(ended, Err(ChannelError::Closed | ChannelError::Io(_))), "{ended:?}");
}

#[test]
fn a_terminal_has_a_size_and_passes_its_keys() {
    let agent = Agent::start("terminal");
    let exec = Exec {
        terminal: Some(Size { rows: 31, columns: 117 }),
        stdin: true,
        ..shell("tty >/dev/null && stty size; stty -echo; echo go; read x; stty size; cat")
    };
    let mut channel = agent.ask(ToGuest::Exec(exec));
    let mut seen = Vec::new();
    let wait_for = |channel: &mut Channel<UnixStream>, seen: &mut Vec<u8>, text: &str| {
        while !String::from_utf8_lossy(seen).contains(text) {
            if let ToHost::Stdout(bytes) = channel.receive().unwrap() {
                seen.extend(bytes);
            }
        }
    };
    wait_for(&mut channel, &mut seen, "31 117\r\ngo");
    channel.send(&ToGuest::Resize(Size { rows: 5, columns: 6 })).unwrap();
    channel.send(&ToGuest::Stdin(b"\n".to_vec())).unwrap();
    wait_for(&mut channel, &mut seen, "5 6\r\n");
    // A shell between two commands survives ^C; once `cat` answers it is there.
    channel.send(&ToGuest::Stdin(b"here\n".to_vec())).unwrap();
    wait_for(&mut channel, &mut seen, "here\r\n");
    // ^C reaches the group in the foreground.
    channel.send(&ToGuest::Stdin(vec![3])).unwrap();
    assert_eq!(finish(&mut channel).2, ToHost::Ended(Ending::Signal(2)));
}

#[test]
fn the_end_of_a_terminals_input_is_told() {
    let agent = Agent::start("eof");
    let exec = Exec { terminal: Some(Size { rows: 1, columns: 1 }), stdin: true, ..shell("cat; exit 3") };
    let mut channel = agent.ask(ToGuest::Exec(exec));
    channel.send(&ToGuest::StdinEnd).unwrap();
    assert_eq!(finish(&mut channel).2, ToHost::Ended(Ending::Status(3)));
}

#[test]
fn a_process_left_behind_does_not_hold_the_command() {
    let agent = Agent::start("daemon");
    let start = std::time::Instant::now();
    let (out, _, last) = agent.run(shell("sleep 30 & echo done"));
    assert_eq!((out.as_slice(), last), (b"done\n".as_slice(), ToHost::Ended(Ending::Status(0))));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_command_whose_host_is_gone_is_hung_up_on() {
    let agent = Agent::start("hangup");
    let file = agent.folder.join("hung");
    let script = format!(
        "exec 2>/dev/null; trap 'echo up > {}; exit' HUP; echo go; while :; do sleep 0.05; done",
        file.display()
    );
    let mut channel = agent.ask(ToGuest::Exec(shell(&script)));
    while channel.receive::<ToHost>().unwrap() != ToHost::Stdout(b"go\n".to_vec()) {}
    drop(channel);
    for _ in 0..200 {
        if file.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the command goes on");
}

#[test]
fn trees_come_and_go() {
    let agent = Agent::start("copy");
    let from = agent.folder.join("from");
    std::fs::create_dir_all(from.join("in")).unwrap();
    std::fs::write(from.join("in/big"), vec![9; 300_000]).unwrap();
    let path = |name: &str| agent.folder.join(name).to_str().unwrap().as_bytes().to_vec();

    let mut channel = agent.ask(ToGuest::CopyIn { path: path("to") });
    agent_protocol::send_tree(&from, &mut |item| channel.send(&ToGuest::Tree(item))).unwrap();
    assert_eq!(finish(&mut channel).2, ToHost::Done);
    assert_eq!(std::fs::read(agent.folder.join("to/in/big")).unwrap(), vec![9; 300_000]);

    let mut channel = agent.ask(ToGuest::CopyOut { path: path("to") });
    let mut receiver = Receiver::new(&agent.folder.join("back"), TreeName::Sent).unwrap();
    loop {
        match channel.receive().unwrap() {
            ToHost::Tree(item) => {
                let end = item == TreeItem::End;
                receiver.accept(item).unwrap();
                if end {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(std::fs::read(agent.folder.join("back/in/big")).unwrap(), vec![9; 300_000]);

    let missing = |request: ToGuest| match finish(&mut agent.ask(request)).2 {
        ToHost::Failed(Failure { kind: FailureKind::NotFound, text }) => {
            assert!(text.contains("none"), "{text}")
        }
        other => panic!("{other:?}"),
    };
    missing(ToGuest::CopyOut { path: path("none") });
    missing(ToGuest::CopyIn { path: path("none/x") });
}

#[test]
fn facts_are_told_and_others_are_sent_away() {
    let agent = Agent::start("facts");
    let last = finish(&mut agent.ask(ToGuest::Facts)).2;
    let ToHost::Facts(facts) = last else { panic!("{last:?}") };
    assert!(facts.memory > 0 && facts.uptime > 0);
    // Something that does not speak the protocol.
    let mut stream = UnixStream::connect(agent.folder.join("s")).unwrap();
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.len() < 32, "only the greeting: {answer:?}");
}
