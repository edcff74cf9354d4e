//! IN OUT INS OUTS: permission, port access, repetition, I/O breakpoints (SDM
//! volume 1, chapter 19; volume 2).

use x86_state::{cr4, reg, rflags};

use super::selector::ES;
use crate::cpu::{Cpu, Privilege, Step, Stop};
use crate::insn::Insn;
use crate::memory::Intent;

/// Where a 32-bit or 64-bit TSS holds the offset of its I/O permission bitmap.
const IO_MAP_BASE: u64 = 0x66;
const RSI: u8 = reg::RSI as u8;
const RDI: u8 = reg::RDI as u8;

impl Cpu {
    /// #GP(0) unless the program may access `size` ports from `port` on.
    fn require_io(&mut self, port: u16, size: u8) -> Step {
        let iopl = (self.system_flags & rflags::IOPL) >> rflags::IOPL_SHIFT;
        if !self.protected() || !self.v86() && u64::from(self.cpl) <= iopl {
            return Ok(());
        }
        let limit = u64::from(self.tr.limit);
        if !self.tr.usable() || self.tr.kind() & 8 == 0 || limit < IO_MAP_BASE + 1 {
            return Err(self.gp(0));
        }
        let base = self.tr.base;
        let map = self.read_linear::<u16>(base.wrapping_add(IO_MAP_BASE), Privilege::System)?;
        let at = u64::from(map) + u64::from(port >> 3);
        // Two bytes are always read: ports may straddle a byte.
        if at + 1 > limit {
            return Err(self.gp(0));
        }
        let bits = self.read_linear::<u16>(base.wrapping_add(at), Privilege::System)?;
        let wanted = ((1u16 << size) - 1) << (port & 7);
        if bits & wanted != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Ports of I/O breakpoints become debug traps (SDM volume 3, 18.2.4).
    fn note_io_access(&mut self, port: u16, size: u8) {
        if self.cr4 & cr4::DE == 0 || self.dr7 & 0xff == 0 {
            return;
        }
        const ON_IO: u64 = 2;
        for n in 0..4 {
            let enabled = self.dr7 >> (2 * n) & 3 != 0;
            let control = self.dr7 >> (16 + 4 * n) & 15;
            let len = [1, 2, 8, 4][(control >> 2) as usize & 3];
            let first = self.dr[n] & !(len - 1);
            let apart =
                u64::from(port) >= first.wrapping_add(len) || first >= u64::from(port) + u64::from(size);
            if enabled && control & 3 == ON_IO && !apart {
                self.pending_debug |= 1 << n;
                self.leave_at = 0;
            }
        }
    }

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        self.sync_time();
        let value = self.bus.port_read(port, size);
        self.note_io_access(port, size);
        value
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        self.sync_time();
        self.bus.port_write(port, size, value);
        self.note_io_access(port, size);
    }
}

/// The port: `aux` 1 is an immediate, 0 is DX.
fn port_of(cpu: &Cpu, i: &Insn) -> u16 {
    if i.aux == 1 { u16::from(i.imm as u8) } else { cpu.regs[reg::RDX] as u16 }
}

/// IN.
pub(super) fn input(cpu: &mut Cpu, i: &Insn) -> Step {
    let port = port_of(cpu, i);
    cpu.require_io(port, i.size)?;
    let value = cpu.port_in(port, i.size);
    cpu.set_register(reg::RAX as u8, i.size, value.into());
    Err(Stop::Resync)
}

/// OUT.
pub(super) fn output(cpu: &mut Cpu, i: &Insn) -> Step {
    let port = port_of(cpu, i);
    cpu.require_io(port, i.size)?;
    let value = cpu.register(reg::RAX as u8, i.size) as u32;
    cpu.port_out(port, i.size, value);
    Err(Stop::Resync)
}

/// Run `once` as the repeat prefix says.
fn repeated(cpu: &mut Cpu, i: &Insn, once: fn(&mut Cpu, &Insn) -> Step) -> Step {
    if i.bits & (Insn::REP | Insn::REPNE) == 0 {
        once(cpu, i)?;
    } else {
        cpu.repeat(i, |cpu, _| once(cpu, i).map(|()| (1, false)))?;
    }
    Err(Stop::Resync)
}

/// INS.
pub(super) fn input_string(cpu: &mut Cpu, i: &Insn) -> Step {
    repeated(cpu, i, input_once)
}

fn input_once(cpu: &mut Cpu, i: &Insn) -> Step {
    let port = cpu.regs[reg::RDX] as u16;
    cpu.require_io(port, i.size)?;
    let offset = cpu.regs[reg::RDI] & u64::MAX >> (i.address_shift & 63);
    // Reading a port may change the device: the store must not fault after it.
    let seg = if cpu.long64() { crate::insn::SEG_FLAT } else { ES };
    let at = cpu.segment_address(seg, offset, i.size.into(), true)?;
    cpu.probe_write(at, i.size.into(), Privilege::Current)?;
    if cpu.alignment_checks {
        cpu.check_alignment(at, i.size.into(), Intent::Write)?;
    }
    let value = cpu.port_in(port, i.size);
    match i.size {
        1 => cpu.write_seg::<u8>(seg, offset, value as u8)?,
        2 => cpu.write_seg::<u16>(seg, offset, value as u16)?,
        _ => cpu.write_seg::<u32>(seg, offset, value)?,
    }
    cpu.advance_string(i, RDI, i.size.into(), 1);
    Ok(())
}

/// OUTS.
pub(super) fn output_string(cpu: &mut Cpu, i: &Insn) -> Step {
    repeated(cpu, i, output_once)
}

fn output_once(cpu: &mut Cpu, i: &Insn) -> Step {
    let port = cpu.regs[reg::RDX] as u16;
    cpu.require_io(port, i.size)?;
    let offset = cpu.regs[reg::RSI] & u64::MAX >> (i.address_shift & 63);
    let value = match i.size {
        1 => cpu.read_seg::<u8>(i.seg, offset)?.into(),
        2 => cpu.read_seg::<u16>(i.seg, offset)?.into(),
        _ => cpu.read_seg::<u32>(i.seg, offset)?,
    };
    cpu.port_out(port, i.size, value);
    cpu.advance_string(i, RSI, i.size.into(), 1);
    Ok(())
}
