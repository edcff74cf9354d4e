//! Debian's kernel on the network: its own virtio_net driver, busybox's DHCP, DNS
//! and HTTP clients, servers of this test on the host's loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use guest_image::{Flavour, command_parameter};
use guests::machine::{Finished, Guest, LIMIT, stock_guest};

const MIB: usize = 1 << 20;

/// What the files are made of: its length has no factor of a page's or a segment's.
fn block() -> Vec<u8> {
    (0..1_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Write so many bytes of the pattern.
fn write_pattern(mut to: impl Write, mut length: usize) -> std::io::Result<()> {
    let block = block();
    while length > 0 {
        let n = length.min(block.len());
        to.write_all(&block[..n])?;
        length -= n;
    }
    to.flush()
}

/// The pattern's checksum, by the host's own program.
fn checksum(length: usize) -> String {
    let mut child = Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the host has md5sum");
    write_pattern(child.stdin.take().expect("piped"), length).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or("").to_string()
}

/// An HTTP server that serves one file; answers its port.
fn serve(at: &str, length: usize) -> u16 {
    let listener = TcpListener::bind(at).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n");
            // A client that goes away has its own failure to tell.
            let _ = (&stream).write_all(head.as_bytes()).and_then(|()| write_pattern(&stream, length));
        }
    });
    port
}

/// A name server that knows `files.test` as the router, behind which is the host's loopback.
fn name_server() -> SocketAddr {
    name_server_of([10, 0, 2, 2])
}

/// A name server that knows `files.test` as this address.
fn name_server_of(files: [u8; 4]) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..n];
            let known = query.windows(12).any(|w| w == b"\x05files\x04test\0");
            let is_a = query.ends_with(&[0, 1, 0, 1]);
            let mut response = query.to_vec();
            response[2] |= 0x80;
            response[3] = if known { 0x80 } else { 0x83 };
            if known && is_a {
                response[7] = 1;
                response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                response.extend(files);
            }
            let _ = socket.send_to(&response, from);
        }
    });
    address
}

/// Brings the card up by DHCP.
const DHCP: &str = "\
    printf '#!/bin/sh\\n[ $1 = bound ] && { ip a add $ip/$mask dev $interface; ip r add default via $router; \
    echo nameserver $dns > /etc/resolv.conf; echo bound $ip; }\\nexit 0\\n' > /d; chmod +x /d; mkdir -p /etc; \
    ip link set lo up; ip link set eth0 up; udhcpc -q -n -i eth0 -s /d; ";

/// Run a command in a guest with a network; the console must show the texts.
fn check(engine: &str, arguments: &[&str], command: &str, texts: &[&str]) -> Option<Finished> {
    let guest = guest(engine, arguments, &format!("{DHCP}{command}"))?;
    Some(judge(guest.run().expect("the guest ends"), texts))
}

fn judge(finished: Finished, texts: &[&str]) -> Finished {
    assert_eq!(finished.status, Some(0), "{}", finished.text);
    for text in texts {
        assert!(finished.text.contains(text), "no \"{text}\":\n{}", finished.text);
    }
    finished
}

fn guest(engine: &str, arguments: &[&str], command: &str) -> Option<Guest> {
    let files = stock_guest(Flavour::Cloud)?;
    let path = |p: &std::path::Path| p.to_string_lossy().into_owned();
    let command = command_parameter(command);
    let append = format!("console=ttyS0 panic=-1 quiet mitigations=off {command}");
    let images = ["--kernel", &path(&files.kernel), "--initrd", &path(&files.initrd), "--append", &append];
    Some(Guest::new(engine).with(&images).with(arguments).limit(LIMIT * 2))
}

/// Address, name, ping, and a file of this length by IPv4 and IPv6.
fn fetches(engine: &str, length: usize) {
    let dns = name_server().to_string();
    let (port, port6) = (serve("127.0.0.1:0", length), serve("[::1]:0", length / 4));
    let command = format!(
        "ping -c 2 -W 5 10.0.2.2 > /dev/null && echo pinged; \
         until ip a show dev eth0 | grep -q fd00:; do sleep 0.1; done; ping -c 1 fd00:a00:2::2 > /dev/null && echo pinged6; \
         nslookup files.test 2> /dev/null | grep -q 10.0.2.2 && echo resolved; \
         s=$(cut -d. -f1 /proc/uptime); wget -qO- http://files.test:{port}/ | md5sum; \
         echo took $(( $(cut -d. -f1 /proc/uptime) - s )) s; \
         wget -qO- http://[fd00:a00:2::2]:{port6}/ | md5sum"
    );
    let sums = [checksum(length), checksum(length / 4)];
    let texts = ["bound 10.0.2.15", "pinged\n", "pinged6", "resolved", &sums[0], &sums[1]];
    let texts = texts.map(|t| t.trim_end());
    let Some(finished) = check(engine, &["--dns", &dns], &command, &texts) else { return };
    let took = finished.text.lines().find(|l| l.starts_with("took")).unwrap_or("").trim().to_string();
    println!("{engine}: {} MiB {took}", length / MIB);
}

