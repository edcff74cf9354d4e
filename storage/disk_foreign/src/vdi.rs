//! VirtualBox's VDI (VirtualBox `src/VBox/Storage/VDICore.h`): a header, a map of
//! 32-bit block numbers, blocks.

use std::path::Path;

use disk::{BlockMap, Disk, DiskError, OpenError, Place, ReadOnlyDisk};

use crate::input::{Fields, FormatError, Input, check, check_size};

/// Bytes that hold any header of version 1.1.
const HEADER: usize = 0x1c8;
/// The signature, after 64 bytes of text.
const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
/// Kinds of images: those that grow, those of full size; others stand on a parent.
const DYNAMIC: u32 = 1;
const FIXED: u32 = 2;
/// Blocks that are smaller or larger nobody makes; VirtualBox's have 1 MiB.
const BLOCKS: std::ops::RangeInclusive<u64> = 4096..=256 << 20;
/// Map entries of blocks without data: never written, and discarded.
const FREE: u32 = 0xffff_ffff;
const DISCARDED: u32 = 0xffff_fffe;

/// Where an image's blocks are.
struct Vdi {
    input: Input,
    size: u64,
    block: u64,
    /// Bytes before each block's data.
    extra: u64,
    map: u64,
    data: u64,
}

/// Open an image.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Disk>, OpenError> {
    let input = Input::open(path, false)?;
    let map = Vdi::read(input).map_err(|e| e.of(path))?;
    Ok(Box::new(ReadOnlyDisk::new(map)))
}

impl Vdi {
    fn read(input: Input) -> Result<Vdi, FormatError> {
        let header = input.structure(0, HEADER, "header")?;
        let f = Fields(&header);
        if f.word(0x40) != SIGNATURE {
            return Err(FormatError::Missing("VDI signature"));
        }
        let version = f.word(0x44);
        if version != VERSION {
            return Err(FormatError::Feature(format!("has VDI version {version:#x}")));
        }
        let kind = f.word(0x4c);
        // UUIDs of what it stands on.
        let is_child = !f.is_zero(0x1a8, 16) || !f.is_zero(0x1b8, 16);
        match kind {
            DYNAMIC | FIXED if !is_child => {}
            DYNAMIC | FIXED | 3 | 4 => return Err(FormatError::Parent),
            other => check(false, "image type", other.into(), "1 and 2")?,
        }
        let (map, data) = (u64::from(f.word(0x154)), u64::from(f.word(0x158)));
        check(f.word(0x168) == 512, "sector size", f.word(0x168).into(), "512")?;
        let (size, block) = (f.long(0x170), u64::from(f.word(0x178)));
        check_size(size)?;
        let whole = BLOCKS.contains(&block) && block.is_power_of_two();
        check(whole, "block size", block, "powers of 2 from 4096 to 256 MiB")?;
        let extra = u64::from(f.word(0x17c));
        check(extra <= block, "extra block bytes", extra, "up to a block")?;
        let blocks = u64::from(f.word(0x180));
        check(blocks >= size.div_ceil(block), "block count", blocks, "enough for the disk's size")?;
        let fits = map >= HEADER as u64 && input.holds(map, blocks * 4);
        check(fits, "map offset", map, "inside the file, after the header")?;
        check(data >= map + blocks * 4, "data offset", data, "after the map")?;
        Ok(Vdi { input, size, block, extra, map, data })
    }
}

impl BlockMap for Vdi {
    fn size(&self) -> u64 {
        self.size
    }

    fn locate(&self, offset: u64) -> Result<(Place<'_>, u64), DiskError> {
        let (number, within) = (offset / self.block, offset % self.block);
        let left = self.block - within;
        let place = match self.input.word(self.map + number * 4, "block map")? {
            FREE | DISCARDED => Place::Zeroes,
            at => {
                // 32 bits by at most 512 MiB: no overflow.
                let at = self.data + u64::from(at) * (self.block + self.extra) + self.extra + within;
                Place::File { file: &self.input.file, at }
            }
        };
        Ok((place, left))
    }
}
