//! One- and two-operand functions on the top of the stack.

use iced_x86::Code;
use x86_semantics::x87::{self, Env, F80, Outcome, Quotient, Trigonometric, status};

use super::operation;
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// ST(0) from ST(0).
type Unary = fn(F80, &mut Env) -> F80;
/// From ST(0) and ST(1).
type Binary = fn(F80, F80, &mut Env) -> F80;
/// A trigonometric function, which may refuse its operand (C2).
type Reducing = fn(F80, &mut Env) -> Trigonometric;

const UNARY: [Unary; 3] = [x87::sqrt, x87::round_to_integral, x87::exp2_minus_1];
const POPPING: [Binary; 3] = [x87::y_log2_x, x87::y_log2_x_plus_1, x87::arctangent];
const REDUCING: [Reducing; 4] = [x87::sine, x87::cosine, x87::tangent, x87::sine_cosine];

pub(super) fn handler(code: Code, insn: &mut Insn) -> Option<Handler> {
    let (handler, aux): (Handler, u32) = match code {
        Code::Fchs => (change_sign, 0),
        Code::Fabs => (absolute, 0),
        Code::Fsqrt => (unary, 0),
        Code::Frndint => (unary, 1),
        Code::F2xm1 => (unary, 2),
        Code::Fscale => (scale, 0),
        Code::Fxtract => (extract, 0),
        Code::Fprem => (remainder, 0),
        Code::Fprem1 => (remainder, 1),
        Code::Fyl2x => (popping, 0),
        Code::Fyl2xp1 => (popping, 1),
        Code::Fpatan => (popping, 2),
        Code::Fsin => (reducing, 0),
        Code::Fcos => (reducing, 1),
        Code::Fptan => (reducing_push, 2),
        Code::Fsincos => (reducing_push, 3),
        _ => return None,
    };
    insn.aux = aux;
    Some(handler)
}

/// Checks common to all; false if ST(0) is empty, with the masked response done.
fn prepare(cpu: &mut Cpu, i: &Insn) -> Result<bool, crate::cpu::Stop> {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    if !cpu.st_empty(0) {
        return Ok(true);
    }
    if cpu.stack_underflow() {
        cpu.set_st(0, x87::indefinite());
    }
    Ok(false)
}

fn change_sign(cpu: &mut Cpu, i: &Insn) -> Step {
    if prepare(cpu, i)? {
        cpu.set_st(0, x87::change_sign(cpu.st(0)));
    }
    Ok(())
}

fn absolute(cpu: &mut Cpu, i: &Insn) -> Step {
    if prepare(cpu, i)? {
        cpu.set_st(0, x87::absolute(cpu.st(0)));
    }
    Ok(())
}

/// Record exceptions; write ST(0) unless one forbids it.
fn finish(cpu: &mut Cpu, env: &Env, r: F80) -> bool {
    let done = x87::commit(env, &mut cpu.fpu.fsw) != Outcome::Nothing;
    if done {
        cpu.set_st(0, r);
    }
    done
}

fn unary(cpu: &mut Cpu, i: &Insn) -> Step {
    if prepare(cpu, i)? {
        let mut env = Env::x87(cpu.fpu.fcw);
        let r = UNARY[usize::from(operation(i)) % UNARY.len()](cpu.st(0), &mut env);
        finish(cpu, &env, r);
    }
    Ok(())
}

/// As [`prepare`] for instructions that need ST(1) too.
fn prepare_two(cpu: &mut Cpu, i: &Insn) -> Result<bool, crate::cpu::Stop> {
    if !prepare(cpu, i)? {
        return Ok(false);
    }
    if !cpu.st_empty(1) {
        return Ok(true);
    }
    if cpu.stack_underflow() {
        cpu.set_st(0, x87::indefinite());
    }
    Ok(false)
}

