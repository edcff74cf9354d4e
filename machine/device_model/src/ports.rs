//! Where a device's ports lie.

/// A range of I/O ports that a device decodes. A chip whose ports lie apart
/// lists several; each has its own place in the device's offset space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub base: u16,
    /// Count of ports.
    pub len: u16,
    /// Offset that [`crate::PortIo`] gets for an access to `base`; an access to
    /// `base + n` gets `offset + n`. An access belongs to the range of its first byte.
    pub offset: u16,
}

impl PortRange {
    /// `len` ports from `base`, seen by the device from `offset` on.
    pub const fn new(base: u16, len: u16, offset: u16) -> Self {
        PortRange { base, len, offset }
    }
}
