//! What a disk file is, by its first bytes.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes that decide.
const HEAD: usize = 0x8008;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskKind {
    /// A disk's bytes: partitions or a file system.
    Raw,
    /// QEMU's format: the disk's size in bytes, and the backing file it needs, if any.
    Qcow2 {
        /// What the guest sees, in bytes.
        size: u64,
        /// It holds only what differs from another file.
        has_backing: bool,
    },
    /// A disk format that is not read here.
    Other(&'static str),
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

/// What begins with a text, and what it is called.
const MAGICS: [(&[u8], DiskKind); 12] = [
    (b"KDMV", DiskKind::Other("VMDK")),
    (b"# Disk DescriptorFile", DiskKind::Other("VMDK")),
    (b"vhdxfile", DiskKind::Other("VHDX")),
    (b"conectix", DiskKind::Other("VHD")),
    (b"QED\0", DiskKind::Other("QED")),
    (b"\x1f\x8b", DiskKind::NoDisk("gzip data")),
    (b"\xfd7zXZ\0", DiskKind::NoDisk("xz data")),
    (b"BZh", DiskKind::NoDisk("bzip2 data")),
    (b"\x28\xb5\x2f\xfd", DiskKind::NoDisk("zstd data")),
    (b"\x7fELF", DiskKind::NoDisk("a program or kernel")),
    (b"PK\x03\x04", DiskKind::NoDisk("a zip archive")),
    (b"!<arch>\n", DiskKind::NoDisk("a package or library")),
];

fn judge(head: &[u8], length: u64) -> DiskKind {
    let at = |offset: usize, text: &[u8]| head.get(offset..offset + text.len()) == Some(text);
    let number = |offset: usize| {
        let bytes = head.get(offset..offset + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    };
    if head.is_empty() {
        return DiskKind::NoDisk("an empty file");
    }
    // The qcow2 header: magic, version, backing file's place at 8, size at 24.
    if at(0, b"QFI\xfb") {
        return match (number(8), number(24)) {
            (Some(backing), Some(size)) => DiskKind::Qcow2 { size, has_backing: backing != 0 },
            _ => DiskKind::NoDisk("a qcow2 file cut short"),
        };
    }
    if let Some((_, kind)) = MAGICS.iter().find(|m| head.starts_with(m.0)) {
        return kind.clone();
    }
    if at(0x40, b"\x7f\x10\xda\xbe") {
        return DiskKind::Other("VDI");
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
        let qcow2 = |size, has_backing| DiskKind::Qcow2 { size, has_backing };
        check(&[(0, b"QFI\xfb\0\0\0\x03"), (28, &[0x40, 0, 0, 0])], qcow2(1 << 30, false));
        check(&[(0, b"QFI\xfb\0\0\0\x02"), (15, &[8])], qcow2(0, true));
        check(&[(0, b"KDMV")], DiskKind::Other("VMDK"));
        check(&[(0x40, b"\x7f\x10\xda\xbe")], DiskKind::Other("VDI"));
        check(&[(0, b"\x1f\x8b")], DiskKind::NoDisk("gzip data"));
        check(&[(0x202, b"HdrS"), (510, b"\x55\xaa")], DiskKind::NoDisk("a Linux kernel"));
        check(&[(510, b"\x55\xaa")], DiskKind::Raw);
        check(&[(0x438, b"\x53\xef")], DiskKind::Raw);
        check(&[(0x8001, b"CD001")], DiskKind::Raw);
        check(&[], DiskKind::Unknown);
    }

    #[test]
    fn files_cut_short_are_no_disks() {
        for length in 0..600 {
            let mut head = vec![0; length];
            head.iter_mut().zip(b"QFI\xfb").for_each(|(to, from)| *to = *from);
            match judge(&head, length as u64) {
                DiskKind::Qcow2 { size: 0, has_backing: false } => assert!(length >= 32),
                DiskKind::NoDisk(_) | DiskKind::Unknown => assert!(length < 32),
                other => panic!("{length}: {other:?}"),
            }
        }
    }
}
