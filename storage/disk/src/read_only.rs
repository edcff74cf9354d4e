//! Disks of images that are only read, by way of a map of their blocks.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::{Disk, DiskError, Geometry};

/// The unit guests know.
const SECTOR: u32 = 512;
/// Look-ups in images' tables for one question of [`Disk::known_zeroes`]: what a caller
/// waits for.
pub const LOOK_UPS: u32 = 4096;

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

    fn known_zeroes(&self, offset: u64, most: u64, steps: &mut u32) -> Result<u64, DiskError> {
        let end = self.map.size().min(offset.saturating_add(most));
        let mut at = offset;
        while at < end && *steps > 0 {
            *steps -= 1;
            let (place, len) = self.map.locate(at)?;
            // Layers below are asked for no more than this: else each would look as far
            // ahead as the one above for every block of it.
            let len = len.max(SECTOR.into()).min(end - at);
            let zeroes = match place {
                Place::Zeroes => len,
                Place::Below(disk) if at >= disk.geometry().size => len,
                Place::Below(disk) => disk.known_zeroes(at, len, steps)?.min(len),
                Place::File { .. } | Place::Packed => 0,
            };
            at += zeroes;
            if zeroes < len {
                break;
            }
        }
        Ok(at.saturating_sub(offset))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// What the blocks of a layer are.
    enum Layer {
        Below(Box<dyn Disk>),
        Zeroes,
    }

    /// A layer of blocks, and the look-ups in it and all others.
    struct Blocks {
        block: u64,
        size: u64,
        layer: Layer,
        looks: Arc<AtomicU64>,
    }

    impl BlockMap for Blocks {
        fn size(&self) -> u64 {
            self.size
        }
        fn locate(&self, offset: u64) -> Result<(Place<'_>, u64), DiskError> {
            self.looks.fetch_add(1, Ordering::Relaxed);
            let place = match &self.layer {
                Layer::Below(disk) => Place::Below(disk.as_ref()),
                Layer::Zeroes => Place::Zeroes,
            };
            Ok((place, self.block - offset % self.block))
        }
    }

    /// Layers of these blocks over each other, the first on top.
    fn chain(blocks: &[u64], size: u64) -> (Box<dyn Disk>, Arc<AtomicU64>) {
        let looks = Arc::new(AtomicU64::new(0));
        let mut below = None;
        for block in blocks.iter().rev() {
            let layer = below.take().map_or(Layer::Zeroes, Layer::Below);
            let map = Blocks { block: *block, size, layer, looks: looks.clone() };
            below = Some(Box::new(ReadOnlyDisk::new(map)) as Box<dyn Disk>);
        }
        (below.expect("a layer"), looks)
    }

    #[test]
    fn a_question_takes_a_bounded_number_of_look_ups_whatever_is_below() {
        const SIZE: u64 = 256 << 20;
        let even = [64 << 10; 16];
        let uneven = [128 << 20, 2 << 20, 64 << 10, 512];
        let cases: [(&[u64], u64); 4] =
            [(&even[..1], SIZE / (64 << 10)), (&even[..3], 1024), (&even, 128), (&uneven, 4000)];
        for (blocks, at_least) in cases {
            let (disk, looks) = chain(blocks, SIZE);
            let known = disk.known_zeroes(0, u64::MAX, &mut { LOOK_UPS }).unwrap();
            assert!(looks.load(Ordering::Relaxed) <= LOOK_UPS.into(), "{blocks:?}");
            assert!(known >= at_least * blocks[blocks.len() - 1] && known <= SIZE, "{blocks:?}: {known}");
            // No layer looks further than it was asked to.
            looks.store(0, Ordering::Relaxed);
            assert_eq!(disk.known_zeroes(4096, 4096, &mut { LOOK_UPS }).unwrap(), 4096);
            assert!(looks.load(Ordering::Relaxed) <= 8 + 4 * blocks.len() as u64, "{blocks:?}");
        }
    }

    #[test]
    fn a_copy_looks_once_at_each_block_of_each_layer() {
        const SIZE: u64 = 64 << 20;
        let (from, looks) = chain(&[64 << 10; 8], SIZE);
        let (to, _) = chain(&[SIZE], SIZE);
        let copied =
            crate::copy(from.as_ref(), to.as_ref(), |_| std::ops::ControlFlow::Continue(())).unwrap();
        assert!(copied.is_continue());
        // Where a question ends in the middle of the layers, some are looked at again.
        assert!(looks.load(Ordering::Relaxed) <= 2 * 8 * SIZE / (64 << 10));
    }
}
