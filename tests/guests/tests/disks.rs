//! Disks under a stock kernel: its root without an initramfs, data both ways, and
//! what is left of them when the command is killed.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_image::{Flavour, GuestFiles, command_parameter};
use guests::machine::{Guest, LIMIT, command_path, stock_guest};
use guests::root_disk::{RootDisk, tool};
use guests::{SOFTWARE_ENGINES, slow_tests};
use serde_json::Value;
use tempfile::TempDir;

const ROOT_SIZE: u64 = 192 << 20;

fn machine(engine: &str, files: &GuestFiles, command_line: &str, disks: &[String]) -> Guest {
    let kernel = files.kernel.to_string_lossy();
    let disks: Vec<&str> = disks.iter().flat_map(|d| ["--disk", d]).collect();
    Guest::new(engine).with(&["--kernel", &kernel, "--append", command_line]).with(&disks)
}

fn disk(path: &Path, options: &str) -> String {
    format!("{},{options}", path.to_string_lossy())
}

/// Copies the second disk to the third and says what the second is.
const COPY: &str = "grep ' / ' /proc/mounts
echo sizes $(blockdev --getsize64 /dev/nvme1n1) $(blockdev --getsize64 /dev/nvme2n1) ro $(blockdev --getro /dev/nvme1n1)
echo serial $(cat /sys/class/nvme/nvme1/serial)
sha256sum /dev/nvme1n1
dd if=/dev/nvme1n1 of=/dev/nvme2n1 bs=64k conv=fsync 2>/dev/null && echo copied
echo x > /dev/nvme1n1 || echo refused
cat /proc/interrupts | grep -c nvme
";

