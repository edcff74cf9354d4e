//! Where requests wait for the machine's owner.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use board::{EventPoster, MachineEvent};
use vm_api::{Action, Handler, Refusal, RefusalKind, Reply};

/// How long the owner may take: an engine switch of a large machine takes a
/// fraction of a second, even on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// One request, and where its answer goes.
pub(crate) struct Pending {
    pub(crate) action: Action,
    pub(crate) answer: SyncSender<Result<Reply, Refusal>>,
}

/// Takes requests from the control socket to the owner.
pub struct Desk {
    requests: Mutex<Sender<Pending>>,
    events: EventPoster,
    patience: Duration,
}

/// The owner's end.
pub struct Requests(pub(crate) Receiver<Pending>);

/// A desk for the machine whose events go to `events`.
pub fn desk(events: EventPoster) -> (Desk, Requests) {
    let (sender, receiver) = channel();
    (Desk { requests: Mutex::new(sender), events, patience: PATIENCE }, Requests(receiver))
}

impl Handler for Desk {
    fn handle(&self, action: Action) -> Result<Reply, Refusal> {
        let ending = || Refusal::new(RefusalKind::Unavailable, "the machine is ending");
        // Room for one: the owner never waits for a client.
        let (answer, wait) = sync_channel(1);
        let pending = Pending { action, answer };
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
        let slow = desk.handle(Action::Info).unwrap_err();
        assert_eq!(slow.kind, RefusalKind::Unavailable);
        assert!(slow.message.contains("did not get to it"), "{slow}");
        assert!(matches!(queue.poll(), Some(MachineEvent::Attend)));
        drop(requests);
        let gone = desk.handle(Action::Info).unwrap_err();
        assert!(gone.message.contains("ending"), "{gone}");
    }
}
