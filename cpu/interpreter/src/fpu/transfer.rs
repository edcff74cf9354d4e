//! Loads, stores, exchanges, conditional moves and constants.

use iced_x86::Code;
use x86_semantics::x87::{self, Constant, Env, F32, F64, F80, Float, Outcome, Rounding};
use x86_state::rflags;

use super::{compare, operation};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};
use crate::memory::Intent;

/// Operation number of stores: pop afterwards.
const POP: u16 = 1;
/// Operation number of integer stores: truncate.
const TRUNCATE: u16 = 2;

const CONSTANTS: [Constant; 7] = [
    Constant::One,
    Constant::Log2Of10,
    Constant::Log2OfE,
    Constant::Pi,
    Constant::Log10Of2,
    Constant::LnOf2,
    Constant::Zero,
];

/// Operation numbers of conditional moves: RFLAGS bits, and "if all are clear".
const IF_CLEAR: u16 = 1 << 15;
const BELOW: u16 = rflags::CF as u16;
const EQUAL: u16 = rflags::ZF as u16;
const UNORDERED: u16 = rflags::PF as u16;

pub(super) fn handler(code: Code, insn: &mut Insn) -> Option<Handler> {
    let (handler, aux): (Handler, u16) = match code {
        Code::Fld_m32fp => (load_single, 0),
        Code::Fld_m64fp => (load_double, 0),
        Code::Fld_m80fp => (load_extended, 0),
        Code::Fld_sti => (load_register, 0),
        Code::Fild_m16int => (load_word, 0),
        Code::Fild_m32int => (load_doubleword, 0),
        Code::Fild_m64int => (load_quadword, 0),
        Code::Fbld_m80bcd => (load_bcd, 0),
        Code::Fst_m32fp => (store_single, 0),
        Code::Fstp_m32fp => (store_single, POP),
        Code::Fst_m64fp => (store_double, 0),
        Code::Fstp_m64fp => (store_double, POP),
        Code::Fstp_m80fp => (store_extended, POP),
        Code::Fst_sti => (store_register, 0),
        Code::Fstp_sti | Code::Fstp_sti_DFD0 | Code::Fstp_sti_DFD8 => (store_register, POP),
        Code::Fstpnce_sti => (store_register_unchecked, POP),
        Code::Fist_m16int => (store_integer::<16>, 0),
        Code::Fistp_m16int => (store_integer::<16>, POP),
        Code::Fisttp_m16int => (store_integer::<16>, POP | TRUNCATE),
        Code::Fist_m32int => (store_integer::<32>, 0),
        Code::Fistp_m32int => (store_integer::<32>, POP),
        Code::Fisttp_m32int => (store_integer::<32>, POP | TRUNCATE),
        Code::Fistp_m64int => (store_integer::<64>, POP),
        Code::Fisttp_m64int => (store_integer::<64>, POP | TRUNCATE),
        Code::Fbstp_m80bcd => (store_bcd, POP),
        Code::Fxch_st0_sti | Code::Fxch_st0_sti_DDC8 | Code::Fxch_st0_sti_DFC8 => (exchange, 0),
        Code::Fcmovb_st0_sti => (conditional, BELOW),
        Code::Fcmove_st0_sti => (conditional, EQUAL),
        Code::Fcmovbe_st0_sti => (conditional, BELOW | EQUAL),
        Code::Fcmovu_st0_sti => (conditional, UNORDERED),
        Code::Fcmovnb_st0_sti => (conditional, IF_CLEAR | BELOW),
        Code::Fcmovne_st0_sti => (conditional, IF_CLEAR | EQUAL),
        Code::Fcmovnbe_st0_sti => (conditional, IF_CLEAR | BELOW | EQUAL),
        Code::Fcmovnu_st0_sti => (conditional, IF_CLEAR | UNORDERED),
        Code::Fld1 => (load_constant, 0),
        Code::Fldl2t => (load_constant, 1),
        Code::Fldl2e => (load_constant, 2),
        Code::Fldpi => (load_constant, 3),
        Code::Fldlg2 => (load_constant, 4),
        Code::Fldln2 => (load_constant, 5),
        Code::Fldz => (load_constant, 6),
        _ => return None,
    };
    insn.aux = aux.into();
    Some(handler)
}

/// Push a value that came without exceptions.
fn push(cpu: &mut Cpu, i: &Insn, v: F80) -> Step {
    cpu.fpu_record(i);
    cpu.clear_c1();
    cpu.push_checked(v);
    Ok(())
}

/// Push a binary32 or binary64 value.
fn push_real<F: Float>(cpu: &mut Cpu, i: &Insn, v: F) -> Step {
    cpu.fpu_record(i);
    cpu.clear_c1();
    if !cpu.st_empty(7) {
        cpu.push_checked(F80::default());
        return Ok(());
    }
    let mut env = Env::x87(cpu.fpu.fcw);
    let v = x87::load(v, &mut env);
    if x87::commit_load(&env, &mut cpu.fpu.fsw) {
        cpu.push_stack(v);
    }
    Ok(())
}

fn load_single(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = F32(cpu.load(i)?);
    push_real(cpu, i, v)
}

fn load_double(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = F64(cpu.load(i)?);
    push_real(cpu, i, v)
}

fn load_extended(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let significand = cpu.load(i)?;
    let sign_exponent = cpu.load_at(i, 8)?;
    push(cpu, i, F80 { significand, sign_exponent })
}

fn load_register(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    let n = i.ops[0];
    if cpu.st_empty(n) {
        if cpu.stack_underflow() {
            cpu.push_stack(x87::indefinite());
        }
    } else {
        cpu.push_checked(cpu.st(n));
    }
    Ok(())
}

