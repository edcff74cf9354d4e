//! Debian's unmodified kernel, from start to shell, and every way it ends. Needs
//! apt-get or the cached guest; minutes on a slow host, so run on request:
//! `cargo test --release -p strata --test stock_kernel -- --ignored`.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn strata(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command.args(["run", "--timeout", "180s"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    strata(arguments).output().expect("the built command starts")
}

fn check(arguments: &[&str], status: i32, texts: &[&str]) -> String {
    let out = run(arguments);
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{arguments:?}:\n{text}");
    for t in texts {
        assert!(text.contains(t), "{arguments:?} lacks \"{t}\":\n{text}");
    }
    text.into_owned()
}

const APPEND: &str = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests";

#[test]
#[ignore = "boots a stock kernel many times"]
fn reaches_the_shell_on_any_number_of_processors() {
    for cpus in ["1", "2", "4"] {
        let command = format!("test $(nproc) = {cpus} && exit 42");
        check(&["--engine", "interp", "--cpus", cpus, "--", &command], 42, &["strata: shell ready"]);
    }
}

#[test]
#[ignore = "boots a stock kernel many times"]
fn each_end_has_its_documented_status() {
    let end = |append: &str, command: &str, status, texts: &[&str]| {
        let append = format!("{APPEND} {append}");
        check(&["--engine", "interp", "--no-reboot", "--append", &append, "--", command], status, texts);
    };
    end("", "poweroff -f", 0, &["reboot: Power down"]);
    end("", "reboot -f", 4, &["the guest reset"]);
    end("reboot=triple", "reboot -f", 5, &["triple fault"]);
    end("reboot=kbd", "reboot -f", 4, &["the guest reset"]);
    end("", "echo c > /proc/sysrq-trigger", 3, &["Kernel panic - not syncing", "panicked"]);
    end("panic=0", "echo c > /proc/sysrq-trigger", 3, &["end Kernel panic", "panicked"]);
}

#[test]
#[ignore = "boots a stock kernel many times"]
fn a_reset_starts_the_guest_again() {
    let append = format!("{APPEND} quiet");
    let text =
        check(&["--engine", "interp", "--timeout", "40s", "--append", &append, "--", "reboot -f"], 124, &[]);
    assert!(text.matches("strata: shell ready").count() >= 2, "{text}");
}

#[test]
#[ignore = "boots a stock kernel many times"]
fn the_guest_does_not_notice_a_change_of_engine() {
    let command = "for i in 1 2 3 4 5 6 7 8; do head -c 99999 /bin/busybox | sha256sum; usleep 200000; done | uniq | wc -l";
    let switches = ["500ms:kvm", "1s:interp", "1500ms:kvm", "2500ms:interp"];
    for cpus in ["1", "2"] {
        let mut line = vec!["--engine", "interp", "--cpus", cpus];
        switches.iter().for_each(|s| line.extend(["--switch", s]));
        line.extend(["--", command]);
        let text =
            check(&line, 0, &["continued on engine kvm", "continued on engine interp", "exit status 0"]);
        assert!(text.lines().any(|l| l.trim() == "1"), "{text}");
    }
}

#[test]
#[ignore = "boots a stock kernel many times"]
fn virtual_time_makes_every_run_the_same() {
    let count = || {
        let out = run(&["--engine", "interp", "--time", "virtual", "--format", "json", "--", "true"]);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        let result: serde_json::Value = serde_json::from_str(text.trim()).expect("one JSON object");
        result["instructions"].as_u64().expect("the interpreter counts")
    };
    assert_eq!(count(), count());
}

