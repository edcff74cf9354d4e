//! Threads that store to guest RAM without a look at its marks.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::PageMarks;

/// One thread's translated code.
pub struct DirectWriter {
    /// 0 while it does not run, else one more than the number of events it had
    /// acted on when it began.
    running: AtomicU64,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl DirectWriter {
    /// Translated code is about to run, and has acted on the first `seen` events.
    /// False: there are newer ones; act on them first.
    ///
    /// Order against whoever records an event and then looks at `running`: either it
    /// sees this thread running, and wakes it, or this thread sees the event. The exchange
    /// is some 20 cycles of an entry's hundreds; a barrier in all threads would be one
    /// system call for each change of code.
    #[inline(always)]
    #[must_use]
    pub fn begin(&self, marks: &PageMarks, seen: u64) -> bool {
        self.running.swap(seen + 1, Ordering::SeqCst);
        if marks.event_count() == seen {
            return true;
        }
        self.end();
        false
    }

    /// Translated code has stopped.
    #[inline(always)]
    pub fn end(&self) {
        self.running.store(0, Ordering::Release);
    }
}

/// Every direct writer of one memory.
#[derive(Default)]
pub(crate) struct Writers {
    list: Mutex<Vec<Weak<DirectWriter>>>,
    /// Length of the list: most machines have none, and then nobody locks.
    count: AtomicUsize,
}

impl Writers {
    pub fn add(&self, wake: Box<dyn Fn() + Send + Sync>) -> Arc<DirectWriter> {
        let writer = Arc::new(DirectWriter { running: AtomicU64::new(0), wake });
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|w| w.strong_count() > 0);
        list.push(Arc::downgrade(&writer));
        self.count.store(list.len(), Ordering::SeqCst);
        writer
    }

    fn running(&self) -> Vec<Arc<DirectWriter>> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().filter_map(Weak::upgrade).filter(|w| w.running.load(Ordering::SeqCst) != 0).collect()
    }

    /// Make every running writer look at the events soon.
    pub fn wake(&self) {
        self.running().iter().for_each(|w| (w.wake)());
    }

    /// Wait until no writer runs that has not acted on the first `events` events.
    /// Never called by a running writer.
    pub fn wait_for(&self, events: u64) {
        for w in self.running() {
            (w.wake)();
            let mut turns = 0u32;
            while (1..=events).contains(&w.running.load(Ordering::Acquire)) {
                turns = turns.saturating_add(1);
                if turns < 200 { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32};

    use super::*;
    use crate::{CodeEvent, GuestMemory, RamOffset};

    #[test]
    fn a_marker_waits_until_running_writers_have_heard_of_it() {
        let memory = GuestMemory::flat(0x10000).unwrap();
        let token = Arc::new(AtomicU32::new(1));
        let done = Arc::new(AtomicBool::new(false));
        let wake = token.clone();
        let writer = memory.marks().add_writer(move || wake.store(0, Ordering::SeqCst));
        // A direct writer that stores to page 2 until it hears that it must not.
        let thread = std::thread::spawn({
            let (memory, done) = (memory.clone(), done.clone());
            move || {
                let (mut seen, mut allowed, mut stores) = (0, true, 0u64);
                while !done.load(Ordering::SeqCst) {
                    token.store(1, Ordering::SeqCst);
                    if !writer.begin(memory.marks(), seen) {
                        for e in memory.marks().events_since(seen).unwrap() {
                            allowed &= e != CodeEvent::Marked(2);
                            seen += 1;
                        }
                        continue;
                    }
                    while token.load(Ordering::Acquire) != 0 && !done.load(Ordering::SeqCst) {
                        if allowed {
                            stores += 1;
                            memory.write(RamOffset(0x2ff8), stores);
                        }
                    }
                    writer.end();
                }
                stores
            }
        });
        while memory.read::<u64>(RamOffset(0x2ff8)) == 0 {
            std::hint::spin_loop();
        }
        memory.marks().mark_code(RamOffset(0x2000), 64);
        let now = memory.read::<u64>(RamOffset(0x2ff8));
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(memory.read::<u64>(RamOffset(0x2ff8)), now, "no store after the mark");
        done.store(true, Ordering::SeqCst);
        assert_eq!(thread.join().unwrap(), now);
    }

    /// A thread that changes code and then says so: who hears of it in translated code
    /// has been woken, or has begun after the change was recorded.
    #[test]
    fn a_change_of_code_wakes_before_what_follows_it() {
        const ROUNDS: u64 = 20_000;
        const PAGES: u64 = 512;
        let memory = GuestMemory::flat(PAGES * 0x1000).unwrap();
        let marks = memory.marks();
        let token = Arc::new(AtomicU32::new(1));
        let wake = token.clone();
        let writer = marks.add_writer(move || wake.store(0, Ordering::SeqCst));
        let (said, heard) = (AtomicU64::new(0), AtomicU64::new(0));
        // What the thread has stored before it begins is still on its way.
        let elsewhere: Vec<AtomicU64> = (0..1 << 21).map(|_| AtomicU64::new(0)).collect();
        let missed = std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    let page = round % PAGES;
                    if page == 1 {
                        for p in 0..PAGES {
                            marks.mark_code(RamOffset(p * 0x1000), 64);
                        }
                    }
                    memory.write(RamOffset(page * 0x1000), round);
                    said.store(round, Ordering::Release);
                    while heard.load(Ordering::Acquire) < round {
                        std::hint::spin_loop();
                    }
                }
            });
            let (mut missed, mut place) = (0, 0usize);
            for round in 1..=ROUNDS {
                let mut hears = false;
                while !hears {
                    token.store(1, Ordering::SeqCst);
                    let seen = marks.event_count();
                    for _ in 0..4 {
                        place = place.wrapping_mul(0x5851_f42d).wrapping_add(12345);
                        elsewhere[place >> 3 & 0x1f_ffff].store(round, Ordering::Relaxed);
                    }
                    if !writer.begin(marks, seen) {
                        continue;
                    }
                    for _ in 0..100 {
                        hears |= said.load(Ordering::Acquire) == round;
                        if hears {
                            let woken = token.load(Ordering::Acquire) == 0;
                            missed += u64::from(!woken && marks.event_count() != seen);
                            break;
                        }
                    }
                    writer.end();
                }
                heard.store(round, Ordering::Release);
            }
            missed
        });
        assert_eq!(missed, 0, "of {ROUNDS} changes");
    }

    #[test]
    fn a_dropped_writer_is_not_waited_for() {
        let memory = GuestMemory::flat(0x10000).unwrap();
        let writer = memory.marks().add_writer(|| ());
        assert!(writer.begin(memory.marks(), 0));
        drop(writer);
        memory.marks().mark_code(RamOffset(0x2000), 64);
    }
}
