//! Internal snapshots: what an image keeps of its earlier contents.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use disk::OpenError;

use crate::header::{Header, HeaderError, L1Table};

/// Most bytes of the snapshots' table that are read: room for the names of some
/// ten thousand.
pub const MAX_SNAPSHOT_TABLE_BYTES: u64 = 4 << 20;
/// Bytes of an entry before its variable parts.
const FIXED: usize = 40;

/// An internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its identifier: a number, as QEMU makes them.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub created: u32,
    /// The disk's size then, in bytes, if it is told.
    pub disk_size: Option<u64>,
    /// Bytes of a machine's state that is kept with it.
    pub vm_state: u64,
    pub(crate) l1: L1Table,
}

/// The snapshots of an image.
///
/// # Errors
/// When the image cannot be opened or its table is damaged.
pub fn snapshots(path: &Path) -> Result<Vec<Snapshot>, OpenError> {
    let header = crate::chain::header(path)?;
    let file = File::open(path).map_err(|e| OpenError::open(path, e))?;
    read(&file, &header, path)
}

/// Read the table that a header tells of.
pub(crate) fn read(file: &File, header: &Header, path: &Path) -> Result<Vec<Snapshot>, OpenError> {
    if header.snapshots == 0 {
        return Ok(Vec::new());
    }
    let fail = |e| OpenError::open(path, e);
    let left = file.metadata().map_err(fail)?.len().saturating_sub(header.snapshots_at);
    let mut table = vec![0; left.min(MAX_SNAPSHOT_TABLE_BYTES) as usize];
    file.read_exact_at(&mut table, header.snapshots_at).map_err(fail)?;
    parse(&table, header.snapshots).map_err(|e| OpenError::refused(path, e.to_string()))
}

/// The entries of a table.
fn parse(table: &[u8], count: u32) -> Result<Vec<Snapshot>, HeaderError> {
    let mut found = Vec::new();
    let mut rest = table;
    for n in 0..count {
        let cut = || HeaderError::Field {
            field: "snapshot beyond the end of its table",
            value: n.into(),
            allowed: "a table inside the file, of up to 4 MiB",
        };
        let fixed = rest.first_chunk::<FIXED>().ok_or_else(cut)?;
        let half = |at: usize| usize::from(u16::from_be_bytes([fixed[at], fixed[at + 1]]));
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let (id_len, name_len, extra_len) = (half(12), half(14), word(36) as usize);
        let extra_end = FIXED.checked_add(extra_len).ok_or_else(cut)?;
        let id_end = extra_end.checked_add(id_len).ok_or_else(cut)?;
        let end = id_end.checked_add(name_len).ok_or_else(cut)?;
        let (extra, id, name) =
            (rest.get(FIXED..extra_end), rest.get(extra_end..id_end), rest.get(id_end..end));
        let (Some(extra), Some(id), Some(name)) = (extra, id, name) else { return Err(cut()) };
        let long = |at: usize| extra.get(at..).and_then(|b| b.first_chunk()).map(|b| u64::from_be_bytes(*b));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        found.push(Snapshot {
            id: text(id),
            name: text(name),
            created: word(16),
            disk_size: long(8).filter(|size| *size > 0 && *size < 1 << 60),
            vm_state: long(0).unwrap_or_else(|| word(32).into()),
            l1: L1Table { at: u64::from(word(0)) << 32 | u64::from(word(4)), entries: word(8).into() },
        });
        rest = rest.get(end.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, name: &str, extra: &[u8]) -> Vec<u8> {
        let mut e = vec![0; FIXED];
        e[6..8].copy_from_slice(&[5, 0]);
        e[8..12].copy_from_slice(&2u32.to_be_bytes());
        e[12..14].copy_from_slice(&(id.len() as u16).to_be_bytes());
        e[14..16].copy_from_slice(&(name.len() as u16).to_be_bytes());
        e[16..20].copy_from_slice(&77u32.to_be_bytes());
        e[36..40].copy_from_slice(&(extra.len() as u32).to_be_bytes());
        e.extend_from_slice(extra);
        e.extend_from_slice(id.as_bytes());
        e.extend_from_slice(name.as_bytes());
        e.resize(e.len().next_multiple_of(8), 0);
        e
    }

    #[test]
    fn entries_follow_one_another() {
        let extra = [&9u64.to_be_bytes()[..], &4096u64.to_be_bytes()].concat();
        let table = [entry("1", "before the upgrade", &extra), entry("2", "", &[])].concat();
        let found = parse(&table, 2).expect("a good table");
        let l1 = L1Table { at: 0x500, entries: 2 };
        let first = Snapshot {
            id: "1".into(),
            name: "before the upgrade".into(),
            created: 77,
            disk_size: Some(4096),
            vm_state: 9,
            l1,
        };
        let second =
            Snapshot { id: "2".into(), name: String::new(), disk_size: None, vm_state: 0, ..first.clone() };
        assert_eq!(found, [first, second]);
    }

    #[test]
    fn a_table_cut_anywhere_is_refused() {
        let table = [entry("1", "x", &[0; 16]), entry("2", "y", &[])].concat();
        // Padding at the end says nothing.
        for len in 0..table.len() - 6 {
            let message = parse(&table[..len], 2).expect_err("cut").to_string();
            assert!(message.contains("snapshot") && message.contains("; "), "{message}");
        }
        let mut long = entry("1", "x", &[]);
        long[36..40].fill(0xff);
        assert!(parse(&long, 1).is_err());
        assert!(parse(&table, u32::MAX).is_err());
    }
}
