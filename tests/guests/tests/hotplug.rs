//! A stock kernel gains and gives back processors and memory while it runs.

use std::path::PathBuf;
use std::process::Command;

use guest_image::Flavour;
use guests::SOFTWARE_ENGINES;
use guests::machine::{Guest, Running, command_path, stock_guest};

/// Brings up processors that appear and says what there is whenever that changes.
/// Memory comes up by itself, as the kernel is told.
const WATCH: &str = "echo online > /sys/devices/system/memory/auto_online_blocks; \
    while :; do \
      for c in /sys/devices/system/cpu/cpu[1-9]; do \
        if [ -f $c/online ] && [ $(cat $c/online) = 0 ]; then echo 1 > $c/online; fi; \
      done; \
      now=\"has $(grep -c ^processor /proc/cpuinfo) processors, $(($(awk '/MemTotal/{print $2}' /proc/meminfo) >> 17)) x 128 MiB;\"; \
      [ \"$now\" = \"$last\" ] || echo \"$now\"; last=$now; usleep 100000; \
    done";

fn update(runtime: &PathBuf, arguments: &[&str]) {
    let out = Command::new(command_path().expect("built"))
        .args(["update", "--wait", "60s", "plug"])
        .args(arguments)
        .env("STRATA_RUNTIME_DIR", runtime)
        .output()
        .expect("the command starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{arguments:?}: {said}");
}

fn expect(running: &mut Running, processors: u32, blocks: u32) {
    running
        .wait_for(&format!("has {processors} processors, {blocks} x 128 MiB;"))
        .expect("the guest follows");
}

#[test]
#[ignore = "boots stock kernels"]
fn processors_and_memory_come_and_go() {
    if stock_guest(Flavour::Cloud).is_none() {
        return;
    }
    let runtime = std::env::temp_dir().join(format!("strata-plug-{}", std::process::id()));
    for engine in SOFTWARE_ENGINES {
        let machine = Guest::new(engine)
            .with(&["--name", "plug", "--cpus-max", "3", "--memory", "512M", "--memory-max", "1G"])
            .with(&["--", WATCH])
            .environment("STRATA_RUNTIME_DIR", &runtime);
        let mut running = machine.start().expect("the guest starts");
        // What the kernel keeps for itself is less than a block.
        expect(&mut running, 1, 3);
        update(&runtime, &["--cpus", "3"]);
        expect(&mut running, 3, 3);
        update(&runtime, &["--memory", "1G"]);
        expect(&mut running, 3, 7);
        update(&runtime, &["--cpus", "2"]);
        expect(&mut running, 2, 7);
        update(&runtime, &["--memory", "640M"]);
        expect(&mut running, 2, 4);
    }
    // It may be gone already.
    let _ = std::fs::remove_dir_all(&runtime);
}
