//! Where a guest may connect to.
//!
//! A [`Policy`] is data; it judges a [`Destination`] by address and by the names
//! that DNS answers gave that address (see [`crate::names`]).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Transport of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP connections.
    Tcp,
    /// UDP datagrams.
    Udp,
    /// ICMP and ICMPv6 echo.
    Icmp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Icmp => "icmp",
        })
    }
}

/// Which hosts a rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Any,
    /// Addresses that share the leading bits.
    Prefix(IpAddr, u8),
    /// A name, lower case, without a dot at its end.
    Name(String),
    /// Every name below this one, and not the name itself.
    Below(String),
}

/// One rule: `HOST[:PORT[-PORT]][/tcp|/udp|/icmp]`.
///
/// HOST is a name (`www.example.org`), all names below one (`*.example.org`), an
/// address, a prefix (`192.168.0.0/16`) or `*`; IPv6 is written in brackets when
/// a port follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    text: String,
    hosts: Hosts,
    /// First and last port; `None` is any.
    ports: Option<(u16, u16)>,
    /// `None` is any.
    transport: Option<Transport>,
}

/// A rule that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "\"{text}\" is no rule: {what}; write HOST[:PORT[-PORT]][/tcp|/udp|/icmp], e.g. *.example.org:443/tcp, 10.0.0.0/8 or [fd00::1]:53/udp"
)]
pub struct RuleError {
    text: String,
    what: &'static str,
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        Rule::read(text).map_err(|what| RuleError { text: text.to_string(), what })
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.text
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Rule {
    fn read(text: &str) -> Result<Rule, &'static str> {
        let ends = [("/tcp", Transport::Tcp), ("/udp", Transport::Udp), ("/icmp", Transport::Icmp)];
        let (rest, transport) = ends
            .iter()
            .find_map(|(end, t)| text.strip_suffix(end).map(|rest| (rest, Some(*t))))
            .unwrap_or((text, None));
        let (host, ports) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or("a bracket is not closed")?;
                (
                    host,
                    if after.is_empty() {
                        None
                    } else {
                        Some(after.strip_prefix(':').ok_or("no port after the bracket")?)
                    },
                )
            }
            // More than one colon: an IPv6 address or prefix by itself.
            None if rest.matches(':').count() > 1 => (rest, None),
            None => rest.split_once(':').map_or((rest, None), |(h, p)| (h, Some(p))),
        };
        let ports = ports.map(read_ports).transpose()?;
        if transport == Some(Transport::Icmp) && ports.is_some() {
            return Err("ICMP has no ports");
        }
        Ok(Rule { text: text.to_string(), hosts: Hosts::read(host)?, ports, transport })
    }

    fn matches(&self, to: &Destination, named: impl Fn(&str) -> bool, below: impl Fn(&str) -> bool) -> bool {
        let port = self
            .ports
            .is_none_or(|(first, last)| to.transport != Transport::Icmp && (first..=last).contains(&to.port));
        let transport = self.transport.is_none_or(|t| t == to.transport);
        port && transport
            && match &self.hosts {
                Hosts::Any => true,
                Hosts::Prefix(network, bits) => shares(*network, to.address, *bits),
                Hosts::Name(name) => named(name),
                Hosts::Below(name) => below(name),
            }
    }

    /// Whether the rule speaks of this name, whatever port and transport.
    fn names(&self, name: &str) -> bool {
        match &self.hosts {
            Hosts::Any => true,
            Hosts::Prefix(..) => false,
            Hosts::Name(n) => n == name,
            Hosts::Below(n) => is_below(name, n),
        }
    }
}

impl Hosts {
    fn read(text: &str) -> Result<Hosts, &'static str> {
        if text == "*" {
            return Ok(Hosts::Any);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Hosts::Prefix(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| "the prefix has no address")?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.parse().ok().filter(|b| *b <= most).ok_or("the prefix length is out of range")?;
            return Ok(Hosts::Prefix(address, bits));
        }
        let name = normal_name(text);
        let (below, name) = name.strip_prefix("*.").map_or((false, name.as_str()), |n| (true, n));
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.chars().all(letters);
        if name.len() > 253 || !name.split('.').all(label) {
            return Err("the host is neither a name nor an address");
        }
        Ok(if below { Hosts::Below(name.to_string()) } else { Hosts::Name(name.to_string()) })
    }
}

