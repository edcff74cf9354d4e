//! Images that leave the store.

mod support;

use std::process::Command;

use support::Host;

/// Bytes of the image's disk.
const SIZE: usize = 4 << 20;

/// A host whose store has an image, "mine", and the image's disk.
fn host(name: &str) -> (Host, Vec<u8>) {
    let host = Host::new(name);
    let mut disk = vec![7; SIZE];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    std::fs::write(host.0.join("disk"), &disk).expect("writable");
    host.check(&["image", "import", "disk", "--name", "mine"], 0);
    std::fs::create_dir(host.0.join("to")).expect("writable");
    (host, disk)
}

fn names(host: &Host) -> Vec<String> {
    let entries = std::fs::read_dir(host.0.join("to")).expect("the directory").flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[test]
fn an_export_writes_what_is_not_there_yet() {
    let (host, disk) = host("export");
    let export = |file: &str, status| host.check(&["image", "export", "mine", file], status);
    export("to/d.raw", 0);
    assert_eq!(names(&host), ["d.raw"]);
    assert!(std::fs::read(host.0.join("to/d.raw")).expect("it is there") == disk);
    // The user's fault, and the host's.
    std::fs::write(host.0.join("to/d.raw"), "mine").expect("writable");
    assert!(export("to/d.raw", 2).contains("d.raw is there already\n  remedy: give a file"));
    assert_eq!(std::fs::read(host.0.join("to/d.raw")).expect("it is there"), b"mine");
    assert!(export("none/d.raw", 1).contains("cannot write none/d.raw: No such file"));
    assert_eq!(names(&host), ["d.raw"]);
}

#[test]
fn an_export_that_is_killed_leaves_no_file_of_that_name() {
    let (host, _) = host("export-killed");
    // The host ends a process that writes more than it may, as a kill would.
    let script = "ulimit -c 0; ulimit -f 2048; exec \"$0\" image export mine to/d.raw";
    let strata = host.command(&[]);
    let mut limited = Command::new("sh");
    limited.args(["-c", script, env!("CARGO_BIN_EXE_strata")]).current_dir(&host.0);
    limited.envs(strata.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let status = limited.status().expect("a shell");
    assert!(!status.success(), "{status}");
    assert!(!names(&host).contains(&"d.raw".to_string()), "{:?}", names(&host));
}
