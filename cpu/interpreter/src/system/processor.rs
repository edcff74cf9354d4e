//! Instructions about the processor itself: CPUID, time stamps, XCR0, HLT,
//! caches and translations (SDM volume 2).

use x86_state::{Feature, cr4, msr_index, reg, xcr0};

use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// CPUID, answered from the model.
pub(super) fn cpuid(cpu: &mut Cpu, _: &Insn) -> Step {
    let leaf = cpu.regs[reg::RAX] as u32;
    let subleaf = cpu.regs[reg::RCX] as u32;
    let osxsave = cpu.cr4 & cr4::OSXSAVE != 0;
    let mut r = cpu.model.cpuid(leaf, subleaf, cpu.topology, osxsave, cpu.xcr0);
    if leaf == 1 && cpu.apic_disabled() {
        r.edx &= !(1 << 9);
    }
    cpu.regs[reg::RAX] = r.eax.into();
    cpu.regs[reg::RBX] = r.ebx.into();
    cpu.regs[reg::RCX] = r.ecx.into();
    cpu.regs[reg::RDX] = r.edx.into();
    Ok(())
}

impl Cpu {
    /// IA32_APIC_BASE says that the local APIC is off, which CPUID reflects.
    fn apic_disabled(&self) -> bool {
        const ENABLE: u64 = 1 << 11;
        let base = self.bus.platform_msr_read(self.index, msr_index::APIC_BASE);
        base.is_some_and(|base| base & ENABLE == 0)
    }
}

/// VMCALL and VMMCALL: hypercalls of the paravirtual interface (Linux
/// `Documentation/virt/kvm/x86/hypercalls.rst`). Interrupts to several processors
/// are sent, as KVM does whether or not CPUID announces it; none of the others is
/// needed for what the model's hypervisor leaves announce, and the answer says so.
pub(super) fn hypercall(cpu: &mut Cpu, _: &Insn) -> Step {
    const NOT_PERMITTED: i64 = -1;
    const UNKNOWN: i64 = -1000;
    const SEND_IPI: u64 = 10;
    let size = if cpu.long64() { 8 } else { 4 };
    let number = if size == 8 { cpu.regs[reg::RAX] } else { cpu.regs[reg::RAX] & 0xffff_ffff };
    let answer = match number {
        _ if cpu.cpl != 0 => NOT_PERMITTED,
        SEND_IPI => send_interrupts(cpu, size),
        _ => UNKNOWN,
    };
    cpu.set_register(reg::RAX as u8, size, answer as u64);
    Ok(())
}

/// Send an interrupt to each processor whose bit is set in RCX:RBX, counted from
/// the APIC ID in RDX; RSI is the low half of the interrupt command register.
fn send_interrupts(cpu: &Cpu, size: u8) -> i64 {
    const INVALID: i64 = -22;
    /// Destination mode and shorthand, which the bits stand for.
    const DESTINATION: u64 = 1 << 11 | 3 << 18;
    const ICR_LOW: u64 = 0x300;
    const ICR_HIGH: u64 = 0x310;
    let bits = 8 * u64::from(size);
    let value = |r: usize| if size == 8 { cpu.regs[r] } else { cpu.regs[r] & 0xffff_ffff };
    let (map, first, command) =
        (u128::from(value(reg::RCX)) << bits | u128::from(value(reg::RBX)), value(reg::RDX), value(reg::RSI));
    if command & DESTINATION != 0 {
        return INVALID;
    }
    let command = command & 0xffff_ffff;
    let ids = (0..2 * bits).filter(|n| map >> n & 1 != 0).filter_map(|n| first.checked_add(n));
    let mut sent = 0;
    // APIC IDs are the processors' numbers.
    for id in ids.filter(|&id| id < u64::from(cpu.topology.cpus)) {
        if cpu.bus.platform_msr_write(cpu.index, msr_index::X2APIC_ICR, id << 32 | command).is_none() {
            let base = cpu.bus.platform_msr_read(cpu.index, msr_index::APIC_BASE).unwrap_or(0) & !0xfff;
            cpu.bus.mmio_write(cpu.index, base + ICR_HIGH, 4, id << 24);
            cpu.bus.mmio_write(cpu.index, base + ICR_LOW, 4, command);
        }
        sent += 1;
    }
    sent
}

fn time_stamp_to_registers(cpu: &mut Cpu) -> Step {
    if cpu.cpl > 0 && cpu.cr4 & cr4::TSD != 0 {
        return Err(cpu.gp(0));
    }
    let t = cpu.time_stamp();
    cpu.regs[reg::RAX] = t & 0xffff_ffff;
    cpu.regs[reg::RDX] = t >> 32;
    Ok(())
}

