//! PVH direct boot (Xen docs/misc/pvh.pandoc, public/arch-x86/hvm/start_info.h).

use x86_state::reg;

use crate::boot_params::Limits;
use crate::elf::Elf;
use crate::entry;
use crate::error::{LoadError, Result};
use crate::fields::put;
use crate::place::{Placer, low};
use crate::{BootRequest, BootState, ImageKind, Protocol};

const START_MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const MODULE_LIST: u64 = 0x40;
const MEMORY_MAP: u64 = 0x80;
const MEMORY_MAP_ENTRY: u64 = 24;
/// What fits before the next table in low memory.
const MEMORY_MAP_MAX: usize = 256;
const SIZE: usize = MEMORY_MAP as usize + MEMORY_MAP_MAX * MEMORY_MAP_ENTRY as usize;
const _: () = assert!(low::PVH_INFO + SIZE as u64 <= low::BOOT_PARAMS);

/// Load an ELF kernel and enter it at its PVH entry point.
pub(crate) fn load(mut placer: Placer<'_>, request: &BootRequest<'_>, kernel: &[u8]) -> Result<BootState> {
    let elf = Elf::parse(kernel)?;
    let entry = elf.pvh_entry()?.ok_or(LoadError::WrongProtocol {
        asked: Protocol::Pvh,
        kind: ImageKind::ElfLinux64,
        reason: "it has no PVH note (for Linux: build with CONFIG_PVH=y)",
    })?;
    if request.memory_map.len() > MEMORY_MAP_MAX {
        return Err(LoadError::MapTooLong { ranges: request.memory_map.len(), max: MEMORY_MAP_MAX });
    }
    let (start, end) = elf.load(&mut placer, "kernel")?;
    let at = placer.low(low::PVH_INFO);
    placer.put_cmdline(request.cmdline, Limits::VMLINUX.cmdline_max)?;

    let mut info = vec![0; SIZE];
    put(&mut info, 0, START_MAGIC.to_le_bytes());
    put(&mut info, 4, VERSION.to_le_bytes());
    if let Some(initrd) = request.initrd.filter(|i| !i.is_empty()) {
        let module = placer.put_initrd(initrd, Limits::VMLINUX.initrd_limit, (start, end))?;
        put(&mut info, 12, 1u32.to_le_bytes());
        put(&mut info, 16, (at + MODULE_LIST).to_le_bytes());
        put(&mut info, MODULE_LIST as usize, module.to_le_bytes());
        put(&mut info, MODULE_LIST as usize + 8, (initrd.len() as u64).to_le_bytes());
    }
    put(&mut info, 24, placer.low(low::CMDLINE).to_le_bytes());
    put(&mut info, 32, request.rsdp.unwrap_or(0).to_le_bytes());
    put(&mut info, 40, (at + MEMORY_MAP).to_le_bytes());
    put(&mut info, 48, (request.memory_map.len() as u32).to_le_bytes());
    for (i, r) in request.memory_map.iter().enumerate() {
        let entry = (MEMORY_MAP + i as u64 * MEMORY_MAP_ENTRY) as usize;
        put(&mut info, entry, r.start.to_le_bytes());
        put(&mut info, entry + 8, r.size.to_le_bytes());
        put(&mut info, entry + 16, r.kind.to_le_bytes());
    }
    placer.put("PVH start info", at, &info)?;

    let mut cpu = entry::protected32(&mut placer, request.cpu_signature, entry)?;
    cpu.gpr[reg::RBX] = at;
    Ok(BootState { cpu, protocol: Protocol::Pvh, note: None, loaded: placer.finish() })
}
