//! The DHCP server (RFC 2131): one guest, one address.
//!
//! Own, because a request's type, its identifiers and one address are all that is
//! read; dhcproto would bring a DNS library along.

use std::net::Ipv4Addr;

use port::MacAddress;

/// Fixed part of a message, without the cookie.
const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Shorter replies are dropped by old clients (RFC 1542 section 2.1).
const SHORTEST: usize = 300;

/// Options.
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS_SERVER: u8 = 6;
const HOST_NAME: u8 = 12;
const MTU: u8 = 26;
const REQUESTED: u8 = 50;
const LEASE_TIME: u8 = 51;
const MESSAGE_TYPE: u8 = 53;
const SERVER: u8 = 54;
const END: u8 = 255;

/// Message types.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;
const INFORM: u8 = 8;

/// Seconds a lease lasts. The address is the guest's alone: no reason to be short.
const LEASE: u32 = 86_400;

/// What the server tells.
#[derive(Debug, Clone)]
pub(crate) struct Offered {
    pub(crate) guest: Ipv4Addr,
    pub(crate) mask: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    /// `None` where the host has no resolver.
    pub(crate) dns: Option<Ipv4Addr>,
    pub(crate) host_name: Option<String>,
    pub(crate) mtu: u16,
}

struct Request<'a> {
    fixed: &'a [u8; FIXED],
    kind: u8,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
}

impl<'a> Request<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = message.split_first_chunk::<FIXED>()?;
        let mut options = rest.strip_prefix(&COOKIE)?;
        // A request of an Ethernet station.
        if !fixed.starts_with(&[1, 1, 6]) {
            return None;
        }
        let mut request = Request { fixed, kind: 0, requested: None, server: None };
        while let Some((&code, after)) = options.split_first() {
            match code {
                0 => options = after,
                END => break,
                _ => {
                    let (&length, after) = after.split_first()?;
                    let value = after.get(..usize::from(length))?;
                    let address = || value.first_chunk::<4>().map(|b| Ipv4Addr::from(*b));
                    match code {
                        MESSAGE_TYPE => request.kind = *value.first()?,
                        REQUESTED => request.requested = address(),
                        SERVER => request.server = address(),
                        _ => {}
                    }
                    options = after.get(usize::from(length)..)?;
                }
            }
        }
        Some(request)
    }

    /// `ciaddr`, what the client has already.
    fn current(&self) -> Ipv4Addr {
        self.fixed.get(12..).and_then(|b| b.first_chunk::<4>()).map_or(Ipv4Addr::UNSPECIFIED, |b| (*b).into())
    }
}

/// Answer a client; also says which station asked.
pub(crate) fn answer(message: &[u8], offered: &Offered) -> Option<(MacAddress, Vec<u8>)> {
    let request = Request::parse(message)?;
    let client = MacAddress(*request.fixed.get(28..)?.first_chunk()?);
    let for_us = request.server.is_none_or(|s| s == offered.gateway);
    let kind = match request.kind {
        DISCOVER => OFFER,
        REQUEST if for_us => {
            let wanted = request.requested.unwrap_or(request.current());
            if wanted == offered.guest { ACK } else { NAK }
        }
        INFORM => ACK,
        // Nothing to be done for what is declined or released.
        _ => return None,
    };
    let mut reply = request.fixed.to_vec();
    reply[0] = 2;
    // Hops, seconds.
    reply[3] = 0;
    reply[8..10].fill(0);
    reply[12..28].fill(0);
    if kind != NAK {
        let given = if request.kind == INFORM { request.current() } else { offered.guest };
        reply[16..20].copy_from_slice(&given.octets());
        reply[20..24].copy_from_slice(&offered.gateway.octets());
    }
    reply[44..FIXED].fill(0);
    reply.extend(COOKIE);
    let mut option = |code: u8, value: &[u8]| {
        reply.extend([code, value.len() as u8]);
        reply.extend(value);
    };
    option(MESSAGE_TYPE, &[kind]);
    option(SERVER, &offered.gateway.octets());
    if kind != NAK {
        if request.kind != INFORM {
            option(LEASE_TIME, &LEASE.to_be_bytes());
        }
        option(SUBNET_MASK, &offered.mask.octets());
        option(ROUTER, &offered.gateway.octets());
        option(MTU, &offered.mtu.to_be_bytes());
        if let Some(dns) = offered.dns {
            option(DNS_SERVER, &dns.octets());
        }
        if let Some(name) = offered.host_name.as_ref().filter(|n| !n.is_empty() && n.len() < 64) {
            option(HOST_NAME, name.as_bytes());
        }
    }
    reply.push(END);
    reply.resize(reply.len().max(SHORTEST), 0);
    Some((client, reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offered() -> Offered {
        Offered {
            guest: Ipv4Addr::new(10, 0, 2, 15),
            mask: Ipv4Addr::new(255, 255, 255, 0),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Some(Ipv4Addr::new(10, 0, 2, 3)),
            host_name: Some("web".into()),
            mtu: 1500,
        }
    }

    fn request(options: &[u8]) -> Vec<u8> {
        let mut m = vec![0; FIXED];
        m[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
        m[28..34].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
        m.extend(COOKIE);
        m.extend(options);
        m.push(END);
        m
    }

    /// Type of the answer and the address it gives.
    fn check(options: &[u8], expect: Option<(u8, [u8; 4])>) {
        let answer = answer(&request(options), &offered());
        let seen = answer.as_ref().map(|(client, m)| {
            assert_eq!(client.to_string(), "52:54:00:01:02:03");
            assert_eq!(m[4..8], [0xde, 0xad, 0xbe, 0xef], "transaction");
            assert_eq!(m[240], MESSAGE_TYPE);
            (m[242], <[u8; 4]>::try_from(&m[16..20]).unwrap())
        });
        assert_eq!(seen, expect, "{options:?}");
    }

    #[test]
    fn the_one_address_is_given_to_who_asks() {
        check(&[53, 1, DISCOVER], Some((OFFER, [10, 0, 2, 15])));
        check(&[53, 1, REQUEST, 50, 4, 10, 0, 2, 15], Some((ACK, [10, 0, 2, 15])));
        check(&[53, 1, REQUEST, 50, 4, 10, 0, 2, 16], Some((NAK, [0; 4])));
        check(&[53, 1, REQUEST, 54, 4, 10, 0, 2, 99, 50, 4, 10, 0, 2, 15], None);
        check(&[0, 0, 53, 1, INFORM], Some((ACK, [0; 4])));
        check(&[53, 1, 7], None);
        check(&[53, 0], None);
        check(&[53, 9, 1], None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = answer(&bytes, &offered());
            let _ = answer(&request(&bytes), &offered());
        }
    }
}
