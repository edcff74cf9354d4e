//! Where vCPU threads wait while their machine is not running.

use std::sync::{Condvar, Mutex, PoisonError};

/// What the threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Execute the guest.
    Run,
    /// Stand at the gate.
    Park,
    /// End the thread.
    Quit,
}

#[derive(Debug)]
struct State {
    order: Order,
    parked: usize,
    /// Threads that have ended and will not come any more.
    ended: usize,
}

/// A gate that threads pass only while the order is to run.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// A closed gate.
    pub(crate) fn new() -> Self {
        Gate { state: Mutex::new(State { order: Order::Park, parked: 0, ended: 0 }), changed: Condvar::new() }
    }

    /// Called by a vCPU thread between two runs; false means: end.
    pub(crate) fn pass(&self) -> bool {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if s.order == Order::Run {
            return true;
        }
        s.parked += 1;
        self.changed.notify_all();
        while s.order == Order::Park {
            s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        s.parked -= 1;
        s.order == Order::Run
    }

    /// Whether threads are to come back to the gate.
    pub(crate) fn closed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).order != Order::Run
    }

    /// Give an order. The caller makes running threads come to the gate.
    pub(crate) fn order(&self, order: Order) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).order = order;
        self.changed.notify_all();
    }

    /// A thread ends, whatever for: nobody need wait for it.
    pub(crate) fn thread_ended(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended += 1;
        self.changed.notify_all();
    }

    /// Whether a thread has ended, which none does before it is told to.
    pub(crate) fn has_lost_threads(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended > 0
    }

    /// Wait until those of `threads` threads that have not ended stand at the gate.
    pub(crate) fn wait_parked(&self, threads: usize) {
        let mut s = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while s.parked + s.ended < threads {
            s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    #[test]
    fn parked_threads_do_nothing_until_told() {
        let gate = Arc::new(Gate::new());
        let (passes, come) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (gate, passes, come) = (gate.clone(), passes.clone(), come.clone());
                std::thread::spawn(move || {
                    while gate.pass() {
                        passes.fetch_add(1, Ordering::SeqCst);
                        while !come.load(Ordering::SeqCst) {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        gate.wait_parked(3);
        assert_eq!(passes.load(Ordering::SeqCst), 0);
        gate.order(Order::Run);
        while passes.load(Ordering::SeqCst) < 3 {
            std::thread::yield_now();
        }
        gate.order(Order::Park);
        come.store(true, Ordering::SeqCst);
        gate.wait_parked(3);
        let before = passes.load(Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert_eq!(passes.load(Ordering::SeqCst), before);
        gate.order(Order::Quit);
        threads.into_iter().for_each(|t| t.join().unwrap());
    }

    #[test]
    fn threads_that_have_ended_are_not_waited_for() {
        let gate = Arc::new(Gate::new());
        let thread = |ends: bool| {
            let gate = gate.clone();
            std::thread::spawn(move || {
                if ends {
                    gate.thread_ended();
                } else {
                    gate.pass();
                }
            })
        };
        assert!(!gate.has_lost_threads());
        let threads = [thread(false), thread(true)];
        gate.wait_parked(2);
        assert!(gate.has_lost_threads());
        gate.order(Order::Quit);
        threads.into_iter().for_each(|t| t.join().unwrap());
    }
}
