//! What a disk file is, by its first bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use disk::ImageFormat;

/// Bytes that decide.
const HEAD: usize = 0x8008;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskKind {
    /// A disk's bytes: partitions or a file system.
    Raw,
    /// A disk in a format of its own.
    Image(ImageFormat),
    /// No disk at all.
    NoDisk(&'static str),
    /// Nothing known begins so; a raw disk may.
    Unknown,
}

/// What a file is.
///
/// # Errors
/// When it cannot be read.
pub fn sniff(path: &Path) -> io::Result<DiskKind> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    file.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(judge(&head, length))
}

/// What begins with a text and is no disk, and what it is called.
const MAGICS: [(&[u8], &str); 3] = [
    (b"\x7fELF", "a program or kernel"),
    (b"PK\x03\x04", "a zip archive"),
    (b"!<arch>\n", "a package or library"),
];

fn judge(head: &[u8], length: u64) -> DiskKind {
    let at = |offset: usize, text: &[u8]| head.get(offset..offset + text.len()) == Some(text);
    if head.is_empty() {
        return DiskKind::NoDisk("an empty file");
    }
    match disk::probe(head) {
        ImageFormat::Raw => {}
        ImageFormat::Compressed => return DiskKind::NoDisk(ImageFormat::Compressed.name()),
        format => return DiskKind::Image(format),
    }
    if let Some((_, what)) = MAGICS.iter().find(|m| head.starts_with(m.0)) {
        return DiskKind::NoDisk(what);
    }
    if at(0x202, b"HdrS") {
        return DiskKind::NoDisk("a Linux kernel");
    }
    // Partition table or FAT, ext2 to ext4, ISO 9660, XFS, btrfs is beyond the head.
    let known = at(510, b"\x55\xaa") || at(0x438, b"\x53\xef") || at(0x8001, b"CD001") || at(0, b"XFSB");
    if known && length >= 512 { DiskKind::Raw } else { DiskKind::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_their_first_bytes() {
        fn check(parts: &[(usize, &[u8])], kind: DiskKind) {
            let mut head = vec![0; HEAD];
            for (at, bytes) in parts {
                head[*at..*at + bytes.len()].copy_from_slice(bytes);
            }
            assert_eq!(judge(&head, HEAD as u64), kind, "{parts:?}");
        }
        check(&[(0, b"QFI\xfb\0\0\0\x03")], DiskKind::Image(ImageFormat::Qcow2));
        check(&[(0, b"KDMV")], DiskKind::Image(ImageFormat::Vmdk));
        check(&[(0x40, b"\x7f\x10\xda\xbe")], DiskKind::Image(ImageFormat::Vdi));
        check(&[(0, b"\x1f\x8b\x08")], DiskKind::NoDisk("a compressed file"));
        check(&[(0, b"\x7fELF")], DiskKind::NoDisk("a program or kernel"));
        check(&[(0x202, b"HdrS"), (510, b"\x55\xaa")], DiskKind::NoDisk("a Linux kernel"));
        check(&[(510, b"\x55\xaa")], DiskKind::Raw);
        check(&[(0x438, b"\x53\xef")], DiskKind::Raw);
        check(&[(0x8001, b"CD001")], DiskKind::Raw);
        check(&[], DiskKind::Unknown);
    }

    #[test]
    fn files_cut_short_are_no_raw_disks() {
        let mut head = vec![0; 512];
        head[510..].copy_from_slice(b"\x55\xaa");
        for length in 0..512 {
            let kind = judge(&head[..length], length as u64);
            assert!(matches!(kind, DiskKind::NoDisk(_) | DiskKind::Unknown), "{length}: {kind:?}");
        }
        assert_eq!(judge(&head, 512), DiskKind::Raw);
    }
}
