//! Refcounts of an image's clusters, read and mended before the library sees them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::header::{Header, RefcountTable};

/// The offset in an entry of the refcount table.
const BLOCK_OFFSET: u64 = !0x1ff;
/// No offset reaches it.
const END: u64 = 1 << 56;
/// Bytes of refcounts read at once: no more than the smallest cluster, which blocks are.
const PART: usize = 512;

/// Read what there is; what is behind the file's end is zero.
pub(crate) fn read(file: &File, mut at: u64, mut to: &mut [u8]) -> io::Result<()> {
    to.fill(0);
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

/// A table of big-endian entries of 8 bytes.
pub(crate) fn entries(file: &File, at: u64, count: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count as usize * 8];
    read(file, at, &mut bytes)?;
    Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

/// The refcounts of a file, a part of a block at a time.
pub(crate) struct Refcounts<'a> {
    file: &'a File,
    /// Opens the file to be written.
    writable: &'a dyn Fn() -> io::Result<File>,
    /// Where the table is, and the blocks that it names.
    table: u64,
    blocks: Vec<u64>,
    /// Bits of a cluster's size and of a refcount, as powers of two.
    cluster_bits: u32,
    order: u32,
    /// Where the part is that was read last, and whether it has changed.
    at: u64,
    part: [u8; PART],
    changed: bool,
    /// The file to write refcounts to, once any was changed.
    written: Option<File>,
}

/// A refcount's place in the part that was read last.
struct Place {
    byte: usize,
    bit: u32,
}

impl<'a> Refcounts<'a> {
    /// `writable` opens the file to be written, where anything is to be mended.
    pub fn of(
        file: &'a File,
        header: &Header,
        writable: &'a dyn Fn() -> io::Result<File>,
    ) -> io::Result<Self> {
        let RefcountTable { at: table, clusters, order } = header.refcounts;
        let cluster_bits = header.layout.cluster_bits;
        let blocks = entries(file, table, (clusters << cluster_bits) / 8)?;
        let blocks = blocks.into_iter().map(|entry| entry & BLOCK_OFFSET).collect();
        let (at, part, changed, written) = (u64::MAX, [0; PART], false, None);
        Ok(Refcounts { file, writable, table, blocks, cluster_bits, order, at, part, changed, written })
    }

    /// Where the blocks are that there are.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().copied().filter(|at| *at != 0)
    }

    /// Refcounts of a block, as a power of two.
    fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.order
    }

    /// Where the block for a cluster is named, and the place it names.
    fn block(&self, cluster: u64) -> Option<(usize, u64)> {
        let n = usize::try_from(cluster >> self.block_bits()).ok()?;
        self.blocks.get(n).map(|at| (n, *at))
    }

    /// Whether the table has a place for a cluster's block, and names none.
    pub fn lacks_block(&self, cluster: u64) -> bool {
        self.block(cluster).is_some_and(|(_, at)| at == 0)
    }

    /// Take what is at an offset, where the file has nothing, for the block of a cluster that
    /// lacks it.
    pub fn add_block(&mut self, cluster: u64, at: u64) -> io::Result<()> {
        let Some((n, 0)) = self.block(cluster) else { return Ok(()) };
        let entry = self.table + 8 * n as u64;
        self.opened()?.write_all_at(&at.to_be_bytes(), entry)?;
        self.blocks[n] = at;
        Ok(())
    }

    fn opened(&mut self) -> io::Result<&File> {
        let file = match self.written.take() {
            Some(file) => file,
            None => (self.writable)()?,
        };
        Ok(self.written.insert(file))
    }

    /// Read the part with a cluster's refcount; `None`: there is no block for it.
    fn place(&mut self, cluster: u64) -> io::Result<Option<Place>> {
        let block = self.block(cluster).map(|(_, at)| at);
        let Some(block) = block.filter(|at| (1..END).contains(at)) else { return Ok(None) };
        let bit = (cluster & ((1 << self.block_bits()) - 1)) << self.order;
        let at = block + bit / 8 / PART as u64 * PART as u64;
        if self.at != at {
            self.write_back()?;
            read(self.file, at, &mut self.part)?;
            self.at = at;
        }
        Ok(Some(Place { byte: (bit / 8) as usize % PART, bit: (bit % 8) as u32 }))
    }

    /// Whether a cluster is counted; `None`: there is no block that could.
    pub fn is_counted(&mut self, cluster: u64) -> io::Result<Option<bool>> {
        let Some(Place { byte, bit }) = self.place(cluster)? else { return Ok(None) };
        if self.order < 3 {
            // The first of a byte are its lowest bits.
            return Ok(Some(self.part[byte] >> bit & ((1 << (1 << self.order)) - 1) != 0));
        }
        let bytes = 1 << (self.order - 3);
        Ok(Some(self.part[byte..byte + bytes].iter().any(|b| *b != 0)))
    }

    /// Count one use of a cluster that has a block and is not counted.
    pub fn count(&mut self, cluster: u64) -> io::Result<()> {
        let Some(Place { byte, bit }) = self.place(cluster)? else { return Ok(()) };
        self.opened()?;
        let last = byte + (1 << self.order.saturating_sub(3)) - 1;
        self.part[last] |= 1 << bit;
        self.changed = true;
        Ok(())
    }

    fn write_back(&mut self) -> io::Result<()> {
        if let Some(file) = self.written.as_ref().filter(|_| self.changed) {
            file.write_all_at(&self.part, self.at)?;
            self.changed = false;
        }
        Ok(())
    }

    /// Write what was counted, and make the file longer if it is to be, durably.
    pub fn finish(mut self, len: Option<u64>) -> io::Result<()> {
        self.write_back()?;
        if let Some(len) = len {
            self.opened()?.set_len(len)?;
        }
        if let Some(file) = &self.written {
            file.sync_data()?;
        }
        Ok(())
    }
}
