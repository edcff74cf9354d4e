//! The driver's side, for tests of devices and of the queues themselves.
//!
//! [`Bench`] holds a device, guest memory and a [`DriverQueue`] for each of the
//! device's queues. It is written against the standard and shares no code with
//! the device's side.

mod bench;
mod driver;
mod interrupts;

pub use bench::{Bench, BenchConfig, Response};
pub use driver::{DriverQueue, Wish};
pub use interrupts::SeenInterrupts;
