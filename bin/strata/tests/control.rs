//! Running machines under command: the built program from outside, with
//! firmware of a few instructions as the guest.

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Host, PATIENCE};

/// Counts, and powers off when the power button was pressed:
/// `again: inc dword [0x1000]; mov dx, 0x600; in ax, dx; test ax, 0x100; jz again;
/// mov dx, 0x604; mov ax, 0x3c00; out dx, ax; jmp $` (ACPI: PM1 status and control).
const POLITE: &[u8] = &[
    0x66, 0xff, 0x06, 0x00, 0x10, 0xba, 0x00, 0x06, 0xed, 0xa9, 0x00, 0x01, 0x74, 0xf2, 0xba, 0x04, 0x06,
    0xb8, 0x00, 0x3c, 0xef, 0xeb, 0xfe,
];
/// Counts whatever happens: `again: inc dword [0x1000]; jmp again`.
const STUBBORN: &[u8] = &[0x66, 0xff, 0x06, 0x00, 0x10, 0xeb, 0xf9];

impl Host {
    fn list(&self) -> Vec<Value> {
        self.json(&["ps", "--format", "json"]).as_array().expect("a list").clone()
    }

    /// Start a machine and wait until it runs.
    fn start(&self, name: &str, code: &[u8], more: &[&str]) -> Guest<'_> {
        let firmware = self.firmware(&format!("{name}.fw"), code);
        let line = [
            "run",
            "--name",
            name,
            "--memory",
            "2M",
            "--serial",
            "null",
            "--timeout",
            "5m",
            "--firmware",
            &firmware,
        ];
        let child = self
            .command(&[&line[..], more].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the built command starts");
        let guest = Guest { host: self, name: name.to_string(), child };
        guest.wait_for("it runs", |m| m["state"] == "running");
        guest
    }
}

struct Guest<'a> {
    host: &'a Host,
    name: String,
    child: Child,
}

