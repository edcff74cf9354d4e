//! What a front end is told while a guest is prepared.

/// A front end's view of the work. All methods have a default that does nothing.
pub trait Progress {
    /// A new step has begun.
    fn phase(&self, _text: &str) {}
    /// Step `number` of `of` has begun, counted from 0; `number == of`: all are done.
    fn step(&self, number: usize, of: usize, text: &str) {
        if number < of {
            self.phase(text);
        }
    }
    /// `done` of `total` bytes of the current download are here.
    fn bytes(&self, _done: u64, _total: u64) {}
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {}
