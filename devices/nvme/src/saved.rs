//! Standing still, and saved state.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use pci::MsixState;
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::admin::{Features, queue_place};
use crate::completion::{CompletionQueue, CompletionState};
use crate::controller::{AdminQueue, Controller};
use crate::events::EventsState;
use crate::function::Registers;
use crate::spec::{CQE_SIZE, SQE_SIZE, cc, csts};
use crate::submission::{RunningQueue, Submission};
use crate::{MAX_EVENT_REQUESTS, MAX_IO_QUEUES};

const NAME: &str = "nvme";

/// The owner's way to a controller on a bus: to make it stand still, save and
/// restore it. Its configuration space is saved by the bus. Clones are the same.
#[derive(Clone)]
pub struct NvmeHandle {
    registers: Arc<Registers>,
}

/// An I/O submission queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct SubmissionState {
    base: u64,
    entries: u16,
    head: u16,
    tail: u16,
    /// Slot of the queue it completes in.
    completions: u16,
}

/// The admin queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct AdminState {
    base: u64,
    entries: u16,
    head: u16,
    tail: u16,
    completions: CompletionState,
}

/// The saved state of a controller beside its configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeState {
    msix: MsixState,
    configuration: u32,
    status: u32,
    admin_attributes: u32,
    admin_submission: u64,
    admin_completion: u64,
    admin: Option<AdminState>,
    features: Features,
    events: EventsState,
    /// By identifier, less 1.
    submissions: Vec<Option<SubmissionState>>,
    /// By identifier, less 1.
    completions: Vec<Option<CompletionState>>,
}

impl NvmeHandle {
    pub(crate) fn new(registers: Arc<Registers>) -> Self {
        NvmeHandle { registers }
    }

    /// Make the controller stand still: afterwards no thread of it touches guest
    /// memory or the disk. Needed before [`Saved::save`].
    pub fn quiesce(&self) {
        self.registers.controller().quiesce();
    }

    /// Let it go on, first with commands that waited for room on the host.
    pub fn resume(&self) {
        self.registers.controller().resume();
    }
}

fn save_admin(admin: &AdminQueue) -> AdminState {
    let AdminQueue { base, entries, head, tail, completions } = admin;
    AdminState { base: *base, entries: *entries, head: *head, tail: *tail, completions: completions.save() }
}

fn save_submission(c: &Controller, queue: &Submission) -> SubmissionState {
    let ((base, entries), (head, tail)) = (queue.place(), queue.position());
    let own =
        |q: &Option<Arc<CompletionQueue>>| q.as_ref().is_some_and(|q| Arc::ptr_eq(q, &queue.completions));
    // A queue that is used is not deleted.
    let completions = c.completions.iter().position(own).unwrap_or(0) as u16;
    SubmissionState { base, entries, head, tail, completions }
}

/// A value a controller could not have.
fn check(
    ok: bool,
    field: &'static str,
    value: impl Into<u64>,
    allowed: &'static str,
) -> Result<(), StateError> {
    StateError::check(ok, NAME, field, value.into(), allowed)
}

