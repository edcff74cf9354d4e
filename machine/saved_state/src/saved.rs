//! What saves and restores.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{StateError, StateReader, StateWriter};

/// A thing whose volatile state can be taken as plain values and put back.
///
/// Implementations destructure every field by name, so that a new field cannot
/// be forgotten, and `restore` checks everything before it changes anything.
pub trait Saved {
    /// The plain values.
    type State: Serialize + DeserializeOwned;
    /// Version of `State`'s layout; raise it with every change of it.
    const VERSION: u16;

    /// Take the state.
    fn save(&self) -> Self::State;

    /// Put a state back.
    ///
    /// # Errors
    /// [`StateError`] naming the first value refused; nothing has changed then.
    fn restore(&mut self, state: &Self::State) -> Result<(), StateError>;
}

/// [`Saved`] as one section of a stream, usable as a trait object.
pub trait SavedSection {
    /// Append the state as section `name`.
    ///
    /// # Errors
    /// [`StateError::Contents`] when the state cannot be encoded, [`StateError::BadName`] for a name used before.
    fn save_section(&self, name: &str, to: &mut StateWriter) -> Result<(), StateError>;

    /// Restore from section `name`.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    fn restore_section(&mut self, name: &str, from: &mut StateReader<'_>) -> Result<(), StateError>;
}

impl<T: Saved> SavedSection for T {
    fn save_section(&self, name: &str, to: &mut StateWriter) -> Result<(), StateError> {
        to.section(name, T::VERSION, &self.save())
    }

    fn restore_section(&mut self, name: &str, from: &mut StateReader<'_>) -> Result<(), StateError> {
        let state = from.section(name, T::VERSION)?;
        self.restore(&state)
    }
}