#[test]
#[ignore = "boots stock kernels"]
fn a_stock_kernel_starts_from_nvme_without_an_initramfs() {
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    let Some(root) = RootDisk::make(&files, ROOT_SIZE, &[("copy", COPY)]).expect("a root disk") else {
        return;
    };
    let data: Vec<u8> = (0..8u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let source = root.beside("source.img");
    std::fs::write(&source, &data).expect("a file");
    let sum = tool("sha256sum", &[&source.to_string_lossy()]).expect("it runs").expect("it is there");
    let sum = sum.split(' ').next().expect("a sum").to_string();
    for engine in SOFTWARE_ENGINES {
        let target = root.beside("target.img");
        std::fs::File::create(&target).expect("a file").set_len(data.len() as u64).expect("its size");
        let disks = [
            disk(&root.image, "format=raw"),
            disk(&source, "ro,format=raw,serial=the-source"),
            disk(&target, "format=raw"),
        ];
        let command_line = RootDisk::command_line("copy");
        let finished =
            machine(engine, &files, &command_line, &disks).with(&["--cpus", "2"]).run().expect("it ends");
        let sizes = format!("sizes {0} {0} ro 1", data.len());
        for text in
            ["/dev/root / ext4 rw", &sizes, "serial the-source", &sum, "copied", "refused", "Power down"]
        {
            assert!(finished.text.contains(text), "{engine} lacks \"{text}\":\n{}", finished.text);
        }
        assert_eq!(finished.status, Some(0), "{engine}:\n{}", finished.text);
        assert!(std::fs::read(&target).expect("it is there") == data, "{engine}: the copy differs");
        assert!(std::fs::read(&source).expect("it is there") == data, "{engine}: the source has changed");
    }
}

/// Looks whether the files of earlier rounds are whole, then makes more; a file is
/// announced when it is durable.
const CRASH: &str = r#"i=0
while [ $i -lt $SYNCED ]; do
  i=$((i+1))
  seq $i $((i+3000)) | cmp - /log/$i || echo LOST $i
done
echo "verified $i;"
i=$(ls /log | wc -l)
while :; do
  i=$((i+1))
  seq $i $((i+3000)) | dd of=/log/$i conv=fsync 2>/dev/null && echo "synced $i,"
done
"#;

/// The largest number announced.
fn synced(text: &str) -> u32 {
    let numbers = text.split("synced ").skip(1).filter_map(|t| t.split_once(',')?.0.parse().ok());
    numbers.max().unwrap_or(0)
}

/// Rounds of kill -9 in the middle of writes: nothing that was synced is lost, and a
/// qcow2 image has no contradictions.
fn crash_rounds(format: &str, options: &str) {
    let rounds: u32 = if slow_tests() { 50 } else { 5 };
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    let Some(root) = RootDisk::make(&files, ROOT_SIZE, &[("crash", CRASH)]).expect("a root disk") else {
        return;
    };
    let image = root.beside(&format!("crash.{format}"));
    let (raw, copy) = (root.image.to_string_lossy(), image.to_string_lossy());
    let convert = ["convert", "-f", "raw", "-O", format, &raw, &copy];
    if tool("qemu-img", &convert).expect("it runs").is_none() {
        return;
    }
    let mut kept = 0;
    for round in 1..=rounds {
        let command_line = format!("{} SYNCED={kept}", RootDisk::command_line("crash"));
        let mut running =
            machine("jit", &files, &command_line, &[disk(&image, &format!("format={format}{options}"))])
                .start()
                .expect("it starts");
        running.wait_for(&format!("verified {kept};")).expect("the files of earlier rounds");
        running.wait_for(&format!("synced {},", kept + 5)).expect("new files");
        // At a different point of its work in each round.
        std::thread::sleep(Duration::from_millis(u64::from(round * 137 % 400)));
        let text = running.kill().expect("it is killed");
        assert!(!text.contains("LOST"), "round {round}:\n{text}");
        kept = synced(&text).max(kept);
        if format == "raw" {
            continue;
        }
        // Clusters allocated and not yet used are no contradiction; they are given back.
        for check in [&["check", "-q", "-r", "leaks", &copy][..], &["check", "-q", &copy]] {
            tool("qemu-img", check).unwrap_or_else(|e| panic!("round {round}: {e}"));
        }
    }
    println!("{format}{options}: {rounds} rounds, {kept} files kept");
}

#[test]
#[ignore = "boots stock kernels"]
fn nothing_synced_is_lost_from_a_raw_image_when_the_command_is_killed() {
    crash_rounds("raw", "");
}

#[test]
#[ignore = "boots stock kernels"]
fn nothing_synced_is_lost_with_io_uring_when_the_command_is_killed() {
    crash_rounds("raw", ",aio=io_uring");
}

#[test]
#[ignore = "boots stock kernels"]
fn nothing_synced_is_lost_from_a_qcow2_image_when_the_command_is_killed() {
    crash_rounds("qcow2", "");
}

/// Fills the second disk and says what is there.
const FILL: &str = "dd if=/dev/nvme2n1 of=/dev/nvme1n1 bs=64k conv=fsync 2>/dev/null && echo written
echo 3 > /proc/sys/vm/drop_caches
sha256sum /dev/nvme1n1
";

/// In name spaces of its own: a small file system at $0 with the image $2 of format
/// $3, most of it taken until the file $1 appears; then the command. What the image
/// holds is compared with the file $4 at the end.
const SMALL_HOST: &str = r#"
folder=$0 free=$1 image=$2 format=$3 source=$4; shift 4
mount -t tmpfs -o size=20m none "$folder" || exit 77
qemu-img create -q -f $format "$image" 8M || exit 98
head -c 16M /dev/zero > "$folder/filler"
(for i in $(seq 3000); do [ -e "$free" ] && break; sleep 0.1; done; rm "$folder/filler") > /dev/null 2>&1 &
"$@" || exit $?
[ $format = raw ] || qemu-img check -q "$image" || exit 97
qemu-img compare -q -f raw -F $format "$source" "$image" || exit 96
"#;

/// Where machines of a test are found, and by no others.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let owners_alone = std::fs::Permissions::from_mode(0o700);
        let made = tempfile::Builder::new().permissions(owners_alone).tempdir();
        Place(made.expect("a temporary directory"))
    }

    fn machine(&self, guest: Guest, name: &str) -> Guest {
        guest.with(&["--name", name]).environment("STRATA_RUNTIME_DIR", self.0.path())
    }

    /// What a command about machines prints.
    fn strata(&self, arguments: &[&str]) -> String {
        let output = Command::new(command_path().expect("the command"))
            .args(arguments)
            .env("STRATA_RUNTIME_DIR", self.0.path())
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// What a paused machine waits for.
    fn waits_for(&self, name: &str) -> Option<String> {
        let list: Value = serde_json::from_str(&self.strata(&["ps", "--format", "json"])).expect("a list");
        let machine = list.as_array()?.iter().find(|m| m["name"] == name)?;
        let text = machine["waits_for"].as_str()?;
        assert_eq!(machine["state"], "paused");
        Some(text.to_string())
    }
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "waited for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn a_full_host_pauses_the_guest_and_nothing_is_lost() {
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    let Some(root) = RootDisk::make(&files, ROOT_SIZE, &[("fill", FILL)]).expect("a root disk") else {
        return;
    };
    let can = Command::new("unshare").args(["-Urm", "true"]).status();
    if !can.is_ok_and(|status| status.success())
        || tool("qemu-img", &["--version"]).expect("it runs").is_none()
    {
        return println!("skipped: no name spaces for users here");
    }
    let data: Vec<u8> = (0..8u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let source = root.beside("source.img");
    std::fs::write(&source, &data).expect("a file");
    for (format, aio) in [("raw", "threads"), ("raw", "io_uring"), ("qcow2", "threads")] {
        let (folder, free) = (root.beside("small"), root.beside(&format!("free-{format}-{aio}")));
        std::fs::create_dir_all(&folder).expect("a folder");
        let image = folder.join("image");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let place = Place::new();
        let disks = [
            disk(&root.image, "format=raw"),
            disk(&image, &format!("format={format},aio={aio}")),
            disk(&source, "format=raw,ro"),
        ];
        let guest = machine("jit", &files, &RootDisk::command_line("fill"), &disks);
        let mut running = place
            .machine(guest, "full")
            .under(&[
                "unshare",
                "-Urm",
                "sh",
                "-c",
                SMALL_HOST,
                &text(&folder),
                &text(&free),
                &text(&image),
                format,
                &text(&source),
            ])
            .start()
            .expect("it starts");
        let waits = until("a full disk", || {
            assert!(!running.has_ended().expect("the host tells"), "it ended");
            place.waits_for("full")
        });
        assert!(waits.contains("disk 1") && waits.contains(&text(&image)), "{waits}");
        // By hand it tries again, in vain; with room it goes on by itself.
        place.strata(&["resume", "full"]);
        until("a disk still full", || place.waits_for("full"));
        std::fs::write(&free, "").expect("a file");
        let finished = running.finish().expect("it ends");
        assert_eq!(finished.status, Some(0), "{format}:\n{}", finished.text);
        for text in ["written", "paused: the machine waits for room on the host for disk 1"] {
            assert!(finished.text.contains(text), "{format} lacks \"{text}\":\n{}", finished.text);
        }
    }
}

/// Says what the disk $1 is, gives a part of it back, and waits until it has grown.
/// $2 is where its serial number stands, $3 a disk that is only read.
const LOOK: &str = "until [ -b /dev/$1 ] && [ -b /dev/$3 ]; do sleep 0.05; done; \
    echo queues $(ls /sys/block/$1/mq | wc -l) serial $(cat /sys/block/$1/$2); \
    echo only read: $(blockdev --getro /dev/$3); echo x 2>/dev/null > /dev/$3 || echo refused; \
    blkdiscard -o 1048576 -l 4194304 /dev/$1 && echo given back; \
    [ $(cat /sys/block/$1/queue/write_zeroes_max_bytes) -gt 0 ] && echo zeroes; \
    old=$(blockdev --getsize64 /dev/$1); echo ready$old; \
    while [ $(blockdev --getsize64 /dev/$1) = $old ]; do sleep 0.05; done; \
    echo grown $(blockdev --getsize64 /dev/$1); \
    echo the end | dd of=/dev/$1 bs=512 seek=32767 conv=sync,fsync 2>/dev/null; \
    dd if=/dev/$1 bs=512 skip=32767 2>/dev/null | head -n 1; poweroff -f";

#[test]
#[ignore = "boots stock kernels"]
fn a_disk_grows_and_gives_back_under_either_driver() {
    const SIZE: usize = 8 << 20;
    let Some(files) = stock_guest(Flavour::Cloud) else { return };
    for (interface, aio, device, serial, read) in [
        ("nvme", "threads", "nvme0n1", "device/serial", "nvme1n1"),
        ("virtio", "threads", "vda", "serial", "vdb"),
        ("nvme", "io_uring", "nvme0n1", "device/serial", "nvme1n1"),
        ("virtio", "io_uring", "vda", "serial", "vdb"),
    ] {
        let place = Place::new();
        let (image, other) = (place.0.path().join("image"), place.0.path().join("other"));
        std::fs::write(&image, vec![0x55; SIZE]).expect("a file");
        std::fs::write(&other, vec![0; 4096]).expect("a file");
        let command = LOOK.replace("$1", device).replace("$2", serial).replace("$3", read);
        let append = format!("console=ttyS0 panic=-1 quiet {}", command_parameter(&command));
        let disks = [
            disk(&image, &format!("format=raw,serial=abc-1,if={interface},aio={aio}")),
            disk(&other, &format!("format=raw,ro,if={interface}")),
        ];
        let guest = machine("jit", &files, &append, &disks).with(&[
            "--cpus",
            "2",
            "--initrd",
            &files.initrd.to_string_lossy(),
        ]);
        let mut running = place.machine(guest, "grows").start().expect("it starts");
        running.wait_for(&format!("ready{SIZE}")).expect("it looks");
        let said = place.strata(&["update", "--disk", "0=16M", "grows"]);
        assert!(said.contains("disk 0 of 16 MiB"), "{said}");
        let finished = running.finish().expect("it ends");
        for text in [
            "queues 2 serial abc-1",
            "only read: 1",
            "refused",
            "given back",
            "zeroes",
            "grown 16777216",
            "the end",
        ] {
            assert!(finished.text.contains(text), "{interface} lacks \"{text}\":\n{}", finished.text);
        }
        let bytes = std::fs::read(&image).expect("it is there");
        assert_eq!(bytes.len(), 16 << 20);
        let given = |at: usize| (1 << 20..5 << 20).contains(&at);
        let right = bytes[..SIZE].iter().enumerate().all(|(at, b)| *b == if given(at) { 0 } else { 0x55 });
        assert!(right, "{interface}: other blocks than those given back have changed");
        let kept = image.metadata().expect("it is there").blocks() * 512;
        assert!(kept < (5 << 20), "{interface}: the host keeps {kept} bytes");
    }
}
