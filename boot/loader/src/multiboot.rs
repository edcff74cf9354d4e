//! Multiboot 1 (Multiboot Specification 0.6.96).

use x86_state::reg;

use crate::elf::{self, Elf};
use crate::entry;
use crate::error::{LoadError, Result};
use crate::fields::{Fields, put};
use crate::place::{Placer, low};
use crate::{BootRequest, BootState, MemoryRange, Protocol};

const WHAT: &str = "Multiboot kernel";
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// The header lies, 4-byte aligned, within this much of the file.
const SEARCH: usize = 8192;
/// What the kernel finds in EAX.
const LOADER_MAGIC: u64 = 0x2bad_b002;

/// Header flag: the address fields are valid (the "a.out kludge").
const ADDRESSES: u32 = 1 << 16;
/// Header flags we honour: page-aligned modules, memory information, video
/// mode (a wish, which a machine without a display may ignore).
const KNOWN: u32 = 0b111;
/// Header flags that a loader must refuse when it does not know them.
const REQUIRED: u32 = 0xffff;

mod info {
    //! Offsets in the information structure, and its flags.
    pub const MEM_LOWER: usize = 4;
    pub const MEM_UPPER: usize = 8;
    pub const CMDLINE: usize = 16;
    pub const MODS_COUNT: usize = 20;
    pub const MODS_ADDR: usize = 24;
    pub const MMAP_LENGTH: usize = 44;
    pub const MMAP_ADDR: usize = 48;
    pub const BOOT_LOADER_NAME: usize = 64;
    pub const FLAG_MEM: u32 = 1 << 0;
    pub const FLAG_CMDLINE: u32 = 1 << 2;
    pub const FLAG_MODS: u32 = 1 << 3;
    pub const FLAG_MMAP: u32 = 1 << 6;
    pub const FLAG_NAME: u32 = 1 << 9;
}

/// Where the parts lie behind the information structure.
const MODULES: usize = 0x80;
const MODULE_STRING: usize = 0xa0;
const NAME_STRING: usize = 0xc0;
const MEMORY_MAP: usize = 0x100;
const MEMORY_MAP_ENTRY: usize = 24;
const MEMORY_MAP_MAX: usize = 128;
const SIZE: usize = MEMORY_MAP + MEMORY_MAP_MAX * MEMORY_MAP_ENTRY;
const _: () = assert!(low::MULTIBOOT_INFO + SIZE as u64 <= low::CMDLINE);

/// First word of the command line: kernels skip it as the program's name.
const PROGRAM_NAME: &str = "kernel";

/// Offset of the header, if the file has one with a good checksum.
pub(crate) fn find_header(bytes: &[u8]) -> Option<u64> {
    let head = Fields::new(WHAT, &bytes[..bytes.len().min(SEARCH)]);
    (0..head.bytes.len() as u64).step_by(4).find(|&at| {
        let word = |i: u64| head.u32(at + 4 * i);
        let (Ok(magic), Ok(flags), Ok(checksum)) = (word(0), word(1), word(2)) else { return false };
        magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(checksum) == 0
    })
}

/// Load a Multiboot kernel and enter it.
pub(crate) fn load(mut placer: Placer<'_>, request: &BootRequest<'_>) -> Result<BootState> {
    let file = Fields::new(WHAT, request.kernel);
    let header = find_header(request.kernel).ok_or(LoadError::NotAKernel {
        found: "without a Multiboot header in its first 8 KiB",
        remedy: "leave --boot-protocol at auto",
    })?;
    let flags = file.u32(header + 4)?;
    if flags & REQUIRED & !KNOWN != 0 {
        return Err(file.malformed(
            "Multiboot header flags",
            flags.into(),
            "only bits 0 to 2 and 16 are supported",
        ));
    }
    let (entry, end) = if flags & ADDRESSES != 0 {
        load_flat(&mut placer, &file, header)?
    } else if request.kernel.starts_with(elf::MAGIC) {
        let elf = Elf::parse(request.kernel)?;
        let entry = elf.physical_entry()?;
        (entry, elf.load(&mut placer, "kernel")?.1)
    } else {
        return Err(file.malformed(
            "Multiboot header flags",
            flags.into(),
            "bit 16 in a file that is not ELF",
        ));
    };
    let entry = u32::try_from(entry)
        .map_err(|_| file.malformed("entry", entry, "an address below 4 GiB expected"))?;
    put_info(&mut placer, request, end)?;
    let mut cpu = entry::protected32(&mut placer, request.cpu_signature, entry)?;
    cpu.gpr[reg::RAX] = LOADER_MAGIC;
    cpu.gpr[reg::RBX] = placer.low(low::MULTIBOOT_INFO);
    Ok(BootState { cpu, protocol: Protocol::Multiboot, note: None, loaded: placer.finish() })
}

