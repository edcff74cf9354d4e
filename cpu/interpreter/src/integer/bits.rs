//! Bit tests, scans, counts, BMI and CRC32.

use iced_x86::{Code, Instruction, Mnemonic};
use x86_semantics::bits;
use x86_semantics::flags::Flags;
use x86_semantics::int::Int;

use super::{Shape, Width, sized_wide};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::{Handler, Insn};

pub(super) fn handler(i: &Instruction, insn: &Insn, shape: Shape) -> Option<Handler> {
    let size = insn.size;
    Some(match i.mnemonic() {
        Mnemonic::Bt => bit_test::<Bt>(insn, shape)?,
        Mnemonic::Bts => bit_test::<Bts>(insn, shape)?,
        Mnemonic::Btr => bit_test::<Btr>(insn, shape)?,
        Mnemonic::Btc => bit_test::<Btc>(insn, shape)?,
        Mnemonic::Bsf => sized_wide!(size, bsf),
        Mnemonic::Bsr => sized_wide!(size, bsr),
        Mnemonic::Lzcnt => unary::<Lzcnt>(insn),
        Mnemonic::Tzcnt => unary::<Tzcnt>(insn),
        Mnemonic::Popcnt => unary::<Popcnt>(insn),
        Mnemonic::Blsi => to_second::<Blsi>(insn),
        Mnemonic::Blsmsk => to_second::<Blsmsk>(insn),
        Mnemonic::Blsr => to_second::<Blsr>(insn),
        Mnemonic::Andn => vex_middle::<Andn>(insn),
        Mnemonic::Pdep => vex_middle::<Pdep>(insn),
        Mnemonic::Pext => vex_middle::<Pext>(insn),
        Mnemonic::Bextr => vex_last::<Bextr>(insn),
        Mnemonic::Bzhi => vex_last::<Bzhi>(insn),
        Mnemonic::Bswap => sized_wide!(size, bswap),
        Mnemonic::Crc32 => match i.code() {
            Code::Crc32_r32_rm8 | Code::Crc32_r64_rm8 => crc32::<u8>,
            Code::Crc32_r32_rm16 => crc32::<u16>,
            Code::Crc32_r32_rm32 => crc32::<u32>,
            _ => crc32::<u64>,
        },
        _ => return None,
    })
}

trait BitOp {
    /// Whether the operand changes.
    const WRITES: bool = true;
    fn apply<T: Int>(a: T, index: T, f: Flags) -> (T, Flags);
}
struct Bt;
impl BitOp for Bt {
    const WRITES: bool = false;
    #[inline(always)]
    fn apply<T: Int>(a: T, index: T, f: Flags) -> (T, Flags) {
        (a, bits::bt(a, index, f))
    }
}
macro_rules! bit_ops {
    ($($name:ident $f:ident;)*) => {$(
        struct $name;
        impl BitOp for $name {
            #[inline(always)]
            fn apply<T: Int>(a: T, index: T, f: Flags) -> (T, Flags) { bits::$f(a, index, f) }
        }
    )*};
}
bit_ops! { Bts bts; Btr btr; Btc btc; }

fn bit_test<O: BitOp>(insn: &Insn, shape: Shape) -> Option<Handler> {
    let locked = insn.has(Insn::LOCK);
    Some(match shape {
        Shape::RegReg => sized_wide!(insn.size, bit_reg_reg, O),
        Shape::RegImm => sized_wide!(insn.size, bit_reg_imm, O),
        Shape::MemReg if locked => sized_wide!(insn.size, bit_mem_reg, O, true),
        Shape::MemReg => sized_wide!(insn.size, bit_mem_reg, O, false),
        Shape::MemImm if locked => sized_wide!(insn.size, bit_mem_imm, O, true),
        Shape::MemImm => sized_wide!(insn.size, bit_mem_imm, O, false),
        _ => return None,
    })
}

fn bit_reg<O: BitOp, T: Width>(cpu: &mut Cpu, i: &Insn, index: T) -> Step {
    let (r, f) = O::apply(T::reg(cpu, i.ops[0]), index, cpu.flags);
    if O::WRITES {
        T::set_reg(cpu, i.ops[0], r);
    }
    cpu.flags = f;
    Ok(())
}

fn bit_reg_reg<O: BitOp, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    bit_reg::<O, T>(cpu, i, T::reg(cpu, i.ops[1]))
}

fn bit_reg_imm<O: BitOp, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    bit_reg::<O, T>(cpu, i, T::from_u64(i.imm))
}

/// The bit index is signed and reaches beyond the operand: it selects the word
/// of the bit string (SDM volume 1, 3.1.1.9).
fn bit_mem_reg<O: BitOp, const LOCK: bool, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let index = T::reg(cpu, i.ops[1]);
    let word = (index.sext() as i64 >> T::BITS.trailing_zeros()) as u64;
    let offset = cpu.operand_at(i, word.wrapping_mul(T::SIZE as u64));
    bit_mem::<O, LOCK, T>(cpu, i.seg, offset, index)
}

