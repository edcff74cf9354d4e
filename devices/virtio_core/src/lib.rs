//! Virtio 1.2: what every virtio device is written against.
//!
//! A device implements [`VirtioDevice`]; a transport owns it, speaks the driver's
//! register language and hands it its [`Queue`]s when the driver is ready. A
//! queue gives out [`Chain`]s whose every piece is known to be guest RAM.
//!
//! | module | what |
//! | --- | --- |
//! | `device` | the device trait and what it gets |
//! | `queue` | split and packed rings, the device's side |
//! | `chain` | one buffer; reading and writing it |
//! | `interrupt` | how a device speaks up |
//! | `worker` | a device's thread |
//! | `registers` | status, features and queue set-up, whatever the transport |
//! | `front` | what both transports share: doorbells, the owner's handle |
//! | `virtio_pci`, `virtio_mmio` | the transports |
//! | `mock` | a driver for tests (feature `mock`) |
//!
//! Own queues, because rust-vmm's `virtio-queue` has no packed ring and wants
//! `vm-memory`'s traits, behind which writes would miss the marks of pages whose
//! code is cached.
//!
//! A driver that breaks the rules never harms more than itself: every descriptor
//! is read once and judged once, every size has a cap below, and what is wrong
//! sets DEVICE_NEEDS_RESET ([`RingError`]).

mod chain;
mod device;
mod error;
pub mod features;
mod front;
mod interrupt;
#[cfg(feature = "mock")]
pub mod mock;
mod queue;
mod registers;
mod virtio_mmio;
mod virtio_pci;
mod worker;

pub use chain::{Chain, Piece, Reader, TooShort, Writer};
pub use device::{ActivateError, Activation, DeviceType, VirtioDevice, read_config};
pub use error::RingError;
pub use front::{VirtioHandle, VirtioState};
pub use interrupt::{Interrupt, InterruptSink};
pub use queue::{Position, Queue, QueueAddresses, QueueConfig};
pub use registers::{RegistersState, status};
pub use virtio_mmio::{VirtioMmio, VirtioMmioConfig};
pub use virtio_pci::{VirtioPci, VirtioPciConfig};
pub use worker::{Doorbell, Handler, MAX_WORKER_QUEUES, Worker};

/// Largest queue, in descriptors: what drivers ask for and what bounds a chain.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// Most queues of a device: a network card with 64 pairs, one control queue, and room.
pub const MAX_QUEUES: u16 = 255;
/// Most descriptors of a chain, indirect tables included. Linux makes indirect
/// tables longer than the queue, so the queue's size is no bound.
pub const MAX_CHAIN_DESCRIPTORS: u16 = 1024;
/// Most bytes of a chain (2.7.5.2: less than 2^32).
pub const MAX_CHAIN_BYTES: u64 = u32::MAX as u64;
