//! Decimal adjustment.

use iced_x86::{Instruction, Mnemonic};
use x86_semantics::bcd;
use x86_state::vector;

use super::Width;
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

const RAX: u8 = 0;

pub(super) fn handler(i: &Instruction) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Daa => daa,
        Mnemonic::Das => das,
        Mnemonic::Aaa => aaa,
        Mnemonic::Aas => aas,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        _ => return None,
    })
}

fn daa(cpu: &mut Cpu, _: &Insn) -> Step {
    let (al, f) = bcd::daa(u8::reg(cpu, RAX), cpu.flags);
    u8::set_reg(cpu, RAX, al);
    cpu.flags = f;
    Ok(())
}

fn das(cpu: &mut Cpu, _: &Insn) -> Step {
    let (al, f) = bcd::das(u8::reg(cpu, RAX), cpu.flags);
    u8::set_reg(cpu, RAX, al);
    cpu.flags = f;
    Ok(())
}

fn aaa(cpu: &mut Cpu, _: &Insn) -> Step {
    let (ax, f) = bcd::aaa(u16::reg(cpu, RAX), cpu.flags);
    u16::set_reg(cpu, RAX, ax);
    cpu.flags = f;
    Ok(())
}

fn aas(cpu: &mut Cpu, _: &Insn) -> Step {
    let (ax, f) = bcd::aas(u16::reg(cpu, RAX), cpu.flags);
    u16::set_reg(cpu, RAX, ax);
    cpu.flags = f;
    Ok(())
}

fn aam(cpu: &mut Cpu, i: &Insn) -> Step {
    let Some((ax, f)) = bcd::aam(u8::reg(cpu, RAX), i.imm as u8) else {
        return Err(cpu.raise(vector::DE, None));
    };
    u16::set_reg(cpu, RAX, ax);
    cpu.flags = f;
    Ok(())
}

fn aad(cpu: &mut Cpu, i: &Insn) -> Step {
    let (ax, f) = bcd::aad(u16::reg(cpu, RAX), i.imm as u8);
    u16::set_reg(cpu, RAX, ax);
    cpu.flags = f;
    Ok(())
}
