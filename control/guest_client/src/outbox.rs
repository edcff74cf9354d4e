//! What is on its way to a command: one thread writes it, so that nobody who sends
//! a signal waits for a guest that does not read.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Signals and sizes that may wait; more are somebody leaning on a key.
const WAITING: usize = 16;

/// Frames to be sent: input waits for its place, signals do not wait and go first.
#[derive(Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    signals: VecDeque<Vec<u8>>,
    input: Option<Vec<u8>>,
    closed: bool,
}

impl State {
    fn next(&mut self) -> Option<Vec<u8>> {
        self.signals.pop_front().or_else(|| self.input.take())
    }
}

/// Why a frame is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotTaken {
    /// Those before it are still here.
    Full,
    /// The connection is gone.
    Closed,
}

impl Outbox {
    /// Send this next, without waiting.
    pub(crate) fn signal(&self, frame: Vec<u8>) -> Result<(), NotTaken> {
        let mut state = self.lock();
        if state.closed {
            return Err(NotTaken::Closed);
        }
        if state.signals.len() >= WAITING {
            return Err(NotTaken::Full);
        }
        state.signals.push_back(frame);
        self.changed.notify_all();
        Ok(())
    }

    /// Send this in its turn; waits until the input before it is on its way.
    pub(crate) fn input(&self, frame: Vec<u8>) -> Result<(), NotTaken> {
        let waiting = self.changed.wait_while(self.lock(), |s| s.input.is_some() && !s.closed);
        let mut state = waiting.unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(NotTaken::Closed);
        }
        state.input = Some(frame);
        self.changed.notify_all();
        Ok(())
    }

    /// Take nothing more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Write what comes until it is closed or cannot be written.
    pub(crate) fn carry(&self, mut to: impl Write) {
        loop {
            let idle = |s: &mut State| s.signals.is_empty() && s.input.is_none() && !s.closed;
            let waiting = self.changed.wait_while(self.lock(), idle);
            let mut state = waiting.unwrap_or_else(PoisonError::into_inner);
            let next = if state.closed { None } else { state.next() };
            drop(state);
            self.changed.notify_all();
            // Why it cannot be written, the thread that receives tells.
            if next.is_none_or(|frame| to.write_all(&frame).is_err()) {
                return self.close();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_first_and_never_wait() {
        let outbox = Outbox::default();
        outbox.input(vec![b'i']).unwrap();
        for number in 0..WAITING as u8 {
            outbox.signal(vec![number]).unwrap();
        }
        assert_eq!(outbox.signal(vec![99]), Err(NotTaken::Full));
        let mut sent = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| outbox.carry(&mut sent));
            // Taken once the first input is on its way, and then sent or not.
            outbox.input(vec![b'j']).unwrap();
            outbox.close();
        });
        assert!(sent.starts_with(&[0, 1, 2]) && sent.contains(&b'i'), "{sent:?}");
        assert_eq!(outbox.signal(vec![0]), Err(NotTaken::Closed));
        assert_eq!(outbox.input(vec![0]), Err(NotTaken::Closed));
    }
}
