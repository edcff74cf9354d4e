//! The controller: enable and disable, doorbells, the admin queue (3.1, 7.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use crate::MAX_IO_QUEUES;
use crate::MAX_QUEUE_ENTRIES;
use crate::admin::{Features, queue_place};
use crate::command::Command;
use crate::completion::{Completion, CompletionQueue, CompletionState};
use crate::events::Events;
use crate::interrupts::Interrupts;
use crate::io::Namespace;
use crate::spec::{CQE_SIZE, SQE_SIZE, Status, VERSION, cc, csts, register};
use crate::submission::RunningQueue;

/// The admin submission queue, served where its doorbell is rung.
pub struct AdminQueue {
    pub base: u64,
    pub entries: u16,
    pub head: u16,
    pub tail: u16,
    pub completions: Arc<CompletionQueue>,
}

/// The controller behind its registers.
pub struct Controller {
    // Static configuration.
    pub serial: String,
    /// Execute commands where doorbells are rung.
    pub inline: bool,
    // Runtime glue.
    pub namespace: Arc<Namespace>,
    pub interrupts: Interrupts,
    pub events: Events,
    /// Flushes before a shutdown is complete.
    pub shutdown: Option<JoinHandle<()>>,
    /// Nothing is executed for the moment.
    pub still: bool,
    // Volatile state.
    pub configuration: u32,
    pub status: Arc<AtomicU32>,
    pub admin_attributes: u32,
    pub admin_submission: u64,
    pub admin_completion: u64,
    pub admin: Option<AdminQueue>,
    pub features: Features,
    /// By identifier, less 1.
    pub submissions: Vec<Option<Arc<RunningQueue>>>,
    /// By identifier, less 1.
    pub completions: Vec<Option<Arc<CompletionQueue>>>,
}

/// Capabilities (3.1.1): queue entries from 0, queues in one piece, 10 s to get
/// ready, the NVM command set, pages of 4 KiB.
const CAPABILITIES: u64 = (MAX_QUEUE_ENTRIES as u64 - 1) | 1 << 16 | 20 << 24 | 1 << 37;

fn half(value: u64, offset: u64) -> u64 {
    if offset % 8 == 4 { value >> 32 } else { value }
}

impl Controller {
    pub fn new(serial: String, inline: bool, namespace: Arc<Namespace>, interrupts: Interrupts) -> Self {
        let events = Events::default();
        let own = events.clone();
        namespace.disk.on_resize(Box::new(move || own.namespace_changed()));
        Controller {
            serial,
            inline,
            namespace,
            interrupts,
            events,
            shutdown: None,
            still: false,
            configuration: 0,
            status: Arc::default(),
            admin_attributes: 0,
            admin_submission: 0,
            admin_completion: 0,
            admin: None,
            features: Features::default(),
            submissions: (0..MAX_IO_QUEUES).map(|_| None).collect(),
            completions: vec![None; MAX_IO_QUEUES.into()],
        }
    }

    /// Read a register.
    pub fn read(&mut self, offset: u64, size: u8) -> u64 {
        let value = match offset & !7 {
            register::CAP => half(CAPABILITIES, offset),
            register::ASQ => half(self.admin_submission, offset),
            register::ACQ => half(self.admin_completion, offset),
            // The others have 4 bytes.
            at => self.read_word(offset) | if size == 8 { self.read_word(at + 4) << 32 } else { 0 },
        };
        // A part of a doubleword is not asked for by any driver, but is answered.
        value >> (offset % 4 * 8)
    }

    fn read_word(&self, offset: u64) -> u64 {
        u64::from(match offset & !3 {
            register::VS => VERSION,
            register::CC => self.configuration,
            register::CSTS => self.status.load(Ordering::Acquire),
            register::AQA => self.admin_attributes,
            _ => 0,
        })
    }