impl NvmeState {
    /// Refuse what this controller could not have come to.
    fn check(&self, c: &Controller) -> Result<(), StateError> {
        let NvmeState {
            msix: _,
            configuration,
            status,
            admin_attributes: _,
            admin_submission: _,
            admin_completion: _,
            admin,
            features: _,
            events,
            submissions,
            completions,
        } = self;
        check(configuration & !cc::WRITABLE == 0, "configuration", *configuration, "its writable bits")?;
        let known = csts::READY | csts::FATAL | csts::SHUTDOWN;
        check(status & !known == 0, "status", *status, "its defined bits")?;
        let waiting = events.requests.len();
        check(waiting <= MAX_EVENT_REQUESTS, "event requests", waiting as u64, "the limit told")?;
        let slots = usize::from(MAX_IO_QUEUES);
        let all = submissions.len() == slots && completions.len() == slots;
        check(all, "queues", submissions.len() as u64, "one slot for each possible queue")?;
        let is_on = admin.is_some();
        let any = submissions.iter().any(Option::is_some) || completions.iter().any(Option::is_some);
        check(is_on || !any, "I/O queues", u64::from(any), "none before the admin queues")?;
        let memory = &c.namespace.memory;
        let place = |base, entries: u16, size, (head, tail): (u16, u16)| {
            let placed = queue_place(memory, base, entries.into(), size).is_ok();
            check(placed, "queue", base, "pages of RAM")?;
            check(head < entries && tail < entries, "queue position", tail, "within the queue")
        };
        let completion = |q: &CompletionState| {
            check(q.vector.is_none_or(|v| v <= MAX_IO_QUEUES), "vector", q.vector.unwrap_or(0), "a vector")?;
            place(q.base, q.entries, CQE_SIZE, (q.head, q.tail))
        };
        if let Some(a) = admin {
            place(a.base, a.entries, SQE_SIZE, (a.head, a.tail))?;
            completion(&a.completions)?;
        }
        completions.iter().flatten().try_for_each(completion)?;
        for q in submissions.iter().flatten() {
            place(q.base, q.entries, SQE_SIZE, (q.head, q.tail))?;
            let there = completions.get(usize::from(q.completions)).is_some_and(Option::is_some);
            check(there, "completion queue", q.completions, "one that exists")?;
        }
        Ok(())
    }
}

impl Saved for NvmeHandle {
    type State = NvmeState;
    const VERSION: u16 = 1;

    fn save(&self) -> NvmeState {
        let NvmeHandle { registers } = self;
        let c = registers.controller();
        let Controller {
            serial: _,
            inline: _,
            namespace: _,
            interrupts,
            events,
            shutdown: _,
            still: _,
            configuration,
            status,
            admin_attributes,
            admin_submission,
            admin_completion,
            admin,
            features,
            submissions,
            completions,
        } = &*c;
        NvmeState {
            msix: interrupts.save(),
            configuration: *configuration,
            status: status.load(Ordering::Acquire),
            admin_attributes: *admin_attributes,
            admin_submission: *admin_submission,
            admin_completion: *admin_completion,
            admin: admin.as_ref().map(save_admin),
            features: *features,
            events: events.save(),
            submissions: submissions
                .iter()
                .map(|q| q.as_ref().map(|q| save_submission(&c, q.queue())))
                .collect(),
            completions: completions.iter().map(|q| q.as_ref().map(|q| q.save())).collect(),
        }
    }

    /// The controller stands still afterwards; [`NvmeHandle::resume`] lets it go on.
    fn restore(&mut self, state: &NvmeState) -> Result<(), StateError> {
        let mut c = self.registers.controller();
        state.check(&c)?;
        let NvmeState {
            msix,
            configuration,
            status,
            admin_attributes,
            admin_submission,
            admin_completion,
            admin,
            features,
            events,
            submissions,
            completions,
        } = state;
        self.registers.interrupts.restore(msix)?;
        c.reset();
        c.configuration = *configuration;
        c.status.store(*status, Ordering::Release);
        c.admin_attributes = *admin_attributes;
        c.admin_submission = *admin_submission;
        c.admin_completion = *admin_completion;
        c.features = *features;
        let (namespace, interrupts) = (c.namespace.clone(), c.interrupts.clone());
        let queue = |q: &CompletionState| {
            Arc::new(CompletionQueue::new(*q, namespace.memory.clone(), interrupts.clone()))
        };
        c.admin = admin.as_ref().map(|a| {
            let AdminState { base, entries, head, tail, completions } = *a;
            AdminQueue { base, entries, head, tail, completions: queue(&completions) }
        });
        c.events.restore(events, c.admin.as_ref().map(|a| a.completions.clone()));
        c.completions = completions.iter().map(|q| q.as_ref().map(queue)).collect();
        let made = (1..).zip(submissions).map(|(id, q)| {
            let SubmissionState { base, entries, head, tail, completions } = (*q)?;
            let completions = c.completions.get(usize::from(completions))?.clone()?;
            let queue = Submission::new(id, (base, entries), (head, tail), completions, namespace.clone());
            Some(Arc::new(RunningQueue::new(queue, c.inline)))
        });
        c.submissions = made.collect();
        c.still = true;
        Ok(())
    }
}
