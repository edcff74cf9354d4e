//! What a driver can do wrong with a queue.

/// A ring or a descriptor that breaks the standard. The device needs a reset
/// then (virtio 1.2, 2.1.2): its queues stay silent until the driver does one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// A size the format does not allow.
    #[error("queue of {0} descriptors; a split queue has a power of two, both at most {max}", max = crate::MAX_QUEUE_SIZE)]
    Size(u16),
    /// Part of the ring is not where memory is, or is not aligned.
    #[error("the {part} at {address:#x}+{len:#x} is not all aligned, writable memory")]
    Place {
        /// Which part.
        part: &'static str,
        /// Its guest-physical address.
        address: u64,
        /// Its bytes.
        len: u64,
    },
    /// More buffers are available than fit.
    #[error("available index {index} is more than a queue size beyond {expected}")]
    Available {
        /// The index seen.
        index: u16,
        /// The next one to take.
        expected: u16,
    },
    /// A descriptor that does not exist.
    #[error("descriptor {index} of a table of {len}")]
    Index {
        /// The index seen.
        index: u16,
        /// Entries of the table.
        len: u32,
    },
    /// A chain that is longer than its table, hence a loop, or beyond the cap.
    #[error("a chain of more than {0} descriptors; it has a loop or is not for this queue")]
    TooLong(u32),
    /// A chain of more bytes than the standard allows.
    #[error("a chain of more than {max} bytes", max = crate::MAX_CHAIN_BYTES)]
    TooManyBytes,
    /// A buffer that is not memory, or a writable one that is read-only memory.
    #[error("a buffer at {address:#x}+{len:#x} that is not memory the device may use so")]
    Buffer {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A readable buffer behind a writable one (2.7.4.2).
    #[error("a readable buffer behind a writable one at {0:#x}")]
    Order(u64),
    /// An indirect table that is misplaced, nested or of a bad length (2.7.5.3).
    #[error(
        "an indirect table at {address:#x}+{len:#x} that is nested, chained on, not negotiated or no table"
    )]
    Indirect {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// Buffers offered again that the device still has.
    #[error("more than {0} buffers at a time, all there are in the ring: some are with the device already")]
    Taken(u16),
    /// A saved position that this queue could not have had.
    #[error("a queue position of {0} outside the ring")]
    Position(u16),
}
