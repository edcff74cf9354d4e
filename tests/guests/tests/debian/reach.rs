//! A Debian behind the NAT: reached by the host's own OpenSSH client, and reaching
//! the host's servers and the packages it was made of.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guests::machine::Running;
use guests::slow_tests;

use crate::{Host, LIMIT};

/// Bytes copied each way.
fn length() -> usize {
    if slow_tests() { 256 << 20 } else { 16 << 20 }
}

/// A port of the host that is free for now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

/// Both streams, once it has ended well.
fn output(command: &mut Command) -> Result<String, String> {
    let out = command.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let errors = String::from_utf8_lossy(&out.stderr);
    if out.status.success() { Ok(text) } else { Err(format!("{}: {text}{errors}", out.status)) }
}

/// The way into one guest.
pub struct Ssh {
    key: String,
    port: u16,
}

impl Ssh {
    /// A key of its own; None, with the reason printed, where the host has no client.
    pub fn new(host: &Host) -> Option<Ssh> {
        let key = host.path("key");
        let made = output(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &key]));
        match made {
            Ok(_) => Some(Ssh { key, port: free_port() }),
            Err(e) => {
                println!("skipped: no OpenSSH client: {e}");
                None
            }
        }
    }

    /// What makes `strata run` let it in.
    pub fn flags(&self) -> [String; 4] {
        let publish = format!("{}:22", self.port);
        ["--ssh-key".to_string(), format!("{}.pub", self.key), "-p".to_string(), publish]
    }

    fn client(&self, program: &str, port_flag: &str) -> Command {
        let mut command = Command::new(program);
        command.args(["-i", &self.key, port_flag, &self.port.to_string()]);
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=60",
        ] {
            command.args(["-o", option]);
        }
        command
    }

    /// Run a script in the guest, as root.
    pub fn run(&self, script: &str) -> Result<String, String> {
        output(self.client("ssh", "-p").args(["root@127.0.0.1", script]))
    }

    /// Until the guest lets us in.
    pub fn wait(&self, running: &mut Running) {
        let mut last = String::new();
        while running.elapsed() < LIMIT && !running.has_ended().expect("a child") {
            match self.run("true") {
                Ok(_) => return println!("ssh after {:.1?}", running.elapsed()),
                Err(e) => last = e,
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        panic!("no way in: {last}");
    }

    fn copy(&self, from: &str, to: &str) -> Result<String, String> {
        output(self.client("scp", "-P").args([from, to]))
    }
}

fn checksum(file: &Path) -> String {
    let text = output(Command::new("sha256sum").arg(file)).expect("the host has sha256sum");
    text.split_whitespace().next().unwrap_or("").to_string()
}

/// A file there and back.
fn copies_arrive(host: &Host, ssh: &Ssh) {
    let (up, down) = (host.0.join("up"), host.path("down"));
    let mut random = std::fs::File::open("/dev/urandom").expect("a host").take(length() as u64);
    let mut file = std::fs::File::create(&up).expect("writable");
    std::io::copy(&mut random, &mut file).expect("room");
    let sum = checksum(&up);
    let start = Instant::now();
    ssh.copy(&host.path("up"), "root@127.0.0.1:/var/tmp/copy").expect("scp to the guest");
    let there = start.elapsed();
    assert!(ssh.run("sha256sum /var/tmp/copy").expect("a sum").starts_with(&sum));
    let start = Instant::now();
    ssh.copy("root@127.0.0.1:/var/tmp/copy", &down).expect("scp from the guest");
    println!("scp of {} MiB: {there:.1?} there, {:.1?} back", length() >> 20, start.elapsed());
    assert_eq!(checksum(Path::new(&down)), sum);
}

/// A server of one line, which tells who has come.
fn answer_at(address: &str) -> Option<SocketAddr> {
    let listener = TcpListener::bind(address).ok()?;
    let at = listener.local_addr().ok()?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // A client that goes away has its own failure to tell.
            let _ = stream.write_all(b"the host speaks\n");
        }
    });
    Some(at)
}

/// The router by both protocols, and the host's loopback of both.
fn reaches_the_host(ssh: &Ssh) {
    let ping = ssh.run("ping -c 2 -W 5 10.0.2.2 && ping -c 2 -W 5 fd00:a00:2::2").expect("answers");
    assert_eq!(ping.matches("2 received").count(), 2, "{ping}");
    for (address, seen) in [("127.0.0.1:0", "10.0.2.2"), ("[::1]:0", "fd00:a00:2::2")] {
        let Some(at) = answer_at(address) else {
            println!("skipped: the host has no {address}");
            continue;
        };
        let said = ssh.run(&format!("bash -c 'cat < /dev/tcp/{seen}/{}'", at.port()));
        assert_eq!(said.as_deref(), Ok("the host speaks\n"), "{seen}");
    }
}

