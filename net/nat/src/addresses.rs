//! The network a guest sees, and where its addresses lead on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use port::MacAddress;

use crate::policy::{Destination, Reason, Transport};

/// Addresses of the NAT's network: IPv4 as users of QEMU know it, IPv6 with the
/// same host parts in a unique local prefix (RFC 4193).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The guest.
    pub guest: Ipv4Addr,
    /// Its router; the host's loopback behind it.
    pub gateway: Ipv4Addr,
    /// The name server.
    pub dns: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix_len: u8,
    /// The IPv6 prefix, of 64 bits, from which guests make their addresses.
    pub prefix6: Ipv6Addr,
    /// Router by IPv6.
    pub gateway6: Ipv6Addr,
    /// The router's link-local address.
    pub router6: Ipv6Addr,
    /// Name server by IPv6.
    pub dns6: Ipv6Addr,
    /// The router's Ethernet address.
    pub mac: MacAddress,
}

impl Default for Addresses {
    fn default() -> Self {
        let v6 = |last| Ipv6Addr::new(0xfd00, 0x0a00, 0x0002, 0, 0, 0, 0, last);
        Addresses {
            guest: Ipv4Addr::new(10, 0, 2, 15),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            prefix_len: 24,
            prefix6: v6(0),
            gateway6: v6(2),
            router6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
            dns6: v6(3),
            mac: MacAddress([0x52, 0x55, 10, 0, 2, 2]),
        }
    }
}

/// The DNS port.
pub(crate) const DNS_PORT: u16 = 53;

/// Where a flow leads on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To this address.
    Host(SocketAddr),
    /// To the host's resolver.
    Resolver,
}

impl Addresses {
    /// The mask of the IPv4 network.
    pub(crate) fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0))
    }

    /// Whether the NAT answers for an address on the link.
    pub(crate) fn is_ours(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => a == self.gateway || a == self.dns,
            IpAddr::V6(a) => a == self.gateway6 || a == self.dns6 || a == self.router6,
        }
    }

    /// The router's address of the family of `of`.
    pub(crate) fn router_for(&self, of: IpAddr) -> IpAddr {
        match of {
            IpAddr::V4(_) => self.gateway.into(),
            IpAddr::V6(_) => self.gateway6.into(),
        }
    }

    /// Where a destination leads, policy aside.
    pub(crate) fn route(&self, to: &Destination, host_loopback: bool) -> Result<Route, Reason> {
        let loopback = |address: IpAddr| {
            let target = SocketAddr::new(address, to.port);
            if host_loopback { Ok(Route::Host(target)) } else { Err(Reason::HostLoopback) }
        };
        match to.address {
            IpAddr::V4(a) if a == self.gateway => loopback(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(a) if a == self.gateway6 => loopback(Ipv6Addr::LOCALHOST.into()),
            a if a == self.dns || a == self.dns6 => {
                let asks = to.port == DNS_PORT && to.transport != Transport::Icmp;
                if asks { Ok(Route::Resolver) } else { Err(Reason::Address) }
            }
            a if self.is_elsewhere(a) => Ok(Route::Host(SocketAddr::new(a, to.port))),
            _ => Err(Reason::Address),
        }
    }

    /// Whether an address can be that of another host. What a socket would take for the
    /// host itself (unspecified, loopback, mapped) is not; nor are those of the host's link
    /// (RFC 3927, RFC 4291 section 2.5.6), where clouds have what gives out credentials.
    fn is_elsewhere(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => {
                let here = (a.to_bits() ^ self.gateway.to_bits()) & self.mask().to_bits() == 0;
                let [first, ..] = a.octets();
                !here && !a.is_link_local() && first != 0 && first != 127 && first < 224
            }
            IpAddr::V6(a) => {
                let here = a.segments()[..4] == self.prefix6.segments()[..4];
                // Among others ::, ::1, ::a.b.c.d and ::ffff:a.b.c.d.
                let special = a.segments()[..4] == [0; 4];
                !here && !special && !a.is_unicast_link_local() && !a.is_multicast()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leads_to_the_host_itself_but_the_gateway() {
        let network = Addresses::default();
        let check = |address: &str, port, host_loopback, expect: Result<Route, Reason>| {
            let to = Destination { address: address.parse().unwrap(), port, transport: Transport::Tcp };
            assert_eq!(network.route(&to, host_loopback), expect, "{address}");
        };
        let host = |text: &str| Ok(Route::Host(text.parse().unwrap()));
        check("10.0.2.2", 80, true, host("127.0.0.1:80"));
        check("fd00:a00:2::2", 80, true, host("[::1]:80"));
        check("10.0.2.2", 80, false, Err(Reason::HostLoopback));
        check("fd00:a00:2::2", 80, false, Err(Reason::HostLoopback));
        check("10.0.2.3", 53, false, Ok(Route::Resolver));
        check("fd00:a00:2::3", 53, false, Ok(Route::Resolver));
        check("10.0.2.3", 54, true, Err(Reason::Address));
        check("1.2.3.4", 5, false, host("1.2.3.4:5"));
        check("169.253.255.255", 5, false, host("169.253.255.255:5"));
        check("2001:db8::1", 5, false, host("[2001:db8::1]:5"));
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.2.99",
            "10.0.2.255",
            "169.254.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:1.2.3.4",
            "fe80::1",
            "ff02::1",
            "fd00:a00:2::9",
        ] {
            check(address, 80, true, Err(Reason::Address));
        }
    }
}
