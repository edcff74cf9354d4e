//! Where requests wait for the machine's owner.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use board::{EventPoster, MachineEvent};
use vm_api::{Action, Handler, Refusal, RefusalKind, Reply};

use crate::console::Console;

/// How long the owner may take: an engine switch of a large machine takes a
/// fraction of a second, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// One request, and where its answer goes.
pub(crate) struct Pending {
    pub(crate) action: Action,
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) answer: SyncSender<Result<Reply, Refusal>>,
}

/// Takes requests from the control socket to the owner.
pub struct Desk {
    requests: Mutex<Sender<Pending>>,
    events: EventPoster,
    patience: Duration,
    /// Absent where the console is a file's or nobody's.
    console: Option<Console>,
}

impl Desk {
    /// Let clients have the machine's console.
    #[must_use]
    pub fn with_console(mut self, console: Console) -> Self {
        self.console = Some(console);
        self
    }
}

/// The owner's end.
pub struct Requests(pub(crate) Receiver<Pending>);

/// A desk for the machine whose events go to `events`.
pub fn desk(events: EventPoster) -> (Desk, Requests) {
    let (sender, receiver) = channel();
    (Desk { requests: Mutex::new(sender), events, patience: PATIENCE, console: None }, Requests(receiver))
}

impl Handler for Desk {
    fn attach(&self, stream: Arc<UnixStream>, typed: Vec<u8>) {
        if let Some(console) = &self.console {
            console.serve(stream, &typed);
        }
    }

    fn handle(&self, action: Action, files: Vec<OwnedFd>) -> Result<Reply, Refusal> {
        if action == Action::Console && self.console.is_none() {
            let message = "its console is not on standard output; start it without --serial";
            return Err(Refusal::new(RefusalKind::Refused, message));
        }
        let ending = || Refusal::new(RefusalKind::Unavailable, "the machine is ending");
        // Room for one: the owner never waits for a client.
        let (answer, wait) = sync_channel(1);
        let pending = Pending { action, files, answer };
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).send(pending).map_err(|_| ending())?;
        self.events.post(MachineEvent::Attend);
        match wait.recv_timeout(self.patience) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(ending()),
            Err(RecvTimeoutError::Timeout) => {
                let message =
                    format!("the machine did not get to it within {:?}; it may still do it", self.patience);
                Err(Refusal::new(RefusalKind::Unavailable, message))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use board::EventQueue;

    #[test]
    fn an_owner_that_is_gone_or_slow_is_told() {
        let (events, queue) = EventQueue::new();
        let (mut desk, requests) = desk(events);
        desk.patience = Duration::from_millis(10);
        let slow = desk.handle(Action::Info, Vec::new()).unwrap_err();
        assert_eq!(slow.kind, RefusalKind::Unavailable);
        assert!(slow.message.contains("did not get to it"), "{slow}");
        assert!(matches!(queue.poll(), Some(MachineEvent::Attend)));
        let no_console = desk.handle(Action::Console, Vec::new()).unwrap_err();
        assert!(no_console.message.contains("--serial"), "{no_console}");
        drop(requests);
        let gone = desk.handle(Action::Info, Vec::new()).unwrap_err();
        assert!(gone.message.contains("ending"), "{gone}");
    }
}