#[test]
#[ignore = "boots stock kernels"]
fn the_guest_fetches_files_on_jit() {
    fetches("jit", 256 * MIB);
}

#[test]
#[ignore = "boots stock kernels"]
fn the_guest_fetches_files_on_interp() {
    fetches("interp", 8 * MIB);
}

/// A port of the host that is free for now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

/// Read all of a file that the guest serves once it is up.
fn fetch(port: u16, length: usize) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let start = Instant::now();
        // Until the guest listens connections are reset.
        while start.elapsed() < LIMIT {
            let mut got = Vec::with_capacity(length);
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                let done = stream.read_to_end(&mut got);
                if done.is_ok() && !got.is_empty() {
                    return got;
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Vec::new()
    })
}

/// The guest serves what it has fetched.
fn serves(engine: &str, length: usize) {
    let (from, to) = (serve("127.0.0.1:0", length), free_port());
    let command = format!(
        "{DHCP}wget -qO /f http://10.0.2.2:{from}/; echo has $(wc -c < /f); nc -lp 7000 < /f; echo served"
    );
    let publish = format!("{to}:7000");
    let arguments = ["-p", &publish, "--memory", "1G"];
    let Some(guest) = guest(engine, &arguments, &command) else { return };
    let mut running = guest.start().expect("the guest starts");
    running.wait_for(&format!("has {length}")).expect("the file is there");
    let client = fetch(to, length);
    judge(running.finish().expect("the guest ends"), &["served"]);
    let got = client.join().expect("a client");
    let mut expected = Vec::with_capacity(length);
    write_pattern(&mut expected, length).expect("memory");
    assert!(got == expected, "{} of {length} bytes", got.len());
}

#[test]
#[ignore = "boots stock kernels"]
fn the_host_fetches_a_file_from_the_guest_on_jit() {
    serves("jit", 256 * MIB);
}

#[test]
#[ignore = "boots stock kernels"]
fn the_host_fetches_a_file_from_the_guest_on_interp() {
    serves("interp", 8 * MIB);
}

#[test]
#[ignore = "boots stock kernels"]
fn egress_is_what_was_allowed_and_no_more() {
    let dns = name_server().to_string();
    let (open, closed) = (serve("127.0.0.1:0", 5), serve("127.0.0.1:0", 5));
    let rule = format!("10.0.2.2:{open}/tcp");
    // The name may be asked for, and leads to the router: that opens nothing.
    let command = format!(
        "wget -qO- http://files.test:{open}/ > /dev/null && echo allowed; \
         wget -qO- http://files.test:{closed}/ > /dev/null || echo refused; \
         nslookup secret.example > /dev/null 2>&1 || echo unasked"
    );
    let pcap = std::env::temp_dir().join(format!("strata-network-{}.pcap", std::process::id()));
    let pcap_text = pcap.to_string_lossy().into_owned();
    let arguments = ["--dns", &dns, "--egress", &rule, "--egress", "files.test", "--pcap", &pcap_text];
    let texts = ["allowed", "refused", "unasked", "no rule allows it", "DNS query for secret.example"];
    let Some(_) = check("jit", &arguments, &command, &texts) else { return };
    let bytes = std::fs::read(&pcap).expect("a capture");
    std::fs::remove_file(&pcap).expect("ours");
    // Whole records to the end, the DHCP request's cookie among them.
    let mut at = 24;
    while at < bytes.len() {
        let length = u32::from_ne_bytes(bytes[at + 8..at + 12].try_into().expect("4 bytes"));
        at += 16 + length as usize;
    }
    assert_eq!(at, bytes.len());
    assert!(bytes.windows(4).any(|w| w == [99, 130, 83, 99]));
}

