//! IRET (SDM volume 2, IRET/IRETD/IRETQ).

use x86_state::{Segment, cr4, reg, rflags, vector};

use super::far_transfer::switch_by_instruction;
use super::operand::truncate;
use super::selector::{CS, DS, ES, FS, GS, SS, rpl, v86_segment};
use super::stack::{Stack, Width};
use super::task::{Reason, TaskSwitch};
use crate::cpu::{Cpu, Privilege, Step, Stop};
use crate::insn::Insn;

/// Flags any IRET may change.
const ALWAYS: u64 = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
/// Flags an IRET of 32 or 64 bits may change too.
const WIDE: u64 = rflags::RF | rflags::AC | rflags::ID;

/// IRET, IRETD, IRETQ.
pub(super) fn interrupt_return(cpu: &mut Cpu, i: &Insn) -> Step {
    // NMIs are unblocked even if the instruction faults (SDM volume 3, 7.7.1).
    if std::mem::take(&mut cpu.nmi_blocked) {
        cpu.attention.nmi_handled();
    }
    cpu.leave_at = 0;
    if !cpu.protected() {
        return return_real(cpu, i.size);
    }
    if cpu.v86() {
        return return_v86(cpu, i.size);
    }
    if cpu.system_flags & rflags::NT != 0 {
        return return_task(cpu);
    }
    return_protected(cpu, i.size)
}

fn return_real(cpu: &mut Cpu, size: u8) -> Step {
    let mut stack = Stack::current(cpu);
    let rip = truncate(stack.pop(cpu, size)?, size);
    let selector = stack.pop_selector(cpu, size)?;
    let flags = stack.pop(cpu, size)?;
    let cs = cpu.real_segment(CS, selector);
    cpu.check_far_target(&cs, rip, 0)?;
    stack.commit(cpu);
    cpu.set_segment(CS, cs);
    cpu.set_rip(rip);
    let mask = ALWAYS | rflags::IF | rflags::IOPL | if size == 2 { 0 } else { WIDE };
    cpu.set_rflags(flags, mask);
    Err(Stop::Resync)
}

fn return_v86(cpu: &mut Cpu, size: u8) -> Step {
    let iopl3 = cpu.system_flags & rflags::IOPL == rflags::IOPL;
    let virtual_interrupts = cpu.cr4 & cr4::VME != 0 && size == 2;
    if !iopl3 && !virtual_interrupts {
        return Err(cpu.gp(0));
    }
    let mut stack = Stack::current(cpu);
    let rip = truncate(stack.pop(cpu, size)?, size);
    let selector = stack.pop_selector(cpu, size)?;
    let flags = stack.pop(cpu, size)?;
    let cs = v86_segment(selector);
    cpu.check_far_target(&cs, rip, 0)?;
    if !iopl3 {
        let vip = cpu.system_flags & rflags::VIP != 0;
        if flags & rflags::TF != 0 || vip && flags & rflags::IF != 0 {
            return Err(cpu.gp(0));
        }
    }
    stack.commit(cpu);
    cpu.set_segment(CS, cs);
    cpu.set_rip(rip);
    if iopl3 {
        cpu.set_rflags(flags, ALWAYS | rflags::IF | if size == 2 { 0 } else { WIDE });
    } else {
        let vif = if flags & rflags::IF != 0 { rflags::VIF } else { 0 };
        cpu.set_rflags(flags & !rflags::VIF | vif, ALWAYS | rflags::VIF);
    }
    Err(Stop::Resync)
}

/// NT: back to the task that the current TSS's link names.
fn return_task(cpu: &mut Cpu) -> Step {
    if cpu.long_mode() {
        return Err(cpu.gp(0));
    }
    let selector = cpu.read_linear::<u16>(cpu.tr.base, Privilege::System)?;
    switch_by_instruction(cpu, TaskSwitch { selector, reason: Reason::Return, ext: 0, error_code: None })
}

/// The flags a return to privilege level `cpl` or outer may change.
fn flags_mask(cpu: &Cpu, size: u8) -> u64 {
    let iopl = (cpu.system_flags & rflags::IOPL) >> rflags::IOPL_SHIFT;
    let mut mask = ALWAYS;
    if size != 2 {
        mask |= WIDE;
    }
    if u64::from(cpu.cpl) <= iopl {
        mask |= rflags::IF;
    }
    if cpu.cpl == 0 {
        mask |= rflags::IOPL;
        if size != 2 {
            mask |= rflags::VIF | rflags::VIP;
        }
    }
    mask
}

fn return_protected(cpu: &mut Cpu, size: u8) -> Step {
    let mut stack = Stack::current(cpu);
    let rip = truncate(stack.pop(cpu, size)?, size);
    let selector = stack.pop_selector(cpu, size)?;
    let flags = stack.pop(cpu, size)?;
    if size == 4 && !cpu.long_mode() && flags & rflags::VM != 0 && cpu.cpl == 0 {
        return return_to_v86(cpu, stack, rip, selector, flags);
    }
    let cs = cpu.check_return_code(selector)?;
    let outer = rpl(selector) > cpu.cpl;
    let mask = flags_mask(cpu, size);
    if outer || cpu.long64() {
        let rsp = truncate(stack.pop(cpu, size)?, size);
        let ss_selector = stack.pop_selector(cpu, size)?;
        let ss = cpu.check_return_stack(ss_selector, rpl(selector), &cs)?;
        cpu.check_far_target(&cs, rip, 0)?;
        cpu.leave_to_outer(cs, rip, ss, rsp, 0);
    } else {
        cpu.check_far_target(&cs, rip, 0)?;
        stack.commit(cpu);
        cpu.set_segment(CS, cs);
        cpu.set_rip(rip);
    }
    cpu.set_rflags(flags, mask);
    Err(Stop::Resync)
}

fn return_to_v86(cpu: &mut Cpu, mut stack: Stack, rip: u64, selector: u16, flags: u64) -> Step {
    let rsp = stack.pop(cpu, 4)?;
    let mut selectors = [0; 5];
    for s in &mut selectors {
        *s = stack.pop_selector(cpu, 4)?;
    }
    let cs: Segment = v86_segment(selector);
    if rip > u64::from(cs.limit) {
        return Err(cpu.raise(vector::GP, Some(0)));
    }
    let mask = ALWAYS | WIDE | rflags::IF | rflags::IOPL | rflags::VIF | rflags::VIP | rflags::VM;
    cpu.set_rflags(flags, mask);
    cpu.set_segment(CS, cs);
    for (index, selector) in [SS, ES, DS, FS, GS].into_iter().zip(selectors) {
        cpu.set_segment(index, v86_segment(selector));
    }
    debug_assert_eq!(Width::of(&cs), Width::Sp);
    cpu.regs[reg::RSP] = rsp;
    cpu.set_rip(rip);
    Err(Stop::Resync)
}
