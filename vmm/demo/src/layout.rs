//! Where guests of this crate have their tables: descriptors, page tables, stacks.

use guest_memory::{GuestMemory, MemoryError};
use x86_state::{CpuState, Segment, TableRegister, cr0, cr4, efer, reg};

/// Guest-physical addresses. Memory is mapped one to one.
pub mod address {
    #![allow(missing_docs, reason = "the names say it")]
    pub const GDT: u64 = 0x1000;
    pub const IDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    pub const REAL_CODE: u64 = 0x7000;
    pub const PROTECTED_CODE: u64 = 0x8000;
    pub const CODE: u64 = 0x1_0000;
    pub const USER_CODE: u64 = 0x2_0000;
    pub const STACK: u64 = 0x4_0000;
    pub const USER_STACK: u64 = 0x5_0000;
    pub const PML4: u64 = 0x5_1000;
    pub const PDPT: u64 = 0x5_2000;
    pub const LOW_DIRECTORY: u64 = 0x5_3000;
    pub const HIGH_DIRECTORY: u64 = 0x5_4000;
    pub const DATA: u64 = 0x10_0000;
    /// End of all memory.
    pub const END: u64 = 0x80_0000;
}

/// Selectors of the GDT, in the order SYSCALL and SYSRET want them, and Linux's
/// numbers: some hosts' KVM runs user code with those whatever the guest loads.
pub mod selector {
    #![allow(missing_docs, reason = "the names say it")]
    pub const CODE32: u16 = 0x08;
    pub const CODE64: u16 = 0x10;
    pub const DATA: u16 = 0x18;
    /// SYSRET adds 8 for the stack and 16 for 64-bit code.
    pub const SYSRET_BASE: u16 = 0x20;
    pub const USER_DATA: u16 = 0x28;
    pub const USER_CODE64: u16 = 0x30;
    pub const TSS: u16 = 0x38;
}

const GDT_ENTRIES: [u64; 9] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    // 64-bit TSS at 0x3000 with its I/O permission bitmap; two entries.
    0x0000_8900_3000_2068,
    0,
];
const GDT_LIMIT: u16 = size_of::<[u64; 9]>() as u16 - 1;

/// Fields, a bitmap of 65536 ports, and its closing byte.
const TSS_LIMIT: u32 = 0x2068;

/// Present, writable, user.
const TABLE: u64 = 7;
/// The same as a 2 MiB page.
const LARGE_PAGE: u64 = 0x87;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Bytes of one IDT gate in long mode.
pub const GATE: u64 = 16;

/// Write descriptor and page tables: memory and device space up to 4 GiB are
/// mapped one to one for everybody.
///
/// # Errors
/// When memory is too small.
pub fn write_tables(memory: &GuestMemory) -> Result<(), MemoryError> {
    use address as a;
    for (i, entry) in GDT_ENTRIES.iter().enumerate() {
        memory.store(a::GDT + 8 * i as u64, &entry.to_le_bytes())?;
    }
    memory.store(a::TSS + 4, &a::STACK.to_le_bytes())?;
    // An I/O permission bitmap of zeros opens every port to ring 3.
    memory.store(a::TSS + 0x66, &0x68u16.to_le_bytes())?;
    memory.store(a::TSS + u64::from(TSS_LIMIT), &[0xff])?;
    memory.store(a::PML4, &(a::PDPT | TABLE).to_le_bytes())?;
    for (gib, directory) in [(0, a::LOW_DIRECTORY), (3, a::HIGH_DIRECTORY)] {
        memory.store(a::PDPT + 8 * gib, &(directory | TABLE).to_le_bytes())?;
        for i in 0..512 {
            let page = (gib << 30) + i * LARGE_PAGE_SIZE;
            memory.store(directory + 8 * i, &(page | LARGE_PAGE).to_le_bytes())?;
        }
    }
    Ok(())
}

/// A 64-bit interrupt gate; `user` lets ring 3 use INT with it.
///
/// # Errors
/// When memory is too small.
pub fn write_gate(memory: &GuestMemory, vector: u8, handler: u64, user: bool) -> Result<(), MemoryError> {
    let kind = if user { 0xee00 } else { 0x8e00 };
    let low =
        handler & 0xffff | u64::from(selector::CODE64) << 16 | kind << 32 | (handler >> 16 & 0xffff) << 48;
    memory.store(address::IDT + u64::from(vector) * GATE, &low.to_le_bytes())?;
    memory.store(address::IDT + u64::from(vector) * GATE + 8, &(handler >> 32).to_le_bytes())
}

/// Real mode at `address::REAL_CODE`, stack below it.
pub fn real_mode() -> CpuState {
    let mut s = CpuState::reset(true, 0);
    s.segments = [Segment::real_mode(0, false); 6];
    s.segments[1] = Segment::real_mode(0, true);
    s.rip = address::REAL_CODE;
    s.gpr[reg::RSP] = address::REAL_CODE;
    s
}

fn flat(selector: u16, access: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, access }
}

/// 32-bit protected mode without paging at `address::PROTECTED_CODE`.
pub fn protected_mode() -> CpuState {
    let mut s = real_mode();
    s.cr0 = cr0::PE | cr0::ET | cr0::NE;
    s.segments = [flat(selector::DATA, 0xc093); 6];
    s.segments[1] = flat(selector::CODE32, 0xc09b);
    s.gdtr = TableRegister { base: address::GDT, limit: GDT_LIMIT };
    s.rip = address::PROTECTED_CODE;
    s.gpr[reg::RSP] = address::STACK;
    s
}

/// 64-bit mode with everything set up, at `address::CODE` in ring 0 or
/// `address::USER_CODE` in ring 3.
pub fn long_mode(ring: u8) -> CpuState {
    let mut s = protected_mode();
    s.cr0 |= cr0::PG | cr0::WP | cr0::MP;
    s.cr3 = address::PML4;
    s.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    s.efer = efer::LME | efer::LMA | efer::SCE;
    s.idtr = TableRegister { base: address::IDT, limit: 0xfff };
    s.tr = Segment { selector: selector::TSS, base: address::TSS, limit: TSS_LIMIT, access: 0x8b };
    s.ldtr = Segment { access: Segment::UNUSABLE, ..Segment::default() };
    if ring == 0 {
        s.segments[1] = flat(selector::CODE64, 0xa09b);
        s.rip = address::CODE;
    } else {
        s.segments = [flat(selector::USER_DATA | 3, 0xc0f3); 6];
        s.segments[1] = flat(selector::USER_CODE64 | 3, 0xa0fb);
        s.rip = address::USER_CODE;
        s.gpr[reg::RSP] = address::USER_STACK;
    }
    s
}

/// The pseudo-descriptor LGDT loads, for code that sets itself up.
pub fn gdt_pointer() -> [u8; 6] {
    let mut bytes = [0; 6];
    bytes[..2].copy_from_slice(&GDT_LIMIT.to_le_bytes());
    bytes[2..].copy_from_slice(&(address::GDT as u32).to_le_bytes());
    bytes
}