fn scale(cpu: &mut Cpu, i: &Insn) -> Step {
    if prepare_two(cpu, i)? {
        let mut env = Env::x87(cpu.fpu.fcw);
        let r = x87::scale(cpu.st(0), cpu.st(1), &mut env);
        finish(cpu, &env, r);
    }
    Ok(())
}

fn remainder(cpu: &mut Cpu, i: &Insn) -> Step {
    const CODES: u16 = status::C0 | status::C1 | status::C2 | status::C3;
    let ready = prepare_two(cpu, i)?;
    cpu.fpu.fsw &= !status::C2;
    if ready {
        let mut env = Env::x87(cpu.fpu.fcw);
        let mode = if operation(i) == 0 { Quotient::Truncated } else { Quotient::Nearest };
        let (r, codes) = x87::remainder(cpu.st(0), cpu.st(1), mode, &mut env);
        let done = finish(cpu, &env, r);
        if let Some(codes) = codes.filter(|_| done) {
            cpu.fpu.fsw = cpu.fpu.fsw & !CODES | codes;
        }
    }
    Ok(())
}

/// Stack checks of an instruction that turns ST(0) into two values.
fn prepare_push(cpu: &mut Cpu, i: &Insn) -> Result<bool, crate::cpu::Stop> {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    let masked = match (cpu.st_empty(0), cpu.st_empty(7)) {
        (false, true) => return Ok(true),
        (true, _) => cpu.stack_underflow(),
        (false, false) => cpu.stack_overflow(),
    };
    if masked {
        cpu.set_st(0, x87::indefinite());
        cpu.push_stack(x87::indefinite());
    }
    Ok(false)
}

fn extract(cpu: &mut Cpu, i: &Insn) -> Step {
    if prepare_push(cpu, i)? {
        let mut env = Env::x87(cpu.fpu.fcw);
        let (exponent, significand) = x87::extract(cpu.st(0), &mut env);
        if finish(cpu, &env, exponent) {
            cpu.push_stack(significand);
        }
    }
    Ok(())
}

fn popping(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    if cpu.st_empty(0) || cpu.st_empty(1) {
        if cpu.stack_underflow() {
            cpu.pop_stack();
            cpu.set_st(0, x87::indefinite());
        }
        return Ok(());
    }
    let mut env = Env::x87(cpu.fpu.fcw);
    let r = POPPING[usize::from(operation(i)) % POPPING.len()](cpu.st(0), cpu.st(1), &mut env);
    if x87::commit(&env, &mut cpu.fpu.fsw) != Outcome::Nothing {
        cpu.pop_stack();
        cpu.set_st(0, r);
    }
    Ok(())
}

/// The function's results, or `None` if the operand was out of range (C2 set)
/// or an exception forbids them.
fn reduce(cpu: &mut Cpu, i: &Insn) -> Option<(F80, Option<F80>)> {
    let mut env = Env::x87(cpu.fpu.fcw);
    let r = REDUCING[usize::from(operation(i)) % REDUCING.len()](cpu.st(0), &mut env);
    match r {
        Trigonometric::OutOfRange => {
            cpu.fpu.fsw |= status::C2;
            None
        }
        Trigonometric::Done(a, b) => {
            (x87::commit(&env, &mut cpu.fpu.fsw) != Outcome::Nothing).then_some((a, b))
        }
    }
}

fn reducing(cpu: &mut Cpu, i: &Insn) -> Step {
    let ready = prepare(cpu, i)?;
    cpu.fpu.fsw &= !status::C2;
    if !ready {
        return Ok(());
    }
    if let Some((r, _)) = reduce(cpu, i) {
        cpu.set_st(0, r);
    }
    Ok(())
}

fn reducing_push(cpu: &mut Cpu, i: &Insn) -> Step {
    let ready = prepare_push(cpu, i)?;
    cpu.fpu.fsw &= !status::C2;
    if !ready {
        return Ok(());
    }
    if let Some((below, Some(top))) = reduce(cpu, i) {
        cpu.set_st(0, below);
        cpu.push_stack(top);
    }
    Ok(())
}
