//! What NAT is wanted.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use port::MacAddress;
use rate_log::RateLog;
use serde::{Deserialize, Serialize};

use crate::addresses::{Addresses, DNS_PORT};
use crate::policy::{Policy, Transport};

/// What NAT is wanted.
#[derive(Debug)]
pub struct NatConfig {
    /// The network the guest sees.
    pub addresses: Addresses,
    /// Where frames go until the guest has sent one.
    pub guest_mac: MacAddress,
    /// Longest packet in bytes, at least [`port::MIN_MTU`].
    pub mtu: u16,
    /// Name that DHCP tells the guest.
    pub host_name: Option<String>,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<PortForward>,
    /// Where the guest may connect to.
    pub policy: Policy,
    /// The host's loopback is behind the router's address. Else the host's other addresses,
    /// too, lead nowhere.
    pub host_loopback: bool,
    /// Where DNS queries go.
    pub resolvers: Vec<SocketAddr>,
    /// Where refusals are told.
    pub log: Arc<RateLog>,
}

impl Default for NatConfig {
    /// A network of which all is open, without resolvers.
    fn default() -> Self {
        NatConfig {
            addresses: Addresses::default(),
            guest_mac: MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            mtu: 1500,
            host_name: None,
            forwards: Vec::new(),
            policy: Policy::default(),
            host_loopback: true,
            resolvers: Vec::new(),
            log: Arc::new(RateLog::new("network")),
        }
    }
}

/// Why there is no NAT.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// An MTU below IPv6's least.
    #[error("an MTU of {0} bytes is less than the {least} that IPv6 needs; use 1500", least = port::MIN_MTU)]
    Mtu(u16),
    /// The host gives nothing to wait with.
    #[error("cannot wait for sockets: {0}; raise the limit of open files (ulimit -n)")]
    Poller(#[source] io::Error),
    /// The host does not let us listen.
    #[error("cannot listen for {forward}: {cause}; choose a port of the host that is free and above 1023")]
    Listen {
        /// The forward, as written.
        forward: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// A port of the host that leads to one of the guest: `[ADDRESS:]HOST:GUEST[/udp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortForward {
    /// Where the host listens; without an address at its loopback. Port 0 is one that is free.
    pub host: SocketAddr,
    /// Port of the guest.
    pub guest_port: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

/// Text that is no forward.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "\"{0}\" is no port forward; write [ADDRESS:]HOST:GUEST[/udp], e.g. 2222:22, 0.0.0.0:8080:80 or [::1]:5353:53/udp"
)]
pub struct ForwardError(String);

impl FromStr for PortForward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let read = || {
            let (rest, transport) = match text.rsplit_once('/') {
                Some((rest, "udp")) => (rest, Transport::Udp),
                Some((rest, "tcp")) => (rest, Transport::Tcp),
                Some(_) => return None,
                None => (text, Transport::Tcp),
            };
            let (rest, guest) = rest.rsplit_once(':')?;
            let (address, host) = match rest.rsplit_once(':') {
                Some((address, host)) => {
                    let inner = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
                    let address: IpAddr = inner.unwrap_or(address).parse().ok()?;
                    (address, host)
                }
                None => (Ipv4Addr::LOCALHOST.into(), rest),
            };
            let guest_port = guest.parse().ok().filter(|p| *p != 0)?;
            Some(PortForward { host: SocketAddr::new(address, host.parse().ok()?), guest_port, transport })
        };
        read().ok_or_else(|| ForwardError(text.to_string()))
    }
}

impl fmt::Display for PortForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.guest_port, self.transport)
    }
}

impl TryFrom<String> for PortForward {
    type Error = ForwardError;

    fn try_from(text: String) -> Result<Self, ForwardError> {
        text.parse()
    }
}

impl From<PortForward> for String {
    fn from(forward: PortForward) -> String {
        forward.to_string()
    }
}

/// The host's resolvers as `/etc/resolv.conf` names them; none if it cannot be read.
pub fn host_resolvers() -> Vec<SocketAddr> {
    std::fs::read_to_string("/etc/resolv.conf").map(|text| resolvers(&text)).unwrap_or_default()
}

/// The `nameserver` lines of a resolv.conf(5).
fn resolvers(text: &str) -> Vec<SocketAddr> {
    /// As many as the C library uses (MAXNS).
    const MOST: usize = 3;
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        // A zone (`%eth0`) is of no use to a socket made by address.
        words.next().filter(|_| is_server)?.parse::<IpAddr>().ok()
    };
    text.lines().filter_map(address).map(|a| SocketAddr::new(a, DNS_PORT)).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read() {
        let check = |text: &str, expect: &str| {
            let seen = text.parse::<PortForward>().map(|f| f.to_string());
            assert_eq!(seen.as_deref(), Ok(expect), "{text}");
            assert_eq!(expect.parse::<PortForward>().map(|f| f.to_string()).as_deref(), Ok(expect));
        };
        check("2222:22", "127.0.0.1:2222:22/tcp");
        check("0.0.0.0:53:53/udp", "0.0.0.0:53:53/udp");
        check("[::1]:8080:80/tcp", "[::1]:8080:80/tcp");
        check("::1:8080:80", "[::1]:8080:80/tcp");
        check("0:80", "127.0.0.1:0:80/tcp");
        for text in ["", "22", "a:22", "22:0", "22:65536", "x:1:2", "1:2/sctp", "1.2.3:4:5"] {
            let e = text.parse::<PortForward>().expect_err(text).to_string();
            assert!(e.contains("2222:22"), "{e}");
        }
    }

    #[test]
    fn resolvers_are_read() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.0.1\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver\n";
        assert_eq!(resolvers(text), ["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
    }
}
