//! Register operands and instruction pointers as system instructions need them.

use crate::cpu::{Cpu, Step, Stop};
use crate::insn::Insn;

impl Cpu {
    /// Write a general register: 16-bit writes keep the rest, 32-bit writes clear
    /// the upper half.
    pub(super) fn set_register(&mut self, register: u8, size: u8, value: u64) {
        let r = &mut self.regs[usize::from(register & 15)];
        *r = match size {
            1 => *r & !0xff | value & 0xff,
            2 => *r & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// Read a general register.
    pub(super) fn register(&self, register: u8, size: u8) -> u64 {
        let value = self.regs[usize::from(register & 15)];
        match size {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// The 16-bit r/m operand at position `n`.
    pub(super) fn operand16(&mut self, i: &Insn, n: usize) -> Result<u16, Stop> {
        if i.has(Insn::MEM) { self.load::<u16>(i) } else { Ok(self.register(i.ops[n & 3], 2) as u16) }
    }

    /// Store a system register to the r/m operand at position 0: memory takes 16
    /// bits, a register the operand size.
    pub(super) fn store_operand16(&mut self, i: &Insn, value: u64) -> Step {
        if i.has(Insn::MEM) {
            return self.store::<u16>(i, value as u16);
        }
        self.set_register(i.ops[0], i.size, value);
        Ok(())
    }

    /// #GP(0) unless CPL is 0.
    pub(super) fn require_cpl0(&mut self) -> Step {
        if self.cpl == 0 { Ok(()) } else { Err(self.gp(0)) }
    }

    /// #UD in real-address and virtual-8086 mode.
    pub(super) fn require_protected(&mut self) -> Step {
        if self.protected_segments() { Ok(()) } else { Err(self.ud()) }
    }

    /// #GP(0) when CR4.UMIP keeps programs from this instruction.
    pub(super) fn require_umip_clear(&mut self) -> Step {
        if self.cpl > 0 && self.cr4 & x86_state::cr4::UMIP != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// #GP(`error`) unless `rip` may be fetched from a code segment `cs`.
    pub(super) fn check_far_target(&mut self, cs: &x86_state::Segment, rip: u64, error: u32) -> Step {
        let good =
            if self.long_mode() && cs.long() { self.canonical(rip) } else { rip <= u64::from(cs.limit) };
        if good { Ok(()) } else { Err(self.gp(error)) }
    }
}

/// The low `size` bytes of a value.
pub(super) fn truncate(value: u64, size: u8) -> u64 {
    match size {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}
