//! How a machine is ended from outside: by asking its guest, then its process,
//! then the host.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::client::{CallError, Client};
use crate::protocol::Action;
use crate::registry::Found;

/// How often to look whether the process still lives.
const LOOK: Duration = Duration::from_millis(10);
/// How long the process may take to answer and to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a process that knows may take: it gives its devices 30 s to come to rest and
/// its disks to be flushed.
const ENDING: Duration = Duration::from_secs(45);

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its guest answered the power button.
    PoweredOff,
    /// Its process ended it.
    Ended,
    /// The host killed the process, which did not answer.
    Killed,
}

/// Why it still runs.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The process cannot be killed.
    #[error("cannot kill process {pid} of the machine: {source}; ask as the user who started it")]
    Kill {
        /// The process.
        pid: u32,
        /// The host's error.
        source: io::Error,
    },
    /// It was killed and is still there.
    #[error("process {0} of the machine is still there after a kill; it waits in the host's kernel")]
    Stays(u32),
}

impl Found {
    /// Press the power button and give the guest `grace` to power off; then end
    /// it. No grace: end it at once.
    ///
    /// # Errors
    /// When its process survives everything.
    pub fn end(&self, grace: Duration) -> Result<Ending, EndError> {
        if !grace.is_zero() && self.told(Action::PressPowerButton) && self.wait(grace) {
            return Ok(Ending::PoweredOff);
        }
        // Whose process it is the host says, not a file; known before the socket goes.
        let pidfd = self.pidfd();
        if self.told(Action::End) && self.wait(ENDING) {
            return Ok(Ending::Ended);
        }
        let killed = match pidfd {
            Ok(pidfd) => pidfd_send_signal(&pidfd, Signal::KILL),
            Err(e) => Err(e),
        };
        if self.wait(if killed.is_ok() { PATIENCE } else { Duration::ZERO }) {
            return Ok(Ending::Killed);
        }
        Err(match killed {
            Ok(()) => EndError::Stays(self.pid),
            Err(e) => EndError::Kill { pid: self.pid, source: e.into() },
        })
    }

    fn pidfd(&self) -> rustix::io::Result<rustix::fd::OwnedFd> {
        let peer = Client::connect(&self.socket()).ok().and_then(|client| client.peer());
        pidfd_open(peer.ok_or(rustix::io::Errno::SRCH)?, PidfdFlags::empty())
    }

    /// Whether its process knows what is wanted. One that ended before it
    /// answered does.
    fn told(&self, action: Action) -> bool {
        let Ok(mut client) = Client::connect(&self.socket()) else { return !self.lives() };
        matches!(client.call(action, PATIENCE), Ok(_) | Err(CallError::Lost(_)))
    }

    /// Wait until its process has gone; false when `limit` passed before.
    fn wait(&self, limit: Duration) -> bool {
        let start = Instant::now();
        while self.lives() {
            if start.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}
