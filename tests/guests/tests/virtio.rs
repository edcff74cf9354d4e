//! Virtio devices under the stock drivers of Debian's kernel, on every software
//! engine. A new device adds a row.

use guest_image::{Flavour, command_parameter};
use guests::SOFTWARE_ENGINES;
use guests::machine::{Guest, stock_guest};

/// Run a command in the default guest with these arguments of `strata run` and
/// kernel parameters; the console must show the texts.
fn check(arguments: &[&str], parameters: &str, command: &str, texts: &[&str]) {
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    let path = |p: &std::path::Path| p.to_string_lossy().into_owned();
    let append = format!("console=ttyS0 panic=-1 quiet {parameters} {}", command_parameter(command));
    for engine in SOFTWARE_ENGINES {
        let images =
            ["--kernel", &path(&files.kernel), "--initrd", &path(&files.initrd), "--append", &append];
        let finished = Guest::new(engine).with(&images).with(arguments).run().expect("the guest ends");
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
