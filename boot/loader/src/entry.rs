//! Processor states at kernel entry points.

use x86_state::{CpuState, Segment, TableRegister, cr0, cr4, efer, reg};

use crate::error::Result;
use crate::place::{Placer, low};

/// Selectors that Linux names __BOOT_CS and __BOOT_DS
/// (Documentation/arch/x86/boot.rst).
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const TSS: u16 = 0x20;

/// Access rights: present, DPL 0, accessed; 4 GiB, page granularity.
const CODE32: u32 = Segment::G | Segment::DB | 0x9b;
const CODE64: u32 = Segment::G | Segment::L | 0x9b;
const DATA: u32 = Segment::G | Segment::DB | 0x93;
/// 32-bit busy TSS, limit in bytes.
const TSS_BUSY: u32 = 0x8b;
const TSS_LIMIT: u32 = 0x67;

/// IA32_MTRR_DEF_TYPE as firmware leaves it: enabled, write-back. Without it
/// Linux would switch PAT off.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;

/// A descriptor table entry for a segment (SDM volume 3, figure 3-8).
fn descriptor(s: &Segment) -> u64 {
    let access = u64::from(s.access);
    let limit = u64::from(if s.access & Segment::G != 0 { s.limit >> 12 } else { s.limit });
    let base = s.base;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (access & 0xff) << 40
        | (limit >> 16 & 0xf) << 48
        | (access >> 12 & 0xf) << 52
        | (base >> 24 & 0xff) << 56
}

fn flat(selector: u16, access: u32) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, access }
}

/// Reset state with flat segments from a descriptor table in low memory,
/// interrupts off, write-back caching, general registers zero.
fn flat_state(placer: &mut Placer<'_>, signature: u32, code: u32) -> Result<CpuState> {
    let mut cpu = CpuState::reset(true, signature);
    cpu.gpr = [0; 16];
    cpu.segments = [flat(BOOT_DS, DATA); 6];
    cpu.segments[1] = flat(BOOT_CS, code);
    cpu.tr = Segment { selector: TSS, base: 0, limit: TSS_LIMIT, access: TSS_BUSY };
    let spare = flat(8, CODE32);
    let gdt = [
        0,
        descriptor(&spare),
        descriptor(&cpu.segments[1]),
        descriptor(&cpu.segments[0]),
        descriptor(&cpu.tr),
    ];
    let bytes: Vec<u8> = gdt.iter().flat_map(|d| d.to_le_bytes()).collect();
    let at = placer.low(low::GDT);
    placer.put("descriptor table", at, &bytes)?;
    cpu.gdtr = TableRegister { base: at, limit: bytes.len() as u16 - 1 };
    cpu.idtr = TableRegister { base: 0, limit: 0 };
    cpu.cr0 = cr0::PE | cr0::ET | cr0::NE;
    cpu.msrs.mtrr_def_type = MTRR_ENABLED_WRITE_BACK;
    Ok(cpu)
}

/// 32-bit protected mode, paging off: what the Linux 32-bit, PVH and Multiboot
/// entries all ask for.
pub(crate) fn protected32(placer: &mut Placer<'_>, signature: u32, entry: u32) -> Result<CpuState> {
    let mut cpu = flat_state(placer, signature, CODE32)?;
    // PVH and Multiboot leave CR0 with PE and ET alone.
    cpu.cr0 = cr0::PE | cr0::ET;
    cpu.rip = entry.into();
    Ok(cpu)
}

/// 64-bit mode with the first 4 GiB mapped to themselves by 2 MiB pages.
pub(crate) fn long64(placer: &mut Placer<'_>, signature: u32, entry: u64) -> Result<CpuState> {
    const DIRECTORIES: u64 = 4;
    let first = placer.low(low::PAGE_TABLES);
    let page = |i: u64| first + i * 0x1000;
    let mut tables = vec![0u64; 512 * (2 + DIRECTORIES as usize)];
    tables[0] = page(1) | PRESENT_WRITABLE;
    for d in 0..DIRECTORIES {
        tables[512 + d as usize] = page(2 + d) | PRESENT_WRITABLE;
    }
    for (i, entry) in tables[1024..].iter_mut().enumerate() {
        *entry = (i as u64) << 21 | LARGE_PAGE | PRESENT_WRITABLE;
    }
    let bytes: Vec<u8> = tables.iter().flat_map(|e| e.to_le_bytes()).collect();
    placer.put("page tables", first, &bytes)?;

    let mut cpu = flat_state(placer, signature, CODE64)?;
    cpu.cr3 = page(0);
    cpu.cr4 = cr4::PAE;
    cpu.efer = efer::LME | efer::LMA;
    cpu.cr0 |= cr0::PG;
    cpu.rip = entry;
    // A stack for the first instructions; kernels set their own.
    cpu.gpr[reg::RSP] = placer.low(low::BOOT_PARAMS) - 0x10;
    Ok(cpu)
}
