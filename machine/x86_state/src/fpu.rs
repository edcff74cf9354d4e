//! x87, MMX and vector register state.

use serde::{Deserialize, Serialize};

/// MXCSR at reset: all exceptions masked, round to nearest.
pub const MXCSR_RESET: u32 = 0x1f80;
/// MXCSR bits that may be set; others fault (includes DAZ).
pub const MXCSR_MASK: u32 = 0xffff;

/// An 80-bit extended-precision value as stored by FSTP m80: explicit integer
/// bit, sign and exponent in the upper 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct F80 {
    /// Significand with explicit integer bit (bit 63).
    pub significand: u64,
    /// Sign (bit 15) and biased exponent (bits 0-14).
    pub sign_exponent: u16,
}

/// x87 FPU, MMX, SSE and AVX registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP in bits 11-13.
    pub fsw: u16,
    /// Abridged tag byte as FXSAVE stores it: bit i set when *physical*
    /// register i is not empty.
    pub ftw: u8,
    /// Last opcode, 11 bits.
    pub fop: u16,
    /// Last instruction pointer (FIP, or 64-bit RIP).
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// Last instruction's code selector (only outside 64-bit saves).
    pub fcs: u16,
    /// Last data selector.
    pub fds: u16,
    /// Registers by *physical* number R0-R7 (not ST(i)); MMX register i is the
    /// significand of `regs[i]`.
    pub regs: [F80; 8],
    /// MXCSR.
    pub mxcsr: u32,
    /// YMM0-15, four 64-bit lanes each, lowest first; XMM is lanes 0-1.
    pub ymm: [[u64; 4]; 16],
}

impl FpuState {
    /// State after power-up or hardware reset (SDM volume 3, table 10-1): x87
    /// control word 0x40, all tags valid zero, unlike after FNINIT.
    pub fn reset() -> Self {
        FpuState { fcw: 0x40, ftw: 0xff, ..Self::init() }
    }

    /// State after FNINIT, with vector registers zero.
    pub fn init() -> Self {
        FpuState {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            fcs: 0,
            fds: 0,
            regs: [F80::default(); 8],
            mxcsr: MXCSR_RESET,
            ymm: [[0; 4]; 16],
        }
    }

    /// TOP of stack, 0-7.
    pub fn top(&self) -> u8 {
        ((self.fsw >> 11) & 7) as u8
    }
}
