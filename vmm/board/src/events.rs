//! What a machine tells its owner: power, resets, panics.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use engine::EngineError;

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
    /// An engine cannot go on.
    Failed {
        /// The vCPU's number.
        vcpu: usize,
        /// Why.
        error: EngineError,
    },
    /// The owner's own: someone outside asked the machine to end.
    Stop,
}

/// Where devices and vCPU threads post events. Posting never blocks.
#[derive(Debug, Clone)]
pub struct EventPoster(Sender<MachineEvent>);

impl EventPoster {
    /// Post one event. An owner that is gone no longer cares.
    pub fn post(&self, event: MachineEvent) {
        let _ = self.0.send(event);
    }
}

/// The owner's end of the channel.
#[derive(Debug)]
pub struct EventQueue(Mutex<Receiver<MachineEvent>>);

impl EventQueue {
    /// A channel.
    pub fn new() -> (EventPoster, EventQueue) {
        let (tx, rx) = channel();
        (EventPoster(tx), EventQueue(Mutex::new(rx)))
    }

    /// Wait for the next event; `None` when `timeout` has passed.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<MachineEvent> {
        let rx = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match timeout {
            None => rx.recv().ok(),
            Some(t) => match rx.recv_timeout(t) {
                Ok(e) => Some(e),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
            },
        }
    }

    /// The next event if one is there.
    pub fn poll(&self) -> Option<MachineEvent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).try_recv().ok()
    }
}
