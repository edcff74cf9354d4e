//! A sparse extent: a header, a directory of tables, tables of grains, grains; in
//! stream-optimized ones grains are packed, and the header is told again at the end.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use disk::{DiskError, Place};

use super::{MAX_DESCRIPTOR_BYTES, SPARSE};
use crate::input::{Fields, FormatError, Input, SECTOR, check, check_size};

/// Most bytes of a grain; VMware's have 64 KiB.
pub const MAX_GRAIN_BYTES: u64 = 1 << 20;
/// Most grains of a table, by the format.
const MAX_TABLE: u64 = 512;

mod flags {
    pub const ZEROED_GRAINS: u32 = 1 << 2;
    pub const COMPRESSED: u32 = 1 << 16;
    pub const MARKERS: u32 = 1 << 17;
    /// With the tests for line ends and redundant tables.
    pub const KNOWN: u32 = 3 | ZEROED_GRAINS | COMPRESSED | MARKERS;
}

/// The directory's place when it is told at the file's end.
const AT_END: u64 = u64::MAX;
/// From the end: the header told again, then a sector that ends the stream.
const FOOTER: u64 = 1024;
/// A packed grain's sector number and its bytes come before it.
const MARKER: u64 = 12;

/// An unpacked grain, by its number.
struct Unpacked {
    grain: u64,
    bytes: Vec<u8>,
}

/// Where an extent's grains are.
pub(crate) struct Sparse {
    // Static configuration.
    input: Input,
    size: u64,
    grain: u64,
    /// Grains of a table.
    table: u64,
    directory: u64,
    zeroed_grains: bool,
    packed: bool,
    descriptor: (u64, u64),
    // Volatile state.
    /// The grain unpacked last: guests read less than one.
    last: Mutex<Option<Unpacked>>,
}

impl Sparse {
    pub fn read(input: Input) -> Result<Sparse, FormatError> {
        let mut header = input.structure(0, 512, "header")?;
        let descriptor = (Fields(&header).long(28), Fields(&header).long(36));
        if Fields(&header).long(56) == AT_END {
            let at = input.len.checked_sub(FOOTER);
            let cut = FormatError::Truncated { what: "footer", len: input.len };
            header = input.structure(at.ok_or(cut)?, 512, "footer")?;
        }
        let f = Fields(&header);
        if !header.starts_with(SPARSE) {
            return Err(FormatError::Missing("VMDK header"));
        }
        let (version, flags) = (f.word(4), f.word(8));
        if !(1..=3).contains(&version) {
            return Err(FormatError::Feature(format!("has VMDK version {version}")));
        }
        if flags & !flags::KNOWN != 0 {
            return Err(FormatError::Feature(format!("has unknown flags {flags:#x}")));
        }
        let packed = flags & flags::COMPRESSED != 0;
        let method = f.half(77);
        if packed && (method != 1 || flags & flags::MARKERS == 0) {
            return Err(FormatError::Feature(format!("is compressed by method {method}")));
        }
        if flags & 1 != 0 {
            check(header[73..77] == *b"\n \r\n", "line ends", f.word(73).into(), "those written")?;
        }
        let sectors = f.long(12);
        let size = sectors.saturating_mul(SECTOR);
        check_size(size)?;
        let grain = f.long(20).saturating_mul(SECTOR);
        let whole = (4096..=MAX_GRAIN_BYTES).contains(&grain) && grain.is_power_of_two();
        check(whole, "grain size", grain, "powers of 2 from 4096 to 1 MiB")?;
        let table = u64::from(f.word(44));
        check((1..=MAX_TABLE).contains(&table), "grains of a table", table, "1 to 512")?;
        let tables = size.div_ceil(grain * table);
        let directory = f.long(56);
        let fits =
            directory > 0 && directory.checked_mul(SECTOR).is_some_and(|at| input.holds(at, tables * 4));
        check(fits, "grain directory offset", directory, "sectors inside the file")?;
        Ok(Sparse {
            input,
            size,
            grain,
            table,
            directory: directory * SECTOR,
            zeroed_grains: flags & flags::ZEROED_GRAINS != 0,
            packed,
            descriptor,
            last: Mutex::new(None),
        })
    }

