//! The network of `strata run`: from flags to the specification's cards.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use board::{NatSpec, NetBackend, NetSpec, PasstSpec, TapSpec};
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
    Bridge(TapSpec),
    /// Started, or at a socket.
    Passt(Option<PathBuf>),
}

const FORMS: &str =
    "use nat, none, passt, passt:SOCKET, tap:NAME or bridge:NAME; tap and bridge may have ,queues=N behind";

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once([':', '=']) {
            None if text == "nat" => Ok(Network::Nat),
            None if text == "none" => Ok(Network::None),
            None if text == "passt" => Ok(Network::Passt(None)),
            Some(("passt", socket)) if !socket.is_empty() => Ok(Network::Passt(Some(socket.into()))),
            Some(("tap", rest)) => Ok(Network::Tap(Network::interface(rest)?)),
            Some(("bridge", rest)) => Ok(Network::Bridge(Network::interface(rest)?)),
            _ => Err(format!("not a network; {FORMS}")),
        }
    }
}

impl Network {
    /// `NAME` or `NAME,queues=N`.
    fn interface(rest: &str) -> Result<TapSpec, String> {
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
        Ok(TapSpec { name: name.to_string(), queues })
    }
}

/// A card that is plugged in while the machine runs.
pub fn parse_added(text: &str) -> Result<NetSpec, String> {
    const FORMS: &str = "use nat or nat,mac=ADDRESS";
    let mac = match text.split_once(',') {
        None if text == "nat" => None,
        Some(("nat", option)) => {
            let mac = option.strip_prefix("mac=").and_then(|mac| mac.parse().ok());
            Some(mac.ok_or_else(|| format!("\"{option}\" is no Ethernet address; {FORMS}"))?)
        }
        _ => return Err(format!("no card that can be plugged in; {FORMS}")),
    };
    // The machine's process cannot look.
    let backend = NetBackend::Nat(NatSpec { resolvers: nat::host_resolvers(), ..NatSpec::default() });
    Ok(NetSpec { mac, backend, pcap: None })
}

/// The network of a machine.
#[derive(Args)]
pub struct NetworkArgs {
    /// Network card: nat (user-mode, needs no privilege), none, passt[:SOCKET], tap:NAME[,queues=N],
    /// an interface of the host, or bridge:NAME[,queues=N], which makes one; repeat for more
    /// [default: nat with IMAGE or any of the flags below, else none]
    #[arg(long, visible_alias = "net", value_name = "KIND")]
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
        let routed = !self.publish.is_empty() || self.mtu.is_some();
        let shaped = self.has_policy() || !self.dns.is_empty();
        let implied = usual || routed || shaped || self.mac.is_some() || self.pcap.is_some();
        let kinds: &[Network] = match self.network.as_slice() {
            [] if implied => &[Network::Nat],
            kinds => kinds,
        };
        if shaped && !kinds.contains(&Network::Nat) {
            let what = "--egress, --dns and their like are for --network nat; add it";
            return Err(InputError(what.to_string()).into());
        }
        if routed && !kinds.iter().any(|k| matches!(k, Network::Nat | Network::Passt(_))) {
            let what = "--publish and --mtu are for --network nat and passt; add one";
            return Err(InputError(what.to_string()).into());
        }
        let mut cards = Vec::new();
        let mut routers = 0;
        for kind in kinds {
            let backend = match kind {
                Network::None => continue,
                Network::Tap(tap) => NetBackend::Tap(tap.clone()),
                Network::Bridge(tap) => NetBackend::Bridge(tap.clone()),
                Network::Nat => {
                    routers += 1;
                    NetBackend::Nat(self.nat(name.clone(), routers == 1))
                }
                Network::Passt(socket) => {
                    routers += 1;
                    NetBackend::Passt(self.passt(socket.clone(), routers == 1)?)
                }
            };
            let first = cards.is_empty();
            let chosen = self.mac.filter(|_| first);
            // Others are on the wire of an interface: each machine needs an address of its own.
            let mac = match &backend {
                NetBackend::Tap(_) | NetBackend::Bridge(_) => Some(chosen.unwrap_or_else(random_mac)),
                NetBackend::Nat(_) | NetBackend::Passt(_) => chosen,
            };
            cards.push(NetSpec { mac, backend, pcap: self.pcap.clone().filter(|_| first) });
        }
        Ok(cards)
    }

    fn has_policy(&self) -> bool {
        self.network_deny || self.no_host_loopback || !self.egress.is_empty() || !self.deny_egress.is_empty()
    }

    /// Forwards lead to the first card that can have them.
    fn passt(&self, socket: Option<PathBuf>, first: bool) -> Result<PasstSpec, InputError> {
        let forwards = if first { self.publish.clone() } else { Vec::new() };
        if socket.is_some() && !forwards.is_empty() {
            let what =
                "--publish is for a passt that is started here: give its --tcp-ports to the one that runs";
            return Err(InputError(what.to_string()));
        }
        if forwards.iter().any(|f| f.host.port() == 0) {
            return Err(InputError("passt chooses no host port: name one with --publish".to_string()));
        }
        let default = PasstSpec::default();
        Ok(PasstSpec { socket, mtu: self.mtu.unwrap_or(default.mtu), forwards })
    }

    /// As with passt; what is refused is refused by each.
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
            other => panic!("{other:?}"),
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
        let bridged = cards("--net bridge=br0").unwrap().remove(0);
        assert_eq!(bridged.backend, NetBackend::Bridge(TapSpec { name: "br0".into(), queues: 1 }));
        assert!(bridged.mac.is_some(), "others are on the wire");
        let passt = |line: &str| cards(line).unwrap().remove(0).backend;
        let spec =
            PasstSpec { forwards: vec!["2222:22".parse().unwrap()], mtu: 9000, ..PasstSpec::default() };
        assert_eq!(passt("--net passt -p 2222:22 --mtu 9000"), NetBackend::Passt(spec));
        let spec = PasstSpec { socket: Some("/run/p".into()), ..PasstSpec::default() };
        assert_eq!(passt("--net passt:/run/p"), NetBackend::Passt(spec));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "--network x",
            "--network tap:",
            "--network tap:a,b",
            "--network bridge:",
            "--network passt:",
            "--network passt:/run/p -p 1:2",
            "--network passt -p 0:2",
            "--network passt --egress x",
            "--network bridge:b -p 1:2",
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