/// RDTSC.
pub(super) fn read_time_stamp(cpu: &mut Cpu, _: &Insn) -> Step {
    time_stamp_to_registers(cpu)
}

/// RDTSCP.
pub(super) fn read_time_stamp_and_id(cpu: &mut Cpu, _: &Insn) -> Step {
    time_stamp_to_registers(cpu)?;
    cpu.regs[reg::RCX] = cpu.msrs.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// RDPMC: the model has no performance counters, every index is invalid.
pub(super) fn read_counter(cpu: &mut Cpu, _: &Insn) -> Step {
    Err(cpu.gp(0))
}

/// RDPID.
pub(super) fn read_processor_id(cpu: &mut Cpu, i: &Insn) -> Step {
    let id = cpu.msrs.tsc_aux & 0xffff_ffff;
    cpu.set_register(i.ops[0], if i.has(Insn::LONG) { 8 } else { 4 }, id);
    Ok(())
}

/// XGETBV: XCR0, or with ECX = 1 the components in use.
pub(super) fn get_xcr(cpu: &mut Cpu, _: &Insn) -> Step {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    match cpu.regs[reg::RCX] as u32 {
        0 => {}
        1 if cpu.model.has(Feature::Xgetbv1) => {}
        _ => return Err(cpu.gp(0)),
    }
    // A component may always be reported as in use.
    cpu.regs[reg::RAX] = cpu.xcr0 & 0xffff_ffff;
    cpu.regs[reg::RDX] = cpu.xcr0 >> 32;
    Ok(())
}

/// XSETBV.
pub(super) fn set_xcr(cpu: &mut Cpu, _: &Insn) -> Step {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    let value = cpu.regs[reg::RAX] & 0xffff_ffff | cpu.regs[reg::RDX] << 32;
    let avx_without_sse = value & xcr0::AVX != 0 && value & xcr0::SSE == 0;
    let unsupported = value & !cpu.model.xcr0_mask() != 0;
    if cpu.regs[reg::RCX] as u32 != 0 || unsupported || value & xcr0::X87 == 0 || avx_without_sse {
        return Err(cpu.gp(0));
    }
    cpu.xcr0 = value;
    cpu.mode_changed();
    Err(Stop::Resync)
}

/// HLT.
pub(super) fn halt(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.require_cpl0()?;
    Err(Stop::Idle)
}

/// INVD, WBINVD: there is no cache to write back.
pub(super) fn invalidate_caches(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.require_cpl0()
}

/// INVLPG.
pub(super) fn invalidate_page(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_cpl0()?;
    let linear = linear_operand(cpu, i);
    cpu.flush_tlb_page(linear);
    Err(Stop::Resync)
}

/// The linear address of a memory operand that is not accessed.
fn linear_operand(cpu: &Cpu, i: &Insn) -> u64 {
    let offset = cpu.effective_address(i);
    let base = cpu.segments.get(usize::from(i.seg)).map_or(0, |s| s.base);
    if cpu.long64() {
        let has_base = matches!(i.seg, super::selector::FS | super::selector::GS);
        offset.wrapping_add(if has_base { base } else { 0 })
    } else {
        offset.wrapping_add(base) & 0xffff_ffff
    }
}

/// INVPCID: the type is the register operand.
pub(super) fn invalidate_context(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_cpl0()?;
    let kind = cpu.register(i.ops[0], if i.has(Insn::LONG) { 8 } else { 4 });
    let descriptor = cpu.load::<u128>(i)?;
    let (context, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let contexts_off = cpu.cr4 & cr4::PCIDE == 0;
    let bad_context = context >> 12 != 0 || contexts_off && context != 0;
    let bad = match kind {
        0 => bad_context || !cpu.is_canonical_for_registers(linear),
        1 => bad_context,
        2 | 3 => context >> 12 != 0,
        _ => true,
    };
    if bad {
        return Err(cpu.gp(0));
    }
    match kind {
        0 => cpu.flush_tlb_page_pcid(context as u16, linear),
        1 => cpu.flush_tlb_pcid(context as u16),
        2 => cpu.flush_tlb_all(),
        _ => cpu.flush_tlb_nonglobal(),
    }
    Err(Stop::Resync)
}

/// UD0, UD1, UD2.
pub(super) fn undefined(cpu: &mut Cpu, _: &Insn) -> Step {
    Err(cpu.ud())
}
