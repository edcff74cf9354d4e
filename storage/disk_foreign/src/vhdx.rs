//! Hyper-V's VHDX ([MS-VHDX]): two headers of which the newer counts, a table of
//! regions, metadata, and a block allocation table of 64-bit entries.

use std::path::Path;

use disk::{BlockMap, Disk, DiskError, OpenError, Place, ReadOnlyDisk};

use crate::input::{Fields, FormatError, Input, check, check_size};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Where the two headers are, and their bytes (2.2.2).
const HEADERS: [u64; 2] = [64 * KIB, 128 * KIB];
const HEADER: usize = 4096;
/// Where the two region tables are (2.2.3).
const REGIONS: [u64; 2] = [192 * KIB, 256 * KIB];
/// Bytes of the region table and of the metadata table.
const TABLE: usize = 64 << 10;
/// Most entries of either (2.2.3.1, 2.6.1.1).
const MAX_ENTRIES: u32 = 2047;
/// The checksum's place in headers and region tables.
const CHECKSUM: std::ops::Range<usize> = 4..8;

/// A GUID as it lies in a file.
const fn guid(a: u32, b: u16, c: u16, rest: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let r = rest;
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7]]
}

const BAT_REGION: [u8; 16] =
    guid(0x2dc2_7766, 0xf623, 0x4200, [0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08]);
const METADATA_REGION: [u8; 16] =
    guid(0x8b7c_a206, 0x4790, 0x4b9a, [0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e]);
const FILE_PARAMETERS: [u8; 16] =
    guid(0xcaa1_6737, 0xfa36, 0x4d43, [0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b]);
const DISK_SIZE: [u8; 16] =
    guid(0x2fa5_4224, 0xcd1b, 0x4876, [0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8]);
const DISK_IDENTIFIER: [u8; 16] =
    guid(0xbeca_12ab, 0xb2e6, 0x4523, [0x93, 0xef, 0xc3, 0x09, 0xe0, 0x00, 0xc7, 0x46]);
const LOGICAL_SECTOR: [u8; 16] =
    guid(0x8141_bf1d, 0xa96f, 0x4709, [0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f]);
const PHYSICAL_SECTOR: [u8; 16] =
    guid(0xcda3_48c7, 0x445d, 0x4471, [0x9c, 0xc9, 0xe9, 0x88, 0x52, 0x51, 0xc5, 0x56]);
const PARENT_LOCATOR: [u8; 16] =
    guid(0xa8d3_5f2d, 0xb30b, 0x454d, [0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c]);

/// Where an image's blocks are.
struct Vhdx {
    input: Input,
    size: u64,
    block: u64,
    bat: u64,
    /// After so many entries of blocks comes one of a sector bitmap (2.5).
    chunk: u64,
}

/// Open an image.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Disk>, OpenError> {
    let input = Input::open(path, false)?;
    let map = Vhdx::read(input).map_err(|e| e.of(path))?;
    Ok(Box::new(ReadOnlyDisk::new(map)))
}

/// Whether a structure begins as it must and its checksum is right: CRC-32C over
/// the whole of it with zeroes in the checksum's place.
fn is_valid(bytes: &mut [u8], signature: &[u8]) -> bool {
    let wanted = Fields(bytes).word(CHECKSUM.start);
    let Some(place) = bytes.get_mut(CHECKSUM) else { return false };
    place.fill(0);
    bytes.starts_with(signature) && crc32c::crc32c(bytes) == wanted
}

/// A region of the file.
#[derive(Clone, Copy)]
struct Region {
    at: u64,
    len: u64,
}

/// What the metadata say.
struct Metadata {
    size: u64,
    block: u64,
    sector: u64,
}

impl Vhdx {
    fn read(input: Input) -> Result<Vhdx, FormatError> {
        if input.structure(0, 8, "file identifier")? != *b"vhdxfile" {
            return Err(FormatError::Missing("VHDX file identifier"));
        }
        header(&input)?;
        let (bat, metadata) = regions(&input)?;
        let Metadata { size, block, sector } = read_metadata(&input, metadata)?;
        // Not above 2^23 sectors of 4 KiB in blocks of 1 MiB.
        let chunk = (sector << 23) / block;
        let blocks = size.div_ceil(block);
        let entries = blocks + (blocks - 1) / chunk;
        check(bat.len >= entries * 8, "allocation table length", bat.len, "enough for the disk's size")?;
        Ok(Vhdx { input, size, block, bat: bat.at, chunk })
    }
}

/// The newer of the two headers (2.2.2): it must be readable, and its log empty.
fn header(input: &Input) -> Result<(), FormatError> {
    let mut newest: Option<(u64, Vec<u8>)> = None;
    for at in HEADERS {
        let mut bytes = input.structure(at, HEADER, "header")?;
        let sequence = Fields(&bytes).long(8);
        if is_valid(&mut bytes, b"head") && newest.as_ref().is_none_or(|n| n.0 < sequence) {
            newest = Some((sequence, bytes));
        }
    }
    let Some((_, bytes)) = newest else { return Err(FormatError::Missing("VHDX header")) };
    let f = Fields(&bytes);
    let version = f.half(66);
    if version != 1 {
        return Err(FormatError::Feature(format!("has VHDX version {version}")));
    }
    // A log's GUID: there is something to replay.
    if f.is_zero(48, 16) { Ok(()) } else { Err(FormatError::Dirty) }
}

