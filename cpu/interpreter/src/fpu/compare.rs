//! FCOM, FUCOM, FICOM, FCOMI, FTST, FXAM.

use iced_x86::Code;
use x86_semantics::x87::{self, Env, F32, F64, Float, Operand, Relation, status};
use x86_state::rflags;

use super::operation;
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// Operation number: quiet NaNs raise IE.
const SIGNALING: u16 = 1;
/// Operation number: pop once afterwards.
const POP: u16 = 2;
/// Operation number: pop twice afterwards.
const POP_TWICE: u16 = 4;

const CODES: u16 = status::C0 | status::C1 | status::C2 | status::C3;

pub(super) fn handler(code: Code, insn: &mut Insn) -> Option<Handler> {
    let (handler, aux): (Handler, u16) = match code {
        Code::Fcom_st0_sti | Code::Fcom_st0_sti_DCD0 => (register, SIGNALING),
        Code::Fcomp_st0_sti | Code::Fcomp_st0_sti_DCD8 | Code::Fcomp_st0_sti_DED0 => {
            (register, SIGNALING | POP)
        }
        Code::Fucom_st0_sti => (register, 0),
        Code::Fucomp_st0_sti => (register, POP),
        Code::Fcompp => (register, SIGNALING | POP_TWICE),
        Code::Fucompp => (register, POP_TWICE),
        Code::Fcomi_st0_sti => (to_rflags, SIGNALING),
        Code::Fcomip_st0_sti => (to_rflags, SIGNALING | POP),
        Code::Fucomi_st0_sti => (to_rflags, 0),
        Code::Fucomip_st0_sti => (to_rflags, POP),
        Code::Fcom_m32fp => (single, SIGNALING),
        Code::Fcomp_m32fp => (single, SIGNALING | POP),
        Code::Fcom_m64fp => (double, SIGNALING),
        Code::Fcomp_m64fp => (double, SIGNALING | POP),
        Code::Ficom_m16int => (word, SIGNALING),
        Code::Ficomp_m16int => (word, SIGNALING | POP),
        Code::Ficom_m32int => (doubleword, SIGNALING),
        Code::Ficomp_m32int => (doubleword, SIGNALING | POP),
        Code::Ftst => (ftst, SIGNALING),
        Code::Fxam => (fxam, 0),
        _ => return None,
    };
    if matches!(code, Code::Fcompp | Code::Fucompp) {
        insn.ops = [0, 1, 0, 0];
    }
    insn.aux = aux.into();
    Some(handler)
}

/// Compare ST(0), which must not be empty, with `b` (`None`: an empty register),
/// leaving flags in the status word. The relation, and whether no unmasked
/// exception forbids the pops.
fn relate(cpu: &mut Cpu, i: &Insn, b: Option<Operand>) -> (Relation, bool) {
    match b {
        Some(b) if !cpu.st_empty(0) => {
            let mut env = Env::x87(cpu.fpu.fcw);
            let a = cpu.st(0).unpack();
            let r = x87::compare(a, b, operation(i) & SIGNALING != 0, &mut env);
            x87::commit(&env, &mut cpu.fpu.fsw);
            (r, !env.unmasked(env.flags))
        }
        _ => {
            let masked = cpu.stack_underflow();
            (Relation::Unordered, masked)
        }
    }
}

fn pops(cpu: &mut Cpu, i: &Insn) {
    if operation(i) & (POP | POP_TWICE) != 0 {
        cpu.pop_stack();
    }
    if operation(i) & POP_TWICE != 0 {
        cpu.pop_stack();
    }
}

fn to_status(cpu: &mut Cpu, i: &Insn, b: Option<Operand>) -> Step {
    cpu.fpu_record(i);
    let (r, go_on) = relate(cpu, i, b);
    cpu.fpu.fsw = cpu.fpu.fsw & !CODES | x87::relation_codes(r);
    if go_on {
        pops(cpu, i);
    }
    Ok(())
}

fn stack_operand(cpu: &Cpu, i: &Insn) -> Option<Operand> {
    (!cpu.st_empty(i.ops[1])).then(|| cpu.st(i.ops[1]).unpack())
}

fn register(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let b = stack_operand(cpu, i);
    to_status(cpu, i, b)
}

fn to_rflags(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let b = stack_operand(cpu, i);
    cpu.fpu_record(i);
    let (r, go_on) = relate(cpu, i, b);
    cpu.clear_c1();
    cpu.flags = x87::relation_flags(r);
    if go_on {
        pops(cpu, i);
    }
    Ok(())
}

fn single(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let b = F32(cpu.load(i)?).unpack();
    to_status(cpu, i, Some(b))
}

fn double(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let b = F64(cpu.load(i)?).unpack();
    to_status(cpu, i, Some(b))
}

fn word(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = cpu.load::<u16>(i)?;
    to_status(cpu, i, Some(Operand::from_i64(i64::from(v as i16))))
}

fn doubleword(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = cpu.load::<u32>(i)?;
    to_status(cpu, i, Some(Operand::from_i64(i64::from(v as i32))))
}

fn ftst(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    to_status(cpu, i, Some(Operand::zero(false)))
}

fn fxam(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    let codes = x87::examine(cpu.st(0), cpu.st_empty(0));
    cpu.fpu.fsw = cpu.fpu.fsw & !CODES | codes;
    Ok(())
}

/// The RFLAGS condition of an FCMOV.
pub(super) fn condition(cpu: &Cpu, bits: u64) -> bool {
    cpu.flags.to_rflags() & bits & rflags::STATUS != 0
}
