//! Virtio devices under the stock drivers of Debian's kernel, on every software
//! engine. A new device adds a row.

use std::time::Duration;

use guest_image::{Flavour, command_parameter};
use guests::SOFTWARE_ENGINES;
use guests::machine::{Guest, stock_guest};

/// The default guest on Debian's cloud kernel with a command, these arguments of
/// `strata run` and kernel parameters. None: no guest here.
fn guest(engine: &str, arguments: &[&str], parameters: &str, command: &str) -> Option<Guest> {
    let files = stock_guest(Flavour::Cloud)?;
    let path = |p: &std::path::Path| p.to_string_lossy().into_owned();
    let append = format!("console=ttyS0 panic=-1 quiet {parameters} {}", command_parameter(command));
    let images = ["--kernel", &path(&files.kernel), "--initrd", &path(&files.initrd), "--append", &append];
    Some(Guest::new(engine).with(&images).with(arguments))
}

/// The command must end well, and the console show the texts.
fn check(arguments: &[&str], parameters: &str, command: &str, texts: &[&str]) {
    for engine in SOFTWARE_ENGINES {
        let Some(guest) = guest(engine, arguments, parameters, command) else { return };
        let finished = guest.run().expect("the guest ends");
        assert_eq!(finished.status, Some(0), "{engine} {arguments:?}:\n{}", finished.text);
        for text in texts {
            assert!(
                finished.text.contains(text),
                "{engine} {arguments:?} lacks \"{text}\":\n{}",
                finished.text
            );
        }
    }
}

/// Reads twice, and counts the interrupts that came of it.
const RNG: &str = "\
    now=/sys/class/misc/hw_random/rng_current; until grep -q virtio_rng $now 2>/dev/null; do sleep 0.05; done; \
    a=$(head -c 2000 /dev/hwrng | md5sum); b=$(head -c 2000 /dev/hwrng | md5sum); \
    [ \"$a\" != \"$b\" ] && echo two reads differ; \
    grep virtio0 /proc/interrupts | awk '$2 + $3 > 9 { print \"interrupts by \" $4 }'";

#[test]
#[ignore = "boots stock kernels"]
fn the_kernel_reads_random_bytes_by_message_signalled_interrupts() {
    check(&["--rng", "--cpus", "2"], "", RNG, &["two reads differ", "interrupts by PCI-MSI"]);
}

#[test]
#[ignore = "boots stock kernels"]
fn the_kernel_reads_random_bytes_by_a_shared_line() {
    check(&["--rng", "--cpus", "2"], "pci=nomsi", RNG, &["two reads differ", "interrupts by IO-APIC"]);
}

#[test]
#[ignore = "boots stock kernels"]
fn the_kernel_finds_devices_in_registers_that_acpi_tells_of() {
    let path = std::env::temp_dir().join(format!("strata-mmio-{}", std::process::id()));
    std::fs::write(&path, vec![b'x'; 1 << 20]).expect("a file");
    let disk = format!("{},format=raw,if=virtio", path.display());
    let command = format!(
        "{}; head -c 3 /dev/vda; echo; printf changed | dd of=/dev/vda bs=512 seek=4 conv=sync,fsync 2>/dev/null",
        RNG.replace("virtio0", "virtio[0-9]")
    );
    let arguments = ["--virtio-transport", "mmio", "--cpus", "2", "--disk", &disk];
    // The entropy device comes with the disk.
    check(&arguments, "", &command, &["two reads differ", "interrupts by IO-APIC", "xxx"]);
    let written = std::fs::read(&path).expect("a file");
    std::fs::remove_file(&path).expect("it is there");
    assert!(written[2048..].starts_with(b"changed"));
}

#[test]
#[ignore = "boots stock kernels"]
fn memory_that_the_guest_frees_goes_back_to_the_host() {
    /// Within how long, on a host that has a processor for it (SPECIFICATION.md).
    const PROMISED: Duration = Duration::from_secs(15);
    const FILE: u64 = 150 << 20;
    let command = "until grep -q reporting_vq /proc/interrupts; do sleep 0.05; done; \
        mkdir /t; mount -t tmpfs t /t; dd if=/dev/zero of=/t/x bs=1M count=150 2>/dev/null; echo filled; \
        sleep 1; rm /t/x; echo freed; sleep 100";
    let Some(guest) = guest("jit", &[], "", command) else { return };
    let mut running = guest.start().expect("the command starts");
    running.wait_for("filled").expect("the file is written");
    let (_, full) = running.resident().expect("the process runs");
    running.wait_for("freed").expect("the file is removed");
    let freed = running.elapsed();
    loop {
        let (_, now) = running.resident().expect("the process runs");
        if now + FILE * 9 / 10 < full {
            break;
        }
        assert!(running.elapsed() < freed + PROMISED, "{now} bytes resident, {full} with the file");
        std::thread::sleep(Duration::from_millis(100));
    }
}
