//! Instructions that act on flags alone, and sign extensions of the accumulator.

use iced_x86::{Instruction, Mnemonic};
use x86_semantics::flags::Flags;
use x86_state::rflags;

use super::Width;
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

const RAX: u8 = 0;
const RDX: u8 = 2;
const AH: u8 = 20;

pub(super) fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Clc => clc,
        Mnemonic::Stc => stc,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => cld,
        Mnemonic::Std => set_direction,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        Mnemonic::Cbw => extend::<u8, u16>,
        Mnemonic::Cwde => extend::<u16, u32>,
        Mnemonic::Cdqe => extend::<u32, u64>,
        Mnemonic::Cwd => split::<u16>,
        Mnemonic::Cdq => split::<u32>,
        Mnemonic::Cqo => split::<u64>,
        _ => return None,
    })
}

fn clc(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.flags = cpu.flags.with_cf(false);
    Ok(())
}

fn stc(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.flags = cpu.flags.with_cf(true);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.flags = cpu.flags.with_cf(!cpu.flags.cf());
    Ok(())
}

fn cld(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.system_flags &= !rflags::DF;
    Ok(())
}

fn set_direction(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.system_flags |= rflags::DF;
    Ok(())
}

fn lahf(cpu: &mut Cpu, _: &Insn) -> Step {
    let v = (cpu.flags.to_rflags() as u8) | rflags::FIXED as u8;
    u8::set_reg(cpu, AH, v);
    Ok(())
}

/// All status flags but OF.
fn sahf(cpu: &mut Cpu, _: &Insn) -> Step {
    let ah = u64::from(u8::reg(cpu, AH));
    let of = cpu.flags.to_rflags() & rflags::OF;
    cpu.flags = Flags::from_rflags(ah & rflags::STATUS & 0xff | of);
    Ok(())
}

/// AL = CF ? 0xff : 0 (not in the manual; every processor has it).
fn salc(cpu: &mut Cpu, _: &Insn) -> Step {
    let v = if cpu.flags.cf() { 0xff } else { 0 };
    u8::set_reg(cpu, RAX, v);
    Ok(())
}

fn extend<S: Width, T: Width>(cpu: &mut Cpu, _: &Insn) -> Step {
    let v = S::reg(cpu, RAX).sext();
    T::set_reg(cpu, RAX, T::from_u64(v));
    Ok(())
}

fn split<T: Width>(cpu: &mut Cpu, _: &Insn) -> Step {
    let sign = if T::reg(cpu, RAX).msb() { u64::MAX } else { 0 };
    T::set_reg(cpu, RDX, T::from_u64(sign));
    Ok(())
}
