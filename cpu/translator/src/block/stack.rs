//! PUSH, POP and LEAVE of words: 64 bits, or 32 in 32-bit code.

use iced_x86::{Code, Instruction, OpKind};

use super::Builder;
use super::access::{Access, Found, gpr_number};
use super::facts::Facts;
use crate::emit::Mem;
use crate::layout::{Exit, PINNED, gpr_home, gs, host};

/// Host register of guest RSP.
pub(super) const SP: u8 = host::R9;

impl Builder<'_> {
    /// `None`: not a stack instruction. `Some(false)`: one for the interpreter.
    pub(super) fn stack(&mut self, i: &Instruction) -> Option<bool> {
        match i.code() {
            Code::Push_r64 => {
                let n = gpr_number(i.op0_register())?;
                let slot = self.push_slot()?;
                match PINNED[n] {
                    Some(h) => self.store_word(slot.mem(), h),
                    None if slot.leaves_address() => {
                        self.e.load(host::ADDRESS, Mem::gs(gpr_home(n)));
                        self.e.store(slot.mem(), host::ADDRESS);
                    }
                    None => {
                        self.fold(slot);
                        self.e.load(host::TEMP, Mem::gs(gpr_home(n)));
                        self.e.store(Mem::base(host::ADDRESS, 0), host::TEMP);
                    }
                }
                self.move_sp(-self.word());
            }
            Code::Pushq_imm8 | Code::Pushq_imm32 => {
                self.push_value(i.immediate(0))?;
            }
            Code::Push_rm64 if i.op0_kind() == OpKind::Memory => {
                if !self.load_to_temp(i) {
                    return Some(false);
                }
                self.e.store(Mem::gs(gs!(scratch)), host::TEMP);
                let slot = self.push_slot()?;
                self.fold(slot);
                self.e.load(host::TEMP, Mem::gs(gs!(scratch)));
                self.store_word(Mem::base(host::ADDRESS, 0), host::TEMP);
                self.move_sp(-self.word());
            }
            Code::Pop_r64 => {
                let n = gpr_number(i.op0_register())?;
                let slot = self.pop_slot()?;
                match PINNED[n] {
                    Some(h) => {
                        self.load_word(h, slot.mem());
                        if h == SP {
                            self.stack_aligned = false;
                            self.sp_behind = 0;
                            return Some(true);
                        }
                    }
                    None => {
                        self.e.load(host::ADDRESS, slot.mem());
                        self.e.store(Mem::gs(gpr_home(n)), host::ADDRESS);
                    }
                }
                self.move_sp(self.word());
            }
            Code::Leaveq => {
                let word = self.word();
                let place = self.wrapped(Mem::base(host::RBP, 0));
                let slot = self.look_up(Access::Load, place, word as usize, false)?;
                self.load_word(host::TEMP, slot.mem());
                self.set_sp(Mem::base(host::RBP, word));
                self.e.mov(host::RBP, host::TEMP);
                self.stack_aligned = false;
            }
            _ => return None,
        }
        Some(true)
    }

    /// Load a word from memory into TEMP.
    pub(super) fn load_to_temp(&mut self, i: &Instruction) -> bool {
        let word = self.word() as usize;
        let aligned = self.stack_slot(i, word);
        let Some(place) = self.address(i) else { return false };
        let Some(found) = self.look_up(Access::Load, place, word, aligned) else { return false };
        self.load_word(host::TEMP, found.mem());
        true
    }

    /// Push a constant.
    pub(super) fn push_value(&mut self, value: u64) -> Option<()> {
        let slot = self.push_slot()?;
        match i32::try_from(value as i64) {
            _ if self.r.mode.narrow => self.store_imm32(slot.mem(), value as u32),
            Ok(v) => self.e.store_imm(slot.mem(), v),
            Err(_) if slot.leaves_address() => {
                self.e.mov_imm(host::ADDRESS, value);
                self.e.store(slot.mem(), host::ADDRESS);
            }
            Err(_) => {
                self.fold(slot);
                self.e.mov_imm(host::TEMP, value);
                self.e.store(Mem::base(host::ADDRESS, 0), host::TEMP);
            }
        }
        self.move_sp(-self.word());
        Some(())
    }

    /// Look up the slot below RSP for a store.
    pub(super) fn push_slot(&mut self) -> Option<Found> {
        if let Some(found) = self.windowed() {
            return Some(found);
        }
        self.check_stack();
        let word = self.word();
        let place = self.wrapped(Mem::base(SP, -word));
        self.look_up(Access::Store, place, word as usize, true)
    }

    /// Look up the slot at RSP for a load.
    pub(super) fn pop_slot(&mut self) -> Option<Found> {
        if let Some(found) = self.windowed() {
            return Some(found);
        }
        self.check_stack();
        let place = self.wrapped(Mem::base(SP, 0));
        self.look_up(Access::Load, place, self.word() as usize, true)
    }

    #[inline(always)]
    fn set_sp(&mut self, m: Mem) {
        if self.r.mode.narrow { self.e.lea32(SP, m) } else { self.e.lea(SP, m) }
    }

    /// RSP += `by`, flags untouched; behind an access in a window, with the next ones.
    ///
    /// Nothing between two accesses in an open window leaves: none can miss, and a host
    /// fault in guest memory ends the machine.
    #[inline(always)]
    pub(super) fn move_sp(&mut self, by: i32) {
        self.sp_behind += by;
        if self.now_held.is_none() {
            self.settle_sp();
        }
    }

    /// RSP is what an instruction needs it to be: nothing if it is one more access in an
    /// open window.
    pub(super) fn settle_before(&mut self, instruction: usize, i: &Instruction, facts: &Facts) {
        if self.sp_behind != 0 && !self.s.plan.in_open_slot(instruction, i, facts) {
            self.settle_sp();
        }
    }

    /// RSP is what it should be.
    pub(super) fn settle_sp(&mut self) {
        let by = std::mem::take(&mut self.sp_behind);
        if by != 0 {
            self.set_sp(Mem::base(SP, by));
        }
    }

    /// Once a block: a misaligned RSP goes to the interpreter, so that no later
    /// slot can cross a page.
    pub(super) fn check_stack(&mut self) {
        if self.stack_aligned {
            return;
        }
        let mask = if self.r.mode.narrow { gs!(dword_offset_mask) } else { gs!(qword_offset_mask) };
        self.e.pext_gs(host::TEMP, SP, mask);
        let aligned = self.e.jrcxz();
        self.stub(Exit::Interpret, self.index);
        let reached = self.e.land_short(aligned);
        debug_assert!(reached, "a stub is short");
        self.stack_aligned = true;
    }
}
