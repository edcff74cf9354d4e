//! A stock kernel gains and gives back disks and network cards while it runs, and
//! finds files in its memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use guest_image::Flavour;
use guests::SOFTWARE_ENGINES;
use guests::machine::{Guest, command_path, stock_guest};
use guests::root_disk::tool;

/// Says what there is whenever that changes; a disk that has come is read and written.
const WATCH: &str = r#"insmod /lib/strata/virtio_blk.ko 2>/dev/null
while :; do
  now=
  for d in $(ls /dev | grep -E '^(nvme[0-9]+n1|vd[a-z])$'); do
    case $last in *$d*) ;; *)
      echo "$d begins $(head -c 7 /dev/$d), has $(blockdev --getsize64 /dev/$d);"
      printf 'written by %s' $d | dd of=/dev/$d bs=512 conv=sync,fsync 2>/dev/null ;;
    esac
    now="$now$d "
  done
  for n in /sys/class/net/eth*; do [ -e $n ] && now="$now${n##*/} "; done
  [ "$now" = "$last" ] || echo "now: $now;"
  last=$now; usleep 100000
done"#;

const SIZE: u64 = 8 << 20;

fn update(runtime: &Path, arguments: &[&str]) -> String {
    let out = Command::new(command_path().expect("built"))
        .args(["update", "--wait", "60s", "plug"])
        .args(arguments)
        .env("STRATA_RUNTIME_DIR", runtime)
        .output()
        .expect("the command starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn image(path: &Path) -> String {
    std::fs::write(path, b"content").expect("a file");
    std::fs::OpenOptions::new().write(true).open(path).and_then(|f| f.set_len(SIZE)).expect("its size");
    path.to_string_lossy().into_owned()
}

fn scratch(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("strata-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .expect("its mode");
    directory
}

#[test]
#[ignore = "boots stock kernels"]
fn disks_and_cards_come_and_go() {
    if stock_guest(Flavour::Cloud).is_none() {
        return;
    }
    let directory = scratch("plugging");
    for engine in SOFTWARE_ENGINES {
        let runtime = directory.join(engine);
        let mut running = Guest::new(engine)
            .with(&["--name", "plug", "--network", "nat", "--", WATCH])
            .environment("STRATA_RUNTIME_DIR", &runtime)
            .start()
            .expect("the guest starts");
        running.wait_for("now: eth0 ;").expect("the guest as it starts");
        for (option, device) in [("", "nvme0n1"), (",if=virtio,serial=data", "vda")] {
            let path = directory.join(device);
            let disk = image(&path) + option;
            assert!(update(&runtime, &["--add-disk", &disk]).contains("disk-0"));
            running.wait_for(&format!("{device} begins content, has {SIZE};")).expect("the disk is read");
            running.wait_for(&format!("now: {device} eth0 ;")).expect("the disk is there");
            update(&runtime, &["--remove", "disk-0"]);
            let written = format!("written by {device}");
            assert!(
                std::fs::read(&path).expect("a file").starts_with(written.as_bytes()),
                "{engine} {device}"
            );
        }
        running.wait_for_times("now: eth0 ;", 3).expect("both disks have gone");
        assert!(update(&runtime, &["--add-net", "nat"]).contains("net-1"));
        running.wait_for("now: eth0 eth1 ;").expect("the card is there");
        update(&runtime, &["--remove", "net-1"]);
        running.wait_for_times("now: eth0 ;", 4).expect("the card has gone");
        drop(running);
    }
    // It may be gone already.
    let _ = std::fs::remove_dir_all(&directory);
}

/// The second file system may be changed; what it holds then is looked at on the host.
const PMEM: &str = "mkdir /a /b; mount -t ext4 -o ro,dax /dev/pmem0 /a && cat /a/greeting; \
    grep pmem0 /proc/mounts; mount -t ext4 -o dax /dev/pmem1 /b && cp /a/greeting /b/copy && umount /b && echo copied; \
    dd if=/dev/zero of=/dev/pmem0 bs=4k count=1 conv=fsync 2>/dev/null; echo tried";

#[test]
#[ignore = "boots stock kernels"]
fn files_are_in_memory_and_mounted_without_a_cache_of_the_guest() {
    if stock_guest(Flavour::Cloud).is_none() {
        return;
    }
    let directory = scratch("pmem");
    let folder = directory.join("files");
    std::fs::create_dir_all(&folder).expect("a directory");
    std::fs::write(folder.join("greeting"), "hello from a file\n").expect("a file");
    let make = |name: &str| {
        let path = directory.join(name);
        std::fs::File::create(&path).and_then(|f| f.set_len(32 << 20)).expect("a file");
        let (path, folder) = (path.to_string_lossy().into_owned(), folder.to_string_lossy().into_owned());
        let made = tool("mkfs.ext4", &["-q", "-b", "4096", "-d", &folder, &path]).expect("it runs");
        made.map(|_| path)
    };
    let (Some(fixed), Some(changed)) = (make("fixed"), make("changed")) else { return };
    let before = std::fs::read(&fixed).expect("a file");
    for engine in SOFTWARE_ENGINES {
        let finished = Guest::new(engine)
            .with(&["--pmem", &format!("{fixed},ro"), "--pmem", &changed, "--", PMEM])
            .run()
            .expect("the guest ends");
        for text in ["hello from a file", "/dev/pmem0 /a ext4 ro", "dax", "copied", "tried"] {
            assert!(finished.text.contains(text), "{engine} lacks \"{text}\":\n{}", finished.text);
        }
        assert_eq!(finished.status, Some(0), "{engine}:\n{}", finished.text);
        assert!(std::fs::read(&fixed).expect("a file") == before, "{engine}: a read-only file has changed");
        let copy = tool("debugfs", &["-R", "cat /copy", &changed]).expect("it runs").expect("it is there");
        assert!(copy.contains("hello from a file"), "{engine}: {copy}");
        tool("debugfs", &["-w", "-R", "rm /copy", &changed]).expect("it runs");
    }
    // It may be gone already.
    let _ = std::fs::remove_dir_all(&directory);
}
