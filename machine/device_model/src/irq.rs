//! Interrupt lines and messages.

use std::sync::Arc;

/// Where interrupt lines end: an interrupt controller, or a router in front.
///
/// Implementations must not block for long and must not call devices.
pub trait IrqSink: Send + Sync {
    /// The level of input `line` is now `asserted` (true = active, whatever the polarity).
    fn set_level(&self, line: u32, asserted: bool);
}

/// One wire from a device to an interrupt controller input.
#[derive(Clone)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    line: u32,
}

impl IrqLine {
    /// Wire to input `line` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, line: u32) -> Self {
        IrqLine { sink, line }
    }
    /// A wire to nowhere.
    pub fn unconnected() -> Self {
        struct Nowhere;
        impl IrqSink for Nowhere {
            fn set_level(&self, _: u32, _: bool) {}
        }
        IrqLine::new(Arc::new(Nowhere), 0)
    }
    /// Drive the wire.
    pub fn set(&self, asserted: bool) {
        self.sink.set_level(self.line, asserted);
    }
    /// An edge: assert, then release.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A message-signalled interrupt as written to the bus (SDM volume 3, 12.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address, 0xfeexxxxx for interrupts.
    pub address: u64,
    /// Data: vector, delivery mode, level, trigger.
    pub data: u32,
}

/// Receives message-signalled interrupts: the local APICs.
pub trait MsiSink: Send + Sync {
    /// Deliver one message.
    fn send_msi(&self, message: MsiMessage);
}
