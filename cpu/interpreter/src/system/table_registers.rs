//! LGDT LIDT SGDT SIDT LLDT LTR SLDT STR SMSW LMSW (SDM volume 2).

use x86_mmu::system_type;
use x86_state::{Segment, TableRegister, cr0, vector};

use super::selector::{Found, is_local, is_null, null_segment};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// SGDT (`aux` 0) and SIDT (`aux` 1): a 16-bit operand size stores the whole
/// 32-bit base too, as all processors since the 386.
pub(super) fn store_table(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_umip_clear()?;
    let table = if i.aux == 0 { cpu.gdtr } else { cpu.idtr };
    if i.has(Insn::LONG) {
        cpu.store_at::<u64>(i, 2, table.base)?;
    } else {
        cpu.store_at::<u32>(i, 2, table.base as u32)?;
    }
    cpu.store::<u16>(i, table.limit)
}

/// LGDT (`aux` 0) and LIDT (`aux` 1); `size` is the operand size: 2 takes a
/// 24-bit base.
pub(super) fn load_table(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_cpl0()?;
    let limit = cpu.load::<u16>(i)?;
    let base = match i.size {
        2 => u64::from(cpu.load_at::<u32>(i, 2)? & 0xff_ffff),
        4 => u64::from(cpu.load_at::<u32>(i, 2)?),
        _ => cpu.load_at::<u64>(i, 2)?,
    };
    if !cpu.is_canonical_for_registers(base) && i.size == 8 {
        return Err(cpu.gp(0));
    }
    let table = TableRegister { base, limit };
    if i.aux == 0 {
        cpu.gdtr = table
    } else {
        cpu.idtr = table
    }
    Ok(())
}

/// SLDT.
pub(super) fn store_ldtr(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_protected()?;
    cpu.require_umip_clear()?;
    cpu.store_operand16(i, cpu.ldtr.selector.into())
}

/// STR.
pub(super) fn store_tr(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_protected()?;
    cpu.require_umip_clear()?;
    cpu.store_operand16(i, cpu.tr.selector.into())
}

impl Cpu {
    /// The descriptor LLDT and LTR load: in the GDT, of one of `kinds`, present.
    fn fetch_system_segment(&mut self, selector: u16, kinds: &[u8]) -> Result<Found, Stop> {
        if is_local(selector) {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        let found = if self.long64() {
            self.fetch_wide_descriptor(selector, vector::GP, 0)?
        } else {
            self.fetch_descriptor(selector, vector::GP, 0)?
        };
        let d = found.descriptor;
        let wide_valid = !self.long64() || d.upper_type() == 0 && self.is_canonical_for_registers(d.base());
        if !d.is_system() || !kinds.contains(&d.kind()) || !wide_valid {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        Ok(found)
    }
}

/// LLDT.
pub(super) fn load_ldtr(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = cpu.operand16(i, 0)?;
    cpu.ldtr = if is_null(selector) {
        null_segment(selector, 0)
    } else {
        cpu.fetch_system_segment(selector, &[system_type::LDT])?.descriptor.segment(selector)
    };
    Ok(())
}

/// LTR.
pub(super) fn load_tr(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_protected()?;
    cpu.require_cpl0()?;
    let selector = cpu.operand16(i, 0)?;
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    let kinds: &[u8] = if cpu.long_mode() {
        &[system_type::TSS_AVAILABLE]
    } else {
        &[system_type::TSS_AVAILABLE, system_type::TSS16_AVAILABLE]
    };
    let found = cpu.fetch_system_segment(selector, kinds)?;
    cpu.set_descriptor_type(&found, system_type::BUSY_BIT, 0)?;
    let mut tr: Segment = found.descriptor.segment(selector);
    tr.access |= u32::from(system_type::BUSY_BIT);
    cpu.tr = tr;
    Ok(())
}

/// SMSW: a register operand of 32 or 64 bits receives that much of CR0.
pub(super) fn store_machine_status(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_umip_clear()?;
    cpu.store_operand16(i, cpu.cr0)
}

/// LMSW: PE MP EM TS; PE can be set but not cleared.
pub(super) fn load_machine_status(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_cpl0()?;
    let low = cr0::MP | cr0::EM | cr0::TS;
    let value = u64::from(cpu.operand16(i, 0)?);
    let before = cpu.cr0;
    cpu.cr0 = before & !low | value & (low | cr0::PE);
    cpu.cr0 |= before & cr0::PE;
    cpu.mode_changed();
    Err(Stop::Resync)
}
