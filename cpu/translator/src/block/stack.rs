//! PUSH, POP and LEAVE of 64-bit operands.

use iced_x86::{Code, Instruction, OpKind};

use super::Builder;
use super::access::{Access, gpr_number};
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
                self.push_slot();
                match PINNED[n] {
                    Some(h) => self.e.store(Mem::indexed(host::ADDRESS, host::TEMP, 0), h),
                    None => {
                        self.fold();
                        self.e.load(host::TEMP, Mem::gs(gpr_home(n)));
                        self.e.store(Mem::base(host::ADDRESS, 0), host::TEMP);
                    }
                }
                self.move_sp(-8);
            }
            Code::Pushq_imm8 | Code::Pushq_imm32 => {
                self.push_value(i.immediate(0));
            }
            Code::Push_rm64 if i.op0_kind() == OpKind::Memory => {
                if !self.load_to_scratch(i) {
                    return Some(false);
                }
                self.push_slot();
                self.fold();
                self.e.load(host::TEMP, Mem::gs(gs!(scratch)));
                self.e.store(Mem::base(host::ADDRESS, 0), host::TEMP);
                self.move_sp(-8);
            }
            Code::Pop_r64 => {
                let n = gpr_number(i.op0_register())?;
                self.pop_slot();
                match PINNED[n] {
                    Some(h) => {
                        self.e.load(h, Mem::indexed(host::ADDRESS, host::TEMP, 0));
                        if h == SP {
                            self.stack_aligned = false;
                            return Some(true);
                        }
                    }
                    None => {
                        self.e.load(host::TEMP, Mem::indexed(host::ADDRESS, host::TEMP, 0));
                        self.e.store(Mem::gs(gpr_home(n)), host::TEMP);
                    }
                }
                self.move_sp(8);
            }
            Code::Leaveq => {
                self.e.lea(host::ADDRESS, Mem::indexed(host::RBP, host::BIAS, 0));
                self.look_up(Access::Load, 8, false);
                self.e.load(host::TEMP, Mem::indexed(host::ADDRESS, host::TEMP, 0));
                self.e.lea(SP, Mem::base(host::RBP, 8));
                self.e.mov(host::RBP, host::TEMP);
                self.stack_aligned = false;
            }
            _ => return None,
        }
        Some(true)
    }

    /// Load an 8-byte memory operand into the scratch slot of the state.
    pub(super) fn load_to_scratch(&mut self, i: &Instruction) -> bool {
        if !self.address(i) {
            return false;
        }
        let aligned = self.stack_slot(i, 8);
        self.look_up(Access::Load, 8, aligned);
        self.e.load(host::TEMP, Mem::indexed(host::ADDRESS, host::TEMP, 0));
        self.e.store(Mem::gs(gs!(scratch)), host::TEMP);
        true
    }

    /// Push a constant.
    pub(super) fn push_value(&mut self, value: u64) {
        self.push_slot();
        match i32::try_from(value as i64) {
            Ok(v) => self.e.store_imm(Mem::indexed(host::ADDRESS, host::TEMP, 0), v),
            Err(_) => {
                self.fold();
                self.e.mov_imm(host::TEMP, value);
                self.e.store(Mem::base(host::ADDRESS, 0), host::TEMP);
            }
        }
        self.move_sp(-8);
    }

    /// Look up the slot below RSP for a store.
    pub(super) fn push_slot(&mut self) {
        self.check_stack();
        self.e.lea(host::ADDRESS, Mem { gs: false, base: Some(SP), index: Some((host::BIAS, 0)), disp: -8 });
        self.look_up(Access::Store, 8, true);
    }

    /// Look up the slot at RSP for a load.
    pub(super) fn pop_slot(&mut self) {
        self.check_stack();
        self.e.lea(host::ADDRESS, Mem::indexed(SP, host::BIAS, 0));
        self.look_up(Access::Load, 8, true);
    }

    /// RSP += `by`, flags untouched.
    pub(super) fn move_sp(&mut self, by: i32) {
        self.e.lea(SP, Mem::base(SP, by));
    }

    /// Once a block: a misaligned RSP goes to the interpreter, so that no later
    /// slot can cross a page.
    fn check_stack(&mut self) {
        if self.stack_aligned {
            return;
        }
        self.e.pext_gs(host::TEMP, SP, gs!(qword_offset_mask));
        let aligned = self.e.jrcxz();
        self.stub(Exit::Interpret, self.index);
        let reached = self.e.land_short(aligned);
        debug_assert!(reached, "a stub is nine bytes");
        self.stack_aligned = true;
    }
}
