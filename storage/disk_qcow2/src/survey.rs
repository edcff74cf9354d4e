//! What the tables of an image that is to be written name, checked against its refcounts.
//!
//! A cluster that is used and not counted would be given out again, one that is used twice
//! would be written by both: the guest's data would become tables, or another's data. The
//! library (imago 0.2.6) relies on either not happening; without refcounts of the header's
//! own cluster it even looks for room until its stack is full.
//!
//! Second-level tables and data can be uncounted after a process or a host ended at the
//! wrong moment: they are counted here. When a host ends while it writes, tables can be there
//! whose data are not, and the file ends before what they name: it is made that long, and what
//! was not written reads as zeroes. Everything else that is wrong is refused.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;

use crate::header::Header;
use crate::refcounts::{Refcounts, entries, read};

/// Most clusters of a file: what is noted of them takes two bits each.
const MAX_CLUSTERS: u64 = 1 << 30;
/// Clusters besides the disk's, with one table for 32 of them, that may be named behind the
/// file's end.
const BEHIND: u64 = 1024;

/// In entries of first- and second-level tables.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Reads as zeroes, whatever is there; in version 3.
const ZERO: u64 = 1;
const SECTOR_BITS: u32 = 9;

/// Why an image is not written to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SurveyError {
    #[error(
        "has refcounts by which its cluster {0}, which is in use, is free; repair it with: qemu-img check -r all \
         IMAGE, or attach it with ro"
    )]
    Free(u64),
    #[error(
        "uses its cluster {0} twice; look at it with: qemu-img check IMAGE, and restore a copy or attach it with ro"
    )]
    Twice(u64),
    #[error(
        "names cluster {0}, which is behind its end; look at it with: qemu-img check IMAGE, and restore a copy \
         or attach it with ro"
    )]
    Behind(u64),
    #[error(
        "has {0} clusters, up to 2^30 are written; convert it to larger ones with: qemu-img convert -o cluster_size=2M"
    )]
    Many(u64),
    #[error("cannot be read, or mended: {0}; check the disk it is on, and its free space")]
    Io(#[from] io::Error),
}

/// What an image is like.
pub(crate) struct Survey {
    /// Some clusters are compressed, or in use by snapshots too: writing to them frees.
    pub shares: bool,
    /// Some clusters read as zeroes and have room kept for them: writing to them may free it.
    pub spares: bool,
    /// Which second-level tables there are.
    pub l2: Vec<bool>,
}

/// A bit for each cluster, up to the last that is set.
struct Bits(Vec<u64>);

impl Bits {
    fn word(&self, n: u64) -> u64 {
        self.0.get(n as usize).copied().unwrap_or(0)
    }
    fn get(&self, n: u64) -> bool {
        self.word(n / 64) >> (n % 64) & 1 != 0
    }
    fn set(&mut self, n: u64) {
        let word = (n / 64) as usize;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (n % 64);
    }
}

/// Clusters in use.
struct Uses {
    cluster_bits: u32,
    /// Which may be named: those below.
    limit: u64,
    /// Behind the file's clusters, and behind all that are named.
    end: u64,
    /// By one alone, and by any number.
    alone: Bits,
    shared: Bits,
}

impl Uses {
    fn new(file_len: u64, header: &Header) -> Result<Self, SurveyError> {
        let (cluster_bits, cluster) = (header.layout.cluster_bits, header.layout.cluster());
        let end = file_len.div_ceil(cluster);
        if end > MAX_CLUSTERS {
            return Err(SurveyError::Many(end));
        }
        // The smallest clusters have room for 64 entries of a table, or refcounts.
        let disk = header.size.div_ceil(cluster);
        let limit = (end + disk + disk / 32 + BEHIND).min(MAX_CLUSTERS);
        let bits = || Bits(vec![0; end.div_ceil(64) as usize]);
        Ok(Uses { cluster_bits, limit, end, alone: bits(), shared: bits() })
    }

    /// The cluster at an offset is used by one alone.
    fn alone(&mut self, at: u64) -> Result<(), SurveyError> {
        let cluster = self.cluster(at)?;
        if self.alone.get(cluster) || self.shared.get(cluster) {
            return Err(SurveyError::Twice(cluster));
        }
        self.alone.set(cluster);
        Ok(())
    }

    fn shared(&mut self, at: u64) -> Result<(), SurveyError> {
        let cluster = self.cluster(at)?;
        if self.alone.get(cluster) {
            return Err(SurveyError::Twice(cluster));
        }
        self.shared.set(cluster);
        Ok(())
    }

    fn cluster(&mut self, at: u64) -> Result<u64, SurveyError> {
        let cluster = at >> self.cluster_bits;
        if cluster >= self.limit {
            return Err(SurveyError::Behind(cluster));
        }
        self.end = self.end.max(cluster + 1);
        Ok(cluster)
    }

    /// Use a cluster behind all others, where the file has nothing; its offset.
    fn fresh(&mut self) -> Result<u64, SurveyError> {
        let at = self.end << self.cluster_bits;
        self.alone(at).map(|()| at)
    }

