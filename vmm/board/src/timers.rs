//! When devices act by themselves.
//!
//! Every source (a device, or one vCPU's local APIC) has one deadline. In host
//! time one thread sleeps until the earliest; changing a deadline to something
//! later costs one store. In virtual time there is no thread: the driver asks
//! for the earliest deadline, and is told by a callback when an access brings an
//! earlier one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use device_model::{Clock, Nanos};

/// No deadline.
pub const NEVER: Nanos = u64::MAX;

/// Called in virtual time when a deadline moves before the one last announced.
type Sooner = Box<dyn Fn() + Send + Sync>;

/// The deadlines of all sources.
pub struct TimerQueue {
    clock: Clock,
    deadlines: Box<[AtomicU64]>,
    /// The deadline somebody already waits for; NEVER while it is being chosen.
    armed: AtomicU64,
    stop: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
    sooner: Mutex<Option<Sooner>>,
}

impl TimerQueue {
    /// A queue for `sources` sources, all without a deadline.
    pub fn new(clock: Clock, sources: usize) -> Self {
        TimerQueue {
            clock,
            deadlines: (0..sources).map(|_| AtomicU64::new(NEVER)).collect(),
            armed: AtomicU64::new(NEVER),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            changed: Condvar::new(),
            sooner: Mutex::new(None),
        }
    }

    /// Install what to call in virtual time when a deadline becomes earlier than
    /// the one [`TimerQueue::arm`] announced.
    pub fn on_sooner(&self, f: Option<Sooner>) {
        *self.sooner.lock().unwrap_or_else(PoisonError::into_inner) = f;
    }

