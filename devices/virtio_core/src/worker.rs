//! A device's thread: woken by doorbells, by host files and by a deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// Queues a worker serves at most: a bit each.
pub const MAX_WORKER_QUEUES: u16 = 64;

/// What a worker runs. Everything it needs it owns: its queues above all.
pub trait Handler: Send + 'static {
    /// A queue's doorbell rang, or the worker begins: take what is there.
    fn queue(&mut self, queue: u16);
    /// Host files to wait for, and for what. Asked before each wait.
    fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }
    /// The source at this place of the list is ready.
    fn ready(&mut self, _source: usize, _events: PollFlags) {}
    /// When to call [`Handler::expired`]. Asked before each wait.
    fn deadline(&self) -> Option<Instant> {
        None
    }
    /// The deadline has passed.
    fn expired(&mut self) {}
}

struct Bell {
    /// Queues that rang.
    rung: AtomicU64,
    stop: AtomicBool,
    file: OwnedFd,
}

impl Bell {
    fn wake(&self) {
        // The counter cannot overflow: the worker empties it, and only a first ring writes.
        let _ = rustix::io::write(&self.file, &1u64.to_ne_bytes());
    }

    fn ring(&self, queues: u64) {
        if self.rung.fetch_or(queues, Ordering::AcqRel) == 0 {
            self.wake();
        }
    }
}

/// Wakes the worker of one queue, from any thread and without a lock.
#[derive(Clone)]
pub struct Doorbell {
    bell: Arc<Bell>,
    queue: u16,
}

impl Doorbell {
    /// Wake the worker.
    pub fn ring(&self) {
        self.bell.ring(1 << self.queue);
    }
}

enum Mode<H> {
    Inline(H),
    Thread { bell: Arc<Bell>, thread: JoinHandle<H> },
    Stopped,
}

/// Runs a [`Handler`] on a thread of its own, or inline
/// ([`crate::Activation::inline`]), where it acts within [`Worker::notify`] and
/// has neither sources nor deadlines.
pub struct Worker<H> {
    mode: Mode<H>,
}

impl<H: Handler> Worker<H> {
    /// Begin: every queue below `queues` is looked at first. The thread is called
    /// `vio-NAME`.
    ///
    /// # Errors
    /// When the host refuses a thread or an event file; the handler is lost then.
    ///
    /// # Panics
    /// With more than [`MAX_WORKER_QUEUES`]: an error of the device's author.
    pub fn start(name: &str, queues: u16, inline: bool, mut handler: H) -> io::Result<Self> {
        assert!(queues <= MAX_WORKER_QUEUES, "{queues} queues for one worker");
        if inline {
            (0..queues).for_each(|q| handler.queue(q));
            return Ok(Worker { mode: Mode::Inline(handler) });
        }
        let file = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let rung = if queues == 0 { 0 } else { u64::MAX >> (64 - queues) };
        let bell = Arc::new(Bell { rung: AtomicU64::new(rung), stop: AtomicBool::new(false), file });
        let own = bell.clone();
        let thread =
            std::thread::Builder::new().name(format!("vio-{name}")).spawn(move || run(&own, handler))?;
        Ok(Worker { mode: Mode::Thread { bell, thread } })
    }

    /// A doorbell rang.
    pub fn notify(&mut self, queue: u16) {
        match &mut self.mode {
            Mode::Inline(handler) => handler.queue(queue),
            Mode::Thread { bell, .. } if queue < MAX_WORKER_QUEUES => bell.ring(1 << queue),
            Mode::Thread { .. } | Mode::Stopped => {}
        }
    }

    /// A doorbell for a queue that needs no lock; none inline.
    pub fn doorbell(&self, queue: u16) -> Option<Doorbell> {
        match &self.mode {
            Mode::Thread { bell, .. } if queue < MAX_WORKER_QUEUES => {
                Some(Doorbell { bell: bell.clone(), queue })
            }
            _ => None,
        }
    }

    /// Make the worker ask for its sources and its deadline again.
    pub fn wake(&self) {
        if let Mode::Thread { bell, .. } = &self.mode {
            bell.wake();
        }
    }

    /// End, after what it is doing; its handler comes back. `None`: it panicked,
    /// which the process has reported.
    pub fn stop(mut self) -> Option<H> {
        self.end()
    }
}