fn read_ports(text: &str) -> Result<(u16, u16), &'static str> {
    let number = |t: &str| t.parse::<u16>().ok().filter(|p| *p != 0).ok_or("a port is not 1 to 65535");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if first > last { Err("the port range ends before it begins") } else { Ok((first, last)) }
}

/// A name as it is compared: lower case, without the dot of the root.
pub(crate) fn normal_name(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

/// Whether two addresses share their first `bits`.
fn shares(a: IpAddr, b: IpAddr, bits: u8) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(32 - u32::from(bits.min(32))).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(128 - u32::from(bits.min(128))).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// Where a flow wants to go, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Address.
    pub address: IpAddr,
    /// Port; 0 for ICMP.
    pub port: u16,
    /// Transport.
    pub transport: Transport,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.transport, self.address) {
            (Transport::Icmp, a) => write!(f, "{a}/icmp"),
            (t, IpAddr::V4(a)) => write!(f, "{a}:{}/{t}", self.port),
            (t, IpAddr::V6(a)) => write!(f, "[{a}]:{}/{t}", self.port),
        }
    }
}

/// Why a flow is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A rule says so.
    Rule(String),
    /// No rule allows it, and what no rule allows is refused.
    Default,
    /// The host itself is not for this guest.
    HostLoopback,
    /// The address is no other host's: loopback, unspecified, multicast and their like.
    Address,
    /// As many flows of the kind as there may be.
    Limit(usize),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Rule(rule) => write!(f, "rule {rule}"),
            Reason::Default => f.write_str("no rule allows it"),
            Reason::HostLoopback => {
                f.write_str("the host itself is closed to this guest (--no-host-loopback)")
            }
            Reason::Address => f.write_str("not an address of another host"),
            Reason::Limit(n) => write!(f, "all {n} flows of the kind are in use"),
        }
    }
}

/// Where a guest may connect to. A rule that denies outranks all that allow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// What no rule allows is refused.
    pub deny_by_default: bool,
    /// Rules that allow.
    pub allow: Vec<Rule>,
    /// Rules that deny.
    pub deny: Vec<Rule>,
}

