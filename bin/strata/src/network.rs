//! The network of `strata run`: from flags to the specification's cards.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use board::{NatSpec, NetBackend, NetSpec, TapSpec};
use clap::Args;
use nat::{Policy, PortForward, Rule};
use port::MacAddress;

use crate::failure::InputError;

/// What carries the frames of a card, as typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    Nat,
    None,
    Tap(TapSpec),
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "use nat, none, tap:NAME or tap:NAME,queues=N";
        match text {
            "nat" => return Ok(Network::Nat),
            "none" => return Ok(Network::None),
            _ => {}
        }
        let rest = text.strip_prefix("tap:").ok_or_else(|| format!("not a network; {FORMS}"))?;
        let (name, queues) = match rest.split_once(',') {
            Some((name, option)) => {
                let queues = option.strip_prefix("queues=").and_then(|n| n.parse().ok());
                (name, queues.ok_or_else(|| format!("\"{option}\" is no number of queues; {FORMS}"))?)
            }
            None => (rest, 1),
        };
        if name.is_empty() {
            return Err(format!("an interface without a name; {FORMS}"));
        }
        Ok(Network::Tap(TapSpec { name: name.to_string(), queues }))
    }
}

/// The network of a machine.
#[derive(Args)]
pub struct NetworkArgs {
    /// Network card: nat (user-mode, needs no privilege), none, or tap:NAME[,queues=N], an interface
    /// of the host; repeat for more [default: nat with IMAGE or any
    /// of the flags below, else none]
    #[arg(long, value_name = "KIND")]
    network: Vec<Network>,
    /// Let a port of the host lead to one of the guest, e.g. 2222:22, 0.0.0.0:8080:80 or
    /// 5353:53/udp; without an address only the host itself reaches it
    #[arg(short, long, value_name = "[ADDRESS:]HOST:GUEST[/udp]")]
    publish: Vec<PortForward>,
    /// Let the guest connect here and to nowhere else but other --egress: a name, *.name, address or
    /// prefix, with a port and /tcp, /udp or /icmp if wanted, e.g. *.example.org:443/tcp
    #[arg(long, value_name = "RULE")]
    egress: Vec<Rule>,
    /// Never let the guest connect here, whatever --egress says
    #[arg(long, value_name = "RULE")]
    deny_egress: Vec<Rule>,
    /// Let the guest connect to nowhere but what --egress allows
    #[arg(long)]
    network_deny: bool,
    /// Keep the guest from the host's own services, which are at 10.0.2.2 otherwise
    #[arg(long)]
    no_host_loopback: bool,
    /// Where the guest's DNS queries go; repeat for more [default: what /etc/resolv.conf names]
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = resolver)]
    dns: Vec<SocketAddr>,
    /// Longest packet of the NAT in bytes, 1280 to 65535 [default: 1500]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1280..))]
    mtu: Option<u16>,
    /// Ethernet address of the first card
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<MacAddress>,
    /// Write all frames of the first card to a file that tcpdump and Wireshark read
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

impl NetworkArgs {
    /// The cards of a machine with this name. `usual`: one that is expected to reach
    /// the world unless told otherwise.
    pub fn cards(&self, name: Option<String>, usual: bool) -> anyhow::Result<Vec<NetSpec>> {
        let shaped =
            !self.publish.is_empty() || self.has_policy() || self.mtu.is_some() || !self.dns.is_empty();
        let implied = usual || shaped || self.mac.is_some() || self.pcap.is_some();
        let kinds: &[Network] = match self.network.as_slice() {
            [] if implied => &[Network::Nat],
            kinds => kinds,
        };
        if shaped && !kinds.contains(&Network::Nat) {
            let what = "--publish, --egress, --mtu and their like are for --network nat; add it";
            return Err(InputError(what.to_string()).into());
        }
        let mut cards = Vec::new();
        let mut nats = 0;
        for kind in kinds {
            let backend = match kind {
                Network::None => continue,
                Network::Tap(tap) => NetBackend::Tap(tap.clone()),
                Network::Nat => {
                    nats += 1;
                    NetBackend::Nat(self.nat(name.clone(), nats == 1))
                }
            };
            let first = cards.is_empty();
            let chosen = self.mac.filter(|_| first);
            // Others are on the wire of an interface: each machine needs an address of its own.
            let mac = match &backend {
                NetBackend::Tap(_) => Some(chosen.unwrap_or_else(random_mac)),
                NetBackend::Nat(_) => chosen,
            };
            cards.push(NetSpec { mac, backend, pcap: self.pcap.clone().filter(|_| first) });
        }
        Ok(cards)
    }

