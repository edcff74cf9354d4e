//! MOV to and from debug registers (SDM volume 2; volume 3, 18.2).

use x86_state::{Exception, cr4, dr6, dr7, vector};

use super::control::whole_register;
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

/// DR6 bits software can write.
const DR6_WRITABLE: u64 = 0xf | dr6::BD | dr6::BS | dr6::BT;
/// DR7 bits software can write: enables, LE, GE, GD, conditions and lengths.
const DR7_WRITABLE: u64 = 0xffff_23ff;

/// Checks common to both directions; the register number with DR4 and DR5
/// standing for DR6 and DR7.
fn debug_register(cpu: &mut Cpu, n: u8) -> Result<u8, Stop> {
    let aliased = matches!(n, 4 | 5);
    if n > 7 || aliased && cpu.cr4 & cr4::DE != 0 {
        return Err(cpu.ud());
    }
    cpu.require_cpl0()?;
    if cpu.dr7 & dr7::GD != 0 {
        cpu.fault = Exception { vector: vector::DB, error_code: None, payload: dr6::BD };
        return Err(Stop::Fault);
    }
    Ok(if aliased { n + 2 } else { n })
}

/// MOV r, DRn.
pub(super) fn read_debug(cpu: &mut Cpu, i: &Insn) -> Step {
    let value = match debug_register(cpu, i.ops[1])? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        n => cpu.dr[usize::from(n & 3)],
    };
    cpu.set_register(i.ops[0], i.size, value);
    Ok(())
}

/// MOV DRn, r.
pub(super) fn write_debug(cpu: &mut Cpu, i: &Insn) -> Step {
    let n = debug_register(cpu, i.ops[0])?;
    let value = cpu.register(i.ops[1], whole_register(cpu));
    if n >= 6 && value >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    match n {
        6 => cpu.dr6 = value & DR6_WRITABLE | dr6::FIXED,
        7 => cpu.dr7 = value & DR7_WRITABLE | dr7::FIXED,
        n => cpu.dr[usize::from(n & 3)] = value,
    }
    cpu.debug_registers_changed();
    Err(Stop::Resync)
}