    /// Write a register. An I/O submission queue whose doorbell it is is left to the
    /// caller to ring, with the new tail.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> Option<(Arc<RunningQueue>, u16)> {
        match (offset, size) {
            (register::DOORBELLS.., 4) => {
                let index = (offset - register::DOORBELLS) / 4;
                return self.doorbell((index / 2) as usize, index % 2 == 1, value as u32);
            }
            (_, 8) => {
                self.write_word(offset, value as u32);
                self.write_word(offset + 4, (value >> 32) as u32);
            }
            (_, 4) => self.write_word(offset, value as u32),
            _ => {}
        }
        None
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        /// Queues begin at pages.
        const LOW: u64 = 0xffff_f000;
        const HIGH: u64 = 0xffff_ffff << 32;
        let (low, high) = (u64::from(value) & LOW, u64::from(value) << 32);
        match offset {
            register::CC => self.configure(value),
            register::AQA => self.admin_attributes = value & 0x0fff_0fff,
            register::ASQ => self.admin_submission = self.admin_submission & HIGH | low,
            o if o == register::ASQ + 4 => self.admin_submission = self.admin_submission & !HIGH | high,
            register::ACQ => self.admin_completion = self.admin_completion & HIGH | low,
            o if o == register::ACQ + 4 => self.admin_completion = self.admin_completion & !HIGH | high,
            // The mask registers are for interrupts other than MSI-X's.
            register::INTMS | register::INTMC => {}
            _ => {}
        }
    }

    fn configure(&mut self, value: u32) {
        let value = value & cc::WRITABLE;
        let before = std::mem::replace(&mut self.configuration, value);
        match (before & cc::ENABLE != 0, value & cc::ENABLE != 0) {
            (false, true) => self.enable(),
            (true, false) => self.disable(),
            _ => {}
        }
        if value & cc::SHUTDOWN != 0 && before & cc::SHUTDOWN == 0 {
            self.shut_down();
        }
    }

    fn enable(&mut self) {
        let memory = &self.namespace.memory;
        let (sq, cq) = (self.admin_attributes & 0xfff, self.admin_attributes >> 16 & 0xfff);
        let places = queue_place(memory, self.admin_submission, sq + 1, SQE_SIZE)
            .and_then(|s| Ok((s, queue_place(memory, self.admin_completion, cq + 1, CQE_SIZE)?)));
        let Ok(((base, entries), place)) = places else { return self.fail() };
        if self.configuration & cc::MODES != 0 {
            return self.fail();
        }
        let queue = CompletionQueue::new(
            CompletionState::fresh(place, Some(0)),
            memory.clone(),
            self.interrupts.clone(),
        );
        let completions = Arc::new(queue);
        self.events.begin(completions.clone());
        self.admin = Some(AdminQueue { base, entries, head: 0, tail: 0, completions });
        self.status.store(csts::READY, Ordering::Release);
    }

    /// The driver has broken a rule that no status tells: only a reset helps.
    fn fail(&self) {
        self.status.fetch_or(csts::FATAL, Ordering::AcqRel);
    }

    /// Controller reset (7.3.2): queues are gone; where the admin queues are stays.
    fn disable(&mut self) {
        self.join_shutdown();
        self.still = false;
        self.events.end();
        self.submissions.iter_mut().filter_map(Option::take).for_each(|q| q.end());
        self.completions.iter_mut().for_each(|q| *q = None);
        self.admin = None;
        self.features = Features::default();
        self.status.store(0, Ordering::Release);
    }

    fn join_shutdown(&mut self) {
        if let Some(flushing) = self.shutdown.take() {
            // A panic there has been reported.
            let _ = flushing.join();
        }
    }

    /// Make the controller stand still: afterwards no thread of it touches guest
    /// memory or the disk.
    pub fn quiesce(&mut self) {
        self.join_shutdown();
        self.events.stand_still();
        self.submissions.iter().flatten().for_each(|q| q.end());
        self.still = true;
    }

    /// Let it go on, with what it has held first.
    pub fn resume(&mut self) {
        if !std::mem::take(&mut self.still) {
            return;
        }
        self.events.go();
        if self.submissions.iter().flatten().any(|q| q.go().is_err()) {
            // The host refuses a thread: the driver's time limit tells it.
            self.fail();
        }
        if self.status.load(Ordering::Acquire) & csts::SHUTDOWN == csts::SHUTDOWN_PROCESSING {
            self.shut_down();
        }
    }

    /// Make everything durable, then say so (7.6.2). That may take long: not here.
    fn shut_down(&mut self) {
        let (status, namespace, inline) = (self.status.clone(), self.namespace.clone(), self.inline);
        let set = |status: &AtomicU32, bits| {
            let others = status.load(Ordering::Acquire) & !csts::SHUTDOWN;
            status.store(others | bits, Ordering::Release);
        };
        set(&status, csts::SHUTDOWN_PROCESSING);
        let flush = move || {
            // Where there is no room it is tried again when the controller goes on.
            if namespace.flush() {
                set(&status, csts::SHUTDOWN_COMPLETE);
            }
        };
        if inline || self.shutdown.is_some() {
            return flush();
        }
        let thread = std::thread::Builder::new().name("nvme-flush".to_string());
        match thread.spawn(flush) {
            Ok(thread) => self.shutdown = Some(thread),
            // The host refuses a thread: the driver's time limit tells it.
            Err(_) => self.fail(),
        }
    }

    /// Power-up state.
    pub fn reset(&mut self) {
        self.disable();
        self.configuration = 0;
        self.admin_attributes = 0;
        self.admin_submission = 0;
        self.admin_completion = 0;
    }

    /// A value no driver can mean is an event by the standard (invalid doorbell);
    /// here it does nothing.
    fn doorbell(&mut self, queue: usize, completion: bool, value: u32) -> Option<(Arc<RunningQueue>, u16)> {
        let is_ready = self.status.load(Ordering::Acquire) & (csts::READY | csts::FATAL) == csts::READY;
        let value = u16::try_from(value).ok().filter(|_| is_ready)?;
        match (queue.checked_sub(1), completion) {
            (None, false) => {
                let admin = self.admin.as_mut().filter(|admin| value < admin.entries)?;
                admin.tail = value;
                self.serve_admin();
            }
            (None, true) => {
                if self.admin.as_ref()?.completions.ring(value) {
                    self.serve_admin();
                }
            }
            (Some(i), false) => return Some((self.submissions.get(i)?.clone()?, value)),
            (Some(i), true) => {
                self.completions.get(i)?.as_ref()?.ring(value);
                if self.inline {
                    self.submissions.iter().flatten().for_each(|q| q.resume());
                }
            }
        }
        None
    }

    fn serve_admin(&mut self) {
        let mut posted = false;
        while let Some(admin) = &mut self.admin {
            if admin.head == admin.tail || !admin.completions.promise() {
                break;
            }
            let completions = admin.completions.clone();
            let at = admin.base + u64::from(admin.head) * SQE_SIZE;
            admin.head = (admin.head + 1) % admin.entries;
            let head = admin.head;
            let mut entry = [0; SQE_SIZE as usize];
            if self.namespace.memory.load(at, &mut entry).is_err() {
                completions.withdraw();
                self.fail();
                break;
            }
            self.events.head_moved(head);
            let command = Command::parse(&entry);
            let (status, result) = match self.admin_command(&command) {
                Ok(Some(result)) => (Status::SUCCESS, result),
                Ok(None) => {
                    completions.withdraw();
                    continue;
                }
                Err(status) => (status, 0),
            };
            completions.post(0, head, Completion { cid: command.cid, status, result });
            posted = true;
        }
        if let Some(admin) = self.admin.as_ref().filter(|_| posted) {
            admin.completions.signal();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.disable();
    }
}
