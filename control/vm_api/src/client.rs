//! The end of the socket that a command holds.

use std::io;
use std::os::fd::BorrowedFd;
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
        self.ask(action, &[], limit).map(|(reply, _)| reply)
    }

    /// [`Client::call`], with files that this process has opened for the machine.
    ///
    /// # Errors
    /// As [`Client::call`]; also with more than [`crate::MAX_FILES`].
    pub fn call_with(
        &mut self,
        action: Action,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Reply, CallError> {
        self.ask(action, files, limit).map(|(reply, _)| reply)
    }

    /// Make this connection the machine's console; answers it and what the
    /// console has shown already.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn attach(mut self, limit: Duration) -> Result<(UnixStream, Vec<u8>), CallError> {
        match self.ask(Action::Console, &[], limit)? {
            (Reply::Attached, shown) => {
                let back = self.0.set_read_timeout(None).and_then(|()| self.0.set_write_timeout(None));
                back.map_err(|e| CallError::Lost(e.to_string()))?;
                Ok((self.0, shown))
            }
            (other, _) => Err(CallError::Lost(format!("it answered something else: {other:?}"))),
        }
    }

    /// The answer, and what came behind it.
    fn ask(
        &mut self,
        action: Action,
        files: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<(Reply, Vec<u8>), CallError> {
        let lost = |e: &dyn std::fmt::Display| CallError::Lost(e.to_string());
        let request = Request { version: VERSION, action };
        let sent = wire::send_with(&self.0, &request, files, limit);
        // A server that refuses a connection answers without reading: look before giving up.
        let mut lines = Lines::new(&self.0, MAX_RESPONSE);
        let line = lines.next(limit).map_err(|e| match e {
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
            Answer::Ok(reply) => Ok((reply, lines.rest())),
            Answer::Error(refusal) => Err(CallError::Refused(refusal)),
        }
    }
}