impl<H> Worker<H> {
    fn end(&mut self) -> Option<H> {
        match std::mem::replace(&mut self.mode, Mode::Stopped) {
            Mode::Stopped => None,
            Mode::Inline(handler) => Some(handler),
            Mode::Thread { bell, thread } => {
                bell.stop.store(true, Ordering::Release);
                bell.wake();
                thread.join().ok()
            }
        }
    }
}

impl<H> Drop for Worker<H> {
    /// No thread outlives its device.
    fn drop(&mut self) {
        self.end();
    }
}

fn run<H: Handler>(bell: &Bell, mut handler: H) -> H {
    while !bell.stop.load(Ordering::Acquire) {
        let mut rung = bell.rung.swap(0, Ordering::AcqRel);
        while rung != 0 {
            handler.queue(rung.trailing_zeros() as u16);
            rung &= rung - 1;
        }
        if bell.rung.load(Ordering::Acquire) != 0 {
            continue;
        }
        let ready = wait(bell, &handler);
        for (source, events) in ready {
            handler.ready(source, events);
        }
        if handler.deadline().is_some_and(|at| at <= Instant::now()) {
            handler.expired();
        }
    }
    handler
}

/// Sleep until something is to be done; the sources that are ready.
fn wait<H: Handler>(bell: &Bell, handler: &H) -> Vec<(usize, PollFlags)> {
    let mut files = vec![PollFd::new(&bell.file, PollFlags::IN)];
    files.extend(handler.sources().into_iter().map(|(file, events)| PollFd::from_borrowed_fd(file, events)));
    let left = handler.deadline().map(|at| at.saturating_duration_since(Instant::now()));
    let timeout = left.map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() });
    if poll(&mut files, timeout.as_ref()).is_err() {
        // A signal, or no memory for the moment: try again, but do not spin.
        std::thread::sleep(Duration::from_millis(1));
        return Vec::new();
    }
    if !files[0].revents().is_empty() {
        let _ = rustix::io::read(bell.file.as_fd(), &mut [0; 8]);
    }
    let sources = files.iter().skip(1).enumerate();
    sources.map(|(i, f)| (i, f.revents())).filter(|(_, events)| !events.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    struct Log {
        to: Sender<String>,
        file: OwnedFd,
        deadline: Option<Instant>,
    }

    impl Handler for Log {
        fn queue(&mut self, queue: u16) {
            let _ = self.to.send(format!("queue {queue}"));
        }
        fn sources(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
            vec![(self.file.as_fd(), PollFlags::IN)]
        }
        fn ready(&mut self, source: usize, _: PollFlags) {
            let mut byte = [0];
            let n = rustix::io::read(&self.file, &mut byte).unwrap();
            let _ = self.to.send(format!("source {source}: {:?}", &byte[..n]));
        }
        fn deadline(&self) -> Option<Instant> {
            self.deadline
        }
        fn expired(&mut self) {
            self.deadline = None;
            let _ = self.to.send("late".to_string());
        }
    }

    #[test]
    fn doorbells_sources_and_deadlines_reach_the_handler() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (to, from) = channel();
        let deadline = Some(Instant::now() + Duration::from_millis(30));
        let mut worker = Worker::start("test", 2, false, Log { to, file: read, deadline }).unwrap();
        let next = || from.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!((next(), next()), ("queue 0".to_string(), "queue 1".to_string()));
        assert_eq!(next(), "late");
        worker.notify(1);
        assert_eq!(next(), "queue 1");
        worker.doorbell(63).unwrap().ring();
        assert_eq!(next(), "queue 63");
        assert!(worker.doorbell(64).is_none());
        rustix::io::write(&write, &[7]).unwrap();
        assert_eq!(next(), "source 0: [7]");
        let log = worker.stop().unwrap();
        drop(log);
        assert!(from.try_recv().is_err(), "nothing but what was asked for");
    }

    #[test]
    fn inline_there_is_no_thread() {
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let (to, from) = channel();
        let mut worker = Worker::start("test", 1, true, Log { to, file: read, deadline: None }).unwrap();
        worker.notify(5);
        assert_eq!(from.try_iter().collect::<Vec<_>>(), ["queue 0", "queue 5"]);
        assert!(worker.doorbell(0).is_none() && worker.stop().is_some());
    }
}