    /// Its capacity in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor in it, if it has one.
    pub fn descriptor(&self) -> Result<Option<Vec<u8>>, FormatError> {
        let (at, sectors) = self.descriptor;
        if at == 0 || sectors == 0 {
            return Ok(None);
        }
        let within = sectors <= MAX_DESCRIPTOR_BYTES / SECTOR;
        check(within, "descriptor length in sectors", sectors, "up to 2048")?;
        let at = at.saturating_mul(SECTOR);
        self.input.structure(at, (sectors * SECTOR) as usize, "descriptor").map(Some)
    }

    /// As [`disk::BlockMap::locate`].
    pub fn locate(&self, offset: u64) -> Result<(Place<'_>, u64), DiskError> {
        let (number, within) = (offset / self.grain, offset % self.grain);
        let entry = self.directory + number / self.table * 4;
        let table = u64::from(self.input.word(entry, "grain directory")?);
        if table == 0 {
            let span = self.grain * self.table;
            return Ok((Place::Zeroes, span - offset % span));
        }
        let left = self.grain - within;
        let place = match self.entry(number, table)? {
            None => Place::Zeroes,
            Some(_) if self.packed => Place::Packed,
            Some(at) => Place::File { file: &self.input.file, at: at + within },
        };
        Ok((place, left))
    }

    /// Where a grain of a table begins in the file.
    fn entry(&self, number: u64, table: u64) -> Result<Option<u64>, DiskError> {
        // Of 32 bits each: no overflow.
        let entry = self.input.word(table * SECTOR + number % self.table * 4, "grain table")?;
        Ok(match entry {
            0 => None,
            1 if self.zeroed_grains => None,
            at => Some(u64::from(at) * SECTOR),
        })
    }

    /// As [`disk::BlockMap::unpack`].
    pub fn unpack(&self, offset: u64, to: &mut [u8]) -> Result<(), DiskError> {
        let (number, within) = (offset / self.grain, (offset % self.grain) as usize);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|l| l.grain != number) {
            *last = None;
            *last = Some(Unpacked { grain: number, bytes: self.unpack_grain(number)? });
        }
        let bytes = last.as_ref().and_then(|l| l.bytes.get(within..within + to.len()));
        to.copy_from_slice(bytes.ok_or_else(|| DiskError::Damaged(format!("grain {number}")))?);
        Ok(())
    }

    fn unpack_grain(&self, number: u64) -> Result<Vec<u8>, DiskError> {
        let damaged = |what: &str| DiskError::Damaged(format!("{what} of grain {number}"));
        let table = self.input.word(self.directory + number / self.table * 4, "grain directory")?;
        let at = self.entry(number, table.into())?.ok_or_else(|| damaged("no place"))?;
        let sector = self.input.long(at, "grain marker")?;
        if sector != number * (self.grain / SECTOR) {
            return Err(damaged("another's marker"));
        }
        let len = u64::from(self.input.word(at + 8, "grain marker")?);
        // Deflate makes nothing longer by more than this.
        if len == 0 || len > self.grain + self.grain / 8 + 64 {
            return Err(damaged("packed length"));
        }
        let mut packed = vec![0; len as usize];
        self.input.file.read_exact_at(&mut packed, at + MARKER).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => damaged("cut data"),
            _ => e.into(),
        })?;
        let mut bytes = Vec::with_capacity(self.grain as usize);
        let unpacked = flate2::read::ZlibDecoder::new(&packed[..]).take(self.grain).read_to_end(&mut bytes);
        unpacked.map_err(|_| damaged("packed data"))?;
        // The last one may have only what the disk has.
        let needed = (self.size - number * self.grain).min(self.grain);
        if (bytes.len() as u64) < needed {
            return Err(damaged("too little data"));
        }
        bytes.resize(self.grain as usize, 0);
        Ok(bytes)
    }
}
