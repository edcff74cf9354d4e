//! RDMSR and WRMSR (SDM volume 4).

use x86_state::{Feature, Msrs, PhysicalBits, cr0, debugctl, efer, msr_index as index, reg};

use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// RDMSR.
pub(super) fn read_msr(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.require_cpl0()?;
    let number = cpu.regs[reg::RCX] as u32;
    let Some(value) = read(cpu, number) else { return Err(cpu.gp(0)) };
    cpu.regs[reg::RAX] = value & 0xffff_ffff;
    cpu.regs[reg::RDX] = value >> 32;
    Ok(())
}

/// WRMSR.
pub(super) fn write_msr(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.require_cpl0()?;
    let number = cpu.regs[reg::RCX] as u32;
    let value = cpu.regs[reg::RAX] & 0xffff_ffff | cpu.regs[reg::RDX] << 32;
    if write(cpu, number, value).is_none() {
        return Err(cpu.gp(0));
    }
    Err(Stop::Resync)
}

/// MSRs that the platform owns: the local APIC's and the paravirtual clock's.
fn is_platform(number: u32) -> bool {
    matches!(
        number,
        index::APIC_BASE | index::TSC_DEADLINE | index::X2APIC_FIRST
            ..=index::X2APIC_LAST
                | index::KVM_WALL_CLOCK_OLD
                | index::KVM_SYSTEM_TIME_OLD
                | index::KVM_WALL_CLOCK
                | index::KVM_SYSTEM_TIME
    )
}

/// Which fixed-range MTRR a number is, in the order of `Msrs::mtrr_fixed`.
fn fixed_mtrr(number: u32) -> Option<usize> {
    match number {
        index::MTRR_FIX64K => Some(0),
        index::MTRR_FIX16K_80000 => Some(1),
        index::MTRR_FIX16K_A0000 => Some(2),
        index::MTRR_FIX4K_C0000..=0x26f => Some(3 + (number - index::MTRR_FIX4K_C0000) as usize),
        _ => None,
    }
}

/// Which variable-range MTRR a number is, and whether it is the mask.
fn variable_mtrr(number: u32) -> Option<(usize, bool)> {
    let n = number.wrapping_sub(index::MTRR_PHYS_BASE0) as usize;
    (n < 2 * Msrs::VARIABLE_MTRRS).then_some((n / 2, n % 2 == 1))
}

/// MTRR_CAP: variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = Msrs::VARIABLE_MTRRS as u64 | 1 << 8 | 1 << 10;
/// FEATURE_CONTROL: locked, with VMX outside SMX as it was at reset (off).
const FEATURE_CONTROL: u64 = 1;
/// Machine-check banks: none.
const MCG_CAP: u64 = 0;
/// Bits of MISC_ENABLE that software may change; none has an effect: fast
/// strings, automatic thermal control, enhanced SpeedStep, MONITOR, CPUID limit,
/// xTPR disable, XD disable.
const MISC_ENABLE_WRITABLE: u64 = 1 << 0 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// MISC_ENABLE: branch trace and PEBS are unavailable.
const MISC_ENABLE_FIXED: u64 = 1 << 11 | 1 << 12;

/// The platform's timer counts the clock's ticks, the guest's deadline this
/// processor's TSC. Zero means disarmed in both.
fn to_clock_ticks(cpu: &mut Cpu, deadline: u64) -> u64 {
    if deadline == 0 {
        return 0;
    }
    let passed = deadline <= cpu.time_stamp();
    if passed { 1 } else { deadline.wrapping_sub(cpu.tsc_offset) }
}

fn from_clock_ticks(cpu: &Cpu, deadline: u64) -> u64 {
    if deadline == 0 { 0 } else { deadline.wrapping_add(cpu.tsc_offset) }
}