    fn has_policy(&self) -> bool {
        self.network_deny || self.no_host_loopback || !self.egress.is_empty() || !self.deny_egress.is_empty()
    }

    /// Forwards lead to the first NAT; what is refused is refused by each.
    fn nat(&self, host_name: Option<String>, first: bool) -> NatSpec {
        let default = NatSpec::default();
        NatSpec {
            mtu: self.mtu.unwrap_or(default.mtu),
            host_name,
            forwards: if first { self.publish.clone() } else { Vec::new() },
            policy: Policy {
                deny_by_default: self.network_deny || !self.egress.is_empty(),
                allow: self.egress.clone(),
                deny: self.deny_egress.clone(),
            },
            host_loopback: !self.no_host_loopback,
            resolvers: self.dns.clone(),
        }
    }
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53));
    address
        .or_else(|_| text.parse())
        .map_err(|_| "no address; write e.g. 9.9.9.9 or 127.0.0.1:5353".to_string())
}

/// An address for a card on a network with others, in QEMU's range.
fn random_mac() -> MacAddress {
    let [a, b, c, ..] = host_sys::entropy().unwrap_or_else(|| std::process::id().into()).to_ne_bytes();
    MacAddress([0x52, 0x54, 0, a, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        network: NetworkArgs,
    }

    fn cards(line: &str) -> anyhow::Result<Vec<NetSpec>> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        Line::try_parse_from(words)?.network.cards(None, false)
    }

    #[test]
    fn flags_make_cards() {
        let nat = |line: &str| match cards(line).unwrap().remove(0).backend {
            NetBackend::Nat(nat) => nat,
            NetBackend::Tap(tap) => panic!("{tap:?}"),
        };
        assert_eq!(cards("").unwrap(), []);
        assert_eq!(cards("--network none").unwrap(), []);
        assert_eq!(nat("--network nat"), NatSpec::default());
        assert_eq!(nat("-p 2222:22").forwards.len(), 1);
        let policy = nat("--egress *.example.org:443 --deny-egress 10.0.0.0/8").policy;
        assert!(policy.deny_by_default && policy.allow.len() == 1 && policy.deny.len() == 1);
        assert!(nat("--network-deny").policy.deny_by_default);
        assert!(!nat("--deny-egress *:25").policy.deny_by_default);
        assert!(!nat("--no-host-loopback").host_loopback);
        let two = cards("--network nat --network tap:tap0,queues=4 --mac 52:54:00:00:00:01").unwrap();
        assert_eq!(two[0].mac.map(|m| m.to_string()).as_deref(), Some("52:54:00:00:00:01"));
        assert!(two[1].mac.is_some());
        assert_eq!(two[1].backend, NetBackend::Tap(TapSpec { name: "tap0".into(), queues: 4 }));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "--network x",
            "--network tap:",
            "--network tap:a,b",
            "-p 22",
            "--egress a..b",
            "--mtu 100",
            "--dns x",
        ] {
            assert!(cards(line).is_err(), "{line}");
        }
        let e = cards("--network none -p 1:2").unwrap_err().to_string();
        assert!(e.contains("--network nat"), "{e}");
    }
}
