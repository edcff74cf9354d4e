//! Which names led to which addresses, by the DNS answers a guest has seen.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::dns;
use crate::policy::normal_name;

/// Addresses remembered: more than a busy machine talks to, and 1 MiB at most.
const MAX_ADDRESSES: usize = 4096;
/// Names remembered for each address.
const MAX_NAMES: usize = 16;
/// A name holds for its time to live, but for no less: guests keep using an address they have.
const LEAST: Duration = Duration::from_secs(300);
/// Nor for more.
const MOST: Duration = Duration::from_secs(86_400);

/// Names by address.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: HashMap<IpAddr, Vec<(String, Instant)>>,
}

impl Names {
    /// Learn from a DNS response.
    pub(crate) fn learn(&mut self, response: &[u8], now: Instant) {
        let Some(name) = dns::question(response) else { return };
        let name = normal_name(&name);
        for answer in dns::answers(response) {
            let until = now + Duration::from_secs(answer.ttl.into()).clamp(LEAST, MOST);
            self.remember(answer.address, &name, until, now);
        }
    }

    fn remember(&mut self, address: IpAddr, name: &str, until: Instant, now: Instant) {
        if self.known.len() >= MAX_ADDRESSES && !self.known.contains_key(&address) {
            self.known.retain(|_, names| names.iter().any(|n| n.1 > now));
            if self.known.len() >= MAX_ADDRESSES {
                return;
            }
        }
        let names = self.known.entry(address).or_default();
        names.retain(|n| n.0 != name && n.1 > now);
        if names.len() < MAX_NAMES {
            names.push((name.to_string(), until));
        }
    }

    /// The names that lead to an address.
    pub(crate) fn of(&self, address: IpAddr, now: Instant) -> Vec<String> {
        let names = self.known.get(&address).into_iter().flatten();
        names.filter(|n| n.1 > now).map(|n| n.0.clone()).collect()
    }
}
