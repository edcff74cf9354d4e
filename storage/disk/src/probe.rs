//! Image formats by their magic numbers.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::OpenError;

/// Bytes at an image's start that [`probe`] looks at.
pub const PROBE_LEN: usize = 4096;

/// A format of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// The disk's bytes.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
    /// Hyper-V's older one, also of Virtual PC and Azure.
    Vhd,
    /// VirtualBox's.
    Vdi,
    /// QEMU's older ones.
    Qcow1,
    /// QEMU enhanced disk.
    Qed,
    /// Encrypted by LUKS.
    Luks,
    /// Parallels'.
    Parallels,
    /// Compressed as a whole, by gzip, xz, zstd or bzip2.
    Compressed,
}

impl ImageFormat {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "VMDK",
            ImageFormat::Vhdx => "VHDX",
            ImageFormat::Vhd => "VHD",
            ImageFormat::Vdi => "VDI",
            ImageFormat::Qcow1 => "qcow version 1",
            ImageFormat::Qed => "QED",
            ImageFormat::Luks => "LUKS",
            ImageFormat::Parallels => "Parallels",
            ImageFormat::Compressed => "a compressed file",
        }
    }
}

/// Where a magic number stands, its bytes, and what it tells.
const MAGIC: &[(usize, &[u8], ImageFormat)] = &[
    (0, b"QFI\xfb\0\0\0\x01", ImageFormat::Qcow1),
    (0, b"QFI\xfb", ImageFormat::Qcow2),
    (0, b"KDMV", ImageFormat::Vmdk),
    (0, b"COWD", ImageFormat::Vmdk),
    (0, b"# Disk DescriptorFile", ImageFormat::Vmdk),
    (0, b"vhdxfile", ImageFormat::Vhdx),
    (0, b"conectix", ImageFormat::Vhd),
    (0x40, b"\x7f\x10\xda\xbe", ImageFormat::Vdi),
    (0, b"QED\0", ImageFormat::Qed),
    (0, b"LUKS\xba\xbe", ImageFormat::Luks),
    (0, b"WithoutFreeSpace", ImageFormat::Parallels),
    (0, b"WithouFreSpacExt", ImageFormat::Parallels),
    (0, b"\x1f\x8b\x08", ImageFormat::Compressed),
    (0, b"\xfd7zXZ\0", ImageFormat::Compressed),
    (0, b"\x28\xb5\x2f\xfd", ImageFormat::Compressed),
    (0, b"BZh", ImageFormat::Compressed),
];

/// Tell a format by an image's first bytes ([`PROBE_LEN`] or all there are). What
/// has no magic number is raw.
pub fn probe(start: &[u8]) -> ImageFormat {
    let is = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|s| s.starts_with(magic));
    MAGIC.iter().find(|m| is(m.0, m.1)).map_or(ImageFormat::Raw, |m| m.2)
}

/// [`probe`] an image.
///
/// # Errors
/// When it cannot be opened or read.
pub fn probe_file(path: &Path) -> Result<ImageFormat, OpenError> {
    let file = File::open(path).map_err(|e| OpenError::open(path, e))?;
    probe_open(path, &file)
}

/// [`probe`] an image that is open; `path` is for messages.
///
/// # Errors
/// When it cannot be read.
pub fn probe_open(path: &Path, file: &File) -> Result<ImageFormat, OpenError> {
    let fail = |e| OpenError::open(path, e);
    let mut start = [0; PROBE_LEN];
    let mut filled = 0;
    while filled < start.len() {
        match file.read_at(&mut start[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(fail(e)),
        }
    }
    Ok(probe(&start[..filled]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_magic_numbers() {
        let mut vdi = vec![0; 0x44];
        vdi[0x40..].copy_from_slice(&0xbeda_107fu32.to_le_bytes());
        for (bytes, format) in [
            (&b""[..], ImageFormat::Raw),
            (b"QF", ImageFormat::Raw),
            (b"QFI\xfb\0\0\0\x03", ImageFormat::Qcow2),
            (b"QFI\xfb\0\0\0\x02", ImageFormat::Qcow2),
            (b"QFI\xfb\0\0\0\x01", ImageFormat::Qcow1),
            (b"KDMV\x01\0\0\0", ImageFormat::Vmdk),
            (b"# Disk DescriptorFile\nversion=1", ImageFormat::Vmdk),
            (b"vhdxfileQ\0E\0", ImageFormat::Vhdx),
            (&vdi, ImageFormat::Vdi),
            (b"\xeb\x63\x90\0", ImageFormat::Raw),
            (b"\xfd7zXZ\0\0", ImageFormat::Compressed),
        ] {
            assert_eq!(probe(bytes), format, "{bytes:02x?}");
        }
    }
}
