//! The header, judged before anything else of an image is read.

/// Most bytes of the first-level table (QEMU's own limit): with clusters of 64 KiB
/// a disk of 2 PiB.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Most bytes of the refcount table (QEMU's own limit).
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots (QEMU's own limit).
pub const MAX_SNAPSHOTS: u32 = 65536;
/// Bytes that hold any header with its extensions and the backing file's name: the
/// largest cluster.
pub const MAX_HEADER_BYTES: usize = 2 << 20;
/// Longest name of a backing file, by the format.
const MAX_NAME: u32 = 1023;
/// Least bytes: a version 2 header.
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
const V2_REFCOUNT_ORDER: u32 = 4;
/// The extension that names a backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Most extensions looked at.
const MAX_EXTENSIONS: usize = 64;

/// Features that are read and not written.
const ZSTD: &str = "zstd compression";
const EXTENDED_L2: &str = "extended L2 entries";

/// Incompatible feature bits, in version 3.
mod incompatible {
    pub const DIRTY: u64 = 1;
    pub const CORRUPT: u64 = 1 << 1;
    pub const DATA_FILE: u64 = 1 << 2;
    pub const COMPRESSION: u64 = 1 << 3;
    pub const EXTENDED_L2: u64 = 1 << 4;
}

/// Why a header is refused: cause, value, remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not this format.
    #[error("has no qcow2 header; name its format with format=")]
    Magic,
    /// It ends before its header does.
    #[error("ends after {0} bytes, inside its header; copy it again")]
    Truncated(u64),
    /// A version that is not read.
    #[error("has qcow2 version {0}, 2 and 3 are read; convert it with qemu-img convert")]
    Version(u32),
    /// A feature that is not read.
    #[error("needs {0}, which is not supported; convert it with: qemu-img convert -O qcow2 IMAGE NEW")]
    Feature(&'static str),
    /// A feature that is read and not written.
    #[error(
        "needs {0}, which is only read; attach it with ro, or convert it with: strata image convert IMAGE NEW"
    )]
    OnlyRead(&'static str),
    /// Feature bits nobody knows.
    #[error("needs unknown features {0:#x}; convert it with the qemu-img that made it")]
    UnknownFeatures(u64),
    /// It was not closed, and its refcounts are not to be trusted.
    #[error("was marked {0}; repair it with: qemu-img check -r all IMAGE, or attach it with ro")]
    Marked(&'static str),
    /// A field that no image could have.
    #[error("has {field} {value:#x}, allowed is {allowed}; it is damaged, restore a copy")]
    Field {
        /// Which.
        field: &'static str,
        /// The value seen.
        value: u64,
        /// What would be accepted.
        allowed: &'static str,
    },
}

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Deflate, without zlib's header.
    Deflate,
    /// Zstandard.
    Zstd,
}

/// A first-level table: where it is in the file, and its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct L1Table {
    /// First byte.
    pub at: u64,
    /// Entries of 8 bytes.
    pub entries: u64,
}

impl L1Table {
    /// Refuse one that is too large, too small for the disk, or not in the file.
    pub(crate) fn check(self, layout: Layout, size: u64, file_len: u64) -> Result<(), HeaderError> {
        let L1Table { at, entries } = self;
        check(entries * 8 <= MAX_L1_BYTES, "L1 table entries", entries, "up to 4194304")?;
        let needed = size.div_ceil(layout.l2_span());
        check(entries >= needed, "L1 table entries", entries, "enough for the disk's size")?;
        let inside = at.checked_add(entries * 8).is_some_and(|end| end <= file_len);
        let fits = entries == 0 || at_cluster(at, layout.cluster()) && inside;
        check(fits, "L1 table offset", at, "clusters inside the file")
    }
}

/// The refcount table, which names the blocks that hold the refcounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefcountTable {
    /// First byte.
    pub at: u64,
    /// Its length in clusters.
    pub clusters: u64,
    /// Bits of a refcount as a power of two: 0 to 6.
    pub order: u32,
}

/// How clusters and their tables are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Cluster size as a power of two: 9 to 21.
    pub cluster_bits: u32,
    /// Second-level entries have 16 bytes and tell of 32 parts of a cluster each.
    pub extended_l2: bool,
}

impl Layout {
    /// Bytes of a cluster.
    pub fn cluster(self) -> u64 {
        1 << self.cluster_bits
    }
    /// Bytes of a second-level entry.
    pub(crate) fn l2_entry(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }
    /// Bytes of the disk that a second-level table, which is a cluster, tells of.
    pub(crate) fn l2_span(self) -> u64 {
        self.cluster() * (self.cluster() / self.l2_entry())
    }
}

