//! An NVMe controller (NVM Express 1.4) with one namespace on a [`disk::Disk`].
//!
//! [`Nvme`] is a PCI function. Its registers and the admin queue are served on the
//! vCPU's thread that touches them; each I/O submission queue has a thread of its
//! own, which executes all its commands: the vCPU goes on meanwhile, and one
//! interrupt tells of several.
//!
//! | module | what |
//! | --- | --- |
//! | `spec` | numbers of the standard |
//! | `function` | PCI function: configuration space, BAR, registers |
//! | `controller` | enable, disable, doorbells, the admin queue |
//! | `admin`, `identify`, `events` | admin commands |
//! | `submission`, `completion` | queues |
//! | `io` | I/O commands |
//! | `overlap` | several of a queue at once, where the disk can |
//! | `prp` | where a command's data are |
//! | `interrupts` | MSI-X from any thread |
//! | `saved` | standing still, saved state |
//!
//! A command for which the host has no room stays in its queue; the machine's owner,
//! who is told, makes the controller stand still and go on.
//!
//! Left out: scatter-gather lists, several namespaces, namespace management,
//! firmware, protection information, controller memory buffers. A driver that
//! breaks the rules gets a status, or a controller in fatal state until it resets
//! it; every size has a cap below.
//!
//! Lock order: function (the bus) · submission queue · completion queue · MSI-X.

mod admin;
mod command;
mod completion;
mod controller;
mod events;
mod function;
mod identify;
mod interrupts;
mod io;
mod overlap;
mod prp;
mod saved;
mod spec;
mod submission;

pub use function::{Nvme, NvmeConfig};
pub use saved::{NvmeHandle, NvmeState};

/// Most I/O submission queues, and as many completion queues: one a vCPU up to
/// here, with a thread for each.
pub const MAX_IO_QUEUES: u16 = 16;
/// Most entries of a queue.
pub const MAX_QUEUE_ENTRIES: u16 = 1024;
/// Most bytes of a command's data, as a power of two of pages (MDTS): 1 MiB.
pub const MAX_TRANSFER_LOG2_PAGES: u8 = 8;
/// Most asynchronous event requests that wait.
pub const MAX_EVENT_REQUESTS: usize = 4;
/// Most ranges of a dataset management command (the standard's own).
pub const MAX_RANGES: usize = 256;
