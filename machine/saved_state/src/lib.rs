//! Versioned, engine-neutral saved state.
//!
//! [`Saved`] is what a device implements: plain values out, checked values in.
//! [`StateWriter`] and [`StateReader`] put such values into named, versioned,
//! checksummed sections of one byte stream. A reader checks the whole stream
//! before it gives out the first value, so nothing is restored from damage.

mod error;
mod saved;
mod stream;

pub use error::StateError;
pub use saved::{Saved, SavedSection};
pub use stream::{StateReader, StateWriter};
