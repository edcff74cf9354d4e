//! Guest registers that live in the state, used there: as the memory operand of
//! the instruction that names them, instead of visiting a scratch register.

use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpCodeOperandKind, OpKind, Register};

use super::access::gpr_number;
use super::facts::Facts;
use crate::emit::Mem;
use crate::layout::{PINNED, gpr_home, host, near};

/// The load table's register, from which the state's registers are near.
const TABLE: Register = Register::R15;

/// Which operand of an opcode may be memory as well as a register, with the same
/// meaning.
pub(super) fn memory_operand(code: Code) -> Option<u8> {
    use Mnemonic as M;
    use OpCodeOperandKind as K;
    let m = code.mnemonic();
    // Locked, or with bit numbers beyond the operand, when in memory.
    if matches!(m, M::Xchg | M::Xadd | M::Cmpxchg | M::Bt | M::Bts | M::Btr | M::Btc) {
        return None;
    }
    let info = code.op_code();
    (0..info.op_count()).find(|n| matches!(info.op_kind(*n), K::r32_or_mem | K::r64_or_mem)).map(|n| n as u8)
}

/// The same instruction with the other operand as the one that may be memory.
pub(super) fn reversed(code: Code) -> Option<Code> {
    Some(match code {
        Code::Add_rm64_r64 => Code::Add_r64_rm64,
        Code::Or_rm64_r64 => Code::Or_r64_rm64,
        Code::Adc_rm64_r64 => Code::Adc_r64_rm64,
        Code::Sbb_rm64_r64 => Code::Sbb_r64_rm64,
        Code::And_rm64_r64 => Code::And_r64_rm64,
        Code::Sub_rm64_r64 => Code::Sub_r64_rm64,
        Code::Xor_rm64_r64 => Code::Xor_r64_rm64,
        Code::Cmp_rm64_r64 => Code::Cmp_r64_rm64,
        Code::Mov_rm64_r64 => Code::Mov_r64_rm64,
        Code::Add_rm32_r32 => Code::Add_r32_rm32,
        Code::Or_rm32_r32 => Code::Or_r32_rm32,
        Code::Adc_rm32_r32 => Code::Adc_r32_rm32,
        Code::Sbb_rm32_r32 => Code::Sbb_r32_rm32,
        Code::And_rm32_r32 => Code::And_r32_rm32,
        Code::Sub_rm32_r32 => Code::Sub_r32_rm32,
        Code::Xor_rm32_r32 => Code::Xor_r32_rm32,
        Code::Cmp_rm32_r32 => Code::Cmp_r32_rm32,
        Code::Mov_rm32_r32 => Code::Mov_r32_rm32,
        // The operands of these are equals: where one is memory, it comes first.
        Code::Test_rm64_r64 | Code::Test_rm32_r32 => code,
        _ => return None,
    })
}

/// Whether an operand may be used in its home: it is read, or all of it written.
/// Narrower writes would leave a part to be joined by every later read.
fn fits(access: OpAccess, register: Register, vector: bool) -> bool {
    match access {
        OpAccess::Read | OpAccess::CondRead => register.size() >= 4,
        OpAccess::Write | OpAccess::ReadWrite => register.size() == 8 && !vector,
        _ => false,
    }
}

/// An instruction without a memory operand, rewritten so that one register that
/// lives in the state is used there.
pub(super) fn at_home(i: &Instruction, facts: &Facts) -> Option<Instruction> {
    let direct = facts.may_be_memory()?;
    let in_state = |n: u32| {
        i.op_kind(n) == OpKind::Register
            && gpr_number(i.op_register(n)).is_some_and(|g| PINNED[g].is_none())
            && facts.access.get(n as usize).is_some_and(|a| fits(*a, i.op_register(n), facts.vector))
    };
    let alone = |n: u32| {
        let r = i.op_register(n).full_register();
        (0..i.op_count())
            .all(|m| m == n || i.op_kind(m) != OpKind::Register || i.op_register(m).full_register() != r)
    };
    let mut out = *i;
    let n = if in_state(direct) && alone(direct) {
        direct
    } else {
        let other = 1u32.checked_sub(direct)?;
        let code = reversed(i.code())?;
        if i.op_count() != 2 || i.op_kind(direct) != OpKind::Register || !in_state(other) || !alone(other) {
            return None;
        }
        if code == i.code() {
            // Only equals that are both read may change places.
            let (a, b) = (i.op_register(0), i.op_register(1));
            out.set_op_register(0, b);
            out.set_op_register(1, a);
            return put(out, 0, b);
        }
        out.set_code(code);
        other
    };
    put(out, n, i.op_register(n))
}

/// The memory operand of what [`at_home`] made.
pub(super) fn home(i: &Instruction) -> Mem {
    Mem::base(host::TABLE, i.memory_displacement64() as i32)
}

fn put(mut out: Instruction, n: u32, register: Register) -> Option<Instruction> {
    let home = gpr_home(gpr_number(register)?);
    out.set_op_kind(n, OpKind::Memory);
    let near = near(home)?;
    out.set_segment_prefix(Register::None);
    out.set_memory_base(TABLE);
    out.set_memory_index(Register::None);
    out.set_memory_displacement64(i64::from(near) as u64);
    out.set_memory_displ_size(1);
    Some(out)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Encoder, Formatter, IntelFormatter};

    use super::super::classify::HostFeatures;
    use super::super::facts::FactTable;
    use super::*;

    fn check(code: &[u8], expected: Option<&str>) {
        let i = Decoder::new(64, code, DecoderOptions::NONE).decode();
        let facts = FactTable::new(HostFeatures::detect()).of(&i);
        let text = at_home(&i, &facts).map(|out| {
            assert!(Encoder::new(64).encode(&out, 0).is_ok(), "{out} can be encoded");
            let mut text = String::new();
            IntelFormatter::new().format(&out, &mut text);
            let home = format!("[r15-{:X}h]", -i32::from(near(gpr_home(13)).unwrap()));
            text.replace(&home, "R13")
        });
        assert_eq!(text.as_deref(), expected, "{i}");
    }

    #[test]
    fn registers_of_the_state_are_used_there() {
        check(&[0x49, 0x01, 0xc5], Some("add R13,rax")); // add r13, rax
        check(&[0x4c, 0x01, 0xe8], Some("add rax,R13")); // add rax, r13
        check(&[0x49, 0x89, 0xc5], Some("mov R13,rax")); // mov r13, rax
        check(&[0x44, 0x31, 0xe8], Some("xor eax,R13")); // xor eax, r13d
        check(&[0x4d, 0x39, 0xe5], Some("cmp R13,r12")); // cmp r13, r12
        check(&[0x4c, 0x85, 0xe8], Some("test R13,rax")); // test rax, r13
    }

    #[test]
    fn narrow_writes_and_locked_forms_stay() {
        check(&[0x41, 0x31, 0xc5], None); // xor r13d, eax
        check(&[0x41, 0x88, 0xc5], None); // mov r13b, al
        check(&[0x49, 0x87, 0xc5], None); // xchg r13, rax
        check(&[0x49, 0x0f, 0xa3, 0xc5], None); // bt r13, rax
        check(&[0x4d, 0x01, 0xed], None); // add r13, r13
        check(&[0x48, 0x01, 0xc3], None); // add rbx, rax
    }
}
