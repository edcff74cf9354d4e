//! The end of the socket that a command holds.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::Pid;

use crate::protocol::{Action, Answer, Refusal, Reply, Request, Response, VERSION};
use crate::wire::{self, LineError, Lines, MAX_RESPONSE};

/// A connection to a machine's process.
#[derive(Debug)]
pub struct Client(UnixStream);

/// Why a call brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The machine's process refused.
    #[error(transparent)]
    Refused(Refusal),
    /// It did not answer in time.
    #[error("the machine's process has not answered within {0:?}; `strata kill` ends it")]
    TimedOut(Duration),
    /// It ended, or is none of ours.
    #[error("the machine's process does not answer: {0}; `strata ps` lists those that run")]
    Lost(String),
}

impl Client {
    /// Connect to a socket.
    ///
    /// # Errors
    /// When nobody listens there, or it may not be reached.
    pub fn connect(socket: &Path) -> io::Result<Client> {
        UnixStream::connect(socket).map(Client)
    }

    /// The process that listens, as the host knows it.
    pub fn peer(&self) -> Option<Pid> {
        socket_peercred(&self.0).ok().map(|c| c.pid)
    }

    /// Ask, and wait for the answer.
    ///
    /// # Errors
    /// When the machine refuses, or no answer comes within `limit`.
    pub fn call(&mut self, action: Action, limit: Duration) -> Result<Reply, CallError> {
        let lost = |e: &dyn std::fmt::Display| CallError::Lost(e.to_string());
        let request = Request { version: VERSION, action };
        let sent = wire::send(&self.0, &request, limit);
        // A server that refuses a connection answers without reading: look before giving up.
        let line = Lines::new(&self.0, MAX_RESPONSE).next(limit).map_err(|e| match e {
            LineError::TooSlow(limit) => CallError::TimedOut(limit),
            other => lost(&other),
        })?;
        let Some(line) = line else {
            return Err(match sent {
                Err(e) => lost(&e),
                Ok(()) => lost(&"it closed the connection"),
            });
        };
        let response: Response = serde_json::from_slice(&line).map_err(|e| lost(&e))?;
        match response.result {
            Answer::Ok(reply) => Ok(reply),
            Answer::Error(refusal) => Err(CallError::Refused(refusal)),
        }
    }
}
