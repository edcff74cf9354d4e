//! Control and status words, stack pointer, FWAIT.

use iced_x86::Code;
use x86_semantics::x87::{exception, status};
use x86_state::{cr0, reg, vector};

use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// Control-word bits that are not stored: 7 and 13-15. Bit 6 reads as one.
const CONTROL_RESERVED: u16 = 0xe080;
const CONTROL_ONE: u16 = 1 << 6;

pub(super) fn handler(code: Code) -> Option<Handler> {
    Some(match code {
        Code::Wait => wait,
        Code::Fnop => fnop,
        // Instructions of the 8087 and 80287 that later processors ignore.
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => ignored,
        Code::Fldcw_m2byte => load_control,
        Code::Fnstcw_m2byte => store_control,
        Code::Fnstsw_m2byte => store_status,
        Code::Fnstsw_AX => store_status_ax,
        Code::Fnclex => clear_exceptions,
        Code::Fninit => initialize,
        Code::Fincstp => increment_top,
        Code::Fdecstp => decrement_top,
        Code::Ffree_sti => free,
        Code::Ffreep_sti => free_and_pop,
        _ => return None,
    })
}

fn wait(cpu: &mut Cpu, _: &Insn) -> Step {
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(cpu.raise(vector::NM, None));
    }
    cpu.fpu_pending()
}

fn fnop(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    Ok(())
}

fn ignored(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.fpu_available()
}

fn load_control(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = cpu.load(i)?;
    cpu.set_control_word(v);
    Ok(())
}

fn store_control(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_available()?;
    cpu.store(i, cpu.fpu.fcw)
}

fn store_status(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_available()?;
    cpu.store(i, cpu.fpu.fsw)
}

fn store_status_ax(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.fpu_available()?;
    cpu.regs[reg::RAX] = cpu.regs[reg::RAX] & !0xffff | u64::from(cpu.fpu.fsw);
    Ok(())
}

fn clear_exceptions(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.fpu_available()?;
    cpu.fpu.fsw &= !(u16::from(exception::ALL) | status::SF | status::ES | status::B);
    Ok(())
}

fn initialize(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.fpu_available()?;
    cpu.initialize_fpu();
    Ok(())
}

fn increment_top(cpu: &mut Cpu, i: &Insn) -> Step {
    rotate(cpu, i, 1)
}

fn decrement_top(cpu: &mut Cpu, i: &Insn) -> Step {
    rotate(cpu, i, 7)
}

fn rotate(cpu: &mut Cpu, i: &Insn, by: u8) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    cpu.rotate_stack(by);
    Ok(())
}

fn free(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    cpu.free_st(i.ops[0]);
    Ok(())
}

fn free_and_pop(cpu: &mut Cpu, i: &Insn) -> Step {
    free(cpu, i)?;
    cpu.pop_stack();
    Ok(())
}

impl Cpu {
    /// FLDCW's effect; may make recorded exceptions pending, or no longer so.
    pub(super) fn set_control_word(&mut self, v: u16) {
        self.fpu.fcw = v & !CONTROL_RESERVED | CONTROL_ONE;
        self.summarize_exceptions();
    }

    /// FNINIT's effect: registers keep their contents, MXCSR too.
    pub(super) fn initialize_fpu(&mut self) {
        self.fpu.fcw = 0x37f;
        self.fpu.fsw = 0;
        self.fpu.ftw = 0;
        self.fpu.fop = 0;
        self.fpu.fip = 0;
        self.fpu.fdp = 0;
        self.fpu.fcs = 0;
        self.fpu.fds = 0;
    }
}
