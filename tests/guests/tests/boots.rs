//! Debian's unmodified kernels from start to shell, and every way they end, on
//! every software engine.

use std::time::Duration;

use guest_image::{Flavour, GuestFiles, READY_MARKER, command_parameter};
use guests::machine::{Guest, stock_guest};
use guests::{SOFTWARE_ENGINES, slow_tests};

/// A panic restarts at once, which ends the run.
const APPEND: &str = "console=ttyS0 panic=-1 mitigations=off cryptomgr.notests";
/// What the interactive shell prints when it waits for input.
const PROMPT: &str = "strata:~# ";

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

/// Run a command in the guest's shell; the run must end with this status and
/// have printed these texts.
fn check(guest: Guest, status: i32, texts: &[&str]) -> Duration {
    let finished = guest.run().expect("the guest ends");
    assert_eq!(finished.status, Some(status), "{guest:?}:\n{}", finished.text);
    for text in texts {
        assert!(finished.text.contains(text), "{guest:?} lacks \"{text}\":\n{}", finished.text);
    }
    finished.took
}

/// How often each machine boots: `STRATA_BOOTS`, else once.
fn boots() -> u32 {
    std::env::var("STRATA_BOOTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

#[test]
#[ignore = "boots stock kernels"]
fn the_cloud_kernel_reaches_the_shell() {
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    for (engine, cpus) in [("interp", "1"), ("interp", "2"), ("interp", "4"), ("jit", "1")] {
        for boot in 1..=boots() {
            let command = command_parameter(&format!("test $(nproc) = {cpus} && echo fine; poweroff -f"));
            let machine = guest(engine, &files, &command).with(&["--cpus", cpus]);
            let took = check(machine, 0, &[READY_MARKER, "fine", "reboot: Power down"]);
            println!("{engine}, {cpus} vCPUs, boot {boot}: {took:.1?}");
        }
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn each_end_has_its_documented_status() {
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    let end = |engine: &str, append: &str, command: &str, status, texts: &[&str]| {
        let append = format!("quiet {append} {}", command_parameter(command));
        check(guest(engine, &files, &append).with(&["--no-reboot"]), status, texts);
    };
    for engine in SOFTWARE_ENGINES {
        end(engine, "", "reboot -f", 4, &["the guest reset"]);
        end(engine, "reboot=triple", "reboot -f", 5, &["triple fault"]);
        end(engine, "", "echo c > /proc/sysrq-trigger", 3, &["Kernel panic - not syncing"]);
    }
}

/// At the prompt the command holds little beside the guest's own memory, uses
/// next to no processor time, and answers its user.
#[test]
#[ignore = "boots stock kernels"]
fn an_idle_guest_is_small_and_quiet_and_answers() {
    /// Resident memory beyond the guest's own, in bytes; the translator has its code besides.
    const MEMORY: [(&str, u64); 2] = [("interp", 30 << 20), ("jit", 64 << 20)];
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
        assert!(ram > 16 << 20, "a booted kernel has touched more than {ram} bytes: the measure is wrong");
        assert!(beyond <= limit, "{engine}: {beyond} bytes beyond the guest's RAM");
        assert!(used < Duration::from_millis(200), "{engine}: {used:?} of 10 s");
        running.type_in("echo $((6 * 7)) | tr 4 x\n").expect("input");
        running.wait_for("x2").expect("an answer");
        running.type_in("poweroff -f\n").expect("input");
        assert_eq!(running.finish().expect("it ends").status, Some(0));
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
        let took = check(guest(engine, &files, &append), 0, &[READY_MARKER, "-amd64", "reboot: Power down"]);
        println!("{engine}: {took:.1?}");
    }
}
