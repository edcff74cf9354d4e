//! Queries of one flow, under way to the host's resolvers.

use std::collections::VecDeque;
use std::io;
use std::net::UdpSocket;

use crate::dns::{self, Question};
use crate::gate::Gate;
use crate::sockets;
use crate::wire::be16;

/// Queries of one flow that may be answered; the oldest makes way. With names of the
/// greatest length all flows together keep 20 MiB.
const MAX_QUERIES: usize = 64;

/// A query that may be answered.
#[derive(Debug)]
struct Query {
    /// The identifier it has under way: one that the guest and others cannot guess.
    ours: u16,
    /// The identifier the guest gave it.
    guests: u16,
    question: Option<Question>,
    /// The attempt it was last part of.
    attempt: usize,
}

/// A socket to one of the host's resolvers, and what was asked.
#[derive(Debug)]
pub(crate) struct Resolving {
    socket: UdpSocket,
    /// Which of the resolvers, counted on at each change.
    attempt: usize,
    queries: VecDeque<Query>,
}

impl Resolving {
    /// Without queries, to the first resolver that can be reached.
    pub(crate) fn new(gate: &Gate) -> Option<Self> {
        let (attempt, socket) = connect(gate, 0)?;
        Some(Resolving { socket, attempt, queries: VecDeque::new() })
    }

    pub(crate) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Send a query. One that is asked again goes to the next resolver, by a socket
    /// that is new and handed to `watch`: the kernel would drop what the one before has
    /// still to say, and keep an address from which the next cannot be reached.
    ///
    /// # Errors
    /// What the socket says.
    pub(crate) fn ask(
        &mut self,
        message: &[u8],
        gate: &Gate,
        watch: impl FnOnce(&UdpSocket) -> io::Result<()>,
    ) -> io::Result<()> {
        // What has no identifier is no query.
        let Some((id, rest)) = message.split_first_chunk() else { return Ok(()) };
        let (guests, question) = (u16::from_be_bytes(*id), dns::asked(message));
        let same = |q: &Query| q.guests == guests && q.question == question;
        let before = self.queries.iter().position(same).and_then(|at| self.queries.remove(at));
        // Others of the flow may have moved on already.
        if before.as_ref().is_some_and(|q| q.attempt == self.attempt) {
            self.move_on(gate, watch);
        }
        let ours = before.map_or_else(|| self.unused_id(guests), |q| q.ours);
        if self.queries.len() >= MAX_QUERIES {
            self.queries.pop_front();
        }
        self.queries.push_back(Query { ours, guests, question, attempt: self.attempt });
        self.socket.send(&[&ours.to_be_bytes(), rest].concat()).map(|_| ())
    }

    /// Give an answer the identifier that the guest waits for; false if it answers no query.
    pub(crate) fn answers(&mut self, message: &mut [u8]) -> bool {
        let (question, response) = (dns::asked(message), dns::is_response(message));
        // Who can make nothing of a query may leave the question out. Nothing is learned from that.
        let fits =
            |q: &Query| be16(message, 0) == Some(q.ours) && (question.is_none() || question == q.question);
        let found = self.queries.iter().position(fits).filter(|_| response);
        let Some(query) = found.and_then(|at| self.queries.remove(at)) else { return false };
        if let Some(id) = message.first_chunk_mut() {
            *id = query.guests.to_be_bytes();
        }
        true
    }

    fn move_on(&mut self, gate: &Gate, watch: impl FnOnce(&UdpSocket) -> io::Result<()>) {
        let Some((attempt, socket)) = connect(gate, self.attempt + 1) else { return };
        if gate.resolver(attempt) != gate.resolver(self.attempt) && watch(&socket).is_ok() {
            (self.socket, self.attempt) = (socket, attempt);
        }
    }

    /// An identifier that no query has; without chance the guest's own.
    fn unused_id(&self, guests: u16) -> u16 {
        let chance =
            host_sys::entropy().map_or([guests; 4], |e| [0, 16, 32, 48].map(|shift| (e >> shift) as u16));
        let unused = |id: &u16| self.queries.iter().all(|q| q.ours != *id);
        chance.into_iter().find(unused).unwrap_or(guests)
    }
}

/// A socket to the first resolver that can be reached from this attempt on.
fn connect(gate: &Gate, first: usize) -> Option<(usize, UdpSocket)> {
    let attempts = first..first.saturating_add(gate.resolvers());
    attempts.into_iter().find_map(|n| Some((n, sockets::connect_udp(&gate.resolver(n)?).ok()?)))
}