/// Load by the header's address fields. Returns the entry point and the end.
fn load_flat(placer: &mut Placer<'_>, file: &Fields<'_>, header: u64) -> Result<(u64, u64)> {
    let field = |i: u64| file.u32(header + 12 + 4 * i).map(u64::from);
    let (header_addr, load_addr, load_end, bss_end, entry) =
        (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    // header_addr is where the header lands; what precedes it in the file but
    // lies below load_addr is not loaded.
    let before = header_addr.checked_sub(load_addr).filter(|b| *b <= header);
    let before = before.ok_or_else(|| {
        file.malformed("load_addr", load_addr, "an address at or below header_addr expected")
    })?;
    let from = header - before;
    let len = match load_end {
        0 => file.bytes.len() as u64 - from,
        end => end
            .checked_sub(load_addr)
            .ok_or_else(|| file.malformed("load_end_addr", end, "an address above load_addr expected"))?,
    };
    let data = file.slice(from, len)?;
    let end = match bss_end {
        0 => load_addr + len,
        end => end.max(load_addr + len),
    };
    placer.keep_clear("kernel", std::iter::once((load_addr, end - load_addr)))?;
    placer.require_low()?;
    placer.require_ram("kernel", load_addr, end - load_addr)?;
    placer.put("kernel", load_addr, data)?;
    placer.zero(load_addr + len, end - load_addr - len)?;
    Ok((entry, end))
}

/// Build the information structure, put the module behind the kernel.
fn put_info(placer: &mut Placer<'_>, request: &BootRequest<'_>, kernel_end: u64) -> Result<()> {
    let map = request.memory_map;
    if map.len() > MEMORY_MAP_MAX {
        return Err(LoadError::MapTooLong { ranges: map.len(), max: MEMORY_MAP_MAX });
    }
    let info = placer.low(low::MULTIBOOT_INFO);
    let at = |offset: usize| (info as u32 + offset as u32).to_le_bytes();
    let mut flags = info::FLAG_MEM | info::FLAG_CMDLINE | info::FLAG_MMAP | info::FLAG_NAME;
    let mut table = vec![0; SIZE];
    let kib = |r: u64| ((r / 1024).min(u32::MAX.into()) as u32).to_le_bytes();
    put(&mut table, info::MEM_LOWER, kib(placer.ram_end(0).min(640 << 10)));
    put(&mut table, info::MEM_UPPER, kib(placer.ram_end(1 << 20).saturating_sub(1 << 20)));

    let cmdline = format!("{PROGRAM_NAME} {}", request.cmdline);
    placer.put_cmdline(cmdline.trim_end(), low::CMDLINE_MAX)?;
    put(&mut table, info::CMDLINE, (placer.low(low::CMDLINE) as u32).to_le_bytes());

    if let Some(module) = request.initrd {
        let start = placer.put_module(module, kernel_end)?;
        flags |= info::FLAG_MODS;
        put(&mut table, info::MODS_COUNT, 1u32.to_le_bytes());
        put(&mut table, info::MODS_ADDR, at(MODULES));
        put(&mut table, MODULES, start.to_le_bytes());
        put(&mut table, MODULES + 4, (start.saturating_add(module.len() as u32)).to_le_bytes());
        put(&mut table, MODULES + 8, at(MODULE_STRING));
        put(&mut table, MODULE_STRING, *b"initrd\0");
    }
    put(&mut table, info::MMAP_LENGTH, ((map.len() * MEMORY_MAP_ENTRY) as u32).to_le_bytes());
    put(&mut table, info::MMAP_ADDR, at(MEMORY_MAP));
    for (i, r) in map.iter().enumerate() {
        put_map_entry(&mut table, MEMORY_MAP + i * MEMORY_MAP_ENTRY, r);
    }
    put(&mut table, info::BOOT_LOADER_NAME, at(NAME_STRING));
    put(&mut table, NAME_STRING, *b"strata\0");
    put(&mut table, 0, flags.to_le_bytes());
    placer.put("Multiboot information", info, &table)
}

fn put_map_entry(table: &mut [u8], at: usize, range: &MemoryRange) {
    // `size` does not count itself.
    put(table, at, (MEMORY_MAP_ENTRY as u32 - 4).to_le_bytes());
    put(table, at + 4, range.start.to_le_bytes());
    put(table, at + 12, range.size.to_le_bytes());
    put(table, at + 20, range.kind.to_le_bytes());
}