/// `git daemon`, ended with this.
struct GitDaemon(Child);

impl GitDaemon {
    fn start(folder: &Path, port: u16) -> GitDaemon {
        let child = Command::new("git")
            .args(["daemon", "--listen=127.0.0.1", "--export-all", "--reuseaddr"])
            .args([format!("--port={port}"), format!("--base-path={}", folder.display())])
            .spawn()
            .expect("git was there a moment ago");
        GitDaemon(child)
    }
}

impl Drop for GitDaemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A repository of the host's with some history; its head.
fn repository(folder: &Path) -> Result<String, String> {
    let git = |arguments: &[&str]| {
        let who = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"];
        output(Command::new("git").arg("-C").arg(folder).args(who).args(arguments))
    };
    std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    git(&["init", "-q"])?;
    for commit in 0..20u32 {
        for file in 0..50u32 {
            let text = (0..200).map(|i| format!("{}\n", (commit * 131 + file) * 977 + i)).collect::<String>();
            std::fs::write(folder.join(format!("{file}.txt")), text).map_err(|e| e.to_string())?;
        }
        git(&["add", "."])?;
        git(&["commit", "-q", "-m", &format!("{commit}")])?;
    }
    git(&["rev-parse", "HEAD"])
}

/// Get a package by apt through the NAT. The image was built of packages a moment
/// ago: where the host got them the guest does too.
pub fn install(ssh: &Ssh, package: &str) {
    // A proxy on the host's loopback is at the router's address.
    let proxy = std::env::var("http_proxy").unwrap_or_default();
    let proxy = proxy.replace("127.0.0.1", "10.0.2.2").replace("localhost", "10.0.2.2");
    let start = Instant::now();
    let script = format!(
        "export DEBIAN_FRONTEND=noninteractive http_proxy='{proxy}'; apt-get -qq update && \
         apt-get -qq install --no-install-recommends {package} > /dev/null && dpkg -s {package} | grep ^Status"
    );
    assert_eq!(ssh.run(&script).as_deref(), Ok("Status: install ok installed\n"));
    println!("apt-get update and install {package}: {:.1?}", start.elapsed());
}

/// A clone from the host.
fn clones(host: &Host, ssh: &Ssh) {
    let head = match repository(&host.0.join("repositories/it")) {
        Ok(head) => head,
        Err(e) => return println!("skipped: the host has no git: {e}"),
    };
    let port = free_port();
    let _daemon = GitDaemon::start(&host.0.join("repositories"), port);
    let start = Instant::now();
    let clone = format!(
        "for i in 1 2 3 4 5; do git clone -q git://10.0.2.2:{port}/it it && break; sleep 1; done; \
         git -C it fsck --full && git -C it rev-parse HEAD"
    );
    assert_eq!(ssh.run(&clone), Ok(head));
    println!("git clone: {:.1?}", start.elapsed());
}

/// What Debian's tools see of the card.
fn card_is_whole(ssh: &Ssh) {
    let features = ssh.run("cat /sys/class/net/e*/mtu /sys/class/net/e*/device/features").expect("a card");
    let mut lines = features.lines();
    assert_eq!(lines.next(), Some("1500"));
    // Feature bits of virtio 1.2 section 5.1.3, bit 0 first.
    let bits = lines.next().unwrap_or("").as_bytes();
    let names = [(0, "CSUM"), (1, "GUEST_CSUM"), (7, "GUEST_TSO4"), (8, "GUEST_TSO6"), (11, "HOST_TSO4")];
    for (bit, name) in names.into_iter().chain([(12, "HOST_TSO6"), (15, "MRG_RXBUF"), (17, "CTRL_VQ")]) {
        assert_eq!(bits.get(bit), Some(&b'1'), "VIRTIO_NET_F_{name}");
    }
}

#[test]
#[ignore = "builds and boots a Debian"]
fn a_debian_is_reached_by_ssh_and_reaches_out() {
    let Some(host) = Host::new("reach") else { return };
    let Some(ssh) = Ssh::new(&host) else { return };
    let flags = ssh.flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut running = host.guest("jit").with(&flags).with(&["-m", "1G"]).start().expect("the guest starts");
    ssh.wait(&mut running);
    assert_eq!(ssh.run("systemctl is-system-running --wait").as_deref(), Ok("running\n"));
    copies_arrive(&host, &ssh);
    reaches_the_host(&ssh);
    card_is_whole(&ssh);
    if slow_tests() {
        install(&ssh, "git");
        clones(&host, &ssh);
    }
    // The connection ends with the guest: what ssh says of it proves nothing.
    let _ = ssh.run("systemctl poweroff");
    let finished = running.finish().expect("it ends");
    assert_eq!(finished.status, Some(0), "{}", finished.text);
}
