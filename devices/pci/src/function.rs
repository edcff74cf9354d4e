//! What sits on a PCI bus.

use std::sync::Arc;

use crate::ConfigSpace;

/// A BAR of a function on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarId {
    /// Device number, 0-31.
    pub slot: u8,
    /// Function number, 0-7.
    pub function: u8,
    /// BAR, 0-5; a 64-bit one has the number of its lower half.
    pub bar: u8,
}

/// The BARs of a function that is reached without the bus's lock: several vCPUs at
/// once, while others access the bus. Implementations must not panic for any
/// offset, size or value.
pub trait BarAccess: Send + Sync {
    /// As [`PciFunction::bar_read`].
    fn read(&self, bar: u8, offset: u64, size: u8) -> u64;
    /// As [`PciFunction::bar_write`].
    fn write(&self, bar: u8, offset: u64, size: u8, value: u64);
}

/// One function. Implementations must not panic for any offset, size or value.
pub trait PciFunction: Send {
    /// Short stable name.
    fn name(&self) -> &'static str;
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;
    /// Its configuration space.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// Configuration read of 1, 2 or 4 bytes within a doubleword.
    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        self.config().read(offset, size)
    }
    /// Configuration write. Functions with registers of their own meaning look at them afterwards.
    fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        self.config_mut().write(offset, size, value);
    }
    /// Its BARs, if they can do without the bus's lock; then the two methods below
    /// are not called.
    fn bar_access(&self) -> Option<Arc<dyn BarAccess>> {
        None
    }
    /// Read from a BAR, `size` 1, 2, 4 or 8.
    fn bar_read(&mut self, _bar: u8, _offset: u64, _size: u8) -> u64 {
        u64::MAX
    }
    /// Write to a BAR.
    fn bar_write(&mut self, _bar: u8, _offset: u64, _size: u8, _value: u64) {}
    /// Return to the state after power-up, configuration space included.
    fn reset(&mut self);
}
