//! MOV, PUSH and POP of segment registers, and loads of far pointers.

use x86_state::InterruptShadow;

use super::selector::{CS, SS};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// MOV r/m, Sreg: a register operand is zero-extended to the operand size.
pub(super) fn mov_from_sreg(cpu: &mut Cpu, i: &Insn) -> Step {
    let selector = cpu.segments[usize::from(i.ops[1] % 6)].selector;
    cpu.store_operand16(i, selector.into())
}

/// MOV Sreg, r/m. Loading CS this way is #UD.
pub(super) fn mov_to_sreg(cpu: &mut Cpu, i: &Insn) -> Step {
    let index = i.ops[0];
    if index == CS || index > 5 {
        return Err(cpu.ud());
    }
    let selector = cpu.operand16(i, 1)?;
    cpu.load_segment(index, selector)?;
    after_load(cpu, index)
}

/// Loading SS holds interrupts and debug traps off for one instruction (SDM
/// volume 3, 7.8.3).
fn after_load(cpu: &mut Cpu, index: u8) -> Step {
    if index != SS {
        return Ok(());
    }
    cpu.shadow = InterruptShadow::MovSs;
    Err(Stop::Resync)
}

/// PUSH Sreg. In a 32-bit slot only 16 bits are written, as on all processors
/// since the Pentium.
pub(super) fn push_sreg(cpu: &mut Cpu, i: &Insn) -> Step {
    let selector = u64::from(cpu.segments[usize::from(i.ops[0] % 6)].selector);
    if i.size == 4 {
        let mask = cpu.stack_mask();
        let rsp = cpu.regs[x86_state::reg::RSP];
        let offset = rsp.wrapping_sub(4) & mask;
        cpu.write_seg::<u16>(SS, offset, selector as u16)?;
        cpu.regs[x86_state::reg::RSP] = rsp & !mask | offset;
        return Ok(());
    }
    cpu.push(i.size, selector)
}

/// POP Sreg.
pub(super) fn pop_sreg(cpu: &mut Cpu, i: &Insn) -> Step {
    let index = i.ops[0];
    let mask = cpu.stack_mask();
    let rsp = cpu.regs[x86_state::reg::RSP];
    let selector = cpu.read_seg::<u16>(SS, rsp & mask)?;
    // RSP moves by the old stack's width even when SS is what is loaded.
    let segment = if index == SS {
        cpu.check_stack_segment(selector)?
    } else {
        cpu.check_data_segment(index, selector)?
    };
    cpu.regs[x86_state::reg::RSP] = rsp & !mask | rsp.wrapping_add(i.size.into()) & mask;
    cpu.set_segment(index, segment);
    after_load(cpu, index)
}

/// LDS, LES, LFS, LGS, LSS: `aux` is the segment register.
pub(super) fn load_far_pointer(cpu: &mut Cpu, i: &Insn) -> Step {
    let (offset, selector) = far_operand(cpu, i)?;
    let index = i.aux as u8;
    cpu.load_segment(index, selector)?;
    cpu.set_register(i.ops[0], i.size, offset);
    if index == SS { Err(Stop::Resync) } else { Ok(()) }
}

/// A far pointer in memory: offset of the operand size, then a selector.
pub(super) fn far_operand(cpu: &mut Cpu, i: &Insn) -> Result<(u64, u16), Stop> {
    let offset = match i.size {
        2 => u64::from(cpu.load::<u16>(i)?),
        4 => u64::from(cpu.load::<u32>(i)?),
        _ => cpu.load::<u64>(i)?,
    };
    let selector = cpu.load_at::<u16>(i, i.size.into())?;
    Ok((offset, selector))
}
