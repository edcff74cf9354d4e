//! The decoded form of an instruction.

use crate::cpu::{Cpu, Step};

/// Executes one instruction. On entry RIP already points behind it. On
/// `Err(Stop::Fault)` the handler has changed nothing the architecture would
/// not have changed; the run loop puts RIP back.
pub type Handler = fn(&mut Cpu, &Insn) -> Step;

/// Index into [`Cpu::regs`] that always holds zero: "no base" or "no index".
pub const REG_ZERO: u8 = 16;
/// Index into [`Cpu::regs`] of RIP: RIP-relative addressing needs no special case.
pub const REG_RIP: u8 = 17;
/// Segment number of an access that adds no base and checks no limit (64-bit
/// mode, not FS or GS).
pub const SEG_FLAT: u8 = 6;

/// One decoded instruction: what the handler needs, nothing else. 48 bytes.
#[derive(Clone, Copy)]
pub struct Insn {
    /// What executes it.
    pub handler: Handler,
    /// Immediate, sign-extended to 64 bits, or relative branch displacement.
    pub imm: u64,
    /// Displacement of the memory operand, sign-extended.
    pub disp: u64,
    /// Group-specific: a second immediate, or an index into the group's own table.
    pub aux: u32,
    /// The `iced_x86::Code`, for handlers that serve several.
    pub code: u16,
    /// Length in bytes.
    pub len: u8,
    /// Base register of the memory operand: an index into `Cpu::regs`.
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// log2 of the index scale.
    pub scale: u8,
    /// 64 minus the address size in bits: 0, 32 or 48.
    pub address_shift: u8,
    /// Segment of the memory operand: a `SegmentIndex` number or [`SEG_FLAT`].
    pub seg: u8,
    /// Register operand numbers by operand position. General registers as in
    /// `Cpu::regs`; 8-bit AH CH DH BH are 20-23 (register number + 16 in legacy
    /// encodings); vector, x87, MMX, segment, control, debug registers by number.
    pub ops: [u8; 4],
    /// Operand size in bytes (1, 2, 4, 8), or vector length (16, 32).
    pub size: u8,
    /// Prefix and shape bits, `Insn::LOCK` and so on.
    pub bits: u8,
}

impl Insn {
    /// LOCK prefix (or implied, XCHG with memory).
    pub const LOCK: u8 = 1 << 0;
    /// REP or REPE prefix.
    pub const REP: u8 = 1 << 1;
    /// REPNE prefix.
    pub const REPNE: u8 = 1 << 2;
    /// The r/m operand is memory.
    pub const MEM: u8 = 1 << 3;
    /// Decoded in 64-bit mode.
    pub const LONG: u8 = 1 << 4;
    /// VEX-encoded.
    pub const VEX: u8 = 1 << 5;
    /// Uses x87, MMX or vector state.
    pub const FPU: u8 = 1 << 6;

    /// True if all of `bits` are set.
    #[inline(always)]
    pub fn has(&self, bits: u8) -> bool {
        self.bits & bits == bits
    }
}

impl Cpu {
    /// Offset of the memory operand within its segment.
    #[inline(always)]
    pub fn effective_address(&self, i: &Insn) -> u64 {
        let sum = self.regs[i.base as usize & 31]
            .wrapping_add(self.regs[i.index as usize & 31] << (i.scale & 3))
            .wrapping_add(i.disp);
        sum << (i.address_shift & 63) >> (i.address_shift & 63)
    }
}