/// The allocation table's region and that of the metadata (2.2.3).
fn regions(input: &Input) -> Result<(Region, Region), FormatError> {
    let mut table = input.structure(REGIONS[0], TABLE, "region table")?;
    if !is_valid(&mut table, b"regi") {
        table = input.structure(REGIONS[1], TABLE, "region table")?;
        if !is_valid(&mut table, b"regi") {
            return Err(FormatError::Missing("VHDX region table"));
        }
    }
    let f = Fields(&table);
    let count = f.word(8);
    check(count <= MAX_ENTRIES, "region count", count.into(), "up to 2047")?;
    let (mut bat, mut metadata) = (None, None);
    for n in 0..count as usize {
        let at = 16 + n * 32;
        let region = Region { at: f.long(at + 16), len: f.word(at + 24).into() };
        let place = match f.identifier(at) {
            BAT_REGION => &mut bat,
            METADATA_REGION => &mut metadata,
            _ if f.word(at + 28) & 1 == 0 => continue,
            _ => return Err(FormatError::Feature("needs an unknown region".to_string())),
        };
        let fits = region.at >= MIB && region.at % MIB == 0 && input.holds(region.at, region.len);
        check(fits, "region offset", region.at, "whole MiB inside the file, after the first")?;
        if place.replace(region).is_some() {
            return Err(FormatError::Missing("single region of each kind"));
        }
    }
    match (bat, metadata) {
        (Some(bat), Some(metadata)) => Ok((bat, metadata)),
        _ => Err(FormatError::Missing("allocation table and metadata")),
    }
}

/// The metadata items (2.6).
fn read_metadata(input: &Input, region: Region) -> Result<Metadata, FormatError> {
    check(region.len >= TABLE as u64, "metadata length", region.len, "at least 64 KiB")?;
    let table = input.structure(region.at, TABLE, "metadata table")?;
    if !table.starts_with(b"metadata") {
        return Err(FormatError::Missing("metadata table"));
    }
    let f = Fields(&table);
    let count = u32::from(f.half(10));
    check(count <= MAX_ENTRIES, "metadata count", count.into(), "up to 2047")?;
    let (mut parameters, mut size, mut sector) = (None, None, None);
    for n in 0..count as usize {
        let entry = 32 + n * 32;
        let (offset, len) = (u64::from(f.word(entry + 16)), u64::from(f.word(entry + 20)));
        let fits = offset >= TABLE as u64 && offset + len <= region.len;
        let item = || {
            check(fits, "metadata item offset", offset, "inside the metadata region, after its table")?;
            let bytes = input.structure(region.at + offset, len.min(8) as usize, "metadata item")?;
            Ok::<u64, FormatError>(Fields(&[&bytes[..], &[0; 8]].concat()).long(0))
        };
        match f.identifier(entry) {
            FILE_PARAMETERS => parameters = Some(item()?),
            DISK_SIZE => size = Some(item()?),
            LOGICAL_SECTOR => sector = Some(item()?),
            DISK_IDENTIFIER | PHYSICAL_SECTOR => {}
            PARENT_LOCATOR => return Err(FormatError::Parent),
            // Needed by whoever reads it.
            _ if f.word(entry + 24) & 4 != 0 => {
                return Err(FormatError::Feature("needs unknown metadata".to_string()));
            }
            _ => {}
        }
    }
    let (Some(parameters), Some(size), Some(sector)) = (parameters, size, sector) else {
        return Err(FormatError::Missing("metadata of its size, blocks and sectors"));
    };
    let (block, flags) = (parameters & 0xffff_ffff, parameters >> 32);
    if flags & 2 != 0 {
        return Err(FormatError::Parent);
    }
    check_size(size)?;
    let whole = (MIB..=256 * MIB).contains(&block) && block.is_power_of_two();
    check(whole, "block size", block, "powers of 2 from 1 MiB to 256 MiB")?;
    check(matches!(sector, 512 | 4096), "logical sector size", sector, "512 and 4096")?;
    Ok(Metadata { size, block, sector })
}

impl BlockMap for Vhdx {
    fn size(&self) -> u64 {
        self.size
    }

    fn locate(&self, offset: u64) -> Result<(Place<'_>, u64), DiskError> {
        let (number, within) = (offset / self.block, offset % self.block);
        let entry = self.input.long(self.bat + (number + number / self.chunk) * 8, "allocation table")?;
        let place = match entry & 7 {
            // Not present, undefined, zero, unmapped: without a parent all are zeroes (2.5.1.1).
            0..=3 => Place::Zeroes,
            6 => {
                // Whole MiB: the upper 44 bits, as they stand.
                let at = entry & !(MIB - 1);
                if at < MIB {
                    return Err(DiskError::Damaged(format!("block {number} at {at:#x}, in the header")));
                }
                let at = at.checked_add(within);
                let told = || DiskError::Damaged(format!("block {number} at {entry:#x}"));
                Place::File { file: &self.input.file, at: at.ok_or_else(told)? }
            }
            state => return Err(DiskError::Damaged(format!("block {number} in state {state}"))),
        };
        Ok((place, self.block - within))
    }
}
