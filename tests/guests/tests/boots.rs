//! Debian's unmodified kernels from start to shell, and every way they end, on
//! every software engine; and what a user sees of the command while they run.

use std::time::Duration;

use guest_image::{Flavour, GuestFiles, READY_MARKER, command_parameter};
use guests::machine::{Finished, Guest, Running, stock_guest};
use guests::{SOFTWARE_ENGINES, slow_tests};

/// A panic restarts at once, which ends the run.
const APPEND: &str = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests";
/// What the interactive shell prints when it waits for input.
const PROMPT: &str = "strata:~# ";

/// A stock kernel by its own path, with this at the end of its command line.
fn guest(engine: &str, files: &GuestFiles, append: &str) -> Guest {
    let path = |p: &std::path::Path| p.to_string_lossy().into_owned();
    let append = format!("{APPEND} {append}");
    Guest::new(engine).with(&[
        "--kernel",
        &path(&files.kernel),
        "--initrd",
        &path(&files.initrd),
        "--append",
        &append,
    ])
}

/// The run must end with this status and have printed these texts.
fn check(guest: Guest, status: i32, texts: &[&str]) -> Finished {
    let finished = guest.run().expect("the guest ends");
    assert_eq!(finished.status, Some(status), "{guest:?}:\n{}", finished.text);
    for text in texts {
        assert!(finished.text.contains(text), "{guest:?} lacks \"{text}\":\n{}", finished.text);
    }
    finished
}

