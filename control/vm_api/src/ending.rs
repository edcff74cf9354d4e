//! How a machine is ended from outside: by asking its guest, then its process,
//! then the host.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::client::{CallError, Client};
use crate::protocol::{Action, RefusalKind};
use crate::registry::Found;

/// How often to look whether the process still lives.
const LOOK: Duration = Duration::from_millis(10);
/// How long to wait before a busy process is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long the process may take to answer and to end after it was told to.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a process that knows may take: it gives its devices 30 s to come to rest and
/// its disks to be flushed.
pub const ENDING: Duration = Duration::from_secs(45);

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
        let until = Instant::now() + grace;
        if !grace.is_zero()
            && self.told(Action::PressPowerButton, grace)
            && self.wait(until.saturating_duration_since(Instant::now()))
        {
            return Ok(Ending::PoweredOff);
        }
        // Whose process it is the host says, not a file; known before the socket goes.
        let pidfd = self.pidfd();
        if self.told(Action::End, PATIENCE) && self.wait(ENDING) {
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

    /// Whether its process knows what is wanted. One that ended before it answered
    /// does. One that is busy with others is asked again until `limit` has passed.
    fn told(&self, action: Action, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            let Ok(mut client) = Client::connect(&self.socket()) else { return !self.lives() };
            match client.call(action.clone(), PATIENCE) {
                Err(CallError::Refused(r)) if r.kind == RefusalKind::Busy && start.elapsed() < limit => {
                    std::thread::sleep(ASK_AGAIN);
                }
                answer => return matches!(answer, Ok(_) | Err(CallError::Lost(_))),
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Refusal, Reply};
    use crate::{Handler, Registration, Registry, RuntimeDir, serve};
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Mutex};

    /// A machine that is busy some times, and then powers off.
    struct Busy(Mutex<(u32, Option<Registration>)>);

    impl Handler for Busy {
        fn handle(&self, action: Action, _: Vec<OwnedFd>) -> Result<Reply, Refusal> {
            assert_eq!(action, Action::PressPowerButton, "it has time");
            let mut state = self.0.lock().unwrap();
            if state.0 > 0 {
                state.0 -= 1;
                return Err(Refusal::new(RefusalKind::Busy, "others were first"));
            }
            state.1 = None;
            Ok(Reply::Done)
        }
    }

    #[test]
    fn a_busy_machine_is_asked_again_within_its_time() {
        let path = std::env::temp_dir().join(format!("strata-ending-{}", std::process::id()));
        let uid = rustix::process::geteuid().as_raw();
        let registry = Registry::new(RuntimeDir::make_at(&path, uid).unwrap());
        let (registration, listener) = registry.register(None).unwrap();
        serve(listener, Arc::new(Busy(Mutex::new((3, Some(registration)))))).unwrap();
        let found = registry.list().unwrap().remove(0);
        assert_eq!(found.end(Duration::from_secs(60)).unwrap(), Ending::PoweredOff);
        std::fs::remove_dir_all(path).unwrap();
    }
}
