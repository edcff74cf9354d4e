//! A Debian that works in a folder of the host's.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use guests::slow_tests;

use crate::Host;
use crate::reach::{Ssh, install};

/// What a package manager leaves behind, in size and kinds.
fn files() -> u32 {
    if slow_tests() { 20_000 } else { 2_000 }
}

/// Makes so many files (first argument) below a folder (second), with modes, owners,
/// times, links of both kinds and names that want care.
const MAKE: &str = r#"
use strict; use POSIX (); chdir $ARGV[1] or die;
for my $i (0 .. $ARGV[0] - 1) {
    my ($d, $e, $k) = ("d" . int($i / 400), "e" . int($i / 20) % 20, $i % 20);
    mkdir $d; mkdir "$d/$e"; chdir "$d/$e" or die;
    open(my $f, ">", "f $i") or die; print $f "$i is ", $i * $i, "\n", $k == 11 ? "x$i" x 20000 : ""; close $f or die;
    symlink("f " . ($i - 1), "s$i") or die if $k == 3;
    link("f $i", "h$i") or die if $k == 5;
    chmod(04711, "f $i") or die if $k == 7;
    chown(1234, 4321, "f $i") or die if $k == 8;
    chmod(0, "f $i") or die if $k == 9;
    POSIX::mkfifo("p$i", 0640) or die if $k == 13;
    utime($i, 1000000000 + $i, "f $i") or die if $i % 2;
    chdir "../.." or die;
}
"#;

/// Kind, mode, owner, links, size, time in nanoseconds (not of folders, which their
/// files change), and content or target of everything below a folder.
type Tree = BTreeMap<String, (u32, [u32; 2], u64, u64, i64, Vec<u8>)>;

fn look(folder: &Path, below: &str, into: &mut Tree) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let about = path.symlink_metadata().expect("a file");
        let name = format!("{below}/{}", path.file_name().expect("a name").to_string_lossy());
        let kind = about.file_type();
        let content = match () {
            () if kind.is_file() => std::fs::read(&path).expect("readable"),
            () if kind.is_symlink() => {
                std::fs::read_link(&path).expect("a link").into_os_string().into_encoded_bytes()
            }
            () => Vec::new(),
        };
        let time = if kind.is_file() { about.mtime() * 1_000_000_000 + about.mtime_nsec() } else { 0 };
        let (links, size) = if kind.is_dir() { (0, 0) } else { (about.nlink(), about.size()) };
        let owner = [about.uid(), about.gid()];
        into.insert(name.clone(), (about.mode(), owner, links, size, time, content));
        if kind.is_dir() {
            look(&path, &name, into);
        }
    }
}

fn tree(folder: &Path) -> Tree {
    let mut tree = Tree::new();
    look(folder, "", &mut tree);
    tree
}

fn check(host: &Host, ssh: &Ssh, what: &str, script: &str) {
    let start = Instant::now();
    ssh.run(script).unwrap_or_else(|e| panic!("{what}: {e}"));
    println!("{what}: {:.1?}", start.elapsed());
    let (made, copied) = (tree(&host.0.join("share/made")), tree(&host.0.join("share/copied")));
    let differs = made.iter().find(|(name, value)| copied.get(*name) != Some(value)).map(|(name, _)| name);
    assert_eq!((differs, made.len()), (None, copied.len()), "{what}");
    assert!(made.len() > files() as usize, "{what}: {} names", made.len());
    ssh.run("rm -r /mnt/copied && ! test -e /mnt/copied").expect("removed");
    assert!(!host.0.join("share/copied").exists());
}

#[test]
#[ignore = "builds and boots a Debian"]
fn a_debian_keeps_whole_trees_in_a_share() {
    if !slow_tests() {
        return;
    }
    // Owners are the host's own: they need root on both sides.
    let Some(host) = Host::new("share").filter(|_| is_root()) else { return };
    let Some(ssh) = Ssh::new(&host) else { return };
    let share = host.0.join("share");
    std::fs::create_dir_all(&share).expect("writable");
    std::fs::write(share.join("make.pl"), MAKE).expect("writable");
    std::fs::write(share.join("check.py"), include_str!("share.py")).expect("writable");
    let volume = format!("{}:/mnt", share.display());
    let flags = ssh.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    // Fewer files may be open than the guest comes to know.
    let few = ["prlimit", "--nofile=20000"];
    let guest = host.guest("jit").under(&few).with(&flags).with(&["-m", "1G", "-v", &volume]);
    let mut running = guest.start().expect("the guest starts");
    ssh.wait(&mut running);
    let start = Instant::now();
    ssh.run(&format!("mkdir /mnt/made && perl /mnt/make.pl {} /mnt/made", files())).expect("a tree");
    println!("{} files made: {:.1?}", files(), start.elapsed());
    check(&host, &ssh, "cp -a within the share", "cp -a /mnt/made /mnt/copied");
    let tar = "tar --format=posix -C /mnt/made -cf /var/tmp/t.tar . && mkdir /mnt/copied && tar -C /mnt/copied -xpf /var/tmp/t.tar";
    check(&host, &ssh, "packed to the guest's disk and unpacked", tar);
    if slow_tests() {
        install(&ssh, "python3");
        println!("{}", ssh.run("mkdir /mnt/w && python3 /mnt/check.py /mnt/w 2>&1").expect("passes"));
    }
    // The connection ends with the guest: what ssh says of it proves nothing.
    let _ = ssh.run("systemctl poweroff");
    let finished = running.finish().expect("it ends");
    assert_eq!(finished.status, Some(0), "{}", finished.text);
}

/// Whether this is root; told otherwise.
pub fn is_root() -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    if !is_root {
        println!("skipped: only root gives files to others and becomes them");
    }
    is_root
}