/// How often each machine boots: `STRATA_BOOTS`, else once.
fn boots() -> u32 {
    std::env::var("STRATA_BOOTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

fn cloud_kernel(engine: &str) {
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    for cpus in ["1", "2", "4"] {
        for boot in 1..=boots() {
            let command = command_parameter(&format!("test $(nproc) = {cpus} && echo fine; poweroff -f"));
            let machine = guest(engine, &files, &command).with(&["--cpus", cpus]);
            let took = check(machine, 0, &[READY_MARKER, "fine", "reboot: Power down"]).took;
            println!("{engine}, {cpus} vCPUs, boot {boot}: {took:.1?}");
        }
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn the_cloud_kernel_reaches_the_shell_on_interp() {
    cloud_kernel("interp");
}

#[test]
#[ignore = "boots stock kernels"]
fn the_cloud_kernel_reaches_the_shell_on_jit() {
    cloud_kernel("jit");
}

/// Each of these ends: kernel parameters, command, exit status, texts.
fn ends(cases: &[(&str, &str, i32, &[&str])]) {
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    for engine in SOFTWARE_ENGINES {
        for &(append, command, status, texts) in cases {
            let append = format!("quiet {append} {}", command_parameter(command));
            check(guest(engine, &files, &append).with(&["--no-reboot"]), status, texts);
        }
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn each_reset_has_its_documented_status() {
    ends(&[
        ("", "reboot -f", 4, &["the guest reset"]),
        ("reboot=triple", "reboot -f", 5, &["triple fault"]),
        ("reboot=kbd", "reboot -f", 4, &["the guest reset"]),
    ]);
}

#[test]
#[ignore = "boots stock kernels"]
fn a_panic_has_its_documented_status() {
    ends(&[
        ("", "echo c > /proc/sysrq-trigger", 3, &["Kernel panic - not syncing", "panicked"]),
        ("panic=0", "echo c > /proc/sysrq-trigger", 3, &["end Kernel panic", "panicked"]),
    ]);
}

#[test]
#[ignore = "boots stock kernels"]
fn a_command_of_the_built_in_guest_gives_the_exit_status() {
    for engine in SOFTWARE_ENGINES {
        check(Guest::new(engine).with(&["--", "exit 42"]), 42, &[READY_MARKER]);
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn a_reset_starts_the_guest_again() {
    for engine in SOFTWARE_ENGINES {
        let mut running = Guest::new(engine).with(&["--", "reboot -f"]).start().expect("the guest starts");
        running.wait_for_times(READY_MARKER, 2).expect("a second start");
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn the_guest_does_not_notice_a_change_of_engine() {
    let command = "for i in 1 2 3 4 5 6 7 8; do head -c 99999 /bin/busybox | sha256sum; usleep 200000; done | uniq | wc -l";
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    let other = if kvm { "kvm" } else { "jit" };
    println!("between interp and {other}{}", if kvm { "" } else { ": no usable /dev/kvm" });
    let switches = [("500ms", other), ("1s", "interp"), ("1500ms", other), ("2500ms", "interp")];
    let switches = switches.map(|(at, engine)| format!("{at}:{engine}"));
    let continued = format!("continued on engine {other}");
    for cpus in ["1", "2"] {
        let switches = switches.iter().flat_map(|s| ["--switch", s]).collect::<Vec<_>>();
        let machine = Guest::new("interp").with(&["--cpus", cpus]).with(&switches).with(&["--", command]);
        let texts = [continued.as_str(), "continued on engine interp", "exit status 0"];
        let text = check(machine, 0, &texts).text;
        assert!(text.lines().any(|l| l.trim() == "1"), "{text}");
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn virtual_time_makes_every_run_the_same() {
    let count = || {
        let machine = Guest::new("interp").with(&["--time", "virtual", "--format", "json", "--", "true"]);
        let errors = check(machine, 0, &[]).errors;
        let result: serde_json::Value = serde_json::from_str(errors.trim()).expect("one JSON object");
        result["instructions"].as_u64().expect("the interpreter counts")
    };
    assert_eq!(count(), count());
}

/// At the prompt the command holds little beside the guest's own memory, uses
/// next to no processor time, is confined, answers its user, and ends by a signal.
#[test]
#[ignore = "boots stock kernels"]
fn an_idle_guest_is_small_and_quiet_and_a_signal_ends_it() {
    /// Resident memory beyond the guest's own, in bytes.
    const MEMORY: [(&str, u64); 2] = [("interp", 30 << 20), ("jit", 22 << 20)];
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    for (engine, limit) in MEMORY {
        let mut running = guest(engine, &files, "quiet").start().expect("the guest starts");
        running.wait_for(PROMPT).expect("a prompt");
        // What the kernel put off until after the boot.
        std::thread::sleep(Duration::from_secs(3));
        let before = running.processor_time().expect("it runs");
        std::thread::sleep(Duration::from_secs(10));
        let used = running.processor_time().expect("it runs") - before;
        let (all, ram) = running.resident().expect("it runs");
        let beyond = all - ram;
        println!("{engine}: {} KiB beyond the guest's {} KiB; {used:?} in 10 s", beyond >> 10, ram >> 10);
        assert!(running.is_confined().expect("it runs"), "{engine}: a thread outside the sandbox");
        assert!(ram > 16 << 20, "a booted kernel has touched more than {ram} bytes: the measure is wrong");
        assert!(beyond <= limit, "{engine}: {beyond} bytes beyond the guest's RAM");
        assert!(used < Duration::from_millis(200), "{engine}: {used:?} of 10 s");
        running.type_in("echo $((6 * 7)) | tr 4 x\n").expect("input");
        running.wait_for("x2").expect("an answer");
        running.terminate().expect("a signal");
        assert_eq!(running.finish().expect("it ends").status, Some(130));
    }
}

/// A built-in guest whose input is piped before it boots.
fn piped(engine: &str, input: &str) -> Running {
    let mut running = Guest::new(engine).start().expect("the guest starts");
    running.type_in(input).expect("input");
    // The end of the input is not the guest's.
    running.close_input();
    running
}

#[test]
#[ignore = "boots stock kernels"]
fn input_piped_before_the_guest_receives_is_not_lost() {
    for engine in SOFTWARE_ENGINES {
        assert_eq!(piped(engine, "poweroff\n").finish().expect("it ends").status, Some(0));
    }
}

/// A program that says when it is told to end: in the kernel's log, since the console
/// has been hung up by then.
const TOLD: &str =
    "sh -c 'trap \"echo \\<0\\>told $((1 + 1)) > /dev/kmsg; exit\" TERM; while :; do usleep 1000; done' &";

#[test]
#[ignore = "boots stock kernels"]
fn words_that_end_a_machine_end_it_and_its_programs() {
    for (engine, word, status) in [
        ("jit", "poweroff", 0),
        ("jit", "halt", 0),
        ("jit", "reboot", 4),
        ("jit", "exit 7", 0),
        ("interp", "reboot", 4),
    ] {
        let mut running = Guest::new(engine).with(&["--no-reboot"]).start().expect("the guest starts");
        running.wait_for(READY_MARKER).expect("a shell");
        running.type_in(&format!("{TOLD}\nusleep 300000; {word}\n")).expect("input");
        let finished = running.finish().expect("it ends");
        assert_eq!(finished.status, Some(status), "{engine} {word}:\n{}", finished.text);
        let told = finished.text.contains("told 2");
        assert_eq!(told, !word.starts_with("exit"), "{engine} {word}:\n{}", finished.text);
    }
    // From a command: what it asks for goes before its end.
    for (command, status) in [("poweroff", 0), ("reboot", 4)] {
        check(Guest::new("jit").with(&["--no-reboot", "--", command]), status, &[READY_MARKER]);
    }
}

/// The agent as a small guest's first process: its command's status is the run's, and what ends a machine does.
#[test]
#[ignore = "boots stock kernels"]
fn the_agent_is_a_first_process() {
    let line = "console=ttyS0 quiet panic=-1 rdinit=/usr/local/sbin/strata-agent -- init /bin/busybox sh";
    for (word, status) in [("exit 7", 7), ("poweroff", 0), ("halt", 0), ("reboot", 4)] {
        let mut running =
            Guest::new("jit").with(&["--no-reboot", "--append", line]).start().expect("the guest starts");
        running.wait_for("# ").expect("a shell");
        let prefix = if word.starts_with("exit") { "" } else { "/bin/busybox " };
        running.type_in(&format!("{prefix}{word}\n")).expect("input");
        let finished = running.finish().expect("it ends");
        assert_eq!(finished.status, Some(status), "{word}:\n{}", finished.text);
    }
}

/// More than all buffers of the guest hold, to a program that reads late.
#[test]
#[ignore = "boots stock kernels"]
fn input_of_any_size_arrives_whole() {
    let lines: String = (0..1600).map(|n| format!("{n:05} {}\n", "abcdefgh".repeat(7 + n % 2))).collect();
    assert!(lines.len() > 96 << 10);
    let file = std::env::temp_dir().join(format!("strata-input-{}", std::process::id()));
    std::fs::write(&file, &lines).expect("a temporary file");
    let sum = std::process::Command::new("sha256sum").arg(&file).output().expect("sha256sum").stdout;
    std::fs::remove_file(&file).expect("it is there");
    let sum = String::from_utf8_lossy(&sum).split(' ').next().expect("a sum").to_string();
    for engine in SOFTWARE_ENGINES {
        let script = "stty -echo; sleep 3; cat > /tmp/f; wc -c < /tmp/f; sha256sum /tmp/f; poweroff -f\n";
        let finished = piped(engine, &format!("{script}{lines}\x04")).finish().expect("it ends");
        assert!(finished.text.contains(&sum), "{engine}: {sum} of {} bytes:\n{}", lines.len(), finished.text);
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn the_generic_kernel_reaches_the_shell() {
    if !slow_tests() {
        return println!("skipped: a package of 70 MB; set STRATA_SLOW=1");
    }
    let Some(files) = stock_guest(Flavour::Generic) else { return };
    for engine in SOFTWARE_ENGINES {
        let append = format!("quiet {}", command_parameter("uname -r; poweroff -f"));
        let took =
            check(guest(engine, &files, &append), 0, &[READY_MARKER, "-amd64", "reboot: Power down"]).took;
        println!("{engine}: {took:.1?}");
    }
}
