//! What a machine tells its owner: power, resets, panics.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use chipset::SlotKind;
use engine::attention_bits::STOP;
use engine::{Attention, EngineError};

/// Something only the machine's owner can act on.
#[derive(Debug)]
pub enum MachineEvent {
    /// The guest switched the power off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset (keyboard controller, reset register, port 92h).
    Reset,
    /// The guest reported that its kernel panicked.
    Panic,
    /// The guest's console shows the beginning of a panic's report; what follows
    /// (a reset, silence) is the panic's doing.
    PanicNoticed,
    /// The guest wrote to the debug-exit port; the process's exit status.
    DebugExit(u8),
    /// A vCPU shut down after a triple fault.
    TripleFault {
        /// Its number.
        vcpu: usize,
    },
    /// A request of the guest waits for room on the host: it is executed again
    /// when the machine has been paused and resumed.
    DiskFull {
        /// The disk's place in the specification.
        disk: usize,
    },
    /// The guest has emptied a hot-plug slot.
    Ejected {
        /// Of which kind.
        kind: SlotKind,
        /// Its number.
        slot: usize,
    },
    /// An engine cannot go on.
    Failed {
        /// The vCPU's number.
        vcpu: usize,
        /// Why.
        error: EngineError,
    },
    /// The owner's own: someone outside asked the machine to end.
    Stop,
    /// The owner's own: someone outside has a request that waits elsewhere.
    Attend,
}

impl MachineEvent {
    /// No vCPU may execute another instruction before the owner has acted.
    fn holds(&self) -> bool {
        use MachineEvent as E;
        matches!(self, E::PowerOff | E::Reset | E::Panic | E::DebugExit(_))
    }
}

#[derive(Debug)]
struct Shared {
    sender: Mutex<Sender<MachineEvent>>,
    /// An event that holds the machine has been posted and not been acted on.
    held: AtomicBool,
    attentions: OnceLock<Vec<Arc<Attention>>>,
}

/// Where devices and vCPU threads post events. Posting never blocks for long.
#[derive(Debug, Clone)]
pub struct EventPoster(Arc<Shared>);

impl EventPoster {
    /// Post one event. An owner that is gone no longer cares.
    pub fn post(&self, event: MachineEvent) {
        let holds = event.holds();
        if holds {
            // Before the owner can have the event: it may release what it holds at once.
            self.0.held.store(true, Ordering::SeqCst);
        }
        let _ = self.0.sender.lock().unwrap_or_else(PoisonError::into_inner).send(event);
        if holds {
            self.0.attentions.get().into_iter().flatten().for_each(|a| a.raise(STOP));
        }
    }

    /// The vCPUs that an event holds.
    pub(crate) fn connect(&self, attentions: &[Arc<Attention>]) {
        let _ = self.0.attentions.set(attentions.to_vec());
    }

    /// Whether vCPUs must wait for the owner.
    pub fn held(&self) -> bool {
        self.0.held.load(Ordering::SeqCst)
    }

    /// The owner has acted.
    pub(crate) fn release(&self) {
        self.0.held.store(false, Ordering::SeqCst);
    }
}

/// The owner's end of the channel.
#[derive(Debug)]
pub struct EventQueue(Mutex<Receiver<MachineEvent>>);

impl EventQueue {
    /// A channel.
    pub fn new() -> (EventPoster, EventQueue) {
        let (sender, receiver) = channel();
        let shared =
            Shared { sender: Mutex::new(sender), held: AtomicBool::new(false), attentions: OnceLock::new() };
        (EventPoster(Arc::new(shared)), EventQueue(Mutex::new(receiver)))
    }

    /// Wait for the next event; `None` when `timeout` has passed.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<MachineEvent> {
        let rx = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match timeout {
            None => rx.recv().ok(),
            Some(t) => rx.recv_timeout(t).ok(),
        }
    }

    /// The next event if one is there.
    pub fn poll(&self) -> Option<MachineEvent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_event_holds_until_the_owner_that_has_it_releases() {
        let (poster, queue) = EventQueue::new();
        poster.post(MachineEvent::Attend);
        assert!(!poster.held());
        poster.post(MachineEvent::Reset);
        assert!(poster.held());
        poster.release();
        assert!(!poster.held());
        assert_eq!(std::iter::from_fn(|| queue.poll()).count(), 2);
    }

    /// An owner that has the event at once may release it at once: nothing may hold after that.
    #[test]
    fn an_event_holds_before_the_owner_can_have_it() {
        let (poster, queue) = EventQueue::new();
        let held = std::thread::scope(|scope| {
            let on_its_way = poster.0.sender.lock().unwrap();
            scope.spawn(|| poster.post(MachineEvent::Reset));
            let start = Instant::now();
            while !poster.held() && start.elapsed() < Duration::from_secs(5) {
                std::thread::yield_now();
            }
            assert!(queue.poll().is_none());
            let held = poster.held();
            drop(on_its_way);
            held
        });
        assert!(held, "the owner could have had the event");
        poster.release();
        assert!(matches!(queue.poll(), Some(MachineEvent::Reset)) && !poster.held());
    }
}