fn read(cpu: &mut Cpu, number: u32) -> Option<u64> {
    if is_platform(number) {
        cpu.sync_time();
        let value = cpu.bus.platform_msr_read(cpu.index, number)?;
        return Some(if number == index::TSC_DEADLINE { from_clock_ticks(cpu, value) } else { value });
    }
    if let Some(n) = fixed_mtrr(number) {
        return cpu.msrs.mtrr_fixed.get(n).copied();
    }
    if let Some((n, mask)) = variable_mtrr(number) {
        let range = cpu.msrs.mtrr_variable.get(n)?;
        return Some(if mask { range.1 } else { range.0 });
    }
    let has = |f| cpu.model.has(f);
    Some(match number {
        index::TSC => cpu.time_stamp(),
        index::TSC_ADJUST if has(Feature::TscAdjust) => cpu.msrs.tsc_adjust,
        index::PLATFORM_ID => 0,
        index::FEATURE_CONTROL => FEATURE_CONTROL,
        index::BIOS_SIGN_ID => cpu.msrs.bios_sign_id,
        index::SPEC_CTRL if has(Feature::SpecCtrl) => cpu.msrs.spec_ctrl,
        index::MTRR_CAP => MTRR_CAP,
        index::MTRR_DEF_TYPE => cpu.msrs.mtrr_def_type,
        index::PAT => cpu.msrs.pat,
        index::ARCH_CAPABILITIES if has(Feature::ArchCapabilities) => cpu.model.arch_capabilities(),
        index::SYSENTER_CS => cpu.msrs.sysenter_cs,
        index::SYSENTER_ESP => cpu.msrs.sysenter_esp,
        index::SYSENTER_EIP => cpu.msrs.sysenter_eip,
        index::MCG_CAP => MCG_CAP,
        index::MCG_STATUS => cpu.msrs.mcg_status,
        index::MISC_ENABLE => cpu.msrs.misc_enable | MISC_ENABLE_FIXED,
        index::DEBUGCTL => cpu.msrs.debugctl,
        index::EFER => cpu.efer,
        index::STAR => cpu.msrs.star,
        index::LSTAR => cpu.msrs.lstar,
        index::CSTAR => cpu.msrs.cstar,
        index::SFMASK => cpu.msrs.sfmask,
        index::FS_BASE => cpu.segments[4].base,
        index::GS_BASE => cpu.segments[5].base,
        index::KERNEL_GS_BASE => cpu.msrs.kernel_gs_base,
        index::TSC_AUX if has(Feature::Rdtscp) => cpu.msrs.tsc_aux,
        _ => return None,
    })
}

fn only(allowed: bool) -> Option<()> {
    allowed.then_some(())
}

/// Memory types: UC, WC, WT, WP, WB; PAT has UC- (7) too.
fn valid_memory_type(kind: u64, pat: bool) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6) || pat && kind == 7
}

fn valid_memory_types(value: u64, pat: bool) -> bool {
    value.to_le_bytes().iter().all(|kind| valid_memory_type((*kind).into(), pat))
}

fn write_mtrr(cpu: &mut Cpu, number: u32, value: u64) -> Option<Option<()>> {
    if let Some(n) = fixed_mtrr(number) {
        let Some(slot) = cpu.msrs.mtrr_fixed.get_mut(n) else { return Some(None) };
        if valid_memory_types(value, false) {
            *slot = value;
            return Some(Some(()));
        }
        return Some(None);
    }
    let (n, mask) = variable_mtrr(number)?;
    let address = ((1 << PhysicalBits::MAX) - 1) & !0xfff;
    let allowed = if mask {
        value & !(address | 1 << 11) == 0
    } else {
        value & !(address | 0xff) == 0 && valid_memory_type(value & 0xff, false)
    };
    let Some(range) = cpu.msrs.mtrr_variable.get_mut(n) else { return Some(None) };
    if allowed {
        *(if mask { &mut range.1 } else { &mut range.0 }) = value;
    }
    Some(only(allowed))
}

