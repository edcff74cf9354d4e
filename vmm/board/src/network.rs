//! Network cards: what is wanted, and what carries their frames.

use std::net::SocketAddr;
use std::path::PathBuf;

use nat::{Nat, NatConfig, NatError, Policy, PortForward, Transport};
use passt::{Passt, PasstConfig, PasstError};
use port::{Capture, CaptureError, MacAddress, Port};
use serde::{Deserialize, Serialize};
use tap::{Tap, TapError};
use virtio_net::VirtioNet;

use crate::devices::{Attachment, Context};
use crate::pci_hotplug::NET;
use crate::spec::MachineSpec;

/// Address of the first card without one of its own, as QEMU's users know it; the
/// next ones count on.
const FIRST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NetSpec {
    /// Its Ethernet address; `None`: one by its place.
    pub mac: Option<MacAddress>,
    /// What carries its frames.
    pub backend: NetBackend,
    /// File to which all frames are written, for tcpdump.
    pub pcap: Option<PathBuf>,
}

/// What carries the frames of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// Sockets of the process.
    Nat(NatSpec),
    /// An interface of the host.
    Tap(TapSpec),
    /// An interface made for the machine, a port of a bridge of the host's.
    Bridge(TapSpec),
    /// passt(1).
    Passt(PasstSpec),
}

impl Default for NetBackend {
    fn default() -> Self {
        NetBackend::Nat(NatSpec::default())
    }
}

/// User-mode NAT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NatSpec {
    /// Longest packet in bytes.
    pub mtu: u16,
    /// Name that DHCP tells the guest.
    pub host_name: Option<String>,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<PortForward>,
    /// Where the guest may connect to.
    pub policy: Policy,
    /// The host's loopback is behind the router's address.
    pub host_loopback: bool,
    /// Where DNS queries go; none: the host's resolvers.
    pub resolvers: Vec<SocketAddr>,
}

impl Default for NatSpec {
    fn default() -> Self {
        NatSpec {
            mtu: 1500,
            host_name: None,
            forwards: Vec::new(),
            policy: Policy::default(),
            host_loopback: true,
            resolvers: Vec::new(),
        }
    }
}

/// passt, a user-mode network in a process of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PasstSpec {
    /// Socket of one that runs; `None`: it is started.
    pub socket: Option<PathBuf>,
    /// Longest packet in bytes.
    pub mtu: u16,
    /// Ports of the host that lead to the guest, if it is started.
    pub forwards: Vec<PortForward>,
}

impl Default for PasstSpec {
    fn default() -> Self {
        PasstSpec { socket: None, mtu: passt::MAX_MTU, forwards: Vec::new() }
    }
}

/// A tap or macvtap interface, or a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapSpec {
    /// Its name.
    pub name: String,
    /// Pairs of queues.
    pub queues: usize,
}

/// Why a network cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The NAT.
    #[error(transparent)]
    Nat(#[from] NatError),
    /// The interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// passt.
    #[error(transparent)]
    Passt(#[from] PasstError),
    /// The capture file.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

/// The ports of one card, a queue pair each.
pub type Ports = Vec<Box<dyn Port>>;

pub(crate) fn mac(spec: &NetSpec, index: usize) -> MacAddress {
    let [a, b, c, d, e, last] = FIRST_MAC;
    spec.mac.unwrap_or(MacAddress([a, b, c, d, e, last.wrapping_add(index as u8)]))
}

/// Open what carries the frames of a machine's cards, for
/// [`crate::BoardIo::networks`]. To be called before a sandbox closes: it binds
/// ports, opens interfaces and reads the host's resolvers.
///
/// # Errors
/// When the host refuses.
pub fn open_networks(spec: &MachineSpec) -> Result<Vec<Ports>, NetworkError> {
    spec.nets.iter().enumerate().map(|(index, net)| open_network(net, mac(net, index))).collect()
}

/// Open what carries the frames of one card with this address.
///
/// # Errors
/// When the host refuses.
pub fn open_network(spec: &NetSpec, guest_mac: MacAddress) -> Result<Ports, NetworkError> {
    let ports: Ports = match &spec.backend {
        NetBackend::Nat(nat) => {
            let NatSpec { mtu, host_name, forwards, policy, host_loopback, mut resolvers } = nat.clone();
            if resolvers.is_empty() {
                resolvers = nat::host_resolvers();
            }
            let config = NatConfig {
                guest_mac,
                mtu,
                host_name,
                forwards,
                policy,
                host_loopback,
                resolvers,
                ..NatConfig::default()
            };
            vec![Box::new(Nat::new(config)?)]
        }
        NetBackend::Tap(TapSpec { name, queues }) => {
            Tap::open(name, *queues)?.into_iter().map(|t| Box::new(t) as Box<dyn Port>).collect()
        }
        NetBackend::Bridge(TapSpec { name, queues }) => {
            Tap::open_bridged(name, *queues)?.into_iter().map(|t| Box::new(t) as Box<dyn Port>).collect()
        }
        NetBackend::Passt(spec) => vec![Box::new(open_passt(spec)?)],
    };
    Ok(match &spec.pcap {
        Some(path) => Capture::wrap(ports, path)?,
        None => ports,
    })
}

fn open_passt(spec: &PasstSpec) -> Result<Passt, PasstError> {
    let PasstSpec { socket, mtu, forwards } = spec;
    if let Some(socket) = socket {
        return Passt::connect(socket, *mtu);
    }
    let ports = |transport| {
        let wanted = forwards.iter().filter(move |f| f.transport == transport);
        wanted.map(|f| format!("{}/{}:{}", f.host.ip(), f.host.port(), f.guest_port)).collect()
    };
    Passt::start(&PasstConfig { mtu: *mtu, tcp: ports(Transport::Tcp), udp: ports(Transport::Udp) })
}

/// The network cards.
pub(crate) fn virtio_nets(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let mut list = Vec::new();
    for (index, ports) in std::mem::take(&mut c.networks).into_iter().enumerate() {
        if let Some(spec) = c.spec.nets.get(index).filter(|_| !ports.is_empty()) {
            list.extend(c.plug(format!("{NET}{index}"), Box::new(VirtioNet::new(mac(spec, index), ports))));
        }
    }
    list
}
