//! The one home of raw host system calls that no library wraps safely.

mod barrier;

pub use barrier::process_memory_barrier;
