//! I/O submission queues and their threads (4.1).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::{JoinHandle, Thread};

use guest_memory::GuestMemory;

use crate::command::Command;
use crate::completion::CompletionQueue;
use crate::io::{Namespace, Patience};
use crate::spec::SQE_SIZE;

/// Completions after which the driver hears of them, though more commands wait:
/// few interrupts, and a driver that can go on meanwhile.
const BATCH: u32 = 16;

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
    thread: OnceLock<Thread>,
    stop: AtomicBool,
    // Volatile state.
    /// The driver's, as last rung.
    tail: AtomicU16,
    /// Whoever holds it takes commands.
    head: Mutex<u16>,
}

impl Submission {
    pub fn new(
        id: u16,
        (base, entries): (u64, u16),
        completions: Arc<CompletionQueue>,
        namespace: Arc<Namespace>,
        memory: GuestMemory,
    ) -> Arc<Self> {
        let queue = Arc::new(Submission {
            id,
            base,
            entries,
            completions,
            namespace,
            memory,
            thread: OnceLock::new(),
            stop: AtomicBool::new(false),
            tail: AtomicU16::new(0),
            head: Mutex::new(0),
        });
        queue.completions.add_user(&queue);
        queue
    }

    /// There may be something to do.
    pub fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    fn fetch(&self, head: u16) -> Option<Command> {
        let mut entry = [0; SQE_SIZE as usize];
        self.memory.load(self.base + u64::from(head) * SQE_SIZE, &mut entry).ok()?;
        Some(Command::parse(&entry))
    }

    /// Take commands until there are no more, the completion queue is full, or, with
    /// [`Patience::None`], one would have to wait. True if there are no more.
    fn work(&self, mut head: MutexGuard<'_, u16>, patience: Patience) -> bool {
        let mut unsignalled = 0;
        let empty = loop {
            if *head == self.tail.load(Ordering::Acquire) || self.stop.load(Ordering::Acquire) {
                break true;
            }
            if !self.completions.promise() {
                break false;
            }
            let done = self.fetch(*head).and_then(|c| self.namespace.execute(&c, patience));
            let Some(completion) = done else {
                self.completions.withdraw();
                break false;
            };
            *head = (*head + 1) % self.entries;
            self.completions.post(self.id, *head, completion);
            unsignalled += 1;
            if unsignalled == BATCH {
                self.completions.signal();
                unsignalled = 0;
            }
        };
        if unsignalled > 0 {
            self.completions.signal();
        }
        empty
    }

    fn serve(&self) {
        while !self.stop.load(Ordering::Acquire) {
            self.work(self.head.lock().unwrap_or_else(PoisonError::into_inner), Patience::Full);
            std::thread::park();
        }
    }
}

/// A submission queue at work.
pub struct RunningQueue {
    queue: Arc<Submission>,
    /// Commands are executed where the doorbell is rung.
    inline: bool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RunningQueue {
    /// Begin. `inline`: without a thread, so that a run in virtual time repeats.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn start(queue: Arc<Submission>, inline: bool) -> io::Result<Self> {
        if inline {
            return Ok(RunningQueue { queue, inline, thread: Mutex::default() });
        }
        let own = queue.clone();
        let thread =
            std::thread::Builder::new().name(format!("nvme-{}", queue.id)).spawn(move || own.serve())?;
        // Nothing has been rung before: the thread cannot have missed anything.
        let _ = queue.thread.set(thread.thread().clone());
        Ok(RunningQueue { queue, inline, thread: Mutex::new(Some(thread)) })
    }

    /// The driver has added commands up to `tail`; nothing happens if there is no such
    /// entry.
    pub fn ring(&self, tail: u16) {
        let queue = &*self.queue;
        if tail >= queue.entries {
            return;
        }
        queue.tail.store(tail, Ordering::Release);
        let patience = if self.inline { Patience::Full } else { Patience::None };
        let done = match queue.head.try_lock() {
            Ok(head) => queue.work(head, patience),
            Err(TryLockError::Poisoned(head)) => queue.work(head.into_inner(), patience),
            // Its thread is at it, and may just have seen the old tail.
            Err(TryLockError::WouldBlock) => false,
        };
        if !done {
            queue.wake();
        }
    }

    /// There is room for completions again, in a queue without a thread.
    pub fn resume(&self) {
        if self.inline
            && let Ok(head) = self.queue.head.try_lock()
        {
            self.queue.work(head, Patience::Full);
        }
    }
}

impl RunningQueue {
    /// End. When this returns nothing of the queue touches guest memory, though it
    /// may still be rung.
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