fn bit_mem_imm<O: BitOp, const LOCK: bool, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let offset = cpu.effective_address(i);
    bit_mem::<O, LOCK, T>(cpu, i.seg, offset, T::from_u64(i.imm))
}

#[inline(always)]
fn bit_mem<O: BitOp, const LOCK: bool, T: Width>(cpu: &mut Cpu, seg: u8, offset: u64, index: T) -> Step {
    if O::WRITES {
        return cpu.modify_at::<T, LOCK>(seg, offset, |a, f| O::apply(a, index, f)).map(|_| ());
    }
    let a = cpu.read_seg::<T>(seg, offset)?;
    cpu.flags = O::apply(a, index, cpu.flags).1;
    Ok(())
}

/// Operand 1, register or memory.
#[inline(always)]
fn second<T: Width>(cpu: &mut Cpu, i: &Insn) -> Result<T, Stop> {
    if i.has(Insn::MEM) { cpu.load::<T>(i) } else { Ok(T::reg(cpu, i.ops[1])) }
}

fn bsf<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (r, f) = bits::bsf(second::<T>(cpu, i)?);
    if let Some(r) = r {
        T::set_reg(cpu, i.ops[0], r);
    }
    cpu.flags = f;
    Ok(())
}

fn bsr<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (r, f) = bits::bsr(second::<T>(cpu, i)?);
    if let Some(r) = r {
        T::set_reg(cpu, i.ops[0], r);
    }
    cpu.flags = f;
    Ok(())
}

trait Unary {
    fn apply<T: Int>(a: T, f: Flags) -> (T, Flags);
}
trait Binary {
    fn apply<T: Int>(a: T, b: T, f: Flags) -> (T, Flags);
}
macro_rules! operations {
    ($($kind:ident $name:ident |$($arg:ident),*| $e:expr;)*) => {$( operations!(@ $kind $name $($arg),* => $e); )*};
    (@ Unary $name:ident $a:ident, $f:ident => $e:expr) => {
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<T: Int>($a: T, $f: Flags) -> (T, Flags) { $e }
        }
    };
    (@ Binary $name:ident $a:ident, $b:ident, $f:ident => $e:expr) => {
        struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<T: Int>($a: T, $b: T, $f: Flags) -> (T, Flags) { $e }
        }
    };
}
operations! {
    Unary Lzcnt |a, f| bits::lzcnt(a, f);
    Unary Tzcnt |a, f| bits::tzcnt(a, f);
    Unary Popcnt |a, _f| bits::popcnt(a);
    Unary Blsi |a, _f| bits::blsi(a);
    Unary Blsmsk |a, _f| bits::blsmsk(a);
    Unary Blsr |a, _f| bits::blsr(a);
    Binary Andn |a, b, _f| bits::andn(a, b);
    Binary Pdep |a, b, f| (bits::pdep(a, b), f);
    Binary Pext |a, b, f| (bits::pext(a, b), f);
    Binary Bextr |a, b, _f| bits::bextr(a, b);
    Binary Bzhi |a, b, _f| bits::bzhi(a, b);
}

fn unary<O: Unary>(insn: &Insn) -> Handler {
    sized_wide!(insn.size, unary_any, O)
}

/// BLSI and its kin have the destination first and one source.
fn to_second<O: Unary>(insn: &Insn) -> Handler {
    sized_wide!(insn.size, unary_any, O)
}

fn unary_any<O: Unary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.vex_defined(i)?;
    let a = second::<T>(cpu, i)?;
    let (r, f) = O::apply(a, cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn vex_middle<O: Binary>(insn: &Insn) -> Handler {
    sized_wide!(insn.size, binary_middle, O)
}

fn vex_last<O: Binary>(insn: &Insn) -> Handler {
    sized_wide!(insn.size, binary_last, O)
}

/// The first source is operand 1, the second register or memory.
fn binary_middle<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.vex_defined(i)?;
    let b = if i.has(Insn::MEM) { cpu.load::<T>(i)? } else { T::reg(cpu, i.ops[2]) };
    let (r, f) = O::apply(T::reg(cpu, i.ops[1]), b, cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

/// The first source is register or memory, the second operand 2.
fn binary_last<O: Binary, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.vex_defined(i)?;
    let a = second::<T>(cpu, i)?;
    let (r, f) = O::apply(a, T::reg(cpu, i.ops[2]), cpu.flags);
    T::set_reg(cpu, i.ops[0], r);
    cpu.flags = f;
    Ok(())
}

fn bswap<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let r = bits::bswap_register(T::reg(cpu, i.ops[0]));
    T::set_reg(cpu, i.ops[0], r);
    Ok(())
}

/// The result is 32 bits wide and zero-extends, whatever the destination's size.
fn crc32<S: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let a = second::<S>(cpu, i)?;
    let r = bits::crc32(u32::reg(cpu, i.ops[0]), a);
    u32::set_reg(cpu, i.ops[0], r);
    Ok(())
}
