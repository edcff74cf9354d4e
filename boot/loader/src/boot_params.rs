//! Linux `boot_params`, the "zero page" (Documentation/arch/x86/zero-page.rst
//! and boot.rst; arch/x86/include/uapi/asm/bootparam.h).

use crate::error::{LoadError, Result};
use crate::fields::{Fields, put};
use crate::place::{Placer, low};
use crate::{BootRequest, MemoryRange};

const SIZE: usize = 4096;
const ACPI_RSDP_ADDR: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;
/// E820_MAX_ENTRIES_ZEROPAGE.
const E820_MAX: usize = 128;

const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const INITRD_ADDR_MAX: usize = 0x22c;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;

/// Start of the setup header in an image and in `boot_params`.
const HEADER_START: u64 = 0x1f1;
/// Where `boot_params` goes on after the setup header.
const HEADER_END_MAX: u64 = 0x290;
/// "Undefined" loader.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;

/// What the setup header says of a kernel, or what a plain ELF kernel is
/// assumed to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The initrd must end at or below this address.
    pub initrd_limit: u64,
    /// Longest command line, without the closing zero.
    pub cmdline_max: usize,
}

impl Limits {
    /// Every 64-bit kernel since 2.6: initrd below 2 GiB, COMMAND_LINE_SIZE 2048.
    pub const VMLINUX: Limits = Limits { initrd_limit: 1 << 31, cmdline_max: 2047 };
}

/// A zero page with the setup header of a bzImage.
pub(crate) fn from_bzimage(image: &Fields<'_>) -> Result<[u8; SIZE]> {
    let mut page = [0; SIZE];
    // The header's end: the jump at 0x200 goes over it.
    let end = (0x202 + u64::from(image.u8(0x201)?)).min(HEADER_END_MAX);
    let header = image.slice(HEADER_START, end - HEADER_START)?;
    page[HEADER_START as usize..end as usize].copy_from_slice(header);
    Ok(page)
}

/// A zero page for an ELF kernel, which brings no setup header.
pub(crate) fn for_vmlinux() -> [u8; SIZE] {
    let mut page = [0; SIZE];
    put(&mut page, BOOT_FLAG, 0xaa55u16.to_le_bytes());
    put(&mut page, HEADER_MAGIC, *b"HdrS");
    put(&mut page, VERSION, 0x20fu16.to_le_bytes());
    put(&mut page, INITRD_ADDR_MAX, 0x7fff_ffffu32.to_le_bytes());
    put(&mut page, KERNEL_ALIGNMENT, 0x20_0000u32.to_le_bytes());
    put(&mut page, CMDLINE_SIZE, (Limits::VMLINUX.cmdline_max as u32).to_le_bytes());
    page
}

/// Complete a zero page and store it with the command line and the initrd.
/// `kernel` is the physical range that the kernel and its start-up need.
pub(crate) fn finish(
    placer: &mut Placer<'_>,
    request: &BootRequest<'_>,
    mut page: [u8; SIZE],
    limits: Limits,
    kernel: (u64, u64),
) -> Result<()> {
    put_e820(&mut page, request.memory_map)?;
    placer.put_cmdline(request.cmdline, limits.cmdline_max)?;
    if let Some(initrd) = request.initrd.filter(|i| !i.is_empty()) {
        let at = placer.put_initrd(initrd, limits.initrd_limit, kernel)?;
        let size = initrd.len() as u64;
        put(&mut page, RAMDISK_IMAGE, (at as u32).to_le_bytes());
        put(&mut page, RAMDISK_SIZE, (size as u32).to_le_bytes());
        put(&mut page, EXT_RAMDISK_IMAGE, ((at >> 32) as u32).to_le_bytes());
        put(&mut page, EXT_RAMDISK_SIZE, ((size >> 32) as u32).to_le_bytes());
    }
    put(&mut page, ACPI_RSDP_ADDR, request.rsdp.unwrap_or(0).to_le_bytes());
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED;
    page[LOADFLAGS] |= LOADED_HIGH;
    put(&mut page, CODE32_START, (kernel.0 as u32).to_le_bytes());
    put(&mut page, CMD_LINE_PTR, (placer.low(low::CMDLINE) as u32).to_le_bytes());
    placer.put("boot parameters", placer.low(low::BOOT_PARAMS), &page)
}

fn put_e820(page: &mut [u8; SIZE], map: &[MemoryRange]) -> Result<()> {
    if map.len() > E820_MAX {
        return Err(LoadError::MapTooLong { ranges: map.len(), max: E820_MAX });
    }
    page[E820_ENTRIES] = map.len() as u8;
    for (i, r) in map.iter().enumerate() {
        let at = E820_TABLE + i * E820_ENTRY_SIZE;
        put(page, at, r.start.to_le_bytes());
        put(page, at + 8, r.size.to_le_bytes());
        put(page, at + 16, r.kind.to_le_bytes());
    }
    Ok(())
}
