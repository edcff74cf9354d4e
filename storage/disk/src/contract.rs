//! What a disk does.

use std::sync::Arc;

use guest_memory::{GuestMemory, RamOffset};
use serde::{Deserialize, Serialize};

use crate::{DiskError, Transfers, bounce, overlap};

/// A run of guest memory: where it begins and its bytes.
pub type Segment = (RamOffset, usize);

/// Called after a disk's size has changed. It must not call the disk.
pub type ResizeListener = Box<dyn Fn() + Send + Sync>;

/// Called by a device when a request of its driver waits for room on the host
/// ([`DiskError::NoSpace`]): the device holds the request, and all behind it in its
/// queue, until it is made to stand still and go on. It must not call the device.
pub type FullListener = Arc<dyn Fn() + Send + Sync>;

/// A disk's size and units, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Capacity, a whole number of logical blocks.
    pub size: u64,
    /// Unit of every access: a power of two from 512.
    pub logical_block: u32,
    /// What is written without a read before it: a power of two, not below `logical_block`.
    pub physical_block: u32,
    /// What [`Disk::discard`] can give back: a multiple of `logical_block`.
    pub discard_unit: u32,
}

impl Geometry {
    /// Refuse a range that is not whole blocks of this disk.
    ///
    /// # Errors
    /// [`DiskError::Misaligned`], [`DiskError::OutOfRange`].
    pub fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let block = u64::from(self.logical_block);
        if offset % block != 0 || len % block != 0 {
            return Err(DiskError::Misaligned { offset, len, block: self.logical_block });
        }
        if offset > self.size || len > self.size - offset {
            return Err(DiskError::OutOfRange { offset, len, size: self.size });
        }
        Ok(())
    }
}

/// How much the host keeps in its own memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// The host caches; a flush writes to the medium.
    #[default]
    Writeback,
    /// The host does not cache (`O_DIRECT`); a flush writes to the medium.
    Direct,
    /// The host caches; a flush does nothing. For disks that are thrown away.
    Unsafe,
}

/// Bytes in segments.
pub fn total_len(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| s.1 as u64).sum()
}

/// A disk.
///
/// Callers give whole logical blocks, keep segments inside guest memory, and may
/// call from any thread at any time; accesses to the same blocks at the same time
/// leave either's bytes, block by block. Implementations check ranges themselves
/// (the guest chooses them), must not panic for any, and change nothing when they
/// refuse with [`DiskError::Misaligned`], [`DiskError::OutOfRange`] or
/// [`DiskError::ReadOnly`].
pub trait Disk: Send + Sync {
    /// Size and units. The size changes by [`Disk::resize`] only.
    fn geometry(&self) -> Geometry;

    /// Whether every change is refused.
    fn read_only(&self) -> bool;

    /// Read whole blocks.
    ///
    /// # Errors
    /// [`DiskError`].
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DiskError>;

    /// Write whole blocks. Not durable before a [`Disk::flush`].
    ///
    /// # Errors
    /// [`DiskError`]; any part may have been written.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), DiskError>;

    /// As [`Disk::read`], into guest memory.
    ///
    /// # Errors
    /// [`DiskError`].
    fn read_guest(&self, offset: u64, memory: &GuestMemory, to: &[Segment]) -> Result<(), DiskError> {
        bounce::read(self, offset, memory, to)
    }

    /// As [`Disk::write`], from guest memory.
    ///
    /// # Errors
    /// As [`Disk::write`].
    fn write_guest(&self, offset: u64, memory: &GuestMemory, from: &[Segment]) -> Result<(), DiskError> {
        bounce::write(self, offset, memory, from)
    }

    /// Whether [`Disk::transfer_all`] gains anything.
    fn overlaps(&self) -> bool {
        false
    }

    /// Do a queue's reads and writes, several at once where the disk can, until it has
    /// none and all are done. A queue that holds a write without room is left with
    /// that write and all taken after it not done: they are to be executed again.
    fn transfer_all(&self, memory: &GuestMemory, transfers: &mut dyn Transfers) {
        overlap::serial(self, memory, transfers);
    }

    /// How many bytes from `offset` are known to be zeroes without reading them, up
    /// to `most`. 0: that is not known. Copies ask it, so that a large disk with
    /// little in it is copied as fast as a small one. `steps`: the look-ups this may
    /// still take, in all layers below too; each is counted off.
    ///
    /// # Errors
    /// [`DiskError`].
    fn known_zeroes(&self, offset: u64, most: u64, steps: &mut u32) -> Result<u64, DiskError> {
        let _ = (offset, most, steps);
        Ok(0)
    }

    /// Make everything written so far durable.
    ///
    /// # Errors
    /// [`DiskError::Io`], [`DiskError::NoSpace`]: nothing is known of what was written.
    fn flush(&self) -> Result<(), DiskError>;

    /// The contents of these blocks no longer matter: give back what keeps them, as
    /// far as that is possible. They read as before or as zeroes.
    ///
    /// # Errors
    /// [`DiskError`].
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// Make these blocks read as zeroes. `unmap`: what keeps them may be given back.
    ///
    /// # Errors
    /// [`DiskError`].
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError>;

    /// Change the size, in bytes. Listeners are called before this returns.
    ///
    /// # Errors
    /// [`DiskError::CannotResize`] where the kind of disk cannot, or the size is not
    /// whole blocks.
    fn resize(&self, size: u64) -> Result<(), DiskError> {
        Err(DiskError::CannotResize { size, why: "this kind of disk has a fixed size" })
    }

    /// Bytes that what keeps the disk may still grow by on the host. `None`: nobody
    /// knows, or it does not grow.
    fn room(&self) -> Option<u64> {
        None
    }

    /// Call this after each change of size, for as long as the disk lives.
    fn on_resize(&self, listener: ResizeListener) {
        drop(listener);
    }
}
