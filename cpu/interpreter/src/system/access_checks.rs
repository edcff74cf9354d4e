//! LAR LSL VERR VERW ARPL (SDM volume 2).

use x86_mmu::{Descriptor, system_type};
use x86_state::rflags;

use super::selector::{is_null, rpl};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

fn set_zf(cpu: &mut Cpu, on: bool) {
    cpu.set_rflags(if on { rflags::ZF } else { 0 }, rflags::ZF);
}

/// System descriptor types LAR (`gates` too) and LSL know.
fn known_system_type(cpu: &Cpu, kind: u8, gates: bool) -> bool {
    use system_type::{
        CALL_GATE, CALL_GATE16, LDT, TASK_GATE, TSS_AVAILABLE, TSS_BUSY, TSS16_AVAILABLE, TSS16_BUSY,
    };
    match kind {
        LDT | TSS_AVAILABLE | TSS_BUSY => true,
        TSS16_AVAILABLE | TSS16_BUSY => !cpu.long_mode(),
        CALL_GATE => gates,
        CALL_GATE16 | TASK_GATE => gates && !cpu.long_mode(),
        _ => false,
    }
}

/// The descriptor of a selector if software at CPL may know of it.
fn visible_descriptor(cpu: &mut Cpu, selector: u16, gates: bool) -> Result<Option<Descriptor>, Stop> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(found) = cpu.find_descriptor(selector)? else { return Ok(None) };
    let mut d = found.descriptor;
    if d.is_system() {
        if !known_system_type(cpu, d.kind(), gates) {
            return Ok(None);
        }
        if cpu.long64() {
            let Some(wide) = cpu.find_wide_descriptor(selector)? else { return Ok(None) };
            d = wide.descriptor;
            if d.upper_type() != 0 {
                return Ok(None);
            }
        }
    }
    let visible = d.is_conforming() || d.dpl() >= cpu.cpl.max(rpl(selector));
    Ok(visible.then_some(d))
}

/// LAR: access rights into the register; bits 19:16, the limit's, are passed on
/// as processors do.
pub(super) fn load_access_rights(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_protected()?;
    let selector = cpu.operand16(i, 1)?;
    let found = visible_descriptor(cpu, selector, true)?;
    if let Some(d) = found {
        let mask = if i.size == 2 { 0xff00 } else { 0x00ff_ff00 };
        cpu.set_register(i.ops[0], i.size, u64::from(d.rights() & mask));
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

/// LSL: limit in bytes.
pub(super) fn load_segment_limit(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_protected()?;
    let selector = cpu.operand16(i, 1)?;
    let found = visible_descriptor(cpu, selector, false)?;
    if let Some(d) = found {
        cpu.set_register(i.ops[0], i.size, u64::from(d.limit()));
    }
    set_zf(cpu, found.is_some());
    Ok(())
}

/// VERR (`aux` 0) and VERW (`aux` 1).
pub(super) fn verify(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_protected()?;
    let selector = cpu.operand16(i, 0)?;
    let allowed = visible_descriptor(cpu, selector, false)?
        .is_some_and(|d| if i.aux == 0 { d.is_readable() } else { d.is_writable() });
    set_zf(cpu, allowed);
    Ok(())
}

/// ARPL.
pub(super) fn adjust_rpl(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.require_protected()?;
    let selector = cpu.operand16(i, 0)?;
    let wanted = cpu.register(i.ops[1], 2) as u16 & 3;
    let lower = selector & 3 < wanted;
    let adjusted = selector & !3 | wanted;
    // An operand that stays as it is need not be writable.
    if lower && i.has(Insn::MEM) {
        cpu.store::<u16>(i, adjusted)?;
    } else if lower {
        cpu.set_register(i.ops[0], 2, adjusted.into());
    }
    set_zf(cpu, lower);
    Ok(())
}
