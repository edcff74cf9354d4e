//! I/O submission queues and their threads (4.1).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};

use guest_memory::GuestMemory;

use crate::command::Command;
use crate::completion::CompletionQueue;
use crate::io::{Namespace, Outcome};
use crate::overlap::Overlap;
use crate::spec::SQE_SIZE;

/// Completions after which the driver hears of them, though more commands wait:
/// few interrupts, and a driver that can go on meanwhile.
pub const BATCH: u32 = 16;

/// An I/O submission queue.
pub struct Submission {
    // Static configuration.
    pub id: u16,
    base: u64,
    entries: u16,
    // Runtime glue.
    pub completions: Arc<CompletionQueue>,
    namespace: Arc<Namespace>,
    memory: GuestMemory,
    thread: Mutex<Option<Thread>>,
    stop: AtomicBool,
    // Volatile state.
    /// The next command waits for room on the host, until the queue goes on.
    held: AtomicBool,
    /// The driver's, as last rung.
    tail: AtomicU16,
    /// Whoever holds it takes commands.
    head: Mutex<u16>,
}

impl Submission {
    pub fn new(
        id: u16,
        (base, entries): (u64, u16),
        (head, tail): (u16, u16),
        completions: Arc<CompletionQueue>,
        namespace: Arc<Namespace>,
    ) -> Arc<Self> {
        let memory = namespace.memory.clone();
        let queue = Arc::new(Submission {
            id,
            base,
            entries,
            completions,
            namespace,
            memory,
            thread: Mutex::default(),
            stop: AtomicBool::new(true),
            held: AtomicBool::new(false),
            tail: AtomicU16::new(tail),
            head: Mutex::new(head),
        });
        queue.completions.add_user(&queue);
        queue
    }

    /// There may be something to do.
    pub fn wake(&self) {
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }

    /// Its place: base address and entries.
    pub fn place(&self) -> (u64, u16) {
        (self.base, self.entries)
    }

    /// Head and tail; they belong together while the queue stands still.
    pub fn position(&self) -> (u16, u16) {
        let head = *self.head.lock().unwrap_or_else(PoisonError::into_inner);
        (head, self.tail.load(Ordering::Acquire))
    }

    fn must_not_work(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.held.load(Ordering::Acquire)
    }

    /// Where it takes commands for.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The entry after one.
    pub fn after(&self, entry: u16) -> u16 {
        (entry + 1) % self.entries
    }

    /// Whether the driver has put a command there that may be executed now.
    pub fn has_command(&self, entry: u16) -> bool {
        entry != self.tail.load(Ordering::Acquire) && !self.must_not_work()
    }

    /// The command of an entry, if that is memory still.
    pub fn fetch(&self, head: u16) -> Option<Command> {
        let mut entry = [0; SQE_SIZE as usize];
        self.memory.load(self.base + u64::from(head) * SQE_SIZE, &mut entry).ok()?;
        Some(Command::parse(&entry))
    }

    /// The next command waits for room on the host.
    fn hold(&self) {
        self.held.store(true, Ordering::Release);
        self.namespace.tell_full();
    }

    /// Take commands until there are no more, the completion queue is full or one is
    /// held.
    fn work(&self, mut head: MutexGuard<'_, u16>) {
        let mut unsignalled = 0;
        while self.has_command(*head) {
            if !self.completions.promise() {
                break;
            }
            let outcome = self.fetch(*head).map(|c| self.namespace.execute(&c));
            let Some(Outcome::Done(completion)) = outcome else {
                self.completions.withdraw();
                if outcome.is_some() {
                    self.hold();
                }
                break;
            };
            *head = self.after(*head);
            self.completions.post(self.id, *head, completion);
            unsignalled += 1;
            if unsignalled == BATCH {
                self.completions.signal();
                unsignalled = 0;
            }
        }
        if unsignalled > 0 {
            self.completions.signal();
        }
    }

    fn serve(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
            if self.namespace.disk.overlaps() {
                let held;
                (*head, held) = Overlap::run(self, *head);
                if held {
                    self.hold();
                }
                drop(head);
            } else {
                self.work(head);
            }
            std::thread::park();
        }
    }
}

/// A submission queue at work, or standing still.
pub struct RunningQueue {
    queue: Arc<Submission>,
    /// Commands are executed where the doorbell is rung.
    inline: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RunningQueue {
    /// A queue that stands still. `inline`: without a thread, so that a run in
    /// virtual time repeats.
    pub fn new(queue: Arc<Submission>, inline: bool) -> Self {
        RunningQueue { queue, inline, thread: Mutex::default() }
    }

    /// The queue.
    pub fn queue(&self) -> &Submission {
        &self.queue
    }

    /// Go on, first with what was rung meanwhile or is held.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn go(&self) -> io::Result<()> {
        let queue = &self.queue;
        queue.held.store(false, Ordering::Release);
        queue.stop.store(false, Ordering::Release);
        if self.inline {
            self.resume();
            return Ok(());
        }
        let own = queue.clone();
        let name = format!("nvme-{}", queue.id);
        let thread = std::thread::Builder::new().name(name).spawn(move || own.serve())?;
        // It looks at everything first: a doorbell before this is not missed.
        *queue.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread.thread().clone());
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// The driver has added commands up to `tail`; nothing happens if there is no such
    /// entry.
    pub fn ring(&self, tail: u16) {
        let queue = &*self.queue;
        if tail >= queue.entries {
            return;
        }
        queue.tail.store(tail, Ordering::Release);
        if self.inline {
            self.resume();
        } else {
            queue.wake();
        }
    }

    /// There is room for completions again, in a queue without a thread.
    pub fn resume(&self) {
        if self.inline
            && let Ok(head) = self.queue.head.try_lock()
        {
            self.queue.work(head);
        }
    }
}

impl RunningQueue {
    /// Stand still, or end. When this returns nothing of the queue touches guest
    /// memory, though it may still be rung.
    pub fn end(&self) {
        let queue = &*self.queue;
        queue.stop.store(true, Ordering::Release);
        queue.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic there has been reported; the queue has ended all the same.
            let _ = thread.join();
        }
        // Whoever takes commands where it was rung gives this up after the one at hand.
        drop(queue.head.lock());
    }
}

impl Drop for RunningQueue {
    fn drop(&mut self) {
        self.end();
    }
}