fn load_word(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = cpu.load::<u16>(i)?;
    push(cpu, i, x87::load_integer(i64::from(v as i16)))
}

fn load_doubleword(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = cpu.load::<u32>(i)?;
    push(cpu, i, x87::load_integer(i64::from(v as i32)))
}

fn load_quadword(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let v = cpu.load::<u64>(i)?;
    push(cpu, i, x87::load_integer(v as i64))
}

fn load_bcd(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let (low, high) = (cpu.load::<u64>(i)?, cpu.load_at::<u16>(i, 8)?);
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    push(cpu, i, x87::load_bcd(bytes))
}

fn load_constant(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    let rounding = Env::x87(cpu.fpu.fcw).rounding;
    let which = CONSTANTS[usize::from(operation(i)) % CONSTANTS.len()];
    push(cpu, i, x87::constant(which, rounding))
}

/// A store of ST(0): `convert` makes what goes to memory from the register (or
/// from the indefinite on a masked underflow), `write` puts it there. A fault in
/// `write` leaves the x87 as it was.
fn store<T>(
    cpu: &mut Cpu,
    i: &Insn,
    convert: impl Fn(F80, &mut Env) -> T,
    write: impl Fn(&mut Cpu, &Insn, T) -> Step,
) -> Step {
    cpu.fpu_wait()?;
    let mut env = Env::x87(cpu.fpu.fcw);
    let before = cpu.fpu.fsw;
    let mut complete = true;
    let value = if cpu.st_empty(0) {
        complete = cpu.stack_underflow();
        convert(x87::indefinite(), &mut env.clone())
    } else {
        let v = convert(cpu.st(0), &mut env);
        complete &= x87::commit(&env, &mut cpu.fpu.fsw) == Outcome::Complete;
        v
    };
    if complete {
        let after = std::mem::replace(&mut cpu.fpu.fsw, before);
        write(cpu, i, value)?;
        cpu.fpu.fsw = after;
    }
    cpu.fpu_record(i);
    if complete && operation(i) & POP != 0 {
        cpu.pop_stack();
    }
    Ok(())
}

fn store_single(cpu: &mut Cpu, i: &Insn) -> Step {
    store(cpu, i, x87::store_real::<F32>, |cpu, i, v| cpu.store(i, v.0))
}

fn store_double(cpu: &mut Cpu, i: &Insn) -> Step {
    store(cpu, i, x87::store_real::<F64>, |cpu, i, v| cpu.store(i, v.0))
}

fn store_extended(cpu: &mut Cpu, i: &Insn) -> Step {
    store(
        cpu,
        i,
        |v, _| v,
        |cpu, i, v| {
            let mut bytes = [0; 10];
            bytes[..8].copy_from_slice(&v.significand.to_le_bytes());
            bytes[8..].copy_from_slice(&v.sign_exponent.to_le_bytes());
            store_10_bytes(cpu, i, &bytes)
        },
    )
}

fn store_bcd(cpu: &mut Cpu, i: &Insn) -> Step {
    store(cpu, i, x87::store_bcd, |cpu, i, v| store_10_bytes(cpu, i, &v))
}

fn store_10_bytes(cpu: &mut Cpu, i: &Insn, bytes: &[u8; 10]) -> Step {
    cpu.image_aligned::<8>(i, bytes.len(), Intent::Write)?;
    cpu.store_image(i, bytes)
}

fn store_integer<const BITS: u32>(cpu: &mut Cpu, i: &Insn) -> Step {
    let truncate = operation(i) & TRUNCATE != 0;
    store(
        cpu,
        i,
        |v, env| {
            let rounding = if truncate { Rounding::Zero } else { env.rounding };
            x87::store_integer(v, BITS, rounding, env)
        },
        |cpu, i, v| match BITS {
            16 => cpu.store(i, v as u16),
            32 => cpu.store(i, v as u32),
            _ => cpu.store(i, v),
        },
    )
}

fn store_register(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    let value = if !cpu.st_empty(0) {
        cpu.st(0)
    } else if cpu.stack_underflow() {
        x87::indefinite()
    } else {
        return Ok(());
    };
    cpu.set_st(i.ops[0], value);
    if operation(i) & POP != 0 {
        cpu.pop_stack();
    }
    Ok(())
}

/// FSTPNCE (D9 D8+i), undocumented: as FSTP, but an empty ST(0) is no fault and
/// only pops.
fn store_register_unchecked(cpu: &mut Cpu, i: &Insn) -> Step {
    if !cpu.st_empty(0) {
        return store_register(cpu, i);
    }
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    cpu.pop_stack();
    Ok(())
}

fn exchange(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    cpu.clear_c1();
    let n = i.ops[1];
    if (cpu.st_empty(0) || cpu.st_empty(n)) && !cpu.stack_underflow() {
        return Ok(());
    }
    let value = |cpu: &Cpu, n: u8| if cpu.st_empty(n) { x87::indefinite() } else { cpu.st(n) };
    let (a, b) = (value(cpu, 0), value(cpu, n));
    cpu.set_st(n, a);
    cpu.set_st(0, b);
    Ok(())
}

fn conditional(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.fpu_wait()?;
    cpu.fpu_record(i);
    let n = i.ops[1];
    if cpu.st_empty(0) || cpu.st_empty(n) {
        if cpu.stack_underflow() {
            cpu.set_st(0, x87::indefinite());
        }
        return Ok(());
    }
    let any = compare::condition(cpu, u64::from(operation(i) & !IF_CLEAR));
    if any == (operation(i) & IF_CLEAR == 0) {
        cpu.set_st(0, cpu.st(n));
    }
    Ok(())
}
