//! What a file is, from its first bytes.

use std::fmt;

use crate::elf::{self, Elf};
use crate::error::{LoadError, Result};
use crate::fields::Fields;
use crate::{bzimage, firmware, multiboot};

/// An image format this crate can load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// Linux x86 boot executable with a setup header.
    BzImage,
    /// ELF with a note that gives a PVH entry point.
    ElfPvh,
    /// 64-bit x86 ELF entered by the Linux 64-bit protocol.
    ElfLinux64,
    /// Multiboot 1 kernel: ELF, or flat with load addresses in its header.
    Multiboot,
    /// Raw firmware: code for the reset vector at its end.
    Firmware,
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageKind::BzImage => "a Linux bzImage",
            ImageKind::ElfPvh => "an ELF kernel with a PVH entry",
            ImageKind::ElfLinux64 => "a 64-bit ELF kernel",
            ImageKind::Multiboot => "a Multiboot kernel",
            ImageKind::Firmware => "a firmware image",
        })
    }
}

/// Recognise an image.
///
/// # Errors
/// [`LoadError::Empty`], or [`LoadError::NotAKernel`] saying what the file is
/// instead. A recognised image may still be refused by [`crate::load`].
pub fn sniff(bytes: &[u8]) -> Result<ImageKind> {
    if bytes.is_empty() {
        return Err(LoadError::Empty);
    }
    if bzimage::is_bzimage(bytes) {
        return Ok(ImageKind::BzImage);
    }
    if multiboot::find_header(bytes).is_some() {
        return Ok(ImageKind::Multiboot);
    }
    if bytes.starts_with(elf::MAGIC) {
        return sniff_elf(bytes);
    }
    if let Some((found, remedy)) = foreign(bytes) {
        return Err(LoadError::NotAKernel { found, remedy });
    }
    if firmware::has_reset_vector(bytes) {
        return Ok(ImageKind::Firmware);
    }
    Err(LoadError::NotAKernel {
        found: "of an unknown format",
        remedy: "give a bzImage (vmlinuz), an ELF or Multiboot kernel, or a firmware image",
    })
}

fn sniff_elf(bytes: &[u8]) -> Result<ImageKind> {
    let refuse = |found, remedy| Err(LoadError::NotAKernel { found, remedy });
    match Fields::new("ELF kernel", bytes).u16(18)? {
        elf::EM_386 | elf::EM_X86_64 => {}
        elf::EM_ARM | elf::EM_AARCH64 => {
            return refuse(
                "an ELF file for ARM",
                "this machine is an x86 PC: give a kernel for amd64 or i386",
            );
        }
        _ => {
            return refuse(
                "an ELF file for another processor",
                "this machine is an x86 PC: give a kernel for amd64 or i386",
            );
        }
    }
    let elf = Elf::parse(bytes)?;
    if elf.pvh_entry()?.is_some() {
        return Ok(ImageKind::ElfPvh);
    }
    if elf.is_program() {
        return refuse(
            "an ELF program for an operating system, not a kernel",
            "put it into an initrd and boot a Linux kernel with it",
        );
    }
    if elf.long {
        return Ok(ImageKind::ElfLinux64);
    }
    refuse(
        "a 32-bit ELF file without a PVH note or Multiboot header",
        "build it with one of them, or boot the kernel's bzImage",
    )
}

/// Offset, magic, what it is, what to do.
type Foreign = (usize, &'static [u8], &'static str, &'static str);

const AS_DISK: &str = "give its kernel with --kernel, or attach it as a disk";
const X86_ONLY: &str = "this machine is an x86 PC: give a kernel for amd64 or i386";
const DECOMPRESS: &str = "decompress it first and give the result";

const FOREIGN: &[Foreign] = &[
    (0, b"\x1f\x8b", "gzip-compressed", "decompress it with gunzip first and give the result"),
    (0, b"\xfd7zXZ\0", "xz-compressed", "decompress it with unxz first and give the result"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed", "decompress it with unzstd first and give the result"),
    (0, b"BZh", "bzip2-compressed", "decompress it with bunzip2 first and give the result"),
    (0, b"\x5d\0\0", "lzma-compressed", DECOMPRESS),
    (0, b"\x02\x21\x4c\x18", "lz4-compressed", DECOMPRESS),
    (0, b"\x04\x22\x4d\x18", "lz4-compressed", DECOMPRESS),
    (0, b"\x89LZO", "lzop-compressed", DECOMPRESS),
    (0, b"PK\x03\x04", "a zip archive", "unpack it and give the kernel in it"),
    (
        0,
        b"!<arch>\n",
        "a Debian package or ar archive",
        "unpack it with dpkg-deb -x and give boot/vmlinuz-* from it",
    ),
    (0, b"070701", "a cpio archive (an initrd)", "give it with --initrd, and the kernel with --kernel"),
    (0, b"070707", "a cpio archive (an initrd)", "give it with --initrd, and the kernel with --kernel"),
    (257, b"ustar", "a tar archive", "unpack it and give the kernel in it"),
    (0, b"QFI\xfb", "a qcow2 disk image", AS_DISK),
    (0, b"KDMV", "a VMDK disk image", AS_DISK),
    (0, b"conectix", "a VHD disk image", AS_DISK),
    (0, b"vhdxfile", "a VHDX disk image", AS_DISK),
    (0x8001, b"CD001", "an ISO 9660 CD image", AS_DISK),
    (56, b"ARM\x64", "a Linux kernel for 64-bit ARM", X86_ONLY),
    (0x24, b"\x18\x28\x6f\x01", "a Linux kernel for 32-bit ARM", X86_ONLY),
    (56, b"RSC\x05", "a Linux kernel for RISC-V", X86_ONLY),
    (0, b"\x27\x05\x19\x56", "a U-Boot uImage", "give the kernel itself, for amd64 or i386"),
    (
        0,
        b"MZ",
        "a Windows or EFI program",
        "boot it from firmware on a disk, or give a kernel with a Linux setup header",
    ),
    (510, b"\x55\xaa", "a disk image with a boot sector", AS_DISK),
];

fn foreign(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let matches = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|b| b.starts_with(magic));
    if let Some(f) = FOREIGN.iter().find(|f| matches(f.0, f.1)) {
        return Some((f.2, f.3));
    }
    let head = &bytes[..bytes.len().min(512)];
    let text = |b: &u8| b.is_ascii_graphic() || b" \t\r\n".contains(b);
    if head.iter().all(text) {
        return Some((
            "a text file",
            "give the kernel itself; --kernel takes the path of a vmlinuz or ELF file",
        ));
    }
    if bytes.iter().all(|b| *b == 0) {
        return Some(("all zero bytes", "fetch or copy the file again: its contents are lost"));
    }
    None
}
