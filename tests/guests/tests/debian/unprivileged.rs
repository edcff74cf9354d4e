//! A Debian built, started and logged in to by a user without privilege, in each
//! of the two ways in which such a user installs packages.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use guests::machine::{Guest, command_path};
use guests::slow_tests;

use crate::share::is_root;
use crate::{LIMIT, PASSWORD, logs_in_to_a_healthy_system};

/// Debian's user who owns nothing.
const NOBODY: u32 = 65534;

/// Starts a program as that user, in whose eyes the file `$1` says who has ranges of IDs.
const DROP: &str = r#"
    mount --bind "$1" /etc/subuid && mount --bind "$1" /etc/subgid && shift &&
    exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"#;

/// That user, a directory of whose everything is in.
struct Nobody {
    directory: tempfile::TempDir,
}

impl Nobody {
    /// None, with the reason printed, where root may not become that user.
    fn new(ranges: &str) -> Option<Self> {
        let directory = tempfile::tempdir().expect("the temporary directory is writable");
        let user = Nobody { directory };
        std::fs::write(user.path("ranges"), ranges).expect("writable");
        std::fs::write(user.path("password"), PASSWORD).expect("writable");
        // Where tests are built others may not be let in.
        std::fs::copy(command_path().expect("the command is built"), user.path("strata")).expect("copied");
        for name in ["", "home", "tmp"] {
            let path = user.path(name);
            std::fs::create_dir_all(&path).expect("writable");
            std::os::unix::fs::chown(&path, Some(NOBODY), Some(NOBODY)).expect("root gives files away");
        }
        let (status, text) = user.run(&["true"]);
        if status != Some(0) {
            println!("skipped: no way to become another user: {text}");
            return None;
        }
        Some(user)
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_string_lossy().into_owned()
    }

    /// What a program of this user is started by.
    fn prefix(&self) -> Vec<String> {
        let ranges = self.path("ranges");
        let [home, tmp] = ["home", "tmp"].map(|name| self.path(name));
        let mut words =
            ["unshare", "--mount", "sh", "-ec", DROP, "sh", &ranges, "env"].map(String::from).to_vec();
        words.extend([
            format!("HOME={home}"),
            format!("TMPDIR={tmp}"),
            format!("STRATA_RUNTIME_DIR={tmp}/run"),
        ]);
        words.extend(["STRATA_CACHE", "STRATA_STATE"].map(|name| format!("{name}={home}/{name}")));
        words
    }

    /// Status, and everything printed.
    fn run(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut line = self.prefix();
        line.extend(words.iter().map(|w| w.to_string()));
        let mut command = Command::new(&line[0]);
        let out = command.args(&line[1..]).current_dir(Path::new("/")).output().expect("unshare is there");
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), text)
    }

    fn strata(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.run(&[&[self.path("strata").as_str()], arguments].concat())
    }
}

/// `way`: as `image inspect` has it.
fn builds_and_boots(ranges: &str, way: &str) {
    if !slow_tests() || !is_root() {
        return;
    }
    let Some(user) = Nobody::new(ranges) else { return };
    let start = Instant::now();
    let (status, text) = user.strata(&["image", "build", "debian"]);
    if status != Some(0) && (text.contains("programs are missing") || text.contains("check the network")) {
        return println!("skipped: no Debian can be built here: {text}");
    }
    assert_eq!(status, Some(0), "{text}");
    println!("{way}: built in {:.1?}", start.elapsed());
    let (_, about) = user.strata(&["image", "inspect", "debian"]);
    assert!(about.contains(&format!("({way})")), "{about}");
    let prefix = user.prefix();
    let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
    let password = user.path("password");
    let guest = Guest::new("jit").limit(LIMIT).under(&prefix).command(user.path("strata")).with(&[
        "--rm",
        "--hostname",
        "box",
        "--password-file",
        &password,
        "debian",
    ]);
    let mut running = guest.start().expect("the guest starts");
    logs_in_to_a_healthy_system(&mut running, way);
    let owner = "echo sum=$(dpkg --audit | wc -l):$(stat -c %u:%a /usr/bin/sudo /etc/shadow)\n";
    running.type_in(owner).expect("it listens");
    running.wait_for("sum=0:0:4755 0:640").expect("what belongs to root does so in the guest");
    running.type_in("systemctl poweroff\n").expect("it listens");
    let finished = running.finish().expect("it ends");
    assert_eq!(finished.status, Some(0), "{}", finished.text);
}

#[test]
#[ignore = "builds and boots a Debian"]
fn a_user_without_a_range_of_ids_builds_and_boots_a_debian() {
    builds_and_boots("", "fakechroot");
}

#[test]
#[ignore = "builds and boots a Debian"]
fn a_user_with_a_range_of_ids_builds_and_boots_a_debian() {
    builds_and_boots("nobody:1000000:65536\n", "unshare");
}
