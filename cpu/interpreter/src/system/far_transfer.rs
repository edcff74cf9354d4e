//! JMP and CALL to far pointers, through call gates, task gates and TSSs (SDM
//! volume 2, CALL and JMP; volume 3, 6.8).

use x86_mmu::{Gate, system_type};
use x86_state::{Segment, reg, vector};

use super::operand::truncate;
use super::segment_moves::far_operand;
use super::selector::{CS, Found, SS, is_null, null_segment, rpl, selector_error};
use super::stack::{Stack, Width};
use super::task::{Reason, TaskSwitch};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// JMP ptr16:16, ptr16:32: offset in `imm`, selector in `aux`.
pub(super) fn jump_pointer(cpu: &mut Cpu, i: &Insn) -> Step {
    jump(cpu, i.aux as u16, i.imm, i.size)
}

/// JMP m16:16, m16:32, m16:64.
pub(super) fn jump_memory(cpu: &mut Cpu, i: &Insn) -> Step {
    let (offset, selector) = far_operand(cpu, i)?;
    jump(cpu, selector, offset, i.size)
}

/// CALL ptr16:16, ptr16:32.
pub(super) fn call_pointer(cpu: &mut Cpu, i: &Insn) -> Step {
    call(cpu, i.aux as u16, i.imm, i.size)
}

/// CALL m16:16, m16:32, m16:64.
pub(super) fn call_memory(cpu: &mut Cpu, i: &Insn) -> Step {
    let (offset, selector) = far_operand(cpu, i)?;
    call(cpu, selector, offset, i.size)
}

/// A task switch asked for by an instruction. Faults found before the switch
/// are the instruction's; those found after it are the new task's.
pub(super) fn switch_by_instruction(cpu: &mut Cpu, switch: TaskSwitch) -> Step {
    match cpu.switch_task(switch)? {
        Err(Stop::Fault) => super::exception::deliver_fault(cpu)?,
        other => other?,
    }
    Err(Stop::Resync)
}

