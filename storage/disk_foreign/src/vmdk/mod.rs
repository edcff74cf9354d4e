//! VMware's VMDK (VMware "Virtual Disk Format 5.0"): a descriptor in text, alone or in
//! the only extent, names extents, which are sparse, flat or zeroes.

mod descriptor;
mod sparse;

use std::path::Path;

use disk::{BlockMap, Disk, DiskError, OpenError, Place, ReadOnlyDisk};

use crate::input::{FormatError, Input, MAX_DISK, SECTOR, check, check_size};
use descriptor::{Descriptor, Kind, Line};
use sparse::Sparse;

pub use descriptor::{MAX_DESCRIPTOR_BYTES, MAX_EXTENTS};
pub use sparse::MAX_GRAIN_BYTES;

/// The magic number of a sparse extent, and that of ESX's older one.
const SPARSE: &[u8] = b"KDMV";
const COWD: &[u8] = b"COWD";

/// What an extent's bytes are in.
enum Backing {
    Sparse(Sparse),
    Flat { input: Input, at: u64 },
    Zeroes,
}

/// A part of the disk.
struct Extent {
    start: u64,
    len: u64,
    backing: Backing,
}

/// Where an image's blocks are.
struct Vmdk {
    /// In order, without gaps.
    extents: Vec<Extent>,
    size: u64,
}

/// Open an image: a descriptor with its extents beside it, or the one file that has both.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Disk>, OpenError> {
    let input = Input::open(path, false)?;
    let fail = |e: FormatError| e.of(path);
    let magic = input.structure(0, 4, "header").map_err(fail)?;
    if magic == COWD {
        return Err(fail(FormatError::Feature("is a sparse extent of ESX".to_string())));
    }
    let extents = if magic == SPARSE {
        let sparse = Sparse::read(input).map_err(fail)?;
        let text = sparse.descriptor().map_err(fail)?;
        let descriptor = text.map(|text| Descriptor::parse(&text)).transpose().map_err(fail)?;
        match descriptor {
            // This file is the extent, whatever name it had when it was made.
            None => {}
            Some(d) if matches!(d.extents[..], [Line { kind: Kind::Sparse, .. }]) => {}
            Some(_) => return Err(fail(FormatError::Feature("has a descriptor of other files".to_string()))),
        }
        vec![Extent { start: 0, len: sparse.size(), backing: Backing::Sparse(sparse) }]
    } else {
        let len = input.len;
        check(len <= MAX_DESCRIPTOR_BYTES, "descriptor length", len, "up to 1 MiB").map_err(fail)?;
        let text = input.structure(0, len as usize, "descriptor").map_err(fail)?;
        let descriptor = Descriptor::parse(&text).map_err(fail)?;
        open_extents(path, &descriptor)?
    };
    let size = extents.last().map_or(0, |e| e.start + e.len);
    check_size(size).map_err(fail)?;
    Ok(Box::new(ReadOnlyDisk::new(Vmdk { extents, size })))
}

/// The extents that a descriptor names, each a file beside it.
fn open_extents(path: &Path, descriptor: &Descriptor) -> Result<Vec<Extent>, OpenError> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut extents = Vec::new();
    let mut start = 0u64;
    for line in &descriptor.extents {
        let len = line.sectors.checked_mul(SECTOR).filter(|len| start + len <= MAX_DISK);
        let too_long = || FormatError::Field {
            field: "extent length in sectors",
            value: line.sectors,
            allowed: "a disk of up to 64 TiB",
        };
        let len = len.ok_or_else(|| too_long().of(path))?;
        let beside = directory.join(&line.name);
        let backing = match line.kind {
            Kind::Zero => Backing::Zeroes,
            Kind::Sparse => {
                let sparse = Sparse::read(Input::open(&beside, true)?).map_err(|e| e.of(&beside))?;
                check(sparse.size() >= len, "capacity", sparse.size(), "that of the descriptor")
                    .map_err(|e| e.of(&beside))?;
                Backing::Sparse(sparse)
            }
            Kind::Flat => {
                let input = Input::open(&beside, true)?;
                let at = line.offset.checked_mul(SECTOR).filter(|at| input.holds(*at, len));
                let cut = || FormatError::Truncated { what: "flat data", len: input.len }.of(&beside);
                let at = at.ok_or_else(cut)?;
                Backing::Flat { input, at }
            }
        };
        extents.push(Extent { start, len, backing });
        start += len;
    }
    Ok(extents)
}

impl Vmdk {
    /// The extent of a byte, and the byte's place in it.
    fn extent(&self, offset: u64) -> Result<(&Extent, u64), DiskError> {
        let after = self.extents.partition_point(|e| e.start <= offset);
        let extent = after.checked_sub(1).and_then(|n| self.extents.get(n));
        extent
            .map(|e| (e, offset - e.start))
            .filter(|(e, within)| *within < e.len)
            .ok_or_else(|| DiskError::Damaged(format!("no extent at {offset:#x}")))
    }
}

impl BlockMap for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn locate(&self, offset: u64) -> Result<(Place<'_>, u64), DiskError> {
        let (extent, within) = self.extent(offset)?;
        let left = extent.len - within;
        match &extent.backing {
            Backing::Zeroes => Ok((Place::Zeroes, left)),
            Backing::Flat { input, at } => Ok((Place::File { file: &input.file, at: at + within }, left)),
            Backing::Sparse(sparse) => {
                let (place, len) = sparse.locate(within)?;
                Ok((place, len.min(left)))
            }
        }
    }

    fn unpack(&self, offset: u64, to: &mut [u8]) -> Result<(), DiskError> {
        let (extent, within) = self.extent(offset)?;
        match &extent.backing {
            Backing::Sparse(sparse) => sparse.unpack(within, to),
            _ => Err(DiskError::Damaged(format!("packed data at {offset:#x}"))),
        }
    }
}