/// Wait for a text on a child's standard output; all that came up to it.
fn wait_for(child: &mut Child, text: &str) -> String {
    use std::io::Read;
    let (start, mut seen) = (Instant::now(), Vec::new());
    let out = child.stdout.as_mut().expect("piped");
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).contains(text) {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "no \"{text}\" in {}",
            String::from_utf8_lossy(&seen)
        );
        assert_eq!(out.read(&mut byte).expect("readable"), 1, "ended: {}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
#[ignore = "boots a stock kernel many times"]
fn piped_input_reaches_the_shell() {
    let mut child = strata(&["--engine", "interp"]).stdin(Stdio::piped()).spawn().expect("starts");
    wait_for(&mut child, "strata:~# ");
    let input = child.stdin.as_mut().expect("piped");
    input.write_all(b"echo $((6 * 7))\n").expect("writable");
    wait_for(&mut child, "\n42");
    child.stdin.take().expect("piped").write_all(b"poweroff -f\n").expect("writable");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
}

#[test]
#[ignore = "boots a stock kernel many times"]
fn an_idle_guest_costs_next_to_nothing_and_a_signal_ends_it() {
    let mut child =
        strata(&["--engine", "interp", "--cpus", "2"]).stdin(Stdio::piped()).spawn().expect("starts");
    wait_for(&mut child, "strata:~# ");
    std::thread::sleep(Duration::from_secs(3));
    let ticks = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).expect("the child runs");
        // Fields 14 and 15 of proc(5), counted behind the parenthesized name.
        let fields: Vec<_> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    };
    let before = ticks();
    std::thread::sleep(Duration::from_secs(10));
    let used = ticks() - before;
    // 1,000 ticks of 10 ms; the promise is under 2 %.
    assert!(used < 20, "{used} of 1000 ticks");
    let killed = Command::new("kill").arg(child.id().to_string()).status().expect("kill starts");
    assert!(killed.success());
    assert_eq!(child.wait().expect("ends").code(), Some(130));
}

/// One command about a running machine.
fn control(runtime: &std::path::Path, arguments: &[&str]) -> serde_json::Value {
    let out = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(arguments)
        .env("STRATA_RUNTIME_DIR", runtime)
        .output()
        .expect("the built command starts");
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{arguments:?}: {err}");
    serde_json::from_slice(&out.stdout).unwrap_or(serde_json::Value::Null)
}

#[test]
#[ignore = "boots a stock kernel many times"]
fn commands_change_the_engine_and_stop_the_time_of_a_running_kernel() {
    let runtime = std::env::temp_dir().join(format!("strata-stock-{}", std::process::id()));
    let kvm = std::path::Path::new("/dev/kvm").exists();
    for cpus in ["1", "2"] {
        let mut child = strata(&["--engine", "jit", "--cpus", cpus, "--name", "stock", "--perf-map"])
            .env("STRATA_RUNTIME_DIR", &runtime)
            .stdin(Stdio::piped())
            .spawn()
            .expect("starts");
        wait_for(&mut child, "strata:~# ");
        let mut input = child.stdin.take().expect("piped");
        let sums = "for i in $(seq 200); do head -c 99999 /bin/busybox | sha256sum; done | sort -u | wc -l; echo over\n";
        input.write_all(sums.as_bytes()).expect("writable");
        let others: &[&str] = if kvm { &["interp", "jit", "kvm", "jit"] } else { &["interp", "jit"] };
        for engine in others.iter().cycle().take(20) {
            let switched = control(&runtime, &["engine", "stock", engine, "--format", "json"]);
            assert_eq!(switched["engine"], *engine);
            std::thread::sleep(Duration::from_millis(100));
        }
        wait_for(&mut child, "\n1\r\nover");

        let stats = control(&runtime, &["stats", "stock", "--format", "json"])[0].clone();
        let counters = &stats["vcpus"][0]["counters"];
        for name in ["blocks_translated", "translate_ns", "guest_bytes_translated", "block_lookups"] {
            assert!(counters[name].as_u64().is_some_and(|n| n > 0), "{name}: {counters}");
        }
        let map = format!("/tmp/perf-{}.map", child.id());
        assert!(std::fs::read_to_string(&map).is_ok_and(|m| m.contains("guest:0xffffffff8")), "{map}");

        let began = Instant::now();
        input.write_all(b"cut -d. -f1 /proc/uptime; echo before\n").expect("writable");
        let before = number_before(&mut child, "before");
        control(&runtime, &["pause", "stock"]);
        std::thread::sleep(Duration::from_secs(5));
        control(&runtime, &["resume", "stock"]);
        input.write_all(b"cut -d. -f1 /proc/uptime; echo after\n").expect("writable");
        let after = number_before(&mut child, "after");
        assert!(began.elapsed() >= Duration::from_secs(5));
        assert!(after - before < 4, "the guest's time went from {before} to {after} s over a pause of 5");

        input.write_all(b"poweroff -f\n").expect("writable");
        assert_eq!(child.wait().expect("ends").code(), Some(0));
        let _ = std::fs::remove_file(map);
    }
    let _ = std::fs::remove_dir_all(&runtime);
}

/// The number on the line before the line `text`.
fn number_before(child: &mut Child, text: &str) -> u64 {
    let seen = wait_for(child, &format!("\n{text}\r\n"));
    let lines: Vec<_> = seen.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let at = lines.iter().rposition(|l| *l == text).expect("it is there");
    lines[at - 1].parse().unwrap_or_else(|_| panic!("no number before {text}: {seen}"))
}
