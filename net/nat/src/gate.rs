//! Decides on flows, and tells of those it refuses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rate_log::RateLog;

use crate::addresses::{Addresses, Route};
use crate::dns;
use crate::names::Names;
use crate::policy::{Destination, Policy, Reason};
use crate::sockets;

/// What is refused: a destination, or a name asked for.
pub(crate) struct Gate {
    policy: Policy,
    host_loopback: bool,
    resolvers: Vec<SocketAddr>,
    names: Names,
    log: Arc<RateLog>,
    refused: u64,
}

impl Gate {
    pub(crate) fn new(
        policy: Policy,
        host_loopback: bool,
        resolvers: Vec<SocketAddr>,
        log: Arc<RateLog>,
    ) -> Self {
        Gate { policy, host_loopback, resolvers, names: Names::default(), log, refused: 0 }
    }

    /// Where a destination leads.
    pub(crate) fn admit(
        &mut self,
        addresses: &Addresses,
        to: &Destination,
        now: Instant,
    ) -> Result<Route, Reason> {
        let route = addresses.route(to, self.host_loopback).and_then(|route| match route {
            // What may be asked there is judged by name.
            Route::Resolver => Ok(route),
            Route::Host(host) => {
                self.judge(addresses, to, now)?;
                if !self.host_loopback && sockets::is_own(host.ip()) {
                    return Err(Reason::HostLoopback);
                }
                Ok(route)
            }
        });
        route.inspect_err(|reason| self.tell(*to, reason))
    }

    /// Judge a destination by address, and by the names that have led there.
    fn judge(&self, addresses: &Addresses, to: &Destination, now: Instant) -> Result<(), Reason> {
        self.policy.judge(to, &self.names.of(to.address, now))?;
        // Who owns a name says where it leads: here it may close, but never open the host's loopback.
        if addresses.is_ours(to.address) { self.policy.judge(to, &[]) } else { Ok(()) }
    }

    /// Whether a DNS query may be forwarded. What is no query is no matter of names.
    pub(crate) fn admit_query(&mut self, query: &[u8]) -> bool {
        let name = dns::question(query);
        let verdict = match &name {
            Some(name) => self.policy.judge_name(name),
            // Something else that talks to a name server: only where all is open.
            None if self.policy.deny_by_default => Err(Reason::Default),
            None => Ok(()),
        };
        if let Err(reason) = &verdict {
            self.refused += 1;
            let name = name.unwrap_or_else(|| "what is not a question".into());
            self.log.report(|| format!("egress refused: DNS query for {}: {reason}", name.escape_debug()));
        }
        verdict.is_ok()
    }

    /// Learn from an answer to a query.
    pub(crate) fn learn(&mut self, response: &[u8], now: Instant) {
        self.names.learn(response, now);
    }

    /// Tell of a refusal.
    pub(crate) fn tell(&mut self, to: Destination, reason: &Reason) {
        self.refused += 1;
        self.log.report(|| format!("egress refused: {to}: {reason}"));
    }

    /// Tell of something that is not a refusal.
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        self.log.report(text);
    }

    /// The host's resolver, another one at each attempt.
    pub(crate) fn resolver(&self, attempt: usize) -> Option<SocketAddr> {
        self.resolvers.get(attempt.checked_rem(self.resolvers.len())?).copied()
    }

    /// How many resolvers the host has.
    pub(crate) fn resolvers(&self) -> usize {
        self.resolvers.len()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }
}
