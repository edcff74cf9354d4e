//! The one home of raw host system calls that no library wraps safely.

mod barrier;
mod entropy;
pub mod file_lock;
mod heap;
mod program;
mod signals;
mod split_lock;
mod tap;
mod terminal;
mod thread;
mod time_stamp;
mod vectored;

pub use barrier::process_memory_barrier;
pub use entropy::entropy;
pub use heap::{release_free_memory, return_large_allocations};
pub use program::release_program;
pub use signals::{SessionSignals, TerminationSignals};
pub use split_lock::split_locks_are_fatal;
pub use tap::{TUNSETOFFLOAD, TUNSETQUEUE, attach_tap, join_bridge, set_tap_offloads, set_tap_queue};
pub use terminal::{RawTerminal, restore as restore_terminal};
pub use thread::set_thread_timer_slack;
pub use time_stamp::{FRACTION as TIME_STAMP_FRACTION, TimeStampCounter};
pub use vectored::{MAX_PIECES, RawPiece, Transfer, transfer};
