//! What the guest is and does, read from /proc and /etc.

use std::fs;
use std::net::Ipv6Addr;

use agent_protocol::GuestFacts;

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The facts. What cannot be read stays empty.
pub fn gather() -> GuestFacts {
    let meminfo = read("/proc/meminfo");
    let mut addresses = local_addresses(&read("/proc/net/fib_trie"));
    addresses.extend(local_addresses_6(&read("/proc/net/if_inet6")));
    GuestFacts {
        hostname: read("/proc/sys/kernel/hostname").trim().to_string(),
        system: system(&read("/etc/os-release")),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_string(),
        uptime: read("/proc/uptime").split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0),
        load: load(&read("/proc/loadavg")),
        memory: memory(&meminfo, "MemTotal:"),
        memory_available: memory(&meminfo, "MemAvailable:"),
        addresses,
    }
}

/// PRETTY_NAME of os-release(5).
fn system(text: &str) -> String {
    let value = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    value.unwrap_or_default().trim_matches(['"', '\'']).to_string()
}

/// A line of /proc/meminfo, in bytes.
fn memory(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|l| l.strip_prefix(name));
    value.and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1024)
}

/// The three averages of /proc/loadavg, in hundredths.
fn load(text: &str) -> [u32; 3] {
    let mut words = text.split_whitespace().map(|w| w.replace('.', "").parse().unwrap_or(0));
    std::array::from_fn(|_| words.next().unwrap_or(0))
}

/// Addresses of this machine in /proc/net/fib_trie: a leaf `|-- ADDRESS` above a
/// line `/32 host LOCAL`. The tables repeat them.
fn local_addresses(trie: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut leaf = "";
    for line in trie.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            leaf = address;
        } else if line == "/32 host LOCAL" && !leaf.starts_with("127.") && !found.iter().any(|f| f == leaf) {
            found.push(leaf.to_string());
        }
    }
    found
}

/// The first field of each line of /proc/net/if_inet6.
fn local_addresses_6(text: &str) -> Vec<String> {
    let parse = |l: &str| u128::from_str_radix(l.get(..32)?, 16).ok().map(Ipv6Addr::from);
    text.lines().filter_map(parse).filter(|a| !a.is_loopback()).map(|a| a.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n           |-- 10.0.2.15\n              /32 host LOCAL\n           |-- 10.0.2.255\n              /32 link BROADCAST\n           |-- 127.0.0.1\n              /32 host LOCAL\nLocal:\n           |-- 10.0.2.15\n              /32 host LOCAL\n";
        assert_eq!(local_addresses(trie), ["10.0.2.15"]);
        let six = "00000000000000000000000000000001 01 80 10 80       lo\nfe80000000000000505400fffe123456 02 40 20 80     eth0\n\nshort\n";
        assert_eq!(local_addresses_6(six), ["fe80::5054:ff:fe12:3456"]);
        assert_eq!(load("0.05 1.20 12.34 1/60 99\n"), [5, 120, 1234]);
        assert_eq!(load(""), [0; 3]);
        assert_eq!(memory("MemTotal:         2048 kB\nMemFree: 1 kB\n", "MemTotal:"), 2048 * 1024);
        assert_eq!(system("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = gather();
        assert!(facts.memory >= facts.memory_available && facts.memory_available > 0);
        assert!(!facts.kernel.is_empty() && !facts.hostname.is_empty());
    }
}
