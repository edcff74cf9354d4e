//! XSAVE, XSAVEOPT, XSAVEC and XRSTOR (SDM volume 1, chapter 13).

use x86_state::{Feature, FpuState, MXCSR_RESET, cr0, cr4, reg, vector, xcr0};

use super::save::MXCSR;
use crate::cpu::{Cpu, Step};
use crate::insn::Insn;

/// Offset of the header: XSTATE_BV, XCOMP_BV, 48 reserved bytes.
const HEADER: u64 = 512;
/// Offset of the upper halves of the YMM registers, in both formats: AVX is the
/// only component outside the legacy area.
const AVX: u64 = 576;
/// XCOMP_BV bit: compacted format.
const COMPACTED: u64 = 1 << 63;

/// #UD, #NM, #GP common to the four; returns the requested-feature bitmap.
fn prepare(cpu: &mut Cpu, i: &Insn) -> Result<u64, crate::cpu::Stop> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(cpu.raise(vector::NM, None));
    }
    cpu.aligned(i, 64)?;
    let mask = cpu.regs[reg::RDX] << 32 | cpu.regs[reg::RAX] & 0xffff_ffff;
    Ok(mask & cpu.xcr0)
}

/// Components that differ from their initial configuration.
fn in_use(f: &FpuState) -> u64 {
    let init = FpuState::init();
    let x87 = (f.fcw, f.fsw, f.ftw, f.fop, f.fip, f.fdp, f.fcs, f.fds, f.regs)
        != (init.fcw, init.fsw, init.ftw, init.fop, init.fip, init.fdp, init.fcs, init.fds, init.regs);
    let sse = f.mxcsr != MXCSR_RESET || f.ymm.iter().any(|y| y[0] | y[1] != 0);
    let avx = f.ymm.iter().any(|y| y[2] | y[3] != 0);
    let bit = |on: bool, b: u64| if on { b } else { 0 };
    bit(x87, xcr0::X87) | bit(sse, xcr0::SSE) | bit(avx, xcr0::AVX)
}

/// Fault before anything is stored.
fn probe(cpu: &mut Cpu, i: &Insn, requested: u64) -> Step {
    let len = if requested & xcr0::AVX != 0 { AVX + 256 } else { AVX };
    cpu.probe_operand(i, len)
}

/// Store the components in `saved`.
fn store(cpu: &mut Cpu, i: &Insn, saved: u64, mxcsr: bool) -> Step {
    if saved & xcr0::X87 != 0 {
        cpu.store_x87(i)?;
    }
    if mxcsr {
        cpu.store_mxcsr_and_mask(i)?;
    }
    if saved & xcr0::SSE != 0 {
        cpu.store_xmm(i)?;
    }
    if saved & xcr0::AVX != 0 {
        for n in 0..cpu.vector_registers() {
            let v = cpu.read_ymm(n as u8)[1];
            cpu.store_at(i, AVX + 16 * n as u64, v)?;
        }
    }
    Ok(())
}

/// XSAVE and XSAVEOPT: the standard format; `skip_initial` leaves components in
/// their initial configuration out.
fn standard(cpu: &mut Cpu, i: &Insn, skip_initial: bool) -> Step {
    let requested = prepare(cpu, i)?;
    probe(cpu, i, requested)?;
    let used = in_use(&cpu.fpu);
    let old = cpu.load_at::<u64>(i, HEADER)?;
    let saved = if skip_initial { requested & used } else { requested };
    store(cpu, i, saved, requested & (xcr0::SSE | xcr0::AVX) != 0)?;
    cpu.store_at(i, HEADER, old & !requested | requested & used)
}

pub(super) fn xsave(cpu: &mut Cpu, i: &Insn) -> Step {
    standard(cpu, i, false)
}

pub(super) fn xsaveopt(cpu: &mut Cpu, i: &Insn) -> Step {
    standard(cpu, i, true)
}

pub(super) fn xsavec(cpu: &mut Cpu, i: &Insn) -> Step {
    let requested = prepare(cpu, i)?;
    probe(cpu, i, requested)?;
    let saved = requested & in_use(&cpu.fpu);
    store(cpu, i, saved, saved & xcr0::SSE != 0)?;
    cpu.store_at(i, HEADER, u128::from(saved) | u128::from(COMPACTED | requested) << 64)
}

pub(super) fn xrstor(cpu: &mut Cpu, i: &Insn) -> Step {
    let requested = prepare(cpu, i)?;
    let header = cpu.load_at::<u128>(i, HEADER)?;
    let (present, format) = (header as u64, (header >> 64) as u64);
    let reserved = [16, 32, 48].map(|at| cpu.load_at::<u128>(i, HEADER + at));
    let [first, second, third] = reserved;
    let (first, others) = (first?, second? | third?);
    let compacted = format & COMPACTED != 0;
    let valid = if compacted {
        let components = format & !COMPACTED;
        cpu.model.has(Feature::Xsavec)
            && components & !cpu.xcr0 == 0
            && present & !components == 0
            && first | others == 0
    } else {
        // Of the reserved bytes only the first eight are checked.
        format == 0 && first as u64 == 0 && present & !cpu.xcr0 == 0
    };
    if !valid {
        return Err(cpu.gp(0));
    }
    let mut new = cpu.fpu.clone();
    restore_x87_and_sse(cpu, i, &mut new, requested, present, compacted)?;
    if requested & xcr0::AVX != 0 {
        for n in 0..cpu.vector_registers() {
            let v = if present & xcr0::AVX != 0 { cpu.load_at::<u128>(i, AVX + 16 * n as u64)? } else { 0 };
            (new.ymm[n][2], new.ymm[n][3]) = (v as u64, (v >> 64) as u64);
        }
    }
    cpu.fpu = new;
    Ok(())
}

fn restore_x87_and_sse(
    cpu: &mut Cpu,
    i: &Insn,
    new: &mut FpuState,
    requested: u64,
    present: u64,
    compacted: bool,
) -> Step {
    if requested & xcr0::X87 != 0 {
        if present & xcr0::X87 != 0 {
            cpu.load_x87(i, new)?;
        } else {
            *new = FpuState { ymm: new.ymm, mxcsr: new.mxcsr, ..FpuState::init() };
        }
    }
    // The standard format loads MXCSR with either vector component, present or
    // not; the compacted one treats it as part of SSE.
    let sse = requested & xcr0::SSE != 0;
    let load_mxcsr =
        if compacted { sse && present & xcr0::SSE != 0 } else { requested & (xcr0::SSE | xcr0::AVX) != 0 };
    if load_mxcsr {
        let v = cpu.load_at::<u32>(i, MXCSR)?;
        cpu.check_mxcsr(v)?;
        new.mxcsr = v;
    } else if compacted && sse {
        new.mxcsr = MXCSR_RESET;
    }
    if sse && present & xcr0::SSE != 0 {
        cpu.load_xmm(i, new)?;
    } else if sse {
        for y in &mut new.ymm[..cpu.vector_registers()] {
            (y[0], y[1]) = (0, 0);
        }
    }
    Ok(())
}