impl Cpu {
    /// The code segment of a far transfer that keeps the privilege level, with
    /// all checks (SDM volume 3, 6.8.1).
    fn check_direct_code(&mut self, found: &Found, selector: u16) -> Result<Segment, Stop> {
        let d = found.descriptor;
        let allowed = if d.is_conforming() {
            d.dpl() <= self.cpl
        } else {
            rpl(selector) <= self.cpl && d.dpl() == self.cpl
        };
        if !allowed || self.long_mode() && d.is_long() && d.is_big() {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.accessed_segment(found, selector & !3 | u16::from(self.cpl))
    }

    /// The gate a far transfer goes through, after the checks on the gate itself.
    fn check_call_gate(&mut self, found: &Found, selector: u16) -> Result<(Gate, u8), Stop> {
        let kind = found.descriptor.kind();
        let found =
            if self.long_mode() { self.fetch_wide_descriptor(selector, vector::GP, 0)? } else { *found };
        let d = found.descriptor;
        if d.dpl() < self.cpl.max(rpl(selector)) || self.long_mode() && d.upper_type() != 0 {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        if self.long_mode() {
            Ok((d.gate(), 8))
        } else if kind == system_type::CALL_GATE {
            Ok((Gate { offset: d.gate().offset & 0xffff_ffff, ..d.gate() }, 4))
        } else {
            Ok((d.gate16(), 2))
        }
    }

    /// The code descriptor a call gate names, after the checks common to CALL and JMP.
    fn check_gate_code(&mut self, gate: &Gate) -> Result<Found, Stop> {
        if is_null(gate.selector) {
            return Err(self.gp(0));
        }
        let code = self.fetch_descriptor(gate.selector, vector::GP, 0)?;
        let d = code.descriptor;
        let wrong_size = self.long_mode() && (!d.is_long() || d.is_big());
        if !d.is_code() || d.dpl() > self.cpl || wrong_size {
            return Err(self.selector_fault(vector::GP, gate.selector, 0));
        }
        Ok(code)
    }

    /// Checks on a TSS or task-gate descriptor that is the target of a far
    /// transfer, and the switch.
    fn switch_to_target(&mut self, found: &Found, selector: u16, reason: Reason) -> Step {
        let d = found.descriptor;
        if self.long_mode() || d.dpl() < self.cpl.max(rpl(selector)) {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if d.kind() != system_type::TASK_GATE {
            return switch_by_instruction(self, TaskSwitch { selector, reason, ext: 0, error_code: None });
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        let selector = d.gate().selector;
        switch_by_instruction(self, TaskSwitch { selector, reason, ext: 0, error_code: None })
    }
}

/// What a system descriptor is to a far transfer.
enum Target {
    Code,
    CallGate,
    Task,
}

fn classify(cpu: &mut Cpu, found: &Found, selector: u16) -> Result<Target, Stop> {
    use system_type::{CALL_GATE, CALL_GATE16, TASK_GATE, TSS_AVAILABLE, TSS16_AVAILABLE};
    let d = found.descriptor;
    if d.is_code() {
        return Ok(Target::Code);
    }
    let long = cpu.long_mode();
    match d.kind() {
        _ if !d.is_system() => Err(cpu.selector_fault(vector::GP, selector, 0)),
        CALL_GATE => Ok(Target::CallGate),
        CALL_GATE16 if !long => Ok(Target::CallGate),
        TASK_GATE | TSS_AVAILABLE | TSS16_AVAILABLE if !long => Ok(Target::Task),
        _ => Err(cpu.selector_fault(vector::GP, selector, 0)),
    }
}

/// Real-address and virtual-8086 mode.
fn real_target(cpu: &mut Cpu, selector: u16, offset: u64) -> Result<Segment, Stop> {
    let cs = cpu.real_segment(CS, selector);
    cpu.check_far_target(&cs, offset, 0)?;
    Ok(cs)
}

fn jump(cpu: &mut Cpu, selector: u16, offset: u64, size: u8) -> Step {
    let offset = truncate(offset, size);
    if !cpu.protected_segments() {
        let cs = real_target(cpu, selector, offset)?;
        cpu.set_segment(CS, cs);
        cpu.set_rip(offset);
        return Err(Stop::Resync);
    }
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    let found = cpu.fetch_descriptor(selector, vector::GP, 0)?;
    let (cs, rip) = match classify(cpu, &found, selector)? {
        Target::Task => return cpu.switch_to_target(&found, selector, Reason::Jump),
        Target::Code => (cpu.check_direct_code(&found, selector)?, offset),
        Target::CallGate => {
            let (gate, _) = cpu.check_call_gate(&found, selector)?;
            let code = cpu.check_gate_code(&gate)?;
            if !code.descriptor.is_conforming() && code.descriptor.dpl() != cpu.cpl {
                return Err(cpu.selector_fault(vector::GP, gate.selector, 0));
            }
            if !code.descriptor.is_present() {
                return Err(cpu.selector_fault(vector::NP, gate.selector, 0));
            }
            (cpu.accessed_segment(&code, gate.selector & !3 | u16::from(cpu.cpl))?, gate.offset)
        }
    };
    cpu.check_far_target(&cs, rip, 0)?;
    cpu.set_segment(CS, cs);
    cpu.set_rip(rip);
    Err(Stop::Resync)
}

fn call(cpu: &mut Cpu, selector: u16, offset: u64, size: u8) -> Step {
    let offset = truncate(offset, size);
    if !cpu.protected_segments() {
        let cs = real_target(cpu, selector, offset)?;
        return call_same_level(cpu, cs, offset, size);
    }
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    let found = cpu.fetch_descriptor(selector, vector::GP, 0)?;
    match classify(cpu, &found, selector)? {
        Target::Task => cpu.switch_to_target(&found, selector, Reason::Call),
        Target::Code => {
            let cs = cpu.check_direct_code(&found, selector)?;
            call_same_level(cpu, cs, offset, size)
        }
        Target::CallGate => call_through_gate(cpu, &found, selector),
    }
}

/// Push CS and RIP, go on at `rip` of the checked segment `cs`.
fn call_same_level(cpu: &mut Cpu, cs: Segment, rip: u64, size: u8) -> Step {
    let mut stack = Stack::current(cpu);
    if size == 8 && cpu.long_mode() && cs.long() {
        stack = stack.in_long_mode();
    }
    let old = [u64::from(cpu.segments[usize::from(CS)].selector), cpu.rip()];
    stack.push_all(cpu, size, &old)?;
    cpu.check_far_target(&cs, rip, 0)?;
    stack.commit(cpu);
    cpu.set_segment(CS, cs);
    cpu.set_rip(rip);
    Err(Stop::Resync)
}

fn call_through_gate(cpu: &mut Cpu, found: &Found, selector: u16) -> Step {
    let (gate, size) = cpu.check_call_gate(found, selector)?;
    let code = cpu.check_gate_code(&gate)?;
    let d = code.descriptor;
    if !d.is_present() {
        return Err(cpu.selector_fault(vector::NP, gate.selector, 0));
    }
    if d.is_conforming() || d.dpl() == cpu.cpl {
        let cs = cpu.accessed_segment(&code, gate.selector & !3 | u16::from(cpu.cpl))?;
        return call_same_level(cpu, cs, gate.offset, size);
    }
    let level = d.dpl();
    let mut stack = cpu.inner_stack(level, 0, None)?;
    let cs = cpu.accessed_segment(&code, gate.selector & !3 | u16::from(level))?;

    let old_ss = u64::from(cpu.segments[usize::from(SS)].selector);
    stack.push_all(cpu, size, &[old_ss, cpu.regs[reg::RSP]])?;
    if size != 8 {
        let mut parameters = [0; 31];
        let count = usize::from(gate.parameters);
        let mut outer = Stack::current(cpu);
        for p in parameters.iter_mut().take(count) {
            *p = outer.pop(cpu, size)?;
        }
        for p in parameters.iter().take(count).rev() {
            stack.push(cpu, size, *p)?;
        }
    }
    let old = [u64::from(cpu.segments[usize::from(CS)].selector), cpu.rip()];
    stack.push_all(cpu, size, &old)?;
    cpu.check_far_target(&cs, gate.offset, 0)?;

    cpu.set_segment(CS, cs);
    cpu.set_segment(SS, stack.segment);
    stack.commit(cpu);
    cpu.set_rip(gate.offset);
    Err(Stop::Resync)
}

/// Where in a 64-bit TSS the interrupt-stack table begins.
const IST: u64 = 0x24;

impl Cpu {
    /// The stack of privilege level `level` from the current TSS, with all
    /// checks. `ist`: of 64-bit interrupt gates, that entry of the
    /// interrupt-stack table instead (1-7).
    pub(super) fn inner_stack(&mut self, level: u8, ext: u32, ist: Option<u8>) -> Result<Stack, Stop> {
        use crate::cpu::Privilege::System;
        let level = level & 3;
        let base = self.tr.base;
        if self.long_mode() {
            let at = match ist {
                Some(n) => IST + 8 * (u64::from(n) - 1),
                None => 4 + 8 * u64::from(level),
            };
            self.require_tss_room(at + 7, ext)?;
            let rsp = self.read_linear::<u64>(base.wrapping_add(at), System)?;
            return Ok(Stack::inner(null_segment(level.into(), level), rsp, Width::Rsp, ext));
        }
        let wide = self.tr.kind() & 8 != 0;
        let (pointer, selector) = if wide {
            let at = 4 + 8 * u64::from(level);
            self.require_tss_room(at + 5, ext)?;
            let esp = self.read_linear::<u32>(base.wrapping_add(at) & 0xffff_ffff, System)?;
            (u64::from(esp), self.read_linear::<u16>(base.wrapping_add(at + 4) & 0xffff_ffff, System)?)
        } else {
            let at = 2 + 4 * u64::from(level);
            self.require_tss_room(at + 3, ext)?;
            let sp = self.read_linear::<u16>(base.wrapping_add(at) & 0xffff_ffff, System)?;
            (u64::from(sp), self.read_linear::<u16>(base.wrapping_add(at + 2) & 0xffff_ffff, System)?)
        };
        if is_null(selector) {
            return Err(self.raise(vector::TS, Some(ext)));
        }
        let segment = self.check_stack_for(selector, level, vector::TS, ext)?;
        Ok(Stack::inner(segment, pointer, Width::of(&segment), selector_error(selector, ext)))
    }

    /// #TS(TR) unless the current TSS reaches to offset `last`.
    fn require_tss_room(&mut self, last: u64, ext: u32) -> Step {
        if last <= u64::from(self.tr.limit) {
            return Ok(());
        }
        Err(self.selector_fault(vector::TS, self.tr.selector, ext))
    }
}
