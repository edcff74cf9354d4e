//! SYSCALL SYSRET SYSENTER SYSEXIT SWAPGS and the FS and GS base instructions
//! (SDM volume 2).

use x86_state::{Segment, cr4, dr6, efer, reg, rflags};

use super::selector::{CS, FS, GS, SS};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// A flat code segment as these instructions load it, without a descriptor.
fn flat_code(selector: u16, level: u8, long: bool) -> Segment {
    let size = if long { Segment::L } else { Segment::DB };
    let access = 0x9b | u32::from(level) << 5 | Segment::G | size;
    Segment { selector, base: 0, limit: u32::MAX, access }
}

/// A flat stack segment.
fn flat_stack(selector: u16, level: u8) -> Segment {
    let access = 0x93 | u32::from(level) << 5 | Segment::G | Segment::DB;
    Segment { selector, base: 0, limit: u32::MAX, access }
}

fn enter(cpu: &mut Cpu, code: u16, stack: u16, level: u8, long: bool) {
    cpu.set_segment(CS, flat_code(code, level, long));
    cpu.set_segment(SS, flat_stack(stack, level));
}

/// SYSCALL: 64-bit mode only, as on Intel processors.
pub(super) fn syscall(cpu: &mut Cpu, _: &Insn) -> Step {
    if cpu.efer & efer::SCE == 0 || !cpu.long64() {
        return Err(cpu.ud());
    }
    let flags = cpu.rflags();
    cpu.regs[reg::RCX] = cpu.rip();
    cpu.regs[reg::R11] = flags & !rflags::RF;
    cpu.set_rip(cpu.msrs.lstar);
    cpu.set_rflags(flags & !(cpu.msrs.sfmask | rflags::RF), u64::MAX);
    let code = (cpu.msrs.star >> 32) as u16 & 0xfffc;
    enter(cpu, code, code.wrapping_add(8), 0, true);
    trap_by_new_flags(cpu);
    Err(Stop::Resync)
}

/// SYSCALL and SYSRET are traced by the TF they load, so that an operating
/// system can mask TF at its entry and a debugger sees SYSCALL as one step.
fn trap_by_new_flags(cpu: &mut Cpu) {
    cpu.step_trap = false;
    if cpu.system_flags & rflags::TF != 0 {
        cpu.pending_debug |= dr6::BS;
    }
}

/// SYSRET: `size` 8 returns to 64-bit mode, 4 to compatibility mode.
pub(super) fn sysret(cpu: &mut Cpu, i: &Insn) -> Step {
    const FLAGS: u64 = 0x3c_7fd7;
    if cpu.efer & efer::SCE == 0 || !cpu.long64() {
        return Err(cpu.ud());
    }
    let long = i.size == 8;
    let rip = cpu.regs[reg::RCX];
    if cpu.cpl != 0 || long && !cpu.canonical(rip) {
        return Err(cpu.gp(0));
    }
    cpu.set_rip(if long { rip } else { rip & 0xffff_ffff });
    cpu.set_rflags(cpu.regs[reg::R11] & FLAGS & !rflags::RF, u64::MAX);
    let base = (cpu.msrs.star >> 48) as u16;
    let code = if long { base.wrapping_add(16) } else { base };
    enter(cpu, code | 3, base.wrapping_add(8) | 3, 3, long);
    trap_by_new_flags(cpu);
    Err(Stop::Resync)
}

/// SYSENTER.
pub(super) fn sysenter(cpu: &mut Cpu, _: &Insn) -> Step {
    if !cpu.protected() || cpu.msrs.sysenter_cs & 0xfffc == 0 {
        return Err(cpu.gp(0));
    }
    let long = cpu.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.set_rflags(0, rflags::VM | rflags::IF | rflags::RF);
    let code = cpu.msrs.sysenter_cs as u16 & 0xfffc;
    enter(cpu, code, code.wrapping_add(8), 0, long);
    cpu.regs[reg::RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.set_rip(cpu.msrs.sysenter_eip & mask);
    Err(Stop::Resync)
}

/// SYSEXIT: `size` 8 returns to 64-bit mode.
pub(super) fn sysexit(cpu: &mut Cpu, i: &Insn) -> Step {
    if !cpu.protected() || cpu.cpl != 0 || cpu.msrs.sysenter_cs & 0xfffc == 0 {
        return Err(cpu.gp(0));
    }
    let long = i.size == 8;
    let (rip, rsp) = (cpu.regs[reg::RDX], cpu.regs[reg::RCX]);
    if long && !(cpu.canonical(rip) && cpu.canonical(rsp)) {
        return Err(cpu.gp(0));
    }
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let base = cpu.msrs.sysenter_cs as u16;
    let (code, stack) = if long { (32, 40) } else { (16, 24) };
    enter(cpu, base.wrapping_add(code) | 3, base.wrapping_add(stack) | 3, 3, long);
    cpu.set_rip(rip & mask);
    cpu.regs[reg::RSP] = rsp & mask;
    Err(Stop::Resync)
}

/// SWAPGS.
pub(super) fn swapgs(cpu: &mut Cpu, _: &Insn) -> Step {
    if !cpu.long64() {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let base = cpu.segments[usize::from(GS)].base;
    cpu.set_segment_base(GS, cpu.msrs.kernel_gs_base);
    cpu.msrs.kernel_gs_base = base;
    Ok(())
}

fn require_fsgsbase(cpu: &mut Cpu) -> Step {
    if cpu.long64() && cpu.cr4 & cr4::FSGSBASE != 0 { Ok(()) } else { Err(cpu.ud()) }
}

/// RDFSBASE (`aux` 0) and RDGSBASE (`aux` 1).
pub(super) fn read_base(cpu: &mut Cpu, i: &Insn) -> Step {
    require_fsgsbase(cpu)?;
    let index = if i.aux == 0 { FS } else { GS };
    cpu.set_register(i.ops[0], i.size, cpu.segments[usize::from(index)].base);
    Ok(())
}

/// WRFSBASE (`aux` 0) and WRGSBASE (`aux` 1).
pub(super) fn write_base(cpu: &mut Cpu, i: &Insn) -> Step {
    require_fsgsbase(cpu)?;
    let base = cpu.register(i.ops[0], i.size);
    if !cpu.is_canonical_for_registers(base) {
        return Err(cpu.gp(0));
    }
    cpu.set_segment_base(if i.aux == 0 { FS } else { GS }, base);
    Ok(())
}
