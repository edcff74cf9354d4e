//! Feature bits that belong to queues and transports (virtio 1.2, section 6).

/// A descriptor may name a table of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Each side says at which index it wants to hear from the other.
pub const EVENT_IDX: u64 = 1 << 29;
/// The device is not a legacy one; drivers must accept it.
pub const VERSION_1: u64 = 1 << 32;
/// The packed ring format.
pub const RING_PACKED: u64 = 1 << 34;

/// What the core offers for every device.
pub const CORE: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_PACKED;