/// What a header says, once it is known to be sane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Clusters and tables.
    pub layout: Layout,
    /// How clusters are compressed, if any are.
    pub compression: Compression,
    /// Capacity in bytes.
    pub size: u64,
    /// The disk's first-level table.
    pub l1: L1Table,
    /// Where refcounts are.
    pub refcounts: RefcountTable,
    /// Count of internal snapshots.
    pub snapshots: u32,
    /// Where the snapshots' table is in the file.
    pub snapshots_at: u64,
    /// The file below, as named, and its format, if named.
    pub backing: Option<(String, Option<String>)>,
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word(&self, at: usize) -> Result<u32, HeaderError> {
        let bytes = self.0.get(at..).and_then(|b| b.first_chunk::<4>());
        bytes.map(|b| u32::from_be_bytes(*b)).ok_or(HeaderError::Truncated(self.0.len() as u64))
    }
    fn long(&self, at: usize) -> Result<u64, HeaderError> {
        Ok(u64::from(self.word(at)?) << 32 | u64::from(self.word(at + 4)?))
    }
    fn bytes(&self, at: u64, len: u64) -> Result<&[u8], HeaderError> {
        let range = usize::try_from(at).ok().zip(usize::try_from(at.saturating_add(len)).ok());
        let bytes = range.and_then(|(from, to)| self.0.get(from..to));
        bytes.ok_or(HeaderError::Truncated(self.0.len() as u64))
    }
}

fn check(ok: bool, field: &'static str, value: u64, allowed: &'static str) -> Result<(), HeaderError> {
    if ok { Ok(()) } else { Err(HeaderError::Field { field, value, allowed }) }
}

impl Header {
    /// Judge the start of an image: its first [`MAX_HEADER_BYTES`] bytes, or all
    /// there are. `file_len` is the whole file's. `write`: it is to be written to.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(start: &[u8], file_len: u64, write: bool) -> Result<Self, HeaderError> {
        let f = Fields(start);
        if !start.starts_with(b"QFI\xfb") {
            return Err(HeaderError::Magic);
        }
        if start.len() < V2_LEN {
            return Err(HeaderError::Truncated(start.len() as u64));
        }
        let version = f.word(4)?;
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        let cluster_bits = f.word(20)?;
        check((9..=21).contains(&cluster_bits), "cluster bits", cluster_bits.into(), "9 to 21")?;
        let size = f.long(24)?;
        // The library adds and rounds such numbers up.
        check(size < 1 << 60, "disk size", size, "below 2^60")?;
        match f.word(32)? {
            0 => {}
            1 | 2 => return Err(HeaderError::Feature("encryption")),
            other => check(false, "encryption method", other.into(), "0")?,
        }
        let snapshots = f.word(60)?;
        check(snapshots <= MAX_SNAPSHOTS, "snapshots", snapshots.into(), "up to 65536")?;
        let mut layout = Layout { cluster_bits, extended_l2: false };
        let (mut compression, mut header_len) = (Compression::Deflate, V2_LEN as u64);
        if version == 3 {
            (layout.extended_l2, compression, header_len) = features(&f, write)?;
        }
        check(!layout.extended_l2 || cluster_bits >= 14, "cluster bits", cluster_bits.into(), "14 to 21")?;
        let l1 = L1Table { at: f.long(40)?, entries: f.word(36)?.into() };
        l1.check(layout, size, file_len)?;
        let refcounts = refcounts(&f, version, layout.cluster(), file_len)?;
        let snapshots_at = f.long(64)?;
        let fits = snapshots == 0 || at_cluster(snapshots_at, layout.cluster()) && snapshots_at < file_len;
        check(fits, "snapshot table offset", snapshots_at, "clusters inside the file")?;
        check(header_len <= 1 << cluster_bits, "header length", header_len, "up to a cluster")?;
        f.bytes(0, header_len)?;
        let format = backing_format(&f, header_len, 1 << cluster_bits)?;
        let backing = backing_name(&f, 1 << cluster_bits)?.map(|name| (name, format));
        Ok(Header { version, layout, compression, size, l1, refcounts, snapshots, snapshots_at, backing })
    }

    /// What it needs that is read and not written, if anything.
    pub fn only_read(&self) -> Option<&'static str> {
        match (self.layout.extended_l2, self.compression) {
            (true, _) => Some(EXTENDED_L2),
            (false, Compression::Zstd) => Some(ZSTD),
            (false, Compression::Deflate) => None,
        }
    }
}

