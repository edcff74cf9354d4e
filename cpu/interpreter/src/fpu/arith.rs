//! FADD, FMUL, FSUB, FSUBR, FDIV, FDIVR: register, popping, memory and integer forms.

use iced_x86::Code;
use x86_semantics::x87::{self, Arith, Env, F32, F64, Float, Operand, Outcome};

use super::operation;
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

const OPERATIONS: [Arith; 6] =
    [Arith::Add, Arith::Mul, Arith::Sub, Arith::SubReversed, Arith::Div, Arith::DivReversed];

pub(super) fn handler(code: Code, insn: &mut Insn) -> Option<Handler> {
    macro_rules! forms {
        ($($form:expr => [$add:ident $mul:ident $sub:ident $subr:ident $div:ident $divr:ident])*) => {
            match code {
                $(
                    Code::$add => (Arith::Add, $form as Handler),
                    Code::$mul => (Arith::Mul, $form as Handler),
                    Code::$sub => (Arith::Sub, $form as Handler),
                    Code::$subr => (Arith::SubReversed, $form as Handler),
                    Code::$div => (Arith::Div, $form as Handler),
                    Code::$divr => (Arith::DivReversed, $form as Handler),
                )*
                _ => return None,
            }
        };
    }
    let (op, handler): (Arith, Handler) = forms! {
        register => [Fadd_st0_sti Fmul_st0_sti Fsub_st0_sti Fsubr_st0_sti Fdiv_st0_sti Fdivr_st0_sti]
        register => [Fadd_sti_st0 Fmul_sti_st0 Fsub_sti_st0 Fsubr_sti_st0 Fdiv_sti_st0 Fdivr_sti_st0]
        popping => [Faddp_sti_st0 Fmulp_sti_st0 Fsubp_sti_st0 Fsubrp_sti_st0 Fdivp_sti_st0 Fdivrp_sti_st0]
        single => [Fadd_m32fp Fmul_m32fp Fsub_m32fp Fsubr_m32fp Fdiv_m32fp Fdivr_m32fp]
        double => [Fadd_m64fp Fmul_m64fp Fsub_m64fp Fsubr_m64fp Fdiv_m64fp Fdivr_m64fp]
        word => [Fiadd_m16int Fimul_m16int Fisub_m16int Fisubr_m16int Fidiv_m16int Fidivr_m16int]
        doubleword => [Fiadd_m32int Fimul_m32int Fisub_m32int Fisubr_m32int Fidiv_m32int Fidivr_m32int]
    };
    insn.aux = op as u32;
    Some(handler)
}

fn register(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    registers(cpu, i);
    Ok(())
}

fn popping(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    if registers(cpu, i) {
        cpu.pop_stack();
    }
    Ok(())
}

/// The operation between two stack registers. Returns false if an unmasked
/// exception suppressed the result.
fn registers(cpu: &mut Cpu, i: &Insn) -> bool {
    let (to, from) = (i.ops[0], i.ops[1]);
    if cpu.st_empty(to) || cpu.st_empty(from) {
        let masked = cpu.stack_underflow();
        if masked {
            cpu.set_st(to, x87::indefinite());
        }
        return masked;
    }
    let b = cpu.st(from).unpack();
    combine(cpu, i, to, b)
}

/// ST(to) op `b` into ST(to), which is not empty.
fn combine(cpu: &mut Cpu, i: &Insn, to: u8, b: Operand) -> bool {
    let mut env = Env::x87(cpu.fpu.fcw);
    let op = OPERATIONS[usize::from(operation(i)) % OPERATIONS.len()];
    let r = x87::arith(op, cpu.st(to).unpack(), b, &mut env);
    let done = x87::commit(&env, &mut cpu.fpu.fsw) != Outcome::Nothing;
    if done {
        cpu.set_st(to, r);
    }
    done
}

/// With a memory operand, already loaded.
fn with_operand(cpu: &mut Cpu, i: &Insn, b: Operand) -> Step {
    cpu.fpu_record(i);
    if !cpu.st_empty(0) {
        combine(cpu, i, 0, b);
    } else if cpu.stack_underflow() {
        cpu.set_st(0, x87::indefinite());
    }
    Ok(())
}

fn single(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let b = F32(cpu.load(i)?).unpack();
    with_operand(cpu, i, b)
}

fn double(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let b = F64(cpu.load(i)?).unpack();
    with_operand(cpu, i, b)
}

fn word(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = cpu.load::<u16>(i)?;
    with_operand(cpu, i, Operand::from_i64(i64::from(v as i16)))
}

fn doubleword(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = cpu.load::<u32>(i)?;
    with_operand(cpu, i, Operand::from_i64(i64::from(v as i32)))
}
