//! Disks for the tests of devices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use guest_memory::GuestMemory;

use crate::{Disk, DiskError, Geometry, Transfer, Transfers};

/// A disk that has no room as long as it is told so.
pub struct FullDisk {
    /// What it is when it has room.
    pub disk: Arc<dyn Disk>,
    /// It has none.
    pub is_full: AtomicBool,
    /// Execute several at once, the last first.
    pub overlaps: bool,
}

impl FullDisk {
    fn check(&self) -> Result<(), DiskError> {
        if self.is_full.load(Ordering::SeqCst) { Err(DiskError::NoSpace) } else { Ok(()) }
    }
}

impl Disk for FullDisk {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read(offset, to)
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), DiskError> {
        self.check()?;
        self.disk.write(offset, from)
    }
    fn overlaps(&self) -> bool {
        self.overlaps
    }
    fn transfer_all(&self, memory: &GuestMemory, transfers: &mut dyn Transfers) {
        let taken: Vec<Transfer> = std::iter::from_fn(|| transfers.next()).collect();
        let execute = |t: &Transfer| match t.write {
            true => self.write_guest(t.offset, memory, &t.segments),
            false => self.read_guest(t.offset, memory, &t.segments),
        };
        let results: Vec<_> = taken.iter().rev().map(execute).collect();
        for (transfer, result) in taken.iter().zip(results.into_iter().rev()) {
            if matches!(result, Err(DiskError::NoSpace)) && transfers.holds() {
                break;
            }
            transfers.done(transfer.tag, result);
        }
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.check()?;
        self.disk.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.disk.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check()?;
        self.disk.write_zeroes(offset, len, unmap)
    }
}