impl Policy {
    /// Judge a destination whose address these names have led to.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn judge(&self, to: &Destination, names: &[String]) -> Result<(), Reason> {
        let named = |n: &str| names.iter().any(|m| m == n);
        let below = |n: &str| names.iter().any(|m| is_below(m, n));
        let found =
            |rules: &[Rule]| rules.iter().find(|r| r.matches(to, named, below)).map(|r| r.text.clone());
        match found(&self.deny) {
            Some(rule) => Err(Reason::Rule(rule)),
            None if self.deny_by_default && found(&self.allow).is_none() => Err(Reason::Default),
            None => Ok(()),
        }
    }

    /// Whether a name may be asked for. A guest without free egress could otherwise
    /// send what it likes to a name server of its choice, one label at a time.
    ///
    /// # Errors
    /// Why it may not.
    pub fn judge_name(&self, name: &str) -> Result<(), Reason> {
        let name = normal_name(name);
        let denies = |r: &&Rule| r.names(&name) && r.hosts != Hosts::Any && r.ports.is_none();
        match self.deny.iter().find(denies) {
            Some(rule) => Err(Reason::Rule(rule.text.clone())),
            None if self.deny_by_default && !self.allow.iter().any(|r| r.names(&name)) => {
                Err(Reason::Default)
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    fn to(address: &str, port: u16, transport: Transport) -> Destination {
        Destination { address: address.parse().unwrap(), port, transport }
    }

    #[test]
    fn rules_match_what_they_say() {
        use Transport::{Icmp, Tcp, Udp};
        let check = |text: &str, address: &str, port, transport, names: &[&str], expect: bool| {
            let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
            let policy = Policy { deny_by_default: true, allow: vec![rule(text)], deny: Vec::new() };
            let verdict = policy.judge(&to(address, port, transport), &names);
            assert_eq!(verdict.is_ok(), expect, "{text} on {address}:{port}/{transport} {names:?}");
        };
        check("*", "1.2.3.4", 1, Tcp, &[], true);
        check("*:443", "1.2.3.4", 443, Udp, &[], true);
        check("*:443", "1.2.3.4", 444, Udp, &[], false);
        check("*:80-90/tcp", "1.2.3.4", 90, Tcp, &[], true);
        check("*:80-90/tcp", "1.2.3.4", 91, Tcp, &[], false);
        check("*:80-90/tcp", "1.2.3.4", 90, Udp, &[], false);
        check("*/icmp", "1.2.3.4", 0, Icmp, &[], true);
        check("*:1-65535", "1.2.3.4", 0, Icmp, &[], false);
        check("10.0.0.0/8", "10.255.0.1", 1, Tcp, &[], true);
        check("10.0.0.0/8", "11.0.0.1", 1, Tcp, &[], false);
        check("0.0.0.0/0", "11.0.0.1", 1, Tcp, &[], true);
        check("0.0.0.0/0", "fd00::1", 1, Tcp, &[], false);
        check("1.2.3.4/udp", "1.2.3.4", 53, Udp, &[], true);
        check("fd00::/8", "fdff::1", 1, Tcp, &[], true);
        check("[fd00::1]:53/udp", "fd00::1", 53, Udp, &[], true);
        check("[fd00::1]:53/udp", "fd00::2", 53, Udp, &[], false);
        check("[fd00::]", "fd00::", 53, Udp, &[], true);
        check("Example.ORG.:80", "1.2.3.4", 80, Tcp, &["example.org"], true);
        check("example.org", "1.2.3.4", 80, Tcp, &["www.example.org"], false);
        check("*.example.org", "1.2.3.4", 80, Tcp, &["x", "www.example.org"], true);
        check("*.example.org", "1.2.3.4", 80, Tcp, &["example.org"], false);
        check("*.example.org", "1.2.3.4", 80, Tcp, &["notexample.org"], false);
    }

    #[test]
    fn denial_outranks_and_names_its_rule() {
        let policy =
            Policy { deny_by_default: false, allow: vec![rule("*")], deny: vec![rule("10.0.0.0/8")] };
        let refused = policy.judge(&to("10.1.1.1", 80, Transport::Tcp), &[]);
        assert_eq!(refused, Err(Reason::Rule("10.0.0.0/8".into())));
        assert_eq!(policy.judge(&to("11.1.1.1", 80, Transport::Tcp), &[]), Ok(()));
    }

    #[test]
    fn names_may_be_asked_for_when_a_rule_could_use_them() {
        let closed =
            Policy { deny_by_default: true, allow: vec![rule("*.example.org:443/tcp")], deny: vec![] };
        assert_eq!(closed.judge_name("www.Example.org."), Ok(()));
        assert_eq!(closed.judge_name("secret.example.net"), Err(Reason::Default));
        let open = Policy { deny: vec![rule("example.net"), rule("*:25")], ..Policy::default() };
        assert!(open.judge_name("example.net").is_err());
        assert!(open.judge_name("a.example.net").is_ok());
    }

    #[test]
    fn what_is_no_rule_is_told() {
        for text in [
            "",
            "a b",
            "x:0",
            "x:70000",
            "x:9-8",
            "10.0.0.0/33",
            "[fd00::1",
            "[fd00::1]x",
            "a..b",
            "*:1/icmp",
            "*.",
            "x/8",
        ] {
            let e = text.parse::<Rule>().map(|_| ()).expect_err(text).to_string();
            assert!(e.contains("*.example.org:443/tcp"), "{e}");
        }
    }
}
