//! Commands and copies in the built-in guest, through the agent over vsock.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use guest_image::READY_MARKER;
use guests::SOFTWARE_ENGINES;
use guests::machine::{Guest, Running, command_path, stock_guest};

/// A guest that runs, by its name.
struct Machine {
    name: String,
    _running: Running,
}

impl Machine {
    /// None: there is no guest to be had here.
    fn start(engine: &str, label: &str) -> Option<Self> {
        stock_guest(guest_image::Flavour::Cloud)?;
        let name = format!("{label}-{engine}-{}", std::process::id());
        let mut running = Guest::new(engine).with(&["--name", &name]).start().expect("the guest starts");
        running.wait_for(READY_MARKER).expect("a shell");
        Some(Machine { name, _running: running })
    }

    fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(command_path().expect("the command"));
        command.args(verb).stdin(Stdio::null());
        command
    }

    fn exec(&self, script: &str) -> Output {
        self.command(&["exec", &self.name, "--", "sh", "-c", script]).output().expect("it runs")
    }

    fn exec_with(&self, script: &str, input: Vec<u8>) -> Output {
        let mut child = self
            .command(&["exec", "-i", &self.name, "--", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut stdin = child.stdin.take().expect("piped");
        // A command that does not read all ends the pipe.
        let writer = std::thread::spawn(move || stdin.write_all(&input).is_ok());
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("it only writes");
        output
    }
}

/// Bytes without a pattern that a stream could hide.
fn noise(count: u32) -> Vec<u8> {
    (0..count).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 15) as u8).collect()
}

#[test]
#[ignore = "boots stock kernels"]
fn statuses_signals_and_streams_are_exact() {
    for engine in SOFTWARE_ENGINES {
        let Some(m) = Machine::start(engine, "exec") else { return };
        let first = Instant::now();
        assert_eq!(m.exec("exit 0").status.code(), Some(0), "{engine}");
        println!("{engine}: the first command {:.1?} after the shell", first.elapsed());
        let step = if engine == "jit" { 1 } else { 51 };
        for status in (0..=255).step_by(step) {
            assert_eq!(m.exec(&format!("exit {status}")).status.code(), Some(status), "{engine}");
        }
        for signal in [2, 9, 15] {
            let ended = m.exec(&format!("kill -{signal} $$; sleep 9")).status.code();
            assert_eq!(ended, Some(128 + signal), "{engine}");
        }
        let output = m.exec("printf 'a\\0b'; printf e >&2; exit 3");
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"a\0b"[..], &b"e"[..]));
        assert_eq!(
            m.command(&["exec", &m.name, "none-such"]).output().expect("it runs").status.code(),
            Some(127)
        );
        let user = m.command(&["exec", "-u", "nobody-here", &m.name, "id"]).output().expect("it runs");
        assert_eq!(user.status.code(), Some(2), "{}", String::from_utf8_lossy(&user.stderr));
        let environment = ["exec", "-e", "A=b c", "-w", "/proc", &m.name, "--", "sh", "-c", "echo $A $PWD"];
        let output = m.command(&environment).output().expect("it runs").stdout;
        assert_eq!(output, b"b c /proc\n");
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn ten_mebibytes_come_back_unchanged() {
    for engine in SOFTWARE_ENGINES {
        let Some(m) = Machine::start(engine, "pipe") else { return };
        let sent = noise(10 << 20);
        let start = Instant::now();
        let output = m.exec_with("cat", sent.clone());
        println!("{engine}: 10 MiB there and back in {:.1?}", start.elapsed());
        assert!(output.stdout == sent, "{engine}: {} bytes came back", output.stdout.len());
        assert_eq!(output.status.code(), Some(0));
        // What nobody reads holds nothing up.
        assert_eq!(m.exec_with("exit 5", noise(4 << 20)).status.code(), Some(5));
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn commands_run_beside_each_other() {
    for engine in SOFTWARE_ENGINES {
        let Some(m) = Machine::start(engine, "many") else { return };
        std::thread::scope(|scope| {
            for n in 0..16u8 {
                let m = &m;
                scope.spawn(move || {
                    let sent = vec![n; 100_000 + usize::from(n)];
                    let output = m.exec_with(&format!("cat; exit {n}"), sent.clone());
                    assert!(output.stdout == sent && output.status.code() == Some(n.into()), "{n}");
                });
            }
        });
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn files_are_copied_both_ways_with_equal_sums() {
    for engine in SOFTWARE_ENGINES {
        let Some(m) = Machine::start(engine, "copy") else { return };
        let folder = std::env::temp_dir().join(format!("strata-cp-{engine}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        let sent = noise(64 << 20);
        std::fs::write(path("sent"), &sent).expect("a temporary file");
        let sum = Command::new("sha256sum").arg(path("sent")).output().expect("sha256sum").stdout;
        let start = Instant::now();
        let there = m.command(&["cp", &path("sent"), &format!("{}:/tmp/file", m.name)]).output();
        let there = there.expect("it runs");
        assert!(there.status.success(), "{}", String::from_utf8_lossy(&there.stderr));
        println!("{engine}: 64 MiB into the guest in {:.1?}", start.elapsed());
        let seen = m.exec("sha256sum < /tmp/file").stdout;
        assert_eq!(seen[..64], sum[..64], "{engine}");
        let start = Instant::now();
        let back = m.command(&["cp", &format!("{}:/tmp/file", m.name), &path("back")]).output();
        assert!(back.expect("it runs").status.success());
        println!("{engine}: 64 MiB out of the guest in {:.1?}", start.elapsed());
        assert!(std::fs::read(path("back")).expect("it is there") == sent, "{engine}");
        let missing = m.command(&["cp", &format!("{}:/none", m.name), &path("x")]).output().expect("it runs");
        assert_eq!(missing.status.code(), Some(2), "{}", String::from_utf8_lossy(&missing.stderr));
        std::fs::remove_dir_all(&folder).expect("it is there");
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn inspect_tells_what_the_guest_says_of_itself() {
    let Some(m) = Machine::start("jit", "facts") else { return };
    // The agent may still be on its way.
    assert!(m.exec("true").status.success());
    let output = m.command(&["inspect", &m.name]).output().expect("it runs").stdout;
    let text = String::from_utf8_lossy(&output);
    for part in ["\"guest\"", "\"hostname\": \"strata\"", "\"kernel\": \"6."] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
}
