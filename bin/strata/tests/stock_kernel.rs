//! Commands about a machine that runs Debian's unmodified kernel. Needs apt-get or
//! the cached guest, so run on request; `tests/guests` boots it in every other way.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn strata(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
    command.args(["run", "--timeout", "180s"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
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
        // Computes until it is told to stop: every change of engine falls into it.
        let sums = "(n=$(while [ ! -e /enough ]; do head -c 99999 /bin/busybox | sha256sum; done | sort -u | wc -l); \
                    echo; echo sums: $n.) &\n";
        input.write_all(sums.as_bytes()).expect("writable");
        let others: &[&str] = if kvm { &["interp", "jit", "kvm", "jit"] } else { &["interp", "jit"] };
        for engine in others.iter().cycle().take(20) {
            let switched = control(&runtime, &["engine", "stock", engine, "--format", "json"]);
            assert_eq!(switched["engine"], *engine);
            std::thread::sleep(Duration::from_millis(100));
        }
        input.write_all(b"touch /enough\n").expect("writable");
        // The shell's prompt may come between the two lines; the command's echo says `$n`.
        wait_for(&mut child, "sums: 1.\r\n");

        let stats = control(&runtime, &["stats", "stock", "--format", "json"])[0].clone();
        let vcpus = stats["vcpus"].as_array().expect("a list");
        for name in ["blocks_translated", "translate_ns", "guest_bytes_translated", "block_lookups"] {
            let of = |vcpu: &serde_json::Value| vcpu["counters"][name].as_u64().expect("a counter of jit");
            assert!(vcpus.iter().map(of).sum::<u64>() > 0, "{name}: {stats}");
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
