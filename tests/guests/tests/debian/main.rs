//! A whole Debian, built from its packages, on its own disk: to a login, logged
//! in to, found healthy by its own systemd, and powered off by its button; at work
//! in the network and in shared folders.

mod reach;
mod share;
mod unprivileged;

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use guests::machine::{Guest, Running, command_path};
use guests::slow_tests;

/// Longer than a boot takes on a busy host.
const LIMIT: Duration = Duration::from_secs(900);
const PASSWORD: &str = "not-a-secret";

/// An image of these tests' own, made of what the command carries now.
const IMAGE: &str = "strata-test-debian";

/// Build the image, once a process; `Some`: why that cannot be.
fn unbuilt(host: &Host) -> Option<&'static str> {
    static BUILT: OnceLock<Option<String>> = OnceLock::new();
    let build = || {
        let (status, text) = host.strata(&["image", "build", "debian", "--name", IMAGE, "--force"]);
        (status != Some(0)).then_some(text)
    };
    BUILT.get_or_init(build).as_deref()
}

/// A place for machines of one test's own; the image is the user's cache's.
struct Host(PathBuf);

impl Host {
    /// None, with the reason printed, where no Debian can be built.
    fn new(name: &str) -> Option<Self> {
        let dir = std::env::temp_dir().join(format!("strata-debian-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("the temporary directory is writable");
        std::fs::write(dir.join("password"), PASSWORD).expect("writable");
        let host = Host(dir);
        match unbuilt(&host) {
            None => Some(host),
            Some(why) => {
                println!("skipped: no Debian can be built here: {why}");
                None
            }
        }
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    fn state(&self) -> PathBuf {
        self.0.join("state")
    }

    /// Status, and everything printed.
    fn strata(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let out = Command::new(command_path().expect("the command is built"))
            .args(arguments)
            .env("STRATA_STATE", self.state())
            .output()
            .expect("the command starts");
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), text)
    }

    fn guest(&self, engine: &str) -> Guest {
        Guest::new(engine).environment("STRATA_STATE", &self.state()).limit(LIMIT).with(&["--rm", IMAGE])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// To a login, in, and healthy, as `box`.
fn logs_in_to_a_healthy_system(running: &mut Running, what: &str) {
    running.wait_for("box login: ").expect("a login prompt");
    println!("{what}: login after {:.1?}", running.elapsed());
    running.type_in("root\n").expect("it listens");
    running.wait_for("Password: ").expect("it asks");
    running.type_in(&format!("{PASSWORD}\n")).expect("it listens");
    running.wait_for("root@box:~# ").expect("a shell");
    // What is typed is echoed, so the answer is put together in the guest.
    let question =
        "echo is=$(systemctl is-system-running --wait) failed=$(systemctl --failed --no-legend | wc -l)\n";
    running.type_in(question).expect("it listens");
    running.wait_for("is=running failed=0").expect("no unit has failed");
    println!("{what}: healthy after {:.1?}", running.elapsed());
}

/// To a login, in, healthy, and off by the button.
fn logs_in_and_powers_off(engine: &str) {
    let Some(host) = Host::new(engine) else { return };
    let name = format!("debian-{engine}-{}", std::process::id());
    let password = host.path("password");
    let mut running = host
        .guest(engine)
        .with(&["--name", &name, "--hostname", "box", "--password-file", &password])
        .start()
        .expect("the guest starts");
    logs_in_to_a_healthy_system(&mut running, engine);
    let (status, text) = host.strata(&["exec", &name, "--", "sh", "-c", "cat /etc/hostname; exit 7"]);
    assert_eq!((status, text.as_str()), (Some(7), "box\n"), "the agent serves a Debian too");
    let (status, text) = host.strata(&["stop", "--timeout", "5m", &name]);
    assert_eq!((status, text.contains("powered off")), (Some(0), true), "{text}");
    let finished = running.finish().expect("it ends");
    assert_eq!(finished.status, Some(0), "{}", finished.text);
    // Others may run on this host.
    let (status, text) = host.strata(&["ps", "-a"]);
    assert_eq!((status, text.contains(&name)), (Some(0), false), "--rm removes it: {text}");
}

#[test]
#[ignore = "builds and boots a Debian"]
fn a_debian_boots_to_a_healthy_system_on_jit() {
    logs_in_and_powers_off("jit");
}

#[test]
#[ignore = "builds and boots a Debian"]
fn a_debian_boots_to_a_healthy_system_on_interp() {
    if slow_tests() {
        logs_in_and_powers_off("interp");
    }
}

#[test]
#[ignore = "builds and boots a Debian"]
fn a_debian_runs_a_command_takes_files_and_fills_its_disk() {
    let Some(host) = Host::new("command") else { return };
    std::fs::write(host.0.join("note"), "from the host").expect("writable");
    let file = format!("{}:/opt/a/note", host.path("note"));
    let line = [
        "--file",
        &file,
        "--user",
        "me",
        "--disk-size",
        "6G",
        "--",
        "test \"$(df --output=size -B1M / | tail -1)\" -gt 5500 && test \"$(id -un):$(cat /opt/a/note)\" = 'me:from the host' && sudo test -w / && exit 42",
    ];
    let finished = host.guest("jit").with(&line).run().expect("the guest ends");
    assert_eq!(finished.status, Some(42), "{}", finished.text);
}