/// `None` means #GP(0).
fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<()> {
    if is_platform(number) {
        let value = if number == index::TSC_DEADLINE { to_clock_ticks(cpu, value) } else { value };
        cpu.sync_time();
        return cpu.bus.platform_msr_write(cpu.index, number, value);
    }
    if let Some(done) = write_mtrr(cpu, number, value) {
        return done;
    }
    match number {
        index::TSC => {
            let change = value.wrapping_sub(cpu.time_stamp());
            shift_tsc(cpu, change);
        }
        index::TSC_ADJUST if cpu.model.has(Feature::TscAdjust) => {
            let change = value.wrapping_sub(cpu.msrs.tsc_adjust);
            shift_tsc(cpu, change);
        }
        // The microcode update signature: software writes 0 before CPUID.
        index::BIOS_SIGN_ID => cpu.msrs.bios_sign_id = value,
        index::SPEC_CTRL if cpu.model.has(Feature::SpecCtrl) => {
            only(value & !cpu.model.spec_ctrl_mask() == 0)?;
            cpu.msrs.spec_ctrl = value;
        }
        // IBPB is accepted. Predictors are the host's: they are kept apart for its
        // processes, not for a guest's programs.
        index::PRED_CMD if cpu.model.has(Feature::SpecCtrl) => only(value & !1 == 0)?,
        // Updating microcode is accepted and does nothing.
        0x79 => {}
        index::MTRR_DEF_TYPE => {
            only(value & !0xcff == 0 && valid_memory_type(value & 0xff, false))?;
            cpu.msrs.mtrr_def_type = value;
        }
        index::PAT => {
            only(valid_memory_types(value, true))?;
            cpu.msrs.pat = value;
        }
        index::SYSENTER_CS => cpu.msrs.sysenter_cs = value & 0xffff_ffff,
        index::MCG_STATUS => {
            only(value & !7 == 0)?;
            cpu.msrs.mcg_status = value;
        }
        index::MISC_ENABLE => {
            only(value & !(MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED) == 0)?;
            cpu.msrs.misc_enable = value & MISC_ENABLE_WRITABLE;
        }
        index::DEBUGCTL => {
            // There are no branch records: LBR is kept, and nothing comes of it.
            only(value & !(debugctl::LBR | debugctl::BTF) == 0)?;
            cpu.msrs.debugctl = value;
        }
        index::EFER => write_efer(cpu, value)?,
        index::STAR => cpu.msrs.star = value,
        index::SFMASK => {
            only(value >> 32 == 0)?;
            cpu.msrs.sfmask = value;
        }
        index::TSC_AUX if cpu.model.has(Feature::Rdtscp) => {
            only(value >> 32 == 0)?;
            cpu.msrs.tsc_aux = value;
        }
        _ => return write_address(cpu, number, value),
    }
    Some(())
}

/// MSRs that hold linear addresses, which must be canonical.
fn write_address(cpu: &mut Cpu, number: u32, value: u64) -> Option<()> {
    let canonical = cpu.is_canonical_for_registers(value);
    match number {
        index::FS_BASE | index::GS_BASE => {
            only(canonical)?;
            let n = if number == index::FS_BASE { 4 } else { 5 };
            cpu.set_segment_base(n, value);
        }
        _ => {
            let slot = match number {
                index::LSTAR => &mut cpu.msrs.lstar,
                index::CSTAR => &mut cpu.msrs.cstar,
                index::KERNEL_GS_BASE => &mut cpu.msrs.kernel_gs_base,
                index::SYSENTER_ESP => &mut cpu.msrs.sysenter_esp,
                index::SYSENTER_EIP => &mut cpu.msrs.sysenter_eip,
                _ => return None,
            };
            only(canonical)?;
            *slot = value;
        }
    }
    Some(())
}

/// A write to TSC or TSC_ADJUST moves both (SDM volume 3, 18.17.3).
fn shift_tsc(cpu: &mut Cpu, change: u64) {
    cpu.tsc_offset = cpu.tsc_offset.wrapping_add(change);
    cpu.msrs.tsc_adjust = cpu.msrs.tsc_adjust.wrapping_add(change);
}

fn write_efer(cpu: &mut Cpu, value: u64) -> Option<()> {
    let mut writable = 0;
    for (feature, bits) in [(Feature::Syscall, efer::SCE), (Feature::Lm, efer::LME), (Feature::Nx, efer::NXE)]
    {
        if cpu.model.has(feature) {
            writable |= bits;
        }
    }
    // LMA is read-only: a write of either value is ignored.
    only(value & !(writable | efer::LMA) == 0)?;
    let new = value & writable | cpu.efer & efer::LMA;
    let changed = cpu.efer ^ new;
    only(changed & efer::LME == 0 || cpu.cr0 & cr0::PG == 0)?;
    cpu.efer = new;
    if changed & efer::NXE != 0 {
        cpu.flush_tlb_all();
    }
    cpu.mode_changed();
    Some(())
}

impl Cpu {
    /// The guest's time-stamp counter now.
    pub(crate) fn time_stamp(&mut self) -> u64 {
        self.sync_time();
        self.clock.tsc().wrapping_add(self.tsc_offset)
    }

    /// Change the base of FS or GS alone.
    pub(super) fn set_segment_base(&mut self, index: u8, base: u64) {
        let mut segment = self.segments[usize::from(index).min(5)];
        segment.base = base;
        self.set_segment(index, segment);
    }
}
