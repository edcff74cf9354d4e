//! RET far (SDM volume 2, RET).

use x86_state::{Segment, vector};

use super::operand::truncate;
use super::selector::{CS, SS, is_null, null_segment, rpl};
use super::stack::{Stack, Width};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// RETF and RETF imm16; `imm` is the number of bytes released.
pub(super) fn return_far(cpu: &mut Cpu, i: &Insn) -> Step {
    let size = i.size;
    let release = i.imm & 0xffff;
    let mut stack = Stack::current(cpu);
    let rip = truncate(stack.pop(cpu, size)?, size);
    let selector = stack.pop_selector(cpu, size)?;
    if !cpu.protected_segments() {
        let cs = cpu.real_segment(CS, selector);
        cpu.check_far_target(&cs, rip, 0)?;
        stack.skip(release);
        stack.commit(cpu);
        cpu.set_segment(CS, cs);
        cpu.set_rip(rip);
        return Err(Stop::Resync);
    }
    let cs = cpu.check_return_code(selector)?;
    if rpl(selector) == cpu.cpl {
        cpu.check_far_target(&cs, rip, 0)?;
        stack.skip(release);
        stack.commit(cpu);
        cpu.set_segment(CS, cs);
        cpu.set_rip(rip);
        return Err(Stop::Resync);
    }
    stack.skip(release);
    let rsp = truncate(stack.pop(cpu, size)?, size);
    let ss_selector = stack.pop_selector(cpu, size)?;
    let ss = cpu.check_return_stack(ss_selector, rpl(selector), &cs)?;
    cpu.check_far_target(&cs, rip, 0)?;
    cpu.leave_to_outer(cs, rip, ss, rsp, release);
    Err(Stop::Resync)
}

impl Cpu {
    /// The code segment RET and IRET go back to, with all checks.
    pub(super) fn check_return_code(&mut self, selector: u16) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let found = self.fetch_descriptor(selector, vector::GP, 0)?;
        let d = found.descriptor;
        let level = rpl(selector);
        let allowed = if d.is_conforming() { d.dpl() <= level } else { d.dpl() == level };
        let wrong_size = self.long_mode() && d.is_long() && d.is_big();
        if !d.is_code() || level < self.cpl || !allowed || wrong_size {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !d.is_present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.accessed_segment(&found, selector)
    }

    /// The stack segment that goes with a return to privilege level `level` and
    /// code segment `cs`.
    pub(super) fn check_return_stack(
        &mut self,
        selector: u16,
        level: u8,
        cs: &Segment,
    ) -> Result<Segment, Stop> {
        if is_null(selector) {
            if self.long_mode() && cs.long() && level != 3 && rpl(selector) == level {
                return Ok(null_segment(selector, level));
            }
            return Err(self.gp(0));
        }
        self.check_stack_for(selector, level, vector::GP, 0)
    }

    /// Go to the outer level of `cs` and `ss`: nothing here can fault.
    pub(super) fn leave_to_outer(&mut self, cs: Segment, rip: u64, ss: Segment, rsp: u64, release: u64) {
        let width = if self.long_mode() && cs.long() { Width::Rsp } else { Width::of(&ss) };
        let mut stack = Stack::inner(ss, rsp, width, 0);
        stack.skip(release);
        let outer = self.cpl < rpl(cs.selector);
        self.set_segment(CS, cs);
        self.set_segment(SS, ss);
        stack.commit(self);
        self.set_rip(rip);
        if outer {
            self.drop_inner_segments();
        }
    }
}
