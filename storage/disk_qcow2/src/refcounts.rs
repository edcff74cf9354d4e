//! Refcounts of an image that is to be written: what holds its tables must not be free.
//!
//! An allocation would put the guest's data there, or, without refcounts of the header's
//! own cluster, look for room without end (in imago 0.2.6 until its stack is full).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::header::{Header, RefcountTable};

/// An entry's offset: of the refcount table, and of the first-level table.
const BLOCK_OFFSET: u64 = !0x1ff;
const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// No offset reaches it.
const END: u64 = 1 << 56;
/// Bytes of refcounts read at once: less than the smallest cluster, which blocks are.
const PART: usize = 512;

/// Why an image is not written to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefcountError {
    #[error(
        "has refcounts by which its cluster {0}, which holds a table, is free; repair it with: qemu-img check \
         -r all IMAGE, or attach it with ro"
    )]
    Free(u64),
    #[error("cannot be read: {0}; check the disk it is on")]
    Io(#[from] io::Error),
}

/// Entries of 8 bytes; what is behind the file's end is zero.
fn entries(file: &File, at: u64, count: u64) -> io::Result<impl Iterator<Item = u64>> {
    let mut bytes = vec![0; count as usize * 8];
    read(file, at, &mut bytes)?;
    Ok((0..count as usize).map(move |n| u64::from_be_bytes(std::array::from_fn(|i| bytes[n * 8 + i]))))
}

fn read(file: &File, mut at: u64, mut to: &mut [u8]) -> io::Result<()> {
    while !to.is_empty() {
        match file.read_at(to, at) {
            Ok(0) => return Ok(()),
            Ok(n) => (at, to) = (at + n as u64, &mut to[n..]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The refcounts of a file, a part of a block at a time.
struct Refcounts<'a> {
    file: &'a File,
    blocks: Vec<u64>,
    /// Bits of a cluster's size and of a refcount, as powers of two.
    cluster_bits: u32,
    order: u32,
    /// Where the part is that was read last.
    at: u64,
    part: [u8; PART],
}

impl<'a> Refcounts<'a> {
    fn new(file: &'a File, table: RefcountTable, cluster_bits: u32) -> io::Result<Self> {
        let entries = entries(file, table.at, (table.clusters << cluster_bits) / 8)?;
        let blocks = entries.map(|entry| entry & BLOCK_OFFSET).collect();
        Ok(Refcounts { file, blocks, cluster_bits, order: table.order, at: u64::MAX, part: [0; PART] })
    }

    /// Whether nothing is said to use a cluster.
    fn is_free(&mut self, cluster: u64) -> io::Result<bool> {
        let block_bits = self.cluster_bits + 3 - self.order;
        let block = usize::try_from(cluster >> block_bits).ok().and_then(|n| self.blocks.get(n).copied());
        let Some(block) = block.filter(|at| (1..END).contains(at)) else { return Ok(true) };
        let bit = (cluster & ((1 << block_bits) - 1)) << self.order;
        let (at, within) = (block + bit / 8 / PART as u64 * PART as u64, (bit / 8) as usize % PART);
        if self.at != at {
            self.part.fill(0);
            read(self.file, at, &mut self.part)?;
            self.at = at;
        }
        if self.order < 3 {
            // The first of a byte are its lowest bits.
            return Ok(self.part[within] >> (bit % 8) & ((1 << (1 << self.order)) - 1) == 0);
        }
        let bytes = 1 << (self.order - 3);
        Ok(self.part[within..within + bytes].iter().all(|b| *b == 0))
    }
}

/// Refuse an image whose header, tables or refcounts themselves are in clusters that its
/// refcounts call free.
///
/// # Errors
/// [`RefcountError`].
pub(crate) fn check(file: &File, header: &Header) -> Result<(), RefcountError> {
    let bits = header.layout.cluster_bits;
    let mut refcounts = Refcounts::new(file, header.refcounts, bits)?;
    let l2: Vec<u64> = entries(file, header.l1.at, header.l1.entries)?.map(|e| e & L2_OFFSET).collect();
    let l1 = header.l1.at >> bits..(header.l1.at + header.l1.entries * 8).div_ceil(1 << bits);
    let table = header.refcounts.at >> bits..(header.refcounts.at >> bits) + header.refcounts.clusters;
    let named = refcounts.blocks.iter().chain(&l2).filter(|at| **at != 0).map(|at| at >> bits);
    let mut used: Vec<u64> = named.chain([0]).chain(l1).chain(table).collect();
    // Neighbours' refcounts are read together.
    used.sort_unstable();
    used.dedup();
    for cluster in used {
        if refcounts.is_free(cluster)? {
            return Err(RefcountError::Free(cluster));
        }
    }
    Ok(())
}
