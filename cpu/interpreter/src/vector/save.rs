//! MXCSR, FXSAVE and FXRSTOR (SDM volume 1, 10.5; volume 2, FXSAVE).

use iced_x86::{Instruction, Mnemonic as M};
use x86_state::{F80, FpuState, MXCSR_MASK, cr0, cr4, vector};

use super::{LEGACY, VEX128, xsave};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::{Handler, Insn};

/// Offset of MXCSR in the save area.
pub(super) const MXCSR: u64 = 24;
/// Offset of XMM0.
const XMM: u64 = 160;
/// Bytes of an FXSAVE area.
const AREA: u64 = 512;

/// The handler of an instruction that saves or restores state. `aux` becomes 1
/// for the formats with 64-bit pointers.
pub(super) fn handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let wide = matches!(
        i.mnemonic(),
        M::Fxsave64 | M::Fxrstor64 | M::Xsave64 | M::Xsaveopt64 | M::Xsavec64 | M::Xrstor64
    );
    insn.aux = wide.into();
    Some(match i.mnemonic() {
        M::Ldmxcsr => load_mxcsr::<LEGACY>,
        M::Vldmxcsr => load_mxcsr::<VEX128>,
        M::Stmxcsr => store_mxcsr::<LEGACY>,
        M::Vstmxcsr => store_mxcsr::<VEX128>,
        M::Fxsave | M::Fxsave64 => fxsave,
        M::Fxrstor | M::Fxrstor64 => fxrstor,
        M::Xsave | M::Xsave64 => xsave::xsave,
        M::Xsaveopt | M::Xsaveopt64 => xsave::xsaveopt,
        M::Xsavec | M::Xsavec64 => xsave::xsavec,
        M::Xrstor | M::Xrstor64 => xsave::xrstor,
        _ => return None,
    })
}

fn load_mxcsr<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.load::<u32>(i)?;
    cpu.check_mxcsr(v)?;
    cpu.fpu.mxcsr = v;
    Ok(())
}

fn store_mxcsr<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    cpu.store(i, cpu.fpu.mxcsr)
}

/// #NM while x87 state is not to be touched.
fn fx_ready(cpu: &mut Cpu, i: &Insn) -> Step {
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(cpu.raise(vector::NM, None));
    }
    cpu.aligned(i, 16)
}

fn fxsave(cpu: &mut Cpu, i: &Insn) -> Step {
    fx_ready(cpu, i)?;
    cpu.probe_operand(i, AREA)?;
    cpu.store_x87(i)?;
    cpu.store_mxcsr_and_mask(i)?;
    // Without CR4.OSFXSR the XMM registers are not part of the image.
    if cpu.cr4 & cr4::OSFXSR != 0 {
        cpu.store_xmm(i)?;
    }
    Ok(())
}

fn fxrstor(cpu: &mut Cpu, i: &Insn) -> Step {
    fx_ready(cpu, i)?;
    let mut new = cpu.fpu.clone();
    let mxcsr = cpu.load_at::<u32>(i, MXCSR)?;
    cpu.load_x87(i, &mut new)?;
    if cpu.cr4 & cr4::OSFXSR != 0 {
        cpu.load_xmm(i, &mut new)?;
    }
    cpu.check_mxcsr(mxcsr)?;
    new.mxcsr = mxcsr;
    cpu.fpu = new;
    Ok(())
}

impl Cpu {
    /// XMM registers the mode can address.
    pub(super) fn vector_registers(&self) -> usize {
        if self.long64() { 16 } else { 8 }
    }

    /// #GP(0) if a reserved MXCSR bit is set.
    pub(super) fn check_mxcsr(&mut self, v: u32) -> Step {
        if v & !MXCSR_MASK != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Store the x87 part of the image: all but MXCSR up to XMM0.
    pub(super) fn store_x87(&mut self, i: &Insn) -> Step {
        let f = &self.fpu;
        let mut control = u128::from(f.fcw) | u128::from(f.fsw) << 16 | u128::from(f.ftw) << 32;
        control |= u128::from(f.fop & 0x7ff) << 48;
        let pointer = |offset: u64, selector: u16| {
            if i.aux != 0 { offset } else { u64::from(offset as u32) | u64::from(selector) << 32 }
        };
        control |= u128::from(pointer(f.fip, f.fcs)) << 64;
        let data = pointer(f.fdp, f.fds);
        let top = usize::from(f.top());
        // Registers stand in stack order, the tags by physical number.
        let registers: [u128; 8] = std::array::from_fn(|n| {
            let r = f.regs[(top + n) & 7];
            u128::from(r.significand) | u128::from(r.sign_exponent) << 64
        });
        self.store(i, control)?;
        self.store_at(i, 16, data)?;
        for (n, r) in registers.into_iter().enumerate() {
            self.store_at(i, 32 + 16 * n as u64, r)?;
        }
        Ok(())
    }

    /// Load the x87 part of the image.
    pub(super) fn load_x87(&mut self, i: &Insn, f: &mut FpuState) -> Step {
        let control = self.load::<u128>(i)?;
        let data = self.load_at::<u64>(i, 16)?;
        f.fcw = control as u16 & !0xe080 | 0x40;
        f.fsw = (control >> 16) as u16;
        f.ftw = (control >> 32) as u8;
        f.fop = (control >> 48) as u16 & 0x7ff;
        let instruction = (control >> 64) as u64;
        if i.aux != 0 {
            (f.fip, f.fcs, f.fdp, f.fds) = (instruction, 0, data, 0);
        } else {
            (f.fip, f.fcs) = (instruction as u32 as u64, (instruction >> 32) as u16);
            (f.fdp, f.fds) = (data as u32 as u64, (data >> 32) as u16);
        }
        // ES and B follow from what is flagged and not masked.
        let pending = f.fsw & !f.fcw & 0x3f != 0;
        f.fsw = f.fsw & !0x8080 | if pending { 0x8080 } else { 0 };
        let top = usize::from(f.top());
        for n in 0..8 {
            let v = self.load_at::<u128>(i, 32 + 16 * n as u64)?;
            f.regs[(top + n) & 7] = F80 { significand: v as u64, sign_exponent: (v >> 64) as u16 };
        }
        Ok(())
    }

    /// Store MXCSR and the mask of its valid bits.
    pub(super) fn store_mxcsr_and_mask(&mut self, i: &Insn) -> Step {
        let v = u64::from(self.fpu.mxcsr) | u64::from(MXCSR_MASK) << 32;
        self.store_at(i, MXCSR, v)
    }

    /// Store the XMM registers.
    pub(super) fn store_xmm(&mut self, i: &Insn) -> Step {
        for n in 0..self.vector_registers() {
            let v = self.read_xmm(n as u8);
            self.store_at(i, XMM + 16 * n as u64, v)?;
        }
        Ok(())
    }

    /// Load the XMM registers.
    pub(super) fn load_xmm(&mut self, i: &Insn, f: &mut FpuState) -> Result<(), Stop> {
        for n in 0..self.vector_registers() {
            let v = self.load_at::<u128>(i, XMM + 16 * n as u64)?;
            (f.ymm[n][0], f.ymm[n][1]) = (v as u64, (v >> 64) as u64);
        }
        Ok(())
    }
}
