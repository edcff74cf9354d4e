//! PUSHF POPF CLI STI CLAC STAC in every mode, with the virtual-8086 and
//! protected-mode virtual-interrupt extensions (SDM volume 2; volume 3, 21.3).

use x86_state::{InterruptShadow, cr4, rflags};

use super::exception::v86_extensions;
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

fn iopl(cpu: &Cpu) -> u8 {
    ((cpu.system_flags & rflags::IOPL) >> rflags::IOPL_SHIFT) as u8
}

/// PUSHF, PUSHFD, PUSHFQ: VM and RF are pushed as zero.
pub(super) fn push_flags(cpu: &mut Cpu, i: &Insn) -> Step {
    let mut image = cpu.rflags() & !(rflags::VM | rflags::RF);
    if cpu.v86() && iopl(cpu) < 3 {
        if !v86_extensions(cpu) || i.size != 2 {
            return Err(cpu.gp(0));
        }
        let virtual_if = image & rflags::VIF != 0;
        image = image & !rflags::IF | rflags::IOPL | if virtual_if { rflags::IF } else { 0 };
    }
    cpu.push(i.size, image)
}

/// POPF, POPFD, POPFQ.
pub(super) fn pop_flags(cpu: &mut Cpu, i: &Insn) -> Step {
    let level = iopl(cpu);
    let virtual_if = cpu.v86() && level < 3;
    if virtual_if && (!v86_extensions(cpu) || i.size != 2) {
        return Err(cpu.gp(0));
    }
    let mut mask = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;
    if i.size != 2 {
        // RF is cleared, whatever is popped.
        mask |= rflags::AC | rflags::ID | rflags::RF;
    }
    if virtual_if {
        let image =
            cpu.read_seg::<u16>(super::selector::SS, cpu.regs[x86_state::reg::RSP] & cpu.stack_mask())?;
        let image = u64::from(image);
        let pending = cpu.system_flags & rflags::VIP != 0;
        if image & rflags::TF != 0 || pending && image & rflags::IF != 0 {
            return Err(cpu.gp(0));
        }
        cpu.pop(2)?;
        let vif = if image & rflags::IF != 0 { rflags::VIF } else { 0 };
        cpu.set_rflags(image & !rflags::VIF | vif, mask | rflags::VIF);
        return Err(Stop::Resync);
    }
    if !cpu.protected() || cpu.cpl == 0 {
        mask |= rflags::IF | rflags::IOPL;
    } else if cpu.cpl <= level {
        mask |= rflags::IF;
    }
    let image = cpu.pop(i.size)?;
    let before = cpu.rflags();
    cpu.set_rflags(image & !rflags::RF, mask);
    leave_if_changed(cpu, before)
}

/// Events may have become deliverable, or the next instruction be traced.
fn leave_if_changed(cpu: &Cpu, before: u64) -> Step {
    if (before ^ cpu.system_flags) & (rflags::IF | rflags::TF | rflags::AC) != 0 {
        return Err(Stop::Resync);
    }
    Ok(())
}

/// Which interrupt flag CLI and STI act on at this privilege.
enum InterruptFlag {
    Real,
    Virtual,
}

fn interrupt_flag(cpu: &mut Cpu) -> Result<InterruptFlag, Stop> {
    if !cpu.protected() || iopl(cpu) >= cpu.cpl {
        return Ok(InterruptFlag::Real);
    }
    let protected_virtual = !cpu.v86() && cpu.cpl == 3 && cpu.cr4 & cr4::PVI != 0;
    if v86_extensions(cpu) || protected_virtual {
        return Ok(InterruptFlag::Virtual);
    }
    Err(cpu.gp(0))
}

/// CLI.
pub(super) fn clear_interrupt(cpu: &mut Cpu, _: &Insn) -> Step {
    match interrupt_flag(cpu)? {
        InterruptFlag::Real => cpu.system_flags &= !rflags::IF,
        InterruptFlag::Virtual => cpu.system_flags &= !rflags::VIF,
    }
    Ok(())
}

/// STI: interrupts stay blocked for one more instruction if IF was clear.
pub(super) fn set_interrupt(cpu: &mut Cpu, _: &Insn) -> Step {
    match interrupt_flag(cpu)? {
        InterruptFlag::Real if cpu.system_flags & rflags::IF != 0 => Ok(()),
        InterruptFlag::Real => {
            cpu.system_flags |= rflags::IF;
            cpu.shadow = InterruptShadow::Sti;
            Err(Stop::Resync)
        }
        InterruptFlag::Virtual if cpu.system_flags & rflags::VIP != 0 => Err(cpu.gp(0)),
        InterruptFlag::Virtual => {
            cpu.system_flags |= rflags::VIF;
            Ok(())
        }
    }
}

/// CLAC (`aux` 0) and STAC (`aux` 1).
pub(super) fn change_access_check(cpu: &mut Cpu, i: &Insn) -> Step {
    if cpu.cpl != 0 || cpu.v86() {
        return Err(cpu.ud());
    }
    cpu.set_rflags(if i.aux == 0 { 0 } else { rflags::AC }, rflags::AC);
    Ok(())
}