#[test]
#[ignore = "boots stock kernels"]
fn passt_carries_frames_from_the_sandbox() {
    if !Command::new("passt").arg("--version").output().is_ok_and(|o| o.status.success()) {
        println!("skipped: passt is not installed");
        return;
    }
    // passt shows the host's loopback at its router's address, which is the host's own router's.
    let length = 64 * MIB;
    let (port, published) = (serve("127.0.0.1:0", length), free_port());
    let command = format!(
        "r=$(ip r | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'); wget -qO- http://$r:{port}/ | md5sum; \
         cat /sys/class/net/eth0/mtu; echo ready; nc -lp 7000 | md5sum"
    );
    let publish = format!("{published}:7000");
    let arguments = ["--network", "passt", "-p", &publish];
    let Some(guest) = guest("jit", &arguments, &format!("{DHCP}{command}")) else { return };
    let mut running = guest.start().expect("the guest starts");
    // The built-in guest says "shell ready" long before.
    running.wait_for("\nready").expect("a file has come");
    // passt listens for the guest: a connection is taken before the guest's server is there.
    std::thread::sleep(Duration::from_secs(2));
    let stream = TcpStream::connect(("127.0.0.1", published)).expect("passt listens");
    write_pattern(&stream, MIB).expect("it is taken");
    drop(stream);
    judge(running.finish().expect("the guest ends"), &[&checksum(length), "65520", &checksum(MIB)]);
}

/// Names the part that another process of these tests plays.
const INSIDE: &str = "STRATA_TAP_TEST";

/// Run one of the tests below in a network of its own: nothing of the host is touched.
fn in_own_network(test: &str) {
    if !Command::new("unshare").args(["--net", "true"]).status().is_ok_and(|s| s.success()) {
        println!("skipped: a network of one's own needs root and unshare(1)");
        return;
    }
    let exe = std::env::current_exe().expect("a test has a path");
    let inside = ["--ignored", "--exact", test, "--nocapture"];
    let output = Command::new("unshare")
        .arg("--net")
        .arg(exe)
        .args(inside)
        .env(INSIDE, "1")
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "boots stock kernels"]
fn a_tap_with_two_queues_carries_frames_from_the_sandbox() {
    in_own_network("tap_inside");
}

#[test]
#[ignore = "boots stock kernels"]
fn a_tap_with_more_queues_than_processors_leaves_no_flow_unread() {
    in_own_network("wide_tap_inside");
}

#[test]
#[ignore = "boots stock kernels"]
fn a_card_joins_a_bridge_of_the_host() {
    in_own_network("bridge_inside");
}

#[test]
#[ignore = "boots stock kernels"]
fn a_name_opens_the_host_it_leads_to() {
    in_own_network("egress_inside");
}

#[test]
#[ignore = "boots stock kernels"]
fn a_closed_host_has_no_address_that_answers() {
    in_own_network("closed_host_inside");
}

#[test]
#[ignore = "boots stock kernels"]
fn the_guest_pings_hosts_beyond_the_router() {
    in_own_network("ping_inside");
}

fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

#[test]
#[ignore = "started by a test above, in a network of its own"]
fn tap_inside() {
    if is_inside() {
        ip("tuntap add tap0 mode tap vnet_hdr multi_queue");
        ip("addr add 192.0.2.1/24 dev tap0");
        ip("link set tap0 up");
        fetches_by_two_queues("tap:tap0,queues=2");
    }
}

#[test]
#[ignore = "started by a test above, in a network of its own"]
fn wide_tap_inside() {
    if !is_inside() {
        return;
    }
    ip("tuntap add tap0 mode tap vnet_hdr multi_queue");
    ip("addr add 192.0.2.1/24 dev tap0");
    ip("link set tap0 up");
    let command = "ip link set eth0 up; ip a add 192.0.2.2/24 dev eth0; ping -c 1 192.0.2.1; echo up and ready; \
        nc -lp 7000";
    let arguments = ["--network", "tap:tap0,queues=4", "--cpus", "2"];
    let Some(guest) = guest("jit", &arguments, command) else { return };
    let mut running = guest.start().expect("the guest starts");
    running.wait_for("\nup and ready").expect("the card is up");
    // The interface chooses a queue for each: a guest that sees the connection refuses it.
    let closed = SocketAddr::from(([192, 0, 2, 2], 9));
    let refused = (0..32).filter(|_| {
        let result = TcpStream::connect_timeout(&closed, Duration::from_secs(3));
        result.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    });
    assert_eq!(refused.count(), 32);
    let end = Instant::now();
    while TcpStream::connect("192.0.2.2:7000").is_err() && end.elapsed() < LIMIT {}
    judge(running.finish().expect("the guest ends"), &["up and ready"]);
}

