//! Jumps, calls and returns: how a block ends.

use iced_x86::{Code, ConditionCode, FlowControl, Instruction, OpKind};

use super::access::gpr_number;
use super::{Builder, Link, Next, Variant};
use crate::emit::Mem;
use crate::layout::{Exit, PINNED, gpr_home, gs, host};

impl Builder<'_> {
    /// `None`: no control transfer. `Some(None)`: one for the interpreter.
    pub(super) fn control(&mut self, i: &Instruction) -> Option<Option<Next>> {
        match i.flow_control() {
            FlowControl::Next => return None,
            FlowControl::UnconditionalBranch if i.op0_kind() == OpKind::NearBranch64 => {
                if self.shadowed {
                    self.end_shadow();
                }
                match self.again(i.near_branch_target()) {
                    Some(again) => {
                        self.e.bytes(&[0xe9]);
                        self.e.displacement_back(again);
                    }
                    None => self.leave_to(i.near_branch_target()),
                }
            }
            FlowControl::ConditionalBranch if i.condition_code() != ConditionCode::None => {
                if i.op0_kind() != OpKind::NearBranch64 || i.is_loop() || i.is_jcx_short() {
                    return Some(None);
                }
                let condition = i.condition_code() as u8 - ConditionCode::o as u8;
                self.e.bytes(&[0x0f, 0x80 | condition]);
                self.now_held = self.held;
                if let Some(again) = self.again(i.near_branch_target()) {
                    self.e.displacement_back(again);
                    return Some(Some(Next::Continue));
                }
                self.branches.push((self.e.len(), i.near_branch_target()));
                self.e.u32(0);
                return Some(Some(Next::Continue));
            }
            FlowControl::Call if i.code() == Code::Call_rel32_64 => {
                if self.push_value(i.next_ip()).is_none() {
                    return Some(None);
                }
                if self.single() {
                    self.leave_to(i.near_branch_target());
                } else {
                    self.call_to(i.near_branch_target(), i.next_ip());
                }
            }
            FlowControl::Return => {
                let extra = match i.code() {
                    Code::Retnq => 0,
                    Code::Retnq_imm16 => i32::from(i.immediate16()),
                    _ => return Some(None),
                };
                let Some(slot) = self.pop_slot() else { return Some(None) };
                self.load_word(host::ADDRESS, slot.mem());
                self.move_sp(self.word() + extra);
                if self.shadowed {
                    self.end_shadow();
                }
                if self.single() {
                    self.leave_indirect();
                } else {
                    self.e.bytes(&[0xc3]);
                }
            }
            FlowControl::IndirectBranch if i.code() == Code::Jmp_rm64 => {
                if !self.target_to_scratch(i) {
                    return Some(None);
                }
                self.load_word(host::ADDRESS, Mem::gs(gs!(scratch)));
                self.leave_indirect();
            }
            FlowControl::IndirectCall if i.code() == Code::Call_rm64 => {
                if !self.target_to_scratch(i) {
                    return Some(None);
                }
                // Two operands and a return address of eight bytes: more code than a
                // jump to the first operand's stub reaches over.
                self.island_here();
                if self.push_value(i.next_ip()).is_none() {
                    return Some(None);
                }
                self.load_word(host::ADDRESS, Mem::gs(gs!(scratch)));
                if self.single() {
                    self.leave_indirect();
                } else {
                    self.call_indirect();
                    self.returned_to(i.next_ip());
                }
            }
            _ => return Some(None),
        }
        Some(Some(Next::End))
    }

    fn target_to_scratch(&mut self, i: &Instruction) -> bool {
        if i.op0_kind() == OpKind::Memory {
            return self.load_to_scratch(i);
        }
        let Some(n) = gpr_number(i.op0_register()) else { return false };
        let from = match PINNED[n] {
            Some(h) => h,
            None => {
                self.e.load(host::TEMP, Mem::gs(gpr_home(n)));
                host::TEMP
            }
        };
        self.e.store(Mem::gs(gs!(scratch)), from);
        true
    }

    /// The exits of the conditional branches so far, behind the block's code.
    pub(super) fn branch_exits(&mut self) {
        for (displacement, target) in std::mem::take(&mut self.branches) {
            let here = (self.e.len() - (displacement + 4)) as u32;
            self.e.code[displacement..displacement + 4].copy_from_slice(&here.to_le_bytes());
            self.leave_by(displacement, target);
        }
    }

    /// What a displacement that leads here leaves to: if the link needs no guard,
    /// it is the displacement itself that is patched.
    fn leave_by(&mut self, displacement: usize, target: u64) {
        let target = self.linear(target);
        if self.needs_guard(target) {
            self.leave_to(target);
        } else {
            let patch = self.r.at + displacement as u32;
            let (variant, forward) = (self.variant_of(target), target > self.ip);
            self.links.push(Link { target, variant, forward, patch, guard: None });
            self.link_stub_numbered(self.links.len() - 1);
        }
    }

    /// Exit to a known address: a jump that is patched to the target block once
    /// that exists. Across pages of code that is not shared the link holds only
    /// while the address space is the one it was made in.
    pub(super) fn leave_to(&mut self, target: u64) {
        let target = self.linear(target);
        self.leave_to_variant(target, self.variant_of(target));
    }

    /// Exit to an instruction of this block, translated without windows.
    pub(super) fn leave_to_plain(&mut self, target: u64) {
        self.leave_to_variant(target, Variant::Plain);
    }

    /// What the block at a target may take for granted: a block that repeats because
    /// its registers are not aligned need not check them each time.
    fn variant_of(&self, target: u64) -> Variant {
        let probes = self.r.mode.variant == Variant::Probing && target == self.r.va;
        if probes { Variant::Probing } else { Variant::Usual }
    }

    pub(super) fn leave_to_variant(&mut self, target: u64, variant: Variant) {
        let target = self.linear(target);
        let guard = self.needs_guard(target).then(|| {
            let at = self.compare_mapping(0x8000_0000);
            self.e.bytes(&[0xe3, 9]);
            self.link_stub();
            at
        });
        let patch = self.e.len() + 1;
        // Until linked, jump to the stub right behind.
        self.e.bytes(&[0xe9, 0, 0, 0, 0]);
        let at = self.r.at;
        let guard = guard.map(|g| at + g as u32);
        let forward = target > self.ip;
        self.links.push(Link { target, variant, forward, patch: at + patch as u32, guard });
        let number = self.links.len() - 1;
        self.link_stub_numbered(number);
    }

    /// TEMP = 0 if the current code mapping has this number; the offset of the
    /// number, to be patched.
    fn compare_mapping(&mut self, space: u32) -> usize {
        self.e.load32(host::TEMP, Mem::gs(gs!(space)));
        // The 32-bit displacement form is forced so that it can be patched.
        self.e.bytes(&[0x8d, 0x89]);
        let at = self.e.len();
        self.e.u32(space);
        at
    }

    /// Leave, as a stale block does, unless the current code mapping is this one.
    /// The offset of its number.
    pub(super) fn check_mapping(&mut self, space: u32) -> u32 {
        let at = self.compare_mapping(space);
        self.e.bytes(&[0xe3, 9]);
        self.stub(Exit::Stale, 0);
        at as u32
    }

    /// Whether a link is right only while the code mapping is: across pages, to code
    /// that is not shared.
    fn needs_guard(&self, target: u64) -> bool {
        (target ^ self.r.va) >> 12 != 0 && !self.r.mode.shares(target)
    }

    /// The stub of the link about to be pushed.
    fn link_stub(&mut self) {
        self.link_stub_numbered(self.links.len());
    }

    fn link_stub_numbered(&mut self, number: usize) {
        self.e.branch(&[0xe8], self.r.at, self.r.thunks.exits[Exit::Link as usize]);
        self.e.u32(self.r.first_link + number as u32);
    }

    /// Blocks of one instruction keep no call stack: nothing in them is linked.
    pub(super) fn single(&self) -> bool {
        self.r.mode.longest == 1
    }

    /// Call a known address: a host call, so that the host predicts the return.
    fn call_to(&mut self, target: u64, next_ip: u64) {
        self.e.bytes(&[0xe8]);
        let displacement = self.e.len();
        self.e.u32(0);
        self.returned_to(next_ip);
        let here = (self.e.len() - (displacement + 4)) as u32;
        self.e.code[displacement..displacement + 4].copy_from_slice(&here.to_le_bytes());
        self.leave_by(displacement, target);
    }

    /// Where a host return lands, the guest's return address in ADDRESS: if that
    /// is the address behind this call, go on there. The code mapping and the
    /// privilege are those of the call: where they change, the engine empties
    /// the call stack.
    fn returned_to(&mut self, next_ip: u64) {
        let negated = self.linear(next_ip).wrapping_neg();
        match i32::try_from(negated as i64) {
            Ok(disp) => self.e.lea(host::TEMP, Mem::base(host::ADDRESS, disp)),
            Err(_) => {
                self.e.mov_imm(host::TEMP, negated);
                self.e.lea(host::TEMP, Mem::indexed(host::TEMP, host::ADDRESS, 0));
            }
        }
        let expected = self.e.jrcxz();
        self.e.branch(&[0xe9], self.r.at, self.r.thunks.mismatch);
        let reached = self.e.land_short(expected);
        debug_assert!(reached, "a jump is five bytes");
        self.leave_to(next_ip);
    }

    /// Exit to the address in ADDRESS through the jump cache.
    fn leave_indirect(&mut self) {
        self.through_jump_cache(4);
    }

    /// Call the address in ADDRESS through the jump cache.
    fn call_indirect(&mut self) {
        self.through_jump_cache(2);
    }

    /// `extension`: 4 for JMP, 2 for CALL.
    fn through_jump_cache(&mut self, extension: u8) {
        self.e.pext_gs(host::TEMP, host::ADDRESS, gs!(jump_index_mask));
        let m = Mem { gs: true, base: None, index: Some((host::TEMP, 3)), disp: gs!(jump_cache) };
        self.e.op_mem(false, &[0xff], extension, m);
    }
}
