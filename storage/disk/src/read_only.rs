//! Disks of images that are only read, by way of a map of their blocks.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::{Disk, DiskError, Geometry};

/// The unit guests know.
const SECTOR: u32 = 512;
/// Most blocks that one look for zeroes passes: what a caller waits for.
const MOST_STEPS: usize = 4096;

/// Where bytes of a disk are.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// They are zeroes.
    Zeroes,
    /// In a file, which must have them: an image cut short is told, not made up.
    File {
        /// The file.
        file: &'a File,
        /// Where they begin in it.
        at: u64,
    },
    /// In a disk below, at the same offset; what is beyond its end is zeroes.
    Below(&'a dyn Disk),
    /// Packed: [`BlockMap::unpack`] gives them.
    Packed,
}

/// What an image's tables tell. Offsets are whole sectors below the size; they are
/// not trusted, and neither is what the tables say.
pub trait BlockMap: Send + Sync {
    /// Capacity in bytes, whole sectors.
    fn size(&self) -> u64;

    /// Where the bytes from `offset` are, and how many are there: at least a sector,
    /// up to any number, also beyond the disk's end.
    ///
    /// # Errors
    /// [`DiskError::Damaged`], and when the host cannot read.
    fn locate(&self, offset: u64) -> Result<(Place<'_>, u64), DiskError>;

    /// Give bytes that are [`Place::Packed`], no more than `locate` told.
    ///
    /// # Errors
    /// As [`BlockMap::locate`].
    fn unpack(&self, offset: u64, to: &mut [u8]) -> Result<(), DiskError> {
        let _ = to;
        Err(DiskError::Damaged(format!("packed data at {offset:#x}")))
    }
}

/// A disk of a map.
pub struct ReadOnlyDisk<M> {
    map: M,
}

impl<M: BlockMap> ReadOnlyDisk<M> {
    /// A disk whose blocks are where the map says.
    pub fn new(map: M) -> Self {
        ReadOnlyDisk { map }
    }

    /// Its map.
    pub fn map(&self) -> &M {
        &self.map
    }
}

/// The bytes of a file, all of them.
fn read_file(file: &File, at: u64, to: &mut [u8]) -> Result<(), DiskError> {
    let told = || DiskError::Damaged(format!("it ends before the data at {at:#x} that its tables name"));
    // The host's offsets are signed.
    if at > i64::MAX as u64 - to.len() as u64 {
        return Err(told());
    }
    file.read_exact_at(to, at).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => told(),
        _ => e.into(),
    })
}

/// The bytes of a disk, and zeroes beyond its end.
fn read_below(disk: &dyn Disk, offset: u64, to: &mut [u8]) -> Result<(), DiskError> {
    let there = disk.geometry().size.saturating_sub(offset).min(to.len() as u64) as usize;
    let (there, beyond) = to.split_at_mut(there);
    beyond.fill(0);
    if there.is_empty() { Ok(()) } else { disk.read(offset, there) }
}

impl<M: BlockMap> Disk for ReadOnlyDisk<M> {
    fn geometry(&self) -> Geometry {
        Geometry { size: self.map.size(), logical_block: SECTOR, physical_block: 4096, discard_unit: SECTOR }
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, mut to: &mut [u8]) -> Result<(), DiskError> {
        self.geometry().check(offset, to.len() as u64)?;
        let mut at = offset;
        while !to.is_empty() {
            let (place, len) = self.map.locate(at)?;
            let n = len.clamp(SECTOR.into(), to.len() as u64) as usize;
            let (piece, rest) = to.split_at_mut(n);
            match place {
                Place::Zeroes => piece.fill(0),
                Place::File { file, at } => read_file(file, at, piece)?,
                Place::Below(disk) => read_below(disk, at, piece)?,
                Place::Packed => self.map.unpack(at, piece)?,
            }
            at += n as u64;
            to = rest;
        }
        Ok(())
    }

    fn known_zeroes(&self, offset: u64) -> Result<u64, DiskError> {
        let size = self.map.size();
        let mut at = offset;
        for _ in 0..MOST_STEPS {
            if at >= size {
                break;
            }
            let (place, len) = self.map.locate(at)?;
            let len = len.max(SECTOR.into());
            let zeroes = match place {
                Place::Zeroes => len,
                Place::Below(disk) if at >= disk.geometry().size => len,
                Place::Below(disk) => disk.known_zeroes(at)?.min(len),
                Place::File { .. } | Place::Packed => 0,
            };
            at = at.saturating_add(zeroes);
            if zeroes < len {
                break;
            }
        }
        Ok(at.min(size).saturating_sub(offset))
    }

    fn write(&self, _offset: u64, _from: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
}