    /// A source's deadline is now this. Cheap when it did not become the earliest.
    pub fn set(&self, source: usize, deadline: Option<Nanos>) {
        let deadline = deadline.unwrap_or(NEVER);
        let Some(slot) = self.deadlines.get(source) else { return };
        if slot.load(Ordering::Relaxed) == deadline {
            return;
        }
        slot.store(deadline, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if deadline < self.armed.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// A source that was due could not act: it is due again at `deadline`, unless
    /// somebody has set one meanwhile.
    pub fn put_back(&self, source: usize, deadline: Nanos) {
        let Some(slot) = self.deadlines.get(source) else { return };
        let free = slot.compare_exchange(NEVER, deadline, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        fence(Ordering::SeqCst);
        if free && deadline < self.armed.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    fn wake(&self) {
        if self.clock.is_virtual() {
            if let Some(f) = &*self.sooner.lock().unwrap_or_else(PoisonError::into_inner) {
                f();
            }
        } else {
            let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.changed.notify_all();
        }
    }

    /// Choose the earliest deadline as the one waited for, and answer it.
    pub fn arm(&self) -> Nanos {
        self.armed.store(NEVER, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let earliest = self.deadlines.iter().map(|d| d.load(Ordering::SeqCst)).min().unwrap_or(NEVER);
        self.armed.store(earliest, Ordering::SeqCst);
        earliest
    }

    /// Take the sources whose deadline is at or before `now`; each deadline is
    /// cleared, the caller sets the next one after acting.
    pub fn take_due(&self, now: Nanos) -> Vec<usize> {
        let mut due = Vec::new();
        for (source, d) in self.deadlines.iter().enumerate() {
            let at = d.load(Ordering::SeqCst);
            // Only the thread that takes due sources clears a deadline; a concurrent
            // `set` wins and is looked at in the next round.
            if at <= now && d.compare_exchange(at, NEVER, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                due.push(source);
            }
        }
        due
    }

    /// The clock goes on after it stood still: deadlines come nearer again.
    pub fn clock_started(&self) {
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// Make [`TimerQueue::serve`] return.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// The timer thread of host time: sleep to each deadline, call `expire` with
    /// the owner and every due source. Returns after [`TimerQueue::stop`] or when
    /// the owner is gone.
    pub fn serve<O>(queue: &TimerQueue, owner: &Weak<O>, expire: impl Fn(&O, usize, Nanos)) {
        while !queue.stop.load(Ordering::SeqCst) {
            let now = queue.clock.now();
            for source in queue.take_due(now) {
                match owner.upgrade() {
                    Some(owner) => expire(&owner, source, now),
                    None => return,
                }
            }
            queue.sleep();
        }
    }

    /// Sleep until the earliest deadline or a change.
    fn sleep(&self) {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = self.arm();
        if self.stop.load(Ordering::SeqCst) {
            return;
        }
        // While the clock stands still no deadline comes nearer; `clock_started` ends the wait.
        if earliest == NEVER || self.clock.is_stopped() {
            drop(self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner));
            return;
        }
        let left = earliest.saturating_sub(self.clock.now());
        if left > 0 {
            drop(self.changed.wait_timeout(guard, Duration::from_nanos(left)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    struct Owner {
        queue: TimerQueue,
        fired: Mutex<Vec<(usize, Nanos)>>,
    }

    fn serve(owner: &Arc<Owner>) -> std::thread::JoinHandle<()> {
        let (weak, strong) = (Arc::downgrade(owner), owner.clone());
        std::thread::spawn(move || {
            TimerQueue::serve(&strong.queue, &weak, |o: &Owner, s, now| {
                o.fired.lock().unwrap().push((s, now))
            });
        })
    }

    #[test]
    fn deadlines_fire_in_order_and_never_early_even_when_brought_forward() {
        let owner =
            Arc::new(Owner { queue: TimerQueue::new(Clock::host(1_000_000), 3), fired: Mutex::default() });
        owner.queue.set(0, Some(3_600_000_000_000));
        let thread = serve(&owner);
        std::thread::sleep(Duration::from_millis(5));
        let now = owner.queue.clock.now();
        owner.queue.set(1, Some(now + 500_000_000));
        owner.queue.set(2, Some(now + 5_000_000));
        let start = Instant::now();
        while owner.fired.lock().unwrap().len() < 2 && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        owner.queue.stop();
        thread.join().unwrap();
        let fired = owner.fired.lock().unwrap();
        assert_eq!(fired.iter().map(|f| f.0).collect::<Vec<_>>(), [2, 1]);
        assert!(fired[0].1 >= now + 5_000_000 && fired[1].1 >= now + 500_000_000);
    }

    #[test]
    fn a_deadline_waits_while_the_clock_stands_still() {
        let owner =
            Arc::new(Owner { queue: TimerQueue::new(Clock::host(1_000_000), 1), fired: Mutex::default() });
        let clock = owner.queue.clock.clone();
        let thread = serve(&owner);
        let at = clock.now() + 20_000_000;
        owner.queue.set(0, Some(at));
        std::thread::sleep(Duration::from_millis(5));
        clock.stop();
        std::thread::sleep(Duration::from_millis(60));
        assert!(owner.fired.lock().unwrap().is_empty());
        clock.start();
        owner.queue.clock_started();
        let start = Instant::now();
        while owner.fired.lock().unwrap().is_empty() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        owner.queue.stop();
        thread.join().unwrap();
        let fired = owner.fired.lock().unwrap();
        assert!(matches!(fired[..], [(0, now)] if now >= at), "{fired:?}");
    }

    #[test]
    fn in_virtual_time_only_an_earlier_deadline_is_announced() {
        let queue = TimerQueue::new(Clock::virtual_time(1_000_000, 0), 2);
        let count = Arc::new(AtomicUsize::new(0));
        let c = count.clone();
        queue.on_sooner(Some(Box::new(move || {
            c.fetch_add(1, Ordering::SeqCst);
        })));
        queue.set(0, Some(1000));
        assert_eq!(count.swap(0, Ordering::SeqCst), 1);
        assert_eq!(queue.arm(), 1000);
        queue.set(1, Some(2000));
        assert_eq!(count.load(Ordering::SeqCst), 0);
        queue.set(1, Some(999));
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(queue.arm(), 999);
        assert_eq!(queue.take_due(999), [1]);
        assert!(queue.take_due(999).is_empty());
        assert_eq!(queue.arm(), 1000);
    }
}