/// Version 3's fields: extended second-level entries, compression, the header's length.
fn features(f: &Fields<'_>, write: bool) -> Result<(bool, Compression, u64), HeaderError> {
    let bits = f.long(72)?;
    if bits & incompatible::DATA_FILE != 0 {
        return Err(HeaderError::Feature("an external data file"));
    }
    let extended_l2 = bits & incompatible::EXTENDED_L2 != 0;
    if write && extended_l2 {
        return Err(HeaderError::OnlyRead(EXTENDED_L2));
    }
    let known =
        incompatible::DIRTY | incompatible::CORRUPT | incompatible::COMPRESSION | incompatible::EXTENDED_L2;
    if bits & !known != 0 {
        return Err(HeaderError::UnknownFeatures(bits & !known));
    }
    if write && bits & incompatible::CORRUPT != 0 {
        return Err(HeaderError::Marked("corrupt"));
    }
    if write && bits & incompatible::DIRTY != 0 {
        return Err(HeaderError::Marked("dirty, since it was not closed"));
    }
    let order = f.word(96)?;
    check(order <= 6, "refcount order", order.into(), "0 to 6")?;
    let len = f.word(100)?;
    check(len as usize >= V3_LEN && len % 8 == 0, "header length", len.into(), "multiples of 8 from 104")?;
    let mut compression = Compression::Deflate;
    if bits & incompatible::COMPRESSION != 0 {
        let method = f.bytes(104, 1)?.first().copied().unwrap_or(0);
        check(method == 1, "compression type", method.into(), "1 with its feature bit")?;
        if write {
            return Err(HeaderError::OnlyRead(ZSTD));
        }
        compression = Compression::Zstd;
    }
    Ok((extended_l2, compression, len.into()))
}

/// The refcount table: inside the file and below its cap.
fn refcounts(
    f: &Fields<'_>,
    version: u32,
    cluster: u64,
    file_len: u64,
) -> Result<RefcountTable, HeaderError> {
    let (at, clusters) = (f.long(48)?, u64::from(f.word(56)?));
    let table_len = clusters * cluster;
    check(table_len <= MAX_REFCOUNT_TABLE_BYTES, "refcount table clusters", clusters, "up to 8 MiB")?;
    check(clusters > 0, "refcount table clusters", clusters, "at least 1")?;
    let fits = at_cluster(at, cluster) && at > 0 && at < file_len;
    check(fits, "refcount table offset", at, "clusters inside the file")?;
    // Judged with version 3's features.
    let order = if version == 3 { f.word(96)? } else { V2_REFCOUNT_ORDER };
    Ok(RefcountTable { at, clusters, order })
}

fn at_cluster(offset: u64, cluster: u64) -> bool {
    offset % cluster == 0
}

/// The format of the backing file, from the header's extensions.
fn backing_format(f: &Fields<'_>, header_len: u64, cluster: u64) -> Result<Option<String>, HeaderError> {
    // Extensions end before the backing file's name, or with the first cluster.
    let name_at = f.long(8)?;
    let end = if name_at == 0 { cluster } else { name_at.min(cluster) };
    let mut at = header_len;
    for _ in 0..MAX_EXTENSIONS {
        if at + 8 > end || at + 8 > f.0.len() as u64 {
            return Ok(None);
        }
        let (kind, len) = (f.word(at as usize)?, u64::from(f.word(at as usize + 4)?));
        if kind == 0 {
            return Ok(None);
        }
        check(len <= cluster && at + 8 + len <= end, "header extension length", len, "inside the header")?;
        if kind == BACKING_FORMAT {
            let name = f.bytes(at + 8, len)?;
            return Ok(Some(String::from_utf8_lossy(name).into_owned()));
        }
        at += 8 + len.next_multiple_of(8);
    }
    check(false, "header extensions", MAX_EXTENSIONS as u64 + 1, "up to 64")?;
    Ok(None)
}

fn backing_name(f: &Fields<'_>, cluster: u64) -> Result<Option<String>, HeaderError> {
    let (at, len) = (f.long(8)?, f.word(16)?);
    if at == 0 {
        return Ok(None);
    }
    check((1..=MAX_NAME).contains(&len), "length of the backing file's name", len.into(), "1 to 1023")?;
    let inside = at.checked_add(len.into()).is_some_and(|end| end <= cluster);
    check(inside, "place of the backing file's name", at, "the first cluster")?;
    let name = String::from_utf8(f.bytes(at, len.into())?.to_vec());
    let name = name.ok().filter(|n| !n.contains('\0'));
    name.map(Some).ok_or(HeaderError::Feature("a backing file whose name is no UTF-8"))
}
