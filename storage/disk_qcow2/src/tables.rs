//! Second-level tables that the file is known to name.
//!
//! The library notes a new table in its copy of the first level before it writes the entry,
//! and never writes that again: should the write fail, what is written behind the table
//! later would seem to succeed, and be gone at the next start.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::header::Layout;
use crate::refcounts::read;

/// The header's field of the first level's offset.
const L1_AT: u64 = 40;

/// A part of the disk, cut at multiples of a span.
pub(crate) fn pieces(offset: u64, len: u64, span: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
    let end = offset + len;
    let next = move |at: u64| ((at / span + 1) * span).min(end);
    std::iter::successors(Some(offset), move |at| Some(next(*at)))
        .take_while(move |at| *at < end)
        .map(move |at| (at, next(at) - at))
}

pub(crate) struct Tables {
    file: File,
    /// Bytes of the disk that each tells of.
    span: u64,
    named: Vec<AtomicBool>,
}

impl Tables {
    /// `named`: those that were there when the image was opened.
    pub fn new(file: File, layout: Layout, named: Vec<bool>) -> Self {
        Tables { file, span: layout.l2_span(), named: named.into_iter().map(AtomicBool::new).collect() }
    }

    /// A part of the disk, cut where second-level tables end.
    pub fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        pieces(offset, len, self.span)
    }

    /// Whether the file is known to name the table behind which a place of the disk is.
    pub fn is_named(&self, at: u64) -> bool {
        self.named.get((at / self.span) as usize).is_some_and(|named| named.load(Ordering::Relaxed))
    }

    /// After a write: refuse it when the file does not name a table behind which it is.
    pub fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let touched = offset / self.span..(offset + len).div_ceil(self.span);
        for n in touched {
            let Some(named) = self.named.get(n as usize) else { continue };
            if named.load(Ordering::Relaxed) {
                continue;
            }
            let mut field = [0; 8];
            read(&self.file, L1_AT, &mut field)?;
            let at = u64::from_be_bytes(field).saturating_add(8 * n);
            read(&self.file, at, &mut field)?;
            if field == [0; 8] {
                return Err(io::Error::other(
                    "a table of the image could not be written; stop the machine and start it again",
                ));
            }
            named.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn tables(file: File) -> Tables {
        // Clusters of 512 bytes: a table tells of 32 KiB.
        Tables::new(file, Layout { cluster_bits: 9, extended_l2: false }, vec![true, false, false])
    }

    #[test]
    fn pieces_end_with_tables() {
        let t = tables(tempfile::tempfile().expect("a file"));
        for (offset, len, pieces) in [
            (0, 0, vec![]),
            (512, 1024, vec![(512, 1024)]),
            (0, 32 << 10, vec![(0, 32 << 10)]),
            (31 << 10, 34 << 10, vec![(31 << 10, 1 << 10), (32 << 10, 32 << 10), (64 << 10, 1 << 10)]),
        ] {
            assert_eq!(t.pieces(offset, len).collect::<Vec<_>>(), pieces, "{offset} {len}");
        }
    }

    #[test]
    fn a_write_behind_a_table_that_is_not_named_fails() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&1024u64.to_be_bytes(), L1_AT).expect("room");
        let t = tables(file.try_clone().expect("a descriptor"));
        t.check(0, 512).expect("named when it was opened");
        t.check(40 << 10, 512).expect_err("its entry is zero");
        file.write_all_at(&[1], 1024 + 8).expect("room");
        t.check(40 << 10, 512).expect("named now");
        t.check(60 << 10, 8 << 10).expect_err("the third is not");
        t.check(96 << 10, 512).expect("beyond the disk: refused elsewhere");
    }
}
