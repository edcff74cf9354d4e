//! What a device is, as small facets; no code that acts on a machine.
//!
//! A chip knows offsets, interrupt lines, a clock reading and a sink. It never
//! knows the machine, another device or the engine. The board owns every
//! device behind one lock, routes accesses to it, asks after each access when
//! its next deadline is, and calls [`Timed::expire`] then.
//!
//! Lock order, outermost first: device, interrupt controller (PIC, IOAPIC),
//! local APIC. A device may change its [`IrqLine`]s and send [`MsiMessage`]s
//! while it is locked; sinks must never call back into a device.

mod clock;
mod irq;
mod ports;

pub use clock::{Clock, Nanos, TscOfHost};
pub use irq::{IrqLine, IrqSink, MsiMessage, MsiSink};
pub use ports::PortRange;

/// Port I/O facet. `offset` counts from the base of the range the device was
/// attached at; `size` is 1, 2 or 4 bytes.
///
/// Implementations must not panic for any offset, size or value; accesses a
/// chip does not decode read as all ones and write nothing.
pub trait PortIo {
    /// Read `size` bytes, in the low bits of the result.
    fn port_read(&mut self, offset: u16, size: u8) -> u32;
    /// Write the low `size` bytes of `value`.
    fn port_write(&mut self, offset: u16, size: u8, value: u32);
}

/// Memory-mapped I/O facet. `size` is 1, 2, 4 or 8 bytes and an access never
/// crosses its natural alignment. Same contract as [`PortIo`].
pub trait Mmio {
    /// Read `size` bytes, in the low bits of the result.
    fn mmio_read(&mut self, offset: u64, size: u8) -> u64;
    /// Write the low `size` bytes of `value`.
    fn mmio_write(&mut self, offset: u64, size: u8, value: u64);
}

/// A device that acts at a time of its own.
pub trait Timed {
    /// When [`Timed::expire`] wants to be called next, in guest nanoseconds.
    fn next_deadline(&self) -> Option<Nanos>;
    /// The clock has reached the deadline. `now` may be later, never earlier.
    fn expire(&mut self, now: Nanos);
}

/// A device. Every facet is optional.
pub trait Device: Send {
    /// Short stable name, for logs, saved state and statistics.
    fn name(&self) -> &'static str;
    /// Return to the state after power-up.
    fn reset(&mut self);
    /// Port I/O, if the device has any.
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        None
    }
    /// Memory-mapped I/O, if the device has any.
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        None
    }
    /// Timers, if the device has any.
    fn timed(&mut self) -> Option<&mut dyn Timed> {
        None
    }
}