#[test]
#[ignore = "started by a test above, in a network of its own"]
fn bridge_inside() {
    if is_inside() {
        ip("link add br0 type bridge");
        ip("addr add 192.0.2.1/24 dev br0");
        ip("link set br0 up");
        fetches_by_two_queues("bridge:br0,queues=2");
    }
}

/// A file from 192.0.2.1.
fn fetches_by_two_queues(network: &str) {
    let length = 16 * MIB;
    let port = serve("192.0.2.1:0", length);
    let command = format!(
        "ip link set eth0 up; ip a add 192.0.2.2/24 dev eth0; ping -c 2 192.0.2.1 > /dev/null && echo pinged; \
         wget -qO- http://192.0.2.1:{port}/ | md5sum; grep -c virtio.*-input /proc/interrupts | sed 's/^/inputs: /'"
    );
    let arguments = ["--network", network, "--cpus", "2"];
    let Some(guest) = guest("jit", &arguments, &command) else { return };
    judge(guest.run().expect("the guest ends"), &["pinged", &checksum(length), "inputs: 2"]);
}

#[test]
#[ignore = "started by a test above, in a network of its own"]
fn egress_inside() {
    if !is_inside() {
        return;
    }
    ip("link set lo up");
    ip("addr add 198.51.100.7/32 dev lo");
    let dns = name_server_of([198, 51, 100, 7]).to_string();
    let (open, closed) = (serve("198.51.100.7:0", 5), serve("198.51.100.7:0", 5));
    let rule = format!("files.test:{open}/tcp");
    let command = format!(
        "wget -qO- http://198.51.100.7:{open}/ > /dev/null || echo unnamed; \
         wget -qO- http://files.test:{open}/ > /dev/null && echo allowed; \
         wget -qO- http://files.test:{closed}/ > /dev/null || echo refused"
    );
    let arguments = ["--dns", &dns, "--egress", &rule];
    check("jit", &arguments, &command, &["unnamed", "allowed", "refused", "no rule allows it"]);
}

#[test]
#[ignore = "started by a test above, in a network of its own"]
fn closed_host_inside() {
    if !is_inside() {
        return;
    }
    ip("link set lo up");
    ip("link add br0 type bridge");
    ip("link set br0 up");
    // What leaves for the second has the first as its source.
    let addresses = ["192.0.2.1", "192.0.2.2"];
    for address in addresses {
        ip(&format!("addr add {address}/24 dev br0"));
    }
    ip("addr add 2001:db8::1/64 dev br0 nodad");
    let (port, port6) = (serve("0.0.0.0:0", 5), serve("[::]:0", 5));
    let command = format!(
        "until ip a show dev eth0 | grep -q fd00:; do sleep 0.1; done; \
         for a in 10.0.2.2 {} {}; do wget -qO- http://$a:{port}/ > /dev/null && echo got; done; \
         wget -qO- http://[2001:db8::1]:{port6}/ > /dev/null && echo got; echo asked",
        addresses[0], addresses[1]
    );
    for (arguments, answers) in [(&["--network", "nat"][..], 4), (&["--no-host-loopback"], 0)] {
        let Some(finished) = check("jit", arguments, &command, &["asked"]) else { return };
        assert_eq!(finished.text.matches("got\r\n").count(), answers, "{}", finished.text);
        assert_eq!(finished.text.contains("the host itself is closed"), answers == 0, "{}", finished.text);
    }
}

#[test]
#[ignore = "started by a test above, in a network of its own"]
fn ping_inside() {
    if !is_inside() {
        return;
    }
    ip("link set lo up");
    ip("addr add 198.51.100.7/32 dev lo");
    ip("addr add 2001:db8::7/128 dev lo");
    let range = "/proc/sys/net/ipv4/ping_group_range";
    std::fs::write(range, "0 0").expect("root owns its own network's settings");
    let command = "until ip a show dev eth0 | grep -q fd00:; do sleep 0.1; done; \
        ping -c 2 -W 5 198.51.100.7; ping -6 -c 2 -W 5 2001:db8::7; ping -c 1 -W 5 203.0.113.1 || echo unreachable";
    let texts = ["bound 10.0.2.15", "2 packets transmitted, 2 packets received", "seq=1 ttl=", "unreachable"];
    let Some(finished) = check("jit", &["--network", "nat"], command, &texts) else { return };
    assert_eq!(finished.text.matches("2 packets received").count(), 2, "{}", finished.text);
    // Where the host lets nobody ping, the guest is told.
    std::fs::write(range, "1 0").expect("as before");
    check("jit", &["--network", "nat"], "ping -c 1 -W 5 198.51.100.7 || echo unanswered", &["unanswered"]);
}
