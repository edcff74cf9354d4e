//! Registers, memory operands and the conditions under which vector
//! instructions may run at all.

use x86_semantics::sse_fp::{Env, commit};
use x86_state::{cr0, cr4, vector, xcr0};

use super::{LEGACY, VEX128, VEX256};
use crate::cpu::{Cpu, Privilege, Step, Stop};
use crate::insn::{Insn, SEG_FLAT};

impl Cpu {
    /// XMM register `n`.
    #[inline(always)]
    pub(super) fn read_xmm(&self, n: u8) -> u128 {
        let y = &self.fpu.ymm[usize::from(n & 15)];
        u128::from(y[0]) | u128::from(y[1]) << 64
    }

    /// YMM register `n`, lower half first.
    #[inline(always)]
    pub(super) fn read_ymm(&self, n: u8) -> [u128; 2] {
        let y = &self.fpu.ymm[usize::from(n & 15)];
        [u128::from(y[0]) | u128::from(y[1]) << 64, u128::from(y[2]) | u128::from(y[3]) << 64]
    }

    /// Replace XMM `n`; the upper half of the YMM register is kept.
    #[inline(always)]
    pub(super) fn write_xmm(&mut self, n: u8, v: u128) {
        let y = &mut self.fpu.ymm[usize::from(n & 15)];
        (y[0], y[1]) = (v as u64, (v >> 64) as u64);
    }

    /// Replace YMM `n`.
    #[inline(always)]
    pub(super) fn write_ymm(&mut self, n: u8, v: [u128; 2]) {
        self.fpu.ymm[usize::from(n & 15)] =
            [v[0] as u64, (v[0] >> 64) as u64, v[1] as u64, (v[1] >> 64) as u64];
    }

    /// Write a result as encoding `E` does.
    #[inline(always)]
    pub(super) fn set_vector<const E: u8>(&mut self, n: u8, v: [u128; 2]) {
        match E {
            LEGACY => self.write_xmm(n, v[0]),
            VEX128 => self.write_ymm(n, [v[0], 0]),
            _ => self.write_ymm(n, v),
        }
    }

    /// #UD or #NM unless the encoding may execute now (SDM volume 2, 2.4 to 2.6,
    /// exception classes 1 to 13).
    #[inline(always)]
    pub(super) fn ready<const E: u8>(&mut self) -> Step {
        let usable = if E == LEGACY {
            self.cr0 & cr0::EM == 0 && self.cr4 & cr4::OSFXSR != 0
        } else {
            let both = xcr0::SSE | xcr0::AVX;
            self.cr4 & cr4::OSXSAVE != 0 && self.xcr0 & both == both && self.protected() && !self.v86()
        };
        if !usable || self.cr0 & cr0::TS != 0 {
            return Err(self.unavailable(usable));
        }
        Ok(())
    }

    #[cold]
    fn unavailable(&mut self, usable: bool) -> Stop {
        if usable { self.raise(vector::NM, None) } else { self.ud() }
    }

    /// #GP(0) unless the memory operand is aligned to `bytes` (a power of two).
    #[inline(always)]
    pub(crate) fn aligned(&mut self, i: &Insn, bytes: u64) -> Step {
        if self.misaligned(i, bytes) {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Whether the memory operand's linear address is no multiple of `bytes` (a power of two).
    #[inline(always)]
    fn misaligned(&self, i: &Insn, bytes: u64) -> bool {
        let base = match i.seg {
            SEG_FLAT.. => 0,
            0..=3 if i.has(Insn::LONG) => 0,
            n => self.segments[usize::from(n)].base,
        };
        base.wrapping_add(self.effective_address(i)) & (bytes - 1) != 0
    }

    /// Operand `n` as encoding `E` reads it: a register, or the whole vector from
    /// memory. Legacy memory operands must be aligned.
    #[inline(always)]
    pub(super) fn source<const E: u8>(&mut self, i: &Insn, n: usize) -> Result<[u128; 2], Stop> {
        if !i.has(Insn::MEM) {
            return Ok(if E == VEX256 {
                self.read_ymm(i.ops[n & 3])
            } else {
                [self.read_xmm(i.ops[n & 3]), 0]
            });
        }
        if E == LEGACY {
            self.aligned(i, 16)?;
        }
        self.load_vector::<E>(i)
    }

    /// The memory operand: 16 bytes, 32 for VEX.256. No alignment is asked for.
    #[inline(always)]
    pub(super) fn load_vector<const E: u8>(&mut self, i: &Insn) -> Result<[u128; 2], Stop> {
        let low = self.load::<u128>(i)?;
        let high = if E == VEX256 { self.load_at::<u128>(i, 16)? } else { 0 };
        Ok([low, high])
    }

    /// Store 16 bytes, 32 for VEX.256; a fault leaves memory as it was.
    #[inline(always)]
    pub(super) fn store_vector<const E: u8>(&mut self, i: &Insn, v: [u128; 2]) -> Step {
        if E == VEX256 {
            if self.misaligned(i, 32) {
                self.probe_operand(i, 32)?;
            }
            self.store(i, v[0])?;
            return self.store_at(i, 16, v[1]);
        }
        self.store(i, v[0])
    }

    /// Fault as a store of `len` bytes to the memory operand would.
    pub(super) fn probe_operand(&mut self, i: &Insn, len: u64) -> Step {
        let linear = self.segment_address(i.seg, self.effective_address(i), len, true)?;
        self.probe_write(linear, len, Privilege::Current)
    }

    /// Operand `n`, of which `width` bytes (4, 8 or 16) count: the register, or
    /// that much memory zero-extended. 16 bytes in legacy encoding are aligned.
    #[inline(always)]
    pub(super) fn narrow_source<const E: u8>(&mut self, i: &Insn, n: usize, width: u8) -> Result<u128, Stop> {
        if !i.has(Insn::MEM) {
            return Ok(self.read_xmm(i.ops[n & 3]));
        }
        match width {
            1 => Ok(self.load::<u8>(i)?.into()),
            2 => Ok(self.load::<u16>(i)?.into()),
            4 => Ok(self.load::<u32>(i)?.into()),
            8 => Ok(self.load::<u64>(i)?.into()),
            _ => {
                if E == LEGACY {
                    self.aligned(i, 16)?;
                }
                self.load::<u128>(i)
            }
        }
    }

    /// Record what `env` collected; #XM (or #UD, CR4.OSXMMEXCPT clear) if an
    /// unmasked exception is among it.
    #[inline(always)]
    pub(super) fn commit_float(&mut self, env: &Env) -> Step {
        if commit(env, &mut self.fpu.mxcsr) {
            return Err(self.simd_exception());
        }
        Ok(())
    }

    #[cold]
    fn simd_exception(&mut self) -> Stop {
        if self.cr4 & cr4::OSXMMEXCPT != 0 { self.raise(vector::XM, None) } else { self.ud() }
    }
}

/// Position of the last source operand: 1 where the destination is a source too
/// (legacy), 2 with three operands (VEX).
#[inline(always)]
pub(super) const fn second<const E: u8>() -> usize {
    if E == LEGACY { 1 } else { 2 }
}

/// Position of the first source operand.
#[inline(always)]
pub(super) const fn first<const E: u8>() -> usize {
    if E == LEGACY { 0 } else { 1 }
}
