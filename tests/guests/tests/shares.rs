//! Folders of the host in Debian's stock kernel: served by the machine's process, and
//! by the virtiofsd that the host has installed.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guests::machine::{Guest, Running};

/// Where distributions have virtiofsd.
const DAEMONS: [&str; 3] = ["/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// What a guest does with a folder that it may change (`/mnt`), and with one that it may
/// not (`/ro`): its kernel is told that it may, so that the device has to refuse.
const WORK: &str = r#"
set -e
if ! [ -e /mnt/again ]; then touch /mnt/again; cat /mnt/from-host; reboot -f; sleep 60; fi
cat /mnt/from-host
dd if=/dev/urandom of=/mnt/big bs=65536 count=100 2>/dev/null
sum=$(md5sum < /mnt/big); sync; umount /mnt; mount -t virtiofs share0 /mnt
[ "$(md5sum < /mnt/big)" = "$sum" ] && echo "kept: ${sum%% *}"
mkdir /mnt/many; for i in $(seq 300); do echo $i > /mnt/many/$i; done
echo "names: $(ls /mnt/many | wc -l)"
ln -s ../etc/passwd /mnt/link; ln /mnt/many/1 /mnt/many/one; mv /mnt/many/2 /mnt/many/two; rm /mnt/many/3
echo made > /mnt/made; chmod 640 /mnt/made; chown 1234:4321 /mnt/made; touch -d '2001-02-03 04:05:06' /mnt/made
exec 3<> /mnt/gone; rm /mnt/gone; echo outlived >&3; exec 3<&-
cp /bin/busybox /mnt/many/true; /mnt/many/true && echo runs
cat /ro/from-host; mount -o remount,rw /ro
for change in 'touch /ro/new' 'rm /ro/from-host' 'mkdir /ro/new' 'sh -c "echo >> /ro/from-host"' 'chmod 0 /ro/from-host'; do
    if eval "$change" 2> /tmp/said; then echo "changed: $change"; fi
    grep -q 'Read-only' /tmp/said || cat /tmp/said
done
echo 'all done'
"#;

/// Each request fails, none hangs, when the daemon is gone.
const LOSS: &str = "ls /mnt; echo ready; while ls /mnt > /dev/null; do sleep 0.1; done; \
    cat /mnt/from-host || echo refused; touch /mnt/x || echo refused; umount /mnt; echo 'all done'";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        std::fs::write(folder.path().join("from-host"), "said by the host\n").expect("writable");
        Folder(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn guest(share: &Folder, fixed: &Folder, options: &str, command: &str) -> Guest {
    let top = |folder: &Folder| folder.0.path().display().to_string();
    let changed = format!("{}:/mnt:rw{options}", top(share));
    let fixed = format!("{}:/ro:ro{options}", top(fixed));
    Guest::new("jit").with(&["-v", &changed, "-v", &fixed, "--", command])
}

fn works(options: &str) {
    let (share, fixed) = (Folder::new(), Folder::new());
    let finished = guest(&share, &fixed, options, WORK).run().expect("the guest ends");
    let text = finished.text;
    assert_eq!(finished.status, Some(0), "{text}");
    for expect in ["names: 300", "runs", "all done"] {
        assert!(text.contains(expect), "{expect}: {text}");
    }
    // Before and after its start anew, and of the folder that it may only read.
    assert_eq!((text.matches("said by the host").count(), text.contains("changed: ")), (3, false), "{text}");
    let sum = std::process::Command::new("md5sum").arg(share.path("big")).output().expect("md5sum");
    let sum = String::from_utf8_lossy(&sum.stdout).chars().take(32).collect::<String>();
    assert!(text.contains(&format!("kept: {sum}")), "{sum}: {text}");
    let made = share.path("made").metadata().expect("made");
    assert_eq!((made.uid(), made.gid(), made.permissions().mode() & 0o7777), (1234, 4321, 0o640));
    assert_eq!((made.mtime(), made.len()), (981_173_106, 5));
    assert_eq!(std::fs::read_link(share.path("link")).expect("a link"), Path::new("../etc/passwd"));
    assert_eq!(share.path("many/1").metadata().expect("a file").nlink(), 2);
    assert_eq!(std::fs::read_to_string(share.path("many/two")).expect("renamed"), "2\n");
    assert!(!share.path("many/3").exists() && !share.path("gone").exists());
    assert_eq!(std::fs::read_dir(fixed.0.path()).expect("a folder").count(), 1);
    assert_eq!(std::fs::read_to_string(fixed.path("from-host")).expect("a file"), "said by the host\n");
}

/// Whether owners can be the guest's, and Debian 12's virtiofsd started.
fn is_root() -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    if !is_root {
        println!("skipped: only root gives files to others");
    }
    is_root
}

fn has_daemon() -> bool {
    let has = DAEMONS.iter().any(|d| Path::new(d).is_file());
    if !has {
        println!("skipped: virtiofsd is not installed");
    }
    has
}

/// Descendants of a process that are daemons.
fn daemons(of: u32) -> Vec<String> {
    let children = |pid: &str| -> Vec<String> {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().map(str::to_string).collect()
    };
    let (mut found, mut next) = (Vec::new(), vec![of.to_string()]);
    while let Some(pid) = next.pop() {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "virtiofsd" {
            found.push(pid.clone());
        }
        next.extend(children(&pid));
    }
    found
}

fn kill_daemons(running: &Running) {
    let found = daemons(running.pid());
    assert!(found.len() >= 2, "two shares, two daemons: {found:?}");
    let killed = std::process::Command::new("kill").arg("-KILL").args(&found).status().expect("kill");
    assert!(killed.success());
}

#[test]
#[ignore = "boots stock kernels"]
fn a_folder_is_worked_in_that_the_process_serves() {
    if is_root() {
        works("");
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn a_folder_is_worked_in_that_virtiofsd_serves() {
    if is_root() && has_daemon() {
        works(",backend=virtiofsd");
    }
}

#[test]
#[ignore = "boots stock kernels"]
fn a_virtiofsd_that_is_killed_leaves_errors_and_no_hang() {
    if !is_root() || !has_daemon() {
        return;
    }
    let (share, fixed) = (Folder::new(), Folder::new());
    let mut running = guest(&share, &fixed, ",backend=virtiofsd", LOSS).start().expect("the guest starts");
    running.wait_for("\nready").expect("the share is mounted");
    kill_daemons(&running);
    let finished = running.finish().expect("the guest ends");
    let text = finished.text;
    assert_eq!((finished.status, text.contains("all done")), (Some(0), true), "{text}");
    assert_eq!(
        (text.matches("refused").count(), text.contains("virtiofsd: it has ended")),
        (2, true),
        "{text}"
    );
}
