//! The register stack and what every x87 instruction does around its work.

use x86_semantics::x87::{self, F80, exception, status};
use x86_state::{cr0, vector};

use crate::cpu::{Cpu, Step};
use crate::insn::{Insn, SEG_FLAT};

impl Cpu {
    /// What a waiting x87 instruction does first: #NM, then a pending #MF.
    #[inline]
    pub(super) fn fpu_wait(&mut self) -> Step {
        self.fpu_available()?;
        self.fpu_pending()
    }

    /// #NM while CR0.EM or CR0.TS is set.
    #[inline]
    pub(super) fn fpu_available(&mut self) -> Step {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }

    /// #MF if an unmasked exception is pending and CR0.NE is set. With NE clear
    /// the processor would assert FERR# and rely on external logic; this machine
    /// has none, so the instruction goes on as with IGNNE# asserted (SDM volume
    /// 1, 8.7.2).
    #[inline]
    pub(super) fn fpu_pending(&mut self) -> Step {
        if self.fpu.fsw & status::ES != 0 && self.cr0 & cr0::NE != 0 {
            return Err(self.raise(vector::MF, None));
        }
        Ok(())
    }

    /// Record this instruction as the last non-control one: FOP, FCS:FIP and,
    /// with a memory operand, FDS:FDP. To be called after its last possible fault.
    #[inline]
    pub(super) fn fpu_record(&mut self, i: &Insn) {
        if !self.x87_pointers && self.code_bits != 16 {
            return;
        }
        let long = self.long64();
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        self.fpu.fop = (i.aux >> 16) as u16;
        self.fpu.fip = self.rip().wrapping_sub(u64::from(i.len)) & mask;
        self.fpu.fcs = if long { 0 } else { self.segments[1].selector };
        if i.has(Insn::MEM) {
            self.fpu.fdp = self.effective_address(i);
            let selector = if i.seg < SEG_FLAT { self.segments[usize::from(i.seg)].selector } else { 0 };
            self.fpu.fds = if long { 0 } else { selector };
        }
    }

    /// Physical number of ST(n).
    #[inline]
    pub(super) fn st_number(&self, n: u8) -> usize {
        usize::from(self.fpu.top().wrapping_add(n) & 7)
    }

    /// ST(n), whatever its tag.
    #[inline]
    pub(super) fn st(&self, n: u8) -> F80 {
        self.fpu.regs[self.st_number(n)]
    }

    /// ST(n) is tagged empty.
    #[inline]
    pub(super) fn st_empty(&self, n: u8) -> bool {
        self.fpu.ftw >> self.st_number(n) & 1 == 0
    }

    /// Write ST(n) and tag it valid.
    #[inline]
    pub(super) fn set_st(&mut self, n: u8, v: F80) {
        let r = self.st_number(n);
        self.fpu.regs[r] = v;
        self.fpu.ftw |= 1 << r;
    }

    /// Tag ST(n) empty.
    pub(super) fn free_st(&mut self, n: u8) {
        self.fpu.ftw &= !(1 << self.st_number(n));
    }

    /// Add to TOP, modulo 8.
    #[inline]
    pub(super) fn rotate_stack(&mut self, by: u8) {
        let top = u16::from(self.fpu.top().wrapping_add(by) & 7);
        self.fpu.fsw = self.fpu.fsw & !status::TOP | top << status::TOP_SHIFT;
    }

    /// Free ST(0) and make ST(1) the top.
    #[inline]
    pub(super) fn pop_stack(&mut self) {
        self.free_st(0);
        self.rotate_stack(1);
    }

    /// A new ST(0). The caller has checked for overflow.
    #[inline]
    pub(super) fn push_stack(&mut self, v: F80) {
        self.rotate_stack(7);
        self.set_st(0, v);
    }

    /// Push unless that overflows, in which case the masked response pushes the
    /// indefinite.
    pub(super) fn push_checked(&mut self, v: F80) {
        if self.st_empty(7) {
            self.push_stack(v);
        } else if self.stack_overflow() {
            self.push_stack(x87::indefinite());
        }
    }

    /// C1 clear: no stack fault, nothing rounded up.
    #[inline]
    pub(super) fn clear_c1(&mut self) {
        self.fpu.fsw &= !status::C1;
    }

    /// Stack underflow: IE and SF with C1 clear. Returns true if masked: the
    /// instruction then delivers the indefinite.
    #[cold]
    pub(super) fn stack_underflow(&mut self) -> bool {
        self.stack_fault(0)
    }

    /// Stack overflow: IE and SF with C1 set. Returns true if masked.
    #[cold]
    pub(super) fn stack_overflow(&mut self) -> bool {
        self.stack_fault(status::C1)
    }

    fn stack_fault(&mut self, c1: u16) -> bool {
        self.fpu.fsw = self.fpu.fsw & !status::C1 | c1 | status::SF | u16::from(exception::IE);
        let masked = self.fpu.fcw & u16::from(exception::IE) != 0;
        if !masked {
            self.fpu.fsw |= status::ES | status::B;
        }
        masked
    }

    /// Make ES and B agree with the exception flags and masks.
    pub(super) fn summarize_exceptions(&mut self) {
        let unmasked = self.fpu.fsw & !self.fpu.fcw & u16::from(exception::ALL);
        self.fpu.fsw &= !(status::ES | status::B);
        if unmasked != 0 {
            self.fpu.fsw |= status::ES | status::B;
        }
    }
}