impl Guest<'_> {
    fn info(&self) -> Option<Value> {
        self.host.list().into_iter().find(|m| m["name"] == self.name.as_str())
    }

    fn wait_for(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            match self.info() {
                Some(info) if is(&info) => return info,
                info => assert!(start.elapsed() < PATIENCE, "not: {what}: {info:?}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stats(&self) -> Value {
        self.host.json(&["stats", &self.name, "--format", "json"])[0].clone()
    }

    fn retired(&self) -> u64 {
        self.stats()["vcpus"][0]["retired"].as_u64().expect("the interpreter counts")
    }

    /// Wait until the guest has retired more than `count` instructions; how many then.
    fn retires_more_than(&self, count: u64) -> u64 {
        let start = Instant::now();
        loop {
            let now = self.retired();
            if now > count {
                return now;
            }
            assert!(start.elapsed() < PATIENCE, "the guest stands still at {now}");
        }
    }

    /// The status its process ended with.
    fn status(mut self) -> Option<i32> {
        let status = self.child.wait().expect("a child").code();
        assert!(self.info().is_none(), "an ended machine is still listed");
        status
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn machines_are_listed_found_and_described() {
    let host = Host::new("list");
    assert_eq!(host.list().len(), 0);
    assert_eq!(host.check(&["ps"], 0).lines().count(), 1);
    let one = host.start("one", POLITE, &["--engine", "interp", "--cpu", "x86-64-v2"]);
    let two = host.start("two", POLITE, &["--engine", "interp", "--cpus", "2"]);
    let info = one.info().expect("listed");
    assert_eq!(info["pid"], one.child.id());
    for (key, value) in [("engine", "interp"), ("state", "running"), ("cpu", "x86-64-v2")] {
        assert_eq!(info[key], value, "{info}");
    }
    assert_eq!((&info["vcpus"], &info["memory"]), (&1.into(), &(2u64 << 20).into()));
    let table = host.check(&["ps"], 0);
    assert!(table.lines().count() == 3 && table.contains("2 MiB") && table.contains("two"), "{table}");
    let id = info["id"].as_str().expect("text").to_string();
    let ids = host.check(&["ps", "-q"], 0);
    assert!(ids.lines().any(|l| l == id) && ids.lines().count() == 2, "{ids}");

    for wanted in ["one", &id] {
        let inspected = host.json(&["inspect", wanted]);
        assert_eq!(inspected["machine"]["id"], id.as_str());
        assert_eq!(inspected["spec"]["memory"], 2 << 20);
        assert!(inspected["cpu_model"]["features"].as_array().is_some_and(|f| f.len() > 20), "{inspected}");
    }
    assert!(host.check(&["inspect", "three"], 2).contains("no machine \"three\""));
    assert!(host.check(&["pause", "one", "three"], 2).contains("one: paused"));
    assert!(host.check(&["inspect", "zz"], 2).contains("remedy: `strata ps`"));
    let firmware = host.0.join("one.fw");
    let taken = ["run", "--name", "one", "--memory", "2M", "--firmware", firmware.to_str().expect("plain")];
    assert!(host.check(&taken, 2).contains("\"one\" runs already"));
    host.check(&["kill", "one", "two"], 0);
    assert_eq!((one.status(), two.status()), (Some(130), Some(130)));
}

#[test]
fn a_paused_machine_stands_still_and_its_counters_show_it() {
    let host = Host::new("pause");
    let guest = host.start("g", POLITE, &["--engine", "interp"]);
    let before = guest.retires_more_than(0);
    assert!(host.check(&["pause", "g"], 0).contains("paused"));
    guest.wait_for("paused", |m| m["state"] == "paused");
    let (first, time) = (guest.retired(), guest.stats()["guest_time_ms"].clone());
    assert!(first >= before);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(guest.retired(), first);
    let passed =
        guest.stats()["guest_time_ms"].as_u64().expect("a number") - time.as_u64().expect("a number");
    // Reading takes a little of it; the pause would be 600.
    assert!(passed < 300, "{passed} ms passed in a pause");
    let refused = host.check(&["pause", "g"], 1);
    assert!(
        refused.contains("cannot pause a machine that is paused") && refused.contains("remedy"),
        "{refused}"
    );
    host.check(&["resume", "g"], 0);
    assert!(host.check(&["resume", "g"], 1).contains("already runs"));
    guest.retires_more_than(first);
    let text = host.check(&["stats", "g"], 0);
    for part in ["running on interp", "2 MiB given", "touched", "vcpu 0", "instructions"] {
        assert!(text.contains(part), "lacks {part}: {text}");
    }
    host.check(&["stop", "g"], 0);
    assert_eq!(guest.status(), Some(0));
}

#[test]
fn the_engine_changes_on_command_and_the_guest_goes_on() {
    let host = Host::new("engine");
    let guest = host.start("g", POLITE, &["--engine", "interp"]);
    for round in 0..10 {
        for engine in ["jit", "interp"] {
            let switched = host.json(&["engine", "g", engine, "--format", "json"]);
            assert_eq!(switched["engine"], engine, "round {round}");
            assert!(switched["took_us"].as_u64().is_some_and(|us| us > 0), "{switched}");
            let before = guest.stats()["devices"]["port"].as_u64().expect("counted");
            let after = || guest.stats()["devices"]["port"].as_u64().expect("counted");
            let start = Instant::now();
            while after() == before {
                assert!(start.elapsed() < PATIENCE, "the guest stands still on {engine}");
            }
        }
    }
    assert!(host.check(&["engine", "g", "interp"], 0).contains("already"));
    assert!(host.check(&["engine", "g", "xen"], 2).contains("xen"));
    host.check(&["pause", "g"], 0);
    host.check(&["engine", "g", "jit"], 0);
    assert_eq!(guest.info().expect("listed")["state"], "paused");
    // The power button lets a paused machine go on: its guest could not answer otherwise.
    assert!(host.check(&["stop", "g"], 0).contains("powered off"));
    assert_eq!(guest.status(), Some(0));
}

/// Starts the watchdog with the least countdown and goes on counting:
/// `mov dx, 0x662; mov ax, 10; out dx, ax; mov dx, 0x660; mov ax, 1; out dx, ax;
/// again: inc dword [0x1000]; jmp again`.
const FORGETFUL: &[u8] = &[
    0xba, 0x62, 0x06, 0xb8, 0x0a, 0x00, 0xef, 0xba, 0x60, 0x06, 0xb8, 0x01, 0x00, 0xef, 0x66, 0xff, 0x06,
    0x00, 0x10, 0xeb, 0xf9,
];

#[test]
fn a_watchdog_that_runs_out_does_what_it_was_given() {
    let host = Host::new("watchdog");
    for engine in ["interp", "jit"] {
        let arguments = |action| ["--engine", engine, "--no-reboot", "--watchdog", action];
        for (action, status) in [("reset", 4), ("power-off", 0)] {
            let guest = host.start(&format!("{engine}-{action}"), FORGETFUL, &arguments(action));
            assert_eq!(guest.status(), Some(status), "{engine} {action}");
        }
        let guest = host.start(&format!("{engine}-none"), FORGETFUL, &arguments("none"));
        std::thread::sleep(Duration::from_millis(1500));
        assert!(guest.info().is_some_and(|m| m["state"] == "running"), "no watchdog, no end");
    }
}

#[test]
fn processors_and_memory_are_added_within_what_the_machine_can_have() {
    let host = Host::new("update");
    let more = ["--engine", "interp", "--cpus-max", "3", "--memory-max", "258M"];
    let _guest = host.start("g", POLITE, &more);
    let has = |arguments: &[&str]| {
        let now = host.json(&[&["update", "--format", "json", "g"], arguments].concat());
        (now["cpus"].as_u64(), now["memory"].as_u64().map(|m| m >> 20))
    };
    assert_eq!(has(&["--cpus", "2"]), (Some(2), Some(2)));
    assert_eq!(has(&["--memory", "130M", "--cpus", "3"]), (Some(3), Some(130)));
    assert_eq!(has(&["--memory", "258M"]), (Some(3), Some(258)));
    for (arguments, text) in [
        (["--cpus", "4"], "this machine has 1 to 3"),
        (["--cpus", "0"], "this machine has 1 to 3"),
        (["--memory", "200M"], "2 MiB to 258 MiB in steps of 128 MiB"),
        (["--memory", "514M"], "2 MiB to 258 MiB"),
        // This guest never lets go.
        (["--cpus", "1"], "has not let go"),
    ] {
        let said = host.check(&[&["update", "--wait", "200ms", "g"], &arguments[..]].concat(), 1);
        assert!(said.contains(text), "{arguments:?}: {said}");
    }
}

#[test]
fn disks_in_images_that_stand_on_others_come_while_the_machine_runs() {
    let host = Host::new("plug");
    let _guest = host.start("g", POLITE, &["--engine", "interp"]);
    std::fs::write(host.0.join("base"), vec![7; 1 << 20]).expect("writable");
    disk_qcow2::create(&host.0.join("thin"), 1 << 20, Some(("base", disk::ImageFormat::Raw)))
        .expect("an image");
    // The machine's process may open nothing: not the image, and not what that names.
    let refused = host.check(&["update", "g", "--add-disk", "thin"], 2);
    assert!(refused.contains("backing=on"), "{refused}");
    assert!(host.check(&["update", "g", "--add-disk", "thin,backing=on"], 0).contains("disk-0"));
    let taken = host.check(&["image", "convert", "thin", "copy", "--backing", "--force"], 2);
    assert!(taken.contains("written"), "it is locked: {taken}");
    let direct = host.check(&["update", "g", "--add-disk", "thin,backing=on,cache=direct"], 1);
    assert!(direct.contains("cache=direct"), "{direct}");
}

#[test]
fn a_guest_that_does_not_answer_is_ended() {
    let host = Host::new("stop");
    let guest = host.start("g", STUBBORN, &["--engine", "interp"]);
    let start = Instant::now();
    assert!(host.check(&["stop", "--timeout", "500ms", "g"], 0).contains("g: ended"));
    assert!(start.elapsed() >= Duration::from_millis(500));
    assert_eq!(guest.status(), Some(130));
    let guest = host.start("g", STUBBORN, &["--engine", "interp"]);
    host.check(&["stop", "--timeout", "0", "g"], 0);
    assert_eq!(guest.status(), Some(130));
}

#[test]
fn what_a_killed_process_leaves_is_cleared() {
    let host = Host::new("dead");
    let mut guest = host.start("g", STUBBORN, &["--engine", "interp"]);
    let id = guest.info().expect("listed")["id"].as_str().expect("text").to_string();
    let dir = host.0.join("run").join(id);
    assert!(dir.join("control.sock").exists());
    guest.child.kill().expect("our child");
    guest.child.wait().expect("our child");
    assert!(dir.exists());
    assert_eq!(host.list().len(), 0);
    assert!(!dir.exists());
    // Its name is free again.
    drop(guest);
    let again = host.start("g", POLITE, &["--engine", "interp"]);
    host.check(&["stop", "g"], 0);
    assert_eq!(again.status(), Some(0));
}

#[test]
fn nonsense_on_the_socket_harms_nobody() {
    let host = Host::new("nonsense");
    let guest = host.start("g", POLITE, &["--engine", "interp"]);
    let id = guest.info().expect("listed")["id"].as_str().expect("text").to_string();
    let dir = host.0.join("run").join(id);
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&host.0.join("run")), mode(&dir)), (0o700, 0o700));
    let silent: Vec<_> =
        (0..5).map(|_| UnixStream::connect(dir.join("control.sock")).expect("listens")).collect();
    for bytes in [&b"\xff\xfe\n"[..], b"{}\n", b"{\"version\":1,\"action\":\"fly\"}\n", &[b'x'; 1 << 17]] {
        let mut stream = UnixStream::connect(dir.join("control.sock")).expect("listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let _ = stream.write_all(bytes);
        let mut answer = [0; 512];
        let n = stream.read(&mut answer).unwrap_or(0);
        let answer = String::from_utf8_lossy(&answer[..n]);
        assert!(answer.contains("\"error\""), "{:.20?}: {answer}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(guest.info().expect("listed")["state"], "running");
    drop(silent);
    host.check(&["stop", "g"], 0);
    assert_eq!(guest.status(), Some(0));
}

/// A run of the command with little address space (ulimit -v, in KiB).
fn cramped(host: &Host, engine: &str) -> (Option<i32>, String) {
    let line = r#"ulimit -v 4000000; exec "$0" "$@""#;
    // mov al, 0x15; out 0xf4, al; hlt
    let firmware = host.firmware("cramped.fw", &[0xb0, 0x15, 0xe6, 0xf4, 0xf4]);
    let run =
        ["run", "--debug-exit", "--memory", "2M", "--serial", "null", "--timeout", "1m", "--engine", engine];
    let out = Command::new("sh")
        .args(["-c", line, env!("CARGO_BIN_EXE_strata")])
        .args(run)
        .arg("--firmware")
        .arg(firmware)
        .env("STRATA_RUNTIME_DIR", host.0.join("run"))
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn without_room_for_address_tables_auto_takes_the_interpreter_and_jit_refuses() {
    let host = Host::new("cramped");
    let doctor = host.json(&["doctor", "--format", "json"]);
    let engine = doctor.as_array().expect("findings").iter().find(|f| f["subject"] == "engine");
    let auto = engine.expect("doctor tells the engine")["found"].as_str().expect("text").to_string();

    let (status, text) = cramped(&host, "auto");
    // What the guest wrote to the debug-exit port: it ran.
    assert_eq!(status, Some(0x2b), "{text}");
    if auto.starts_with("auto takes jit") {
        let note = text.lines().find(|l| l.contains("engine interp instead of jit")).unwrap_or_default();
        assert!(note.contains("address tables") && note.contains("ulimit -v"), "{text}");
    }
    let (status, text) = cramped(&host, "jit");
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("error: ") && text.contains("--engine interp"), "{text}");
}

#[test]
fn no_colour_reaches_a_pipe_and_help_has_examples_and_statuses() {
    let host = Host::new("help");
    for verb in ["ps", "stats", "engine", "pause", "resume", "stop", "kill", "inspect"] {
        let help = host.check(&[verb, "--help"], 0);
        assert!(help.contains("Exit status"), "{verb}: {help}");
        assert!(!help.contains('\u{1b}'), "{verb}: escape sequences in a pipe");
    }
    assert!(host.check(&["stop", "--help"], 0).contains("strata stop --timeout 2m"));
    let completion = host.check(&["completion", "bash"], 0);
    for verb in ["ps", "stats", "engine", "inspect"] {
        assert!(
            completion.contains(&format!("strata__{verb}"))
                || completion.contains(&format!("strata__subcmd__{verb}")),
            "{verb}"
        );
    }
}
