//! x87 and MMX handlers.
//!
//! `Insn::aux` of an x87 instruction holds the group's own operation number in
//! bits 0-15 and the last-opcode field (FOP) in bits 16-26.
//!
//! | module | what |
//! | --- | --- |
//! | `stack` | register stack, tags, pending exceptions, last-instruction pointers |
//! | `arith` | FADD to FDIVR in every operand form |
//! | `transfer` | loads, stores, exchanges, conditional moves, constants |
//! | `compare` | FCOM to FUCOMIP, FTST, FXAM |
//! | `elementary` | one- and two-operand functions, transcendental ones included |
//! | `control` | control and status words, stack pointer, FWAIT |
//! | `environment` | FNSTENV, FLDENV, FNSAVE, FRSTOR |
//! | `mmx` | MMX registers and everything that touches them |

mod arith;
mod compare;
mod control;
mod elementary;
mod environment;
mod mmx;
mod stack;
mod transfer;

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::insn::{Handler, Insn};

/// The handler of an x87 or MMX instruction.
pub(crate) fn handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let code = i.code();
    if let Some(h) = mmx::handler(i, insn) {
        return Some(h);
    }
    let h = arith::handler(code, insn)
        .or_else(|| transfer::handler(code, insn))
        .or_else(|| compare::handler(code, insn))
        .or_else(|| elementary::handler(code, insn))
        .or_else(|| control::handler(code))
        .or_else(|| environment::handler(code))?;
    insn.aux = insn.aux & 0xffff | u32::from(last_opcode(i, code)) << 16;
    Some(h)
}

/// The operation number a group put into `aux`.
fn operation(i: &Insn) -> u16 {
    i.aux as u16
}

/// FOP: the low three bits of the first opcode byte and the ModRM byte (SDM
/// volume 1, 8.1.9). ModRM is rebuilt from the decoded operands, in the
/// encoding an assembler would choose.
fn last_opcode(i: &Instruction, code: Code) -> u16 {
    let info = code.op_code();
    let opcode = info.op_code();
    if opcode > 0xff {
        // Register forms: both bytes, the register in the low three bits.
        let register = (0..i.op_count())
            .filter(|&n| i.op_kind(n) == OpKind::Register)
            .map(|n| i.op_register(n))
            .find(|r| r.is_st() && *r != Register::ST0);
        let n = register.map_or(0, |r| r.number() as u16);
        return (opcode as u16 & 0x7ff) + n;
    }
    let reg = info.group_index().max(0) as u16;
    let rm = register_or_memory(i);
    (opcode as u16 & 7) << 8 | reg << 3 | rm
}

/// Mod and r/m fields of a memory operand.
fn register_or_memory(i: &Instruction) -> u16 {
    let (base, index) = (i.memory_base(), i.memory_index());
    let sixteen = base.is_gpr16() || index.is_gpr16();
    let mode = match i.memory_displ_size() {
        _ if base == Register::None || base == Register::RIP || base == Register::EIP => 0,
        0 => 0,
        1 => 0x40,
        _ => 0x80,
    };
    let rm = if sixteen {
        match (base, index) {
            (Register::BX, Register::SI) => 0,
            (Register::BX, Register::DI) => 1,
            (Register::BP, Register::SI) => 2,
            (Register::BP, Register::DI) => 3,
            (Register::SI, _) => 4,
            (Register::DI, _) => 5,
            (Register::BX, _) => 7,
            _ => 6,
        }
    } else if index != Register::None || base.is_gpr() && base.number() & 7 == 4 {
        4
    } else if base.is_gpr() {
        base.number() as u16 & 7
    } else if i.memory_displ_size() == 2 {
        6
    } else {
        5
    };
    mode | rm
}
