//! INT n, INT3, INTO, INT1 and BOUND (SDM volume 2).

use x86_state::{rflags, vector};

use super::exception::{deliver_by_instruction, deliver_icebp, redirect_v86_interrupt, v86_extensions};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// INT n.
pub(super) fn int_n(cpu: &mut Cpu, i: &Insn) -> Step {
    let n = i.imm as u8;
    if v86_extensions(cpu) && redirect_v86_interrupt(cpu, n)? {
        cpu.step_trap = false;
        return Err(Stop::Resync);
    }
    if cpu.v86() && cpu.system_flags & rflags::IOPL != rflags::IOPL {
        return Err(cpu.gp(0));
    }
    deliver_by_instruction(cpu, n, true)
}

/// INT3: not sensitive to IOPL.
pub(super) fn int3(cpu: &mut Cpu, _: &Insn) -> Step {
    deliver_by_instruction(cpu, vector::BP, true)
}

/// INTO.
pub(super) fn into(cpu: &mut Cpu, _: &Insn) -> Step {
    if !cpu.flags.of() {
        return Ok(());
    }
    deliver_by_instruction(cpu, vector::OF, true)
}

/// INT1: #DB as if from hardware: no check of the gate's DPL, DR6 unchanged.
pub(super) fn int1(cpu: &mut Cpu, _: &Insn) -> Step {
    deliver_icebp(cpu)
}

/// BOUND: #BR when the signed index is outside the bounds in memory.
pub(super) fn bound(cpu: &mut Cpu, i: &Insn) -> Step {
    let index = cpu.register(i.ops[0], i.size);
    let outside = if i.size == 2 {
        let (low, high) = (cpu.load::<u16>(i)? as i16, cpu.load_at::<u16>(i, 2)? as i16);
        !(low..=high).contains(&(index as i16))
    } else {
        let (low, high) = (cpu.load::<u32>(i)? as i32, cpu.load_at::<u32>(i, 4)? as i32);
        !(low..=high).contains(&(index as i32))
    };
    if outside { Err(cpu.raise(vector::BR, None)) } else { Ok(()) }
}
