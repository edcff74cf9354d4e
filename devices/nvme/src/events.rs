//! Asynchronous events (5.2): the one there is says that the namespace has changed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::MAX_EVENT_REQUESTS;
use crate::completion::{Completion, CompletionQueue};
use crate::spec::Status;

/// Notice, namespace attribute changed, log page 4.
const NAMESPACE_CHANGED: u32 = 0x2 | 4 << 16;
/// The notice's bit in the configuration feature.
pub const NAMESPACE_NOTICES: u32 = 1 << 8;

#[derive(Default)]
struct State {
    /// The admin queues' completions and the last submission head, while enabled.
    admin: Option<(Arc<CompletionQueue>, u16)>,
    /// Requests that wait, oldest first.
    requests: Vec<u16>,
    enabled: bool,
    /// Changed since the driver last read the log page.
    changed: bool,
    /// Told; to be told again only after the log page has been read.
    told: bool,
    /// Nothing is told for the moment.
    still: bool,
}

/// What waits, as plain values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsState {
    pub requests: Vec<u16>,
    pub enabled: bool,
    pub changed: bool,
    pub told: bool,
    /// The admin submission queue's head.
    pub head: u16,
}

/// Requests that wait for events, and events that wait for requests. Called from
/// any thread; clones are the same.
#[derive(Clone, Default)]
pub struct Events(Arc<Mutex<State>>);

impl Events {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The controller has been enabled.
    pub fn begin(&self, admin: Arc<CompletionQueue>) {
        *self.lock() = State { admin: Some((admin, 0)), ..State::default() };
    }

    /// The controller has been disabled: nothing is posted any more.
    pub fn end(&self) {
        *self.lock() = State::default();
    }

    /// Tell nothing until [`Events::go`].
    pub fn stand_still(&self) {
        self.lock().still = true;
    }

    /// Tell what has happened meanwhile.
    pub fn go(&self) {
        let mut s = self.lock();
        s.still = false;
        deliver(&mut s);
    }

    /// What waits.
    pub fn save(&self) -> EventsState {
        let s = self.lock();
        let State { admin, requests, enabled, changed, told, still: _ } = &*s;
        EventsState {
            requests: requests.clone(),
            enabled: *enabled,
            changed: *changed,
            told: *told,
            head: admin.as_ref().map_or(0, |a| a.1),
        }
    }

    /// Put it back, standing still. `admin`: the admin queues' completions, if enabled.
    pub fn restore(&self, state: &EventsState, admin: Option<Arc<CompletionQueue>>) {
        let EventsState { requests, enabled, changed, told, head } = state;
        *self.lock() = State {
            admin: admin.map(|a| (a, *head)),
            requests: requests.clone(),
            enabled: *enabled,
            changed: *changed,
            told: *told,
            still: true,
        };
    }

    /// Where the admin submission queue's head is.
    pub fn head_moved(&self, head: u16) {
        if let Some((_, at)) = &mut self.lock().admin {
            *at = head;
        }
    }

    /// The driver wants to hear of these.
    pub fn configure(&self, value: u32) {
        let mut s = self.lock();
        s.enabled = value & NAMESPACE_NOTICES != 0;
        deliver(&mut s);
    }

    /// A request to be completed by the next event.
    ///
    /// # Errors
    /// When too many wait.
    pub fn request(&self, cid: u16) -> Result<(), Status> {
        let mut s = self.lock();
        if s.requests.len() >= MAX_EVENT_REQUESTS {
            return Err(Status::EVENT_LIMIT);
        }
        s.requests.push(cid);
        deliver(&mut s);
        Ok(())
    }

    /// The namespace has changed.
    pub fn namespace_changed(&self) {
        let mut s = self.lock();
        s.changed = true;
        deliver(&mut s);
    }

    /// The driver reads the list of changed namespaces: true if ours is on it. It is
    /// empty then, unless the driver wants to keep it.
    pub fn take_changed(&self, keep: bool) -> bool {
        let mut s = self.lock();
        let changed = s.changed;
        if !keep {
            s.changed = false;
            s.told = false;
        }
        changed
    }
}

fn deliver(s: &mut State) {
    let Some((queue, head)) = &s.admin else { return };
    if s.still || !s.enabled || !s.changed || s.told || s.requests.is_empty() || !queue.promise() {
        return;
    }
    let cid = s.requests.remove(0);
    s.told = true;
    queue.post(0, *head, Completion { cid, status: Status::SUCCESS, result: NAMESPACE_CHANGED });
    queue.signal();
}
