//! Why a state is refused.

/// Why a state is refused. Nothing has been changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// A field holds what the device could never hold.
    #[error("saved state of {device}: {field} is {value:#x}, allowed is {allowed}; take the state anew")]
    OutOfRange {
        /// Device name.
        device: &'static str,
        /// Field name.
        field: &'static str,
        /// The value seen.
        value: u64,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// The stream is not a saved state at all.
    #[error("not a saved state: the first bytes are {seen:02x?}; give a file that was written by a snapshot")]
    NotAState {
        /// The bytes at its start.
        seen: Vec<u8>,
    },
    /// The stream ends early.
    #[error("saved state ends at byte {at}, inside {inside}; copy it again")]
    Truncated {
        /// Length of what there is.
        at: usize,
        /// What was being read.
        inside: &'static str,
    },
    /// A checksum does not match.
    #[error(
        "saved state is damaged in section {section:?}: checksum {computed:#010x}, stored {stored:#010x}; copy it again"
    )]
    Damaged {
        /// Section name, or `end` for the whole stream.
        section: String,
        /// Checksum of the bytes as they are.
        computed: u32,
        /// Checksum as stored.
        stored: u32,
    },
    /// A section is there twice, or a name is not text.
    #[error("saved state has a bad section name {name:?}; take the state anew")]
    BadName {
        /// The name, lossily decoded.
        name: String,
    },
    /// A needed section is missing.
    #[error("saved state has no section {section:?}; it was taken from a machine without this device")]
    Missing {
        /// Section name.
        section: String,
    },
    /// A section has a version this program does not read.
    #[error(
        "section {section:?} has version {seen}, this program reads {wanted}; use the program that wrote it"
    )]
    Version {
        /// Section name.
        section: String,
        /// The version stored.
        seen: u16,
        /// The version understood.
        wanted: u16,
    },
    /// Sections that nothing asked for.
    #[error(
        "saved state has sections that this machine does not know: {names:?}; restore into the same machine type"
    )]
    Unused {
        /// Their names.
        names: Vec<String>,
    },
    /// A section's contents do not decode, or cannot be encoded.
    #[error("section {section:?} does not decode ({cause}); take the state anew")]
    Contents {
        /// Section name.
        section: String,
        /// What the decoder said.
        cause: String,
    },
}

impl StateError {
    /// Refuse `value` unless `ok`.
    ///
    /// # Errors
    /// [`StateError::OutOfRange`] when not `ok`.
    pub fn check(
        ok: bool,
        device: &'static str,
        field: &'static str,
        value: impl Into<u64>,
        allowed: &'static str,
    ) -> Result<(), StateError> {
        match ok {
            true => Ok(()),
            false => Err(StateError::OutOfRange { device, field, value: value.into(), allowed }),
        }
    }
}
