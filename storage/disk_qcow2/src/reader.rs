//! Images that are only read: by a conversion, or since the library does not know
//! what they need. Tables are looked up in the file and never loaded whole.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use disk::{
    Access, BlockMap, Disk, DiskError, ImageFormat, ImageLock, OpenError, Place, RawDisk, RawOptions,
    ReadOnlyDisk,
};

use crate::chain::{Backing, Files, OpenLink, open_chain};
use crate::header::{Compression, Header, L1Table};
use crate::snapshots::{self, Snapshot};

const SECTOR: u64 = 512;
/// Offsets in entries of either level: bits 9 to 55.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Of a second-level entry: the cluster is compressed; it reads as zeroes (version 3).
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Parts of a cluster that an extended entry tells of.
const PARTS: u64 = 32;
/// Largest zstd window: what a cluster of 2 MiB needs at most, with room.
const ZSTD_WINDOW: u64 = 8 << 20;

/// A cluster unpacked, by its number.
struct Unpacked {
    cluster: u64,
    bytes: Vec<u8>,
}

/// What is known of a cluster, or of an extended entry's part.
enum Entry {
    Unallocated,
    Zero,
    At(u64),
    Packed(u64),
}

/// Where an image's clusters are.
struct Reader {
    // Static configuration.
    header: Header,
    l1: L1Table,
    size: u64,
    file: File,
    file_len: u64,
    below: Option<Box<dyn Disk>>,
    _lock: ImageLock,
    // Volatile state.
    /// The cluster unpacked last: guests read less than one.
    last: Mutex<Option<Unpacked>>,
}

/// Open an image to read, with the files it stands on, and lock all of them.
/// `snapshot`: the identifier or name of an internal snapshot to read instead of the
/// disk as it is.
///
/// # Errors
/// [`OpenError`].
pub fn open_to_read(
    path: &Path,
    backing: Backing,
    snapshot: Option<&str>,
) -> Result<Box<dyn Disk>, OpenError> {
    read_chain(path, open_chain(path, false, backing, &mut Files::Named)?, snapshot)
}

/// Read a chain's disk, or a snapshot of it, and lock its files.
pub(crate) fn read_chain(
    path: &Path,
    chain: Vec<OpenLink>,
    snapshot: Option<&str>,
) -> Result<Box<dyn Disk>, OpenError> {
    let mut below: Option<Box<dyn Disk>> = None;
    for (depth, OpenLink { link, file }) in chain.into_iter().enumerate().rev() {
        below = Some(match (link.format, link.header) {
            (ImageFormat::Qcow2, Some(header)) => {
                let wanted = snapshot.filter(|_| depth == 0);
                Box::new(ReadOnlyDisk::new(Reader::open(&link.path, file, header, below.take(), wanted)?))
            }
            _ => {
                let options = RawOptions { read_only: true, ..RawOptions::default() };
                Box::new(RawDisk::of_file(&link.path, file, options)?)
            }
        });
    }
    below.ok_or_else(|| OpenError::refused(path, "it has no parts"))
}

fn find(all: Vec<Snapshot>, wanted: &str) -> Result<Snapshot, String> {
    let known: Vec<_> = all.iter().take(16).map(|s| format!("\"{}\"", s.name)).collect();
    // Identifiers go before names, as QEMU has it.
    let by_id = all.iter().position(|s| s.id == wanted);
    let place = by_id.or_else(|| all.iter().position(|s| s.name == wanted));
    place.and_then(|n| all.into_iter().nth(n)).ok_or_else(|| {
        let known = if known.is_empty() { "it has none".to_string() } else { known.join(", ") };
        format!("no snapshot is called \"{wanted}\"; choose one of those it has: {known}")
    })
}

impl Reader {
    fn open(
        path: &Path,
        file: File,
        header: Header,
        below: Option<Box<dyn Disk>>,
        snapshot: Option<&str>,
    ) -> Result<Self, OpenError> {
        let fail = |e| OpenError::open(path, e);
        let file_len = file.metadata().map_err(fail)?.len();
        let lock = ImageLock::on(path, file.try_clone().map_err(fail)?, Access::Read)?;
        let (mut l1, mut size) = (header.l1, header.size);
        if let Some(wanted) = snapshot {
            let found = find(snapshots::read(&file, &header, path)?, wanted);
            let found = found.map_err(|why| OpenError::refused(path, why))?;
            (l1, size) = (found.l1, found.disk_size.unwrap_or(size));
            l1.check(header.layout, size, file_len).map_err(|e| OpenError::refused(path, e.to_string()))?;
        }
        if size % SECTOR != 0 {
            return Err(OpenError::Size { path: path.to_path_buf(), size, block: SECTOR as u32 });
        }
        Ok(Reader { header, l1, size, file, file_len, below, _lock: lock, last: Mutex::new(None) })
    }