    /// All of a table from an offset on.
    fn table(&mut self, at: u64, len: u64) -> Result<(), SurveyError> {
        (at..at + len).step_by(1 << self.cluster_bits).try_for_each(|at| self.alone(at))
    }

    /// What an entry of a second-level table names; whether writing there frees it.
    fn entry(&mut self, entry: u64) -> Result<bool, SurveyError> {
        if entry & COMPRESSED != 0 {
            // Sectors behind the first, above an offset of as many bits as that leaves.
            let count_bits = self.cluster_bits - 8;
            let offset_bits = 62 - count_bits;
            let first = entry & ((1 << offset_bits) - 1);
            let more = entry >> offset_bits & ((1 << count_bits) - 1);
            let last = (first >> SECTOR_BITS << SECTOR_BITS) + (more << SECTOR_BITS);
            for cluster in first >> self.cluster_bits..=last >> self.cluster_bits {
                self.shared(cluster << self.cluster_bits)?;
            }
            return Ok(true);
        }
        match (entry & OFFSET, entry & COPIED != 0) {
            (0, _) => Ok(false),
            (at, true) => self.alone(at).map(|()| false),
            (at, false) => self.shared(at).map(|()| true),
        }
    }

    /// The first cluster in use from one on.
    fn next(&self, from: u64) -> Option<u64> {
        let words = self.alone.0.len().max(self.shared.0.len()) as u64;
        let word = |n| self.alone.word(n) | self.shared.word(n);
        let rest = word(from / 64) & (!0 << (from % 64));
        let at = if rest != 0 { from / 64 } else { (from / 64 + 1..words).find(|n| word(*n) != 0)? };
        let bits = if rest != 0 { rest } else { word(at) };
        Some(at * 64 + u64::from(bits.trailing_zeros()))
    }
}

/// Whether the file has anything from an offset on for so many bytes: a hole has not.
fn has_data(file: &File, at: u64, len: u64) -> bool {
    // Where that is not known the answer is an error, or the offset itself.
    match rustix::fs::seek(file.as_fd(), SeekFrom::Data(at)) {
        Ok(data) => data < at + len,
        Err(rustix::io::Errno::NXIO) => false,
        Err(_) => true,
    }
}

/// Look at all of an image that nobody else writes to. `writable` opens its file to be
/// written, where refcounts are to be mended.
///
/// # Errors
/// [`SurveyError`].
pub(crate) fn survey(
    file: &File,
    header: &Header,
    writable: impl Fn() -> io::Result<File>,
) -> Result<Survey, SurveyError> {
    let cluster_bits = header.layout.cluster_bits;
    let cluster = header.layout.cluster();
    let mut refcounts = Refcounts::of(file, header, &writable)?;
    let mut uses = Uses::new(file.metadata()?.len(), header)?;
    let in_file = uses.end;
    // Only these must be counted already: nothing that ends at the wrong moment leaves them so.
    uses.table(0, 1)?;
    uses.table(header.refcounts.at, header.refcounts.clusters << cluster_bits)?;
    uses.table(header.l1.at, header.l1.entries * 8)?;
    let mut from = 0;
    while let Some(cluster) = uses.next(from) {
        if refcounts.is_counted(cluster)? != Some(true) {
            return Err(SurveyError::Free(cluster));
        }
        from = cluster + 1;
    }
    refcounts.blocks().try_for_each(|at| uses.alone(at))?;
    let l1 = entries(file, header.l1.at, header.l1.entries)?;
    let (mut shares, mut spares) = (false, false);
    let mut table = vec![0; cluster as usize];
    for at in l1.iter().map(|entry| entry & OFFSET).filter(|at| *at != 0) {
        uses.alone(at)?;
        if has_data(file, at, cluster) {
            read(file, at, &mut table)?;
            for entry in table.as_chunks().0 {
                let entry = u64::from_be_bytes(*entry);
                shares |= uses.entry(entry)?;
                spares |= entry & (ZERO | COMPRESSED) == ZERO && entry & OFFSET != 0;
            }
        }
    }
    // A snapshot's use of a second-level table is told in the first level.
    shares |= l1.iter().any(|entry| entry & OFFSET != 0 && entry & COPIED == 0);
    count_all(&mut uses, &mut refcounts)?;
    let l2 = l1.iter().map(|entry| entry & OFFSET != 0).collect();
    refcounts.finish((uses.end > in_file).then_some(uses.end << cluster_bits))?;
    Ok(Survey { shares, spares, l2 })
}

/// Count what is used by one alone and is not counted, new refcount blocks too.
fn count_all(uses: &mut Uses, refcounts: &mut Refcounts<'_>) -> Result<(), SurveyError> {
    let mut from = 0;
    while let Some(cluster) = uses.next(from) {
        let alone = uses.alone.get(cluster);
        if alone && refcounts.lacks_block(cluster) {
            refcounts.add_block(cluster, uses.fresh()?)?;
        }
        match refcounts.is_counted(cluster)? {
            Some(true) => {}
            Some(false) if alone => refcounts.count(cluster)?,
            _ => return Err(SurveyError::Free(cluster)),
        }
        from = cluster + 1;
    }
    Ok(())
}
