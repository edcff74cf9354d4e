//! A 64-bit Linux kernel as ELF, entered at startup_64 with `boot_params`.
//!
//! The kernel runs at the address it was linked for: the bzImage's own
//! decompressor is what moves it about (KASLR), and it is not run here.

use x86_state::reg;

use crate::boot_params::{self, Limits};
use crate::elf;
use crate::entry;
use crate::error::Result;
use crate::place::{Placer, low};
use crate::{BootRequest, BootState, Protocol};

/// The end of the kernel's bss is rounded up to this, because its first page
/// tables map whole large pages.
const LARGE_PAGE: u64 = 0x20_0000;

/// Load a vmlinux file.
pub(crate) fn load(placer: Placer<'_>, request: &BootRequest<'_>) -> Result<BootState> {
    enter(placer, request, request.kernel, boot_params::for_vmlinux(), Limits::VMLINUX, Protocol::Linux64)
}

/// Load `vmlinux` and enter it with this zero page.
pub(crate) fn enter(
    mut placer: Placer<'_>,
    request: &BootRequest<'_>,
    vmlinux: &[u8],
    page: [u8; 4096],
    limits: Limits,
    protocol: Protocol,
) -> Result<BootState> {
    let elf = elf::parse_amd64(vmlinux)?;
    let entry = elf.physical_entry()?;
    let (start, end) = elf.load(&mut placer, "kernel")?;
    let end = end.checked_next_multiple_of(LARGE_PAGE).unwrap_or(end);
    boot_params::finish(&mut placer, request, page, limits, (start, end))?;
    let mut cpu = entry::long64(&mut placer, request.cpu_signature, entry)?;
    cpu.gpr[reg::RSI] = placer.low(low::BOOT_PARAMS);
    Ok(BootState { cpu, protocol, note: None, loaded: placer.finish() })
}