    /// An entry of a table.
    fn long(&self, at: u64, what: &str) -> Result<u64, DiskError> {
        let mut bytes = [0; 8];
        match self.file.read_exact_at(&mut bytes, at) {
            Ok(()) => Ok(u64::from_be_bytes(bytes)),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(DiskError::Damaged(format!("it ends before its {what} at {at:#x}")))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Where a table or cluster begins, by its entry.
    fn place(&self, entry: u64, what: &str) -> Result<u64, DiskError> {
        let at = entry & OFFSET;
        if at % self.header.layout.cluster() != 0 || at >= self.file_len {
            return Err(DiskError::Damaged(format!("{what} at {at:#x}, which is no cluster of the file")));
        }
        Ok(at)
    }

    /// What the tables say of a byte, and for how many bytes.
    fn entry(&self, offset: u64) -> Result<(Entry, u64), DiskError> {
        let layout = self.header.layout;
        let (cluster, span) = (layout.cluster(), layout.l2_span());
        let number = offset / span;
        if number >= self.l1.entries {
            return Err(DiskError::Damaged(format!("no L1 entry of {offset:#x}")));
        }
        let table = self.long(self.l1.at + number * 8, "L1 table")?;
        if table & OFFSET == 0 {
            return Ok((Entry::Unallocated, span - offset % span));
        }
        let table = self.place(table, "L2 table")?;
        let at = table + offset % span / cluster * layout.l2_entry();
        let (entry, left) = (self.long(at, "L2 table")?, cluster - offset % cluster);
        if entry & COMPRESSED != 0 {
            return Ok((Entry::Packed(entry), left));
        }
        if layout.extended_l2 {
            let part = cluster / PARTS;
            let bitmap = self.long(at + 8, "L2 table")? >> (offset % cluster / part);
            let (is_there, is_zero) = (bitmap & 1 != 0, bitmap >> PARTS & 1 != 0);
            let found = match (is_there, is_zero) {
                (_, true) => Entry::Zero,
                (true, false) => Entry::At(self.place(entry, "cluster")? + offset % cluster),
                (false, false) => Entry::Unallocated,
            };
            return Ok((found, part - offset % part));
        }
        let found = match entry {
            _ if entry & ZERO != 0 && self.header.version >= 3 => Entry::Zero,
            _ if entry & OFFSET == 0 => Entry::Unallocated,
            _ => Entry::At(self.place(entry, "cluster")? + offset % cluster),
        };
        Ok((found, left))
    }

    fn unpack_cluster(&self, number: u64) -> Result<Vec<u8>, DiskError> {
        let damaged = || DiskError::Damaged(format!("compressed cluster {number}"));
        let cluster = self.header.layout.cluster();
        let (Entry::Packed(entry), _) = self.entry(number * cluster)? else { return Err(damaged()) };
        // The offset's bits, above them the count of further sectors that hold data.
        let bits = 62 - (self.header.layout.cluster_bits - 8);
        let at = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let len = (sectors + 1) * SECTOR - at % SECTOR;
        // The last one may end before its sector does.
        let len = len.min(self.file_len.saturating_sub(at));
        let mut packed = vec![0; len as usize];
        self.file.read_exact_at(&mut packed, at).map_err(|_| damaged())?;
        let mut bytes = vec![0; cluster as usize];
        match self.header.compression {
            Compression::Deflate => flate2::read::DeflateDecoder::new(&packed[..]).read_exact(&mut bytes),
            Compression::Zstd => {
                let decoder =
                    ruzstd::decoding::StreamingDecoder::new_with_max_window_size(&packed[..], ZSTD_WINDOW);
                decoder.map_err(|_| damaged())?.read_exact(&mut bytes)
            }
        }
        .map_err(|_| damaged())?;
        Ok(bytes)
    }
}

impl BlockMap for Reader {
    fn size(&self) -> u64 {
        self.size
    }

    fn locate(&self, offset: u64) -> Result<(Place<'_>, u64), DiskError> {
        let (entry, len) = self.entry(offset)?;
        let place = match (entry, &self.below) {
            (Entry::Unallocated, Some(below)) => Place::Below(&**below),
            (Entry::Unallocated, None) | (Entry::Zero, _) => Place::Zeroes,
            (Entry::Packed(_), _) => Place::Packed,
            (Entry::At(at), _) => {
                // A file may end within its last cluster; what is missing is zeroes.
                let inside = self.file_len.saturating_sub(at);
                match inside {
                    0 => return Ok((Place::Zeroes, len)),
                    n if n >= len => {}
                    n if n % SECTOR == 0 => return Ok((Place::File { file: &self.file, at }, n)),
                    _ => return Err(DiskError::Damaged(format!("it ends inside the sector at {at:#x}"))),
                }
                Place::File { file: &self.file, at }
            }
        };
        Ok((place, len))
    }

    fn unpack(&self, offset: u64, to: &mut [u8]) -> Result<(), DiskError> {
        let cluster = self.header.layout.cluster();
        let (number, within) = (offset / cluster, (offset % cluster) as usize);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|l| l.cluster != number) {
            *last = None;
            *last = Some(Unpacked { cluster: number, bytes: self.unpack_cluster(number)? });
        }
        let bytes = last.as_ref().and_then(|l| l.bytes.get(within..within + to.len()));
        to.copy_from_slice(bytes.ok_or_else(|| DiskError::Damaged(format!("cluster {number}")))?);
        Ok(())
    }
}
