//! Jumps, calls and returns: how a block ends.

use iced_x86::{Code, ConditionCode, FlowControl, Instruction, OpKind};

use super::access::gpr_number;
use super::facts::Facts;
use super::stack::SP;
use super::{Builder, Link, Next, STUB, Variant};
use crate::call_stack::note;
use crate::emit::Mem;
use crate::layout::{Exit, PINNED, SIGN, gpr_home, gs, host};
use crate::spaces::NO_SPACE;

/// What [`SIGN`] selects of an address in the upper half.
const UPPER: i32 = (1 << SIGN.count_ones()) - 1;

/// A conditional branch or a call whose exit lies behind the block's code.
pub(super) struct Branch {
    /// Offset of its displacement.
    displacement: usize,
    target: u64,
    call: bool,
}

impl Builder<'_> {
    /// `None`: no control transfer. `Some(None)`: one for the interpreter.
    pub(super) fn control(&mut self, i: &Instruction, facts: &Facts) -> Option<Option<Next>> {
        match facts.flow {
            FlowControl::Next => return None,
            // It faults; or what follows does, and a return to there.
            _ if !self.reaches(i.near_branch_target()) || !self.reaches(i.next_ip()) => return Some(None),
            FlowControl::UnconditionalBranch if i.op0_kind() == OpKind::NearBranch64 => {
                if self.shadowed {
                    self.end_shadow();
                }
                match self.again(i.near_branch_target()) {
                    Some(again) => {
                        self.e.bytes(&[0xe9]);
                        self.e.displacement_back(again);
                    }
                    None if self.shadowed => self.leave_to_look(i.near_branch_target()),
                    None => self.leave_to(i.near_branch_target()),
                }
            }
            FlowControl::ConditionalBranch if i.condition_code() != ConditionCode::None => {
                if i.op0_kind() != OpKind::NearBranch64 || i.is_loop() || i.is_jcx_short() {
                    return Some(None);
                }
                let condition = i.condition_code() as u8 - ConditionCode::o as u8;
                self.now_held = self.held;
                if self.turns() {
                    // The other condition's number differs in the lowest bit.
                    self.e.bytes(&[0x0f, 0x81 ^ condition]);
                    self.branch(i.next_ip(), false);
                    return Some(Some(Next::Continue));
                }
                self.e.bytes(&[0x0f, 0x80 | condition]);
                if let Some(again) = self.again(i.near_branch_target()) {
                    self.e.displacement_back(again);
                    return Some(Some(Next::Continue));
                }
                self.branch(i.near_branch_target(), false);
                return Some(Some(Next::Continue));
            }
            FlowControl::Call if i.code() == Code::Call_rel32_64 => {
                if self.push_value(i.next_ip()).is_none() {
                    return Some(None);
                }
                self.settle_sp();
                if self.single() {
                    self.leave_to(i.near_branch_target());
                } else {
                    return Some(Some(self.call_to(i.near_branch_target(), i.next_ip())));
                }
            }
            FlowControl::Return => return Some(self.near_return(i)),
            FlowControl::IndirectBranch if i.code() == Code::Jmp_rm64 => {
                let Some(from) = self.target(i) else { return Some(None) };
                self.put_address(from);
                self.note_branch(false);
                self.leave_indirect();
            }
            FlowControl::IndirectCall if i.code() == Code::Call_rm64 => return Some(self.indirect_call(i)),
            _ => return Some(None),
        }
        Some(Some(Next::End))
    }

    fn near_return(&mut self, i: &Instruction) -> Option<Next> {
        let extra = match i.code() {
            Code::Retnq => 0,
            Code::Retnq_imm16 => i32::from(i.immediate16()),
            _ => return None,
        };
        let slot = self.pop_slot()?;
        self.load_word(host::ADDRESS, slot.mem());
        if extra != 0 || self.shadowed {
            self.settle_sp();
            self.check_target(host::ADDRESS);
        } else {
            self.note_branch(true);
        }
        self.move_sp(self.word() + extra);
        self.settle_sp();
        if self.shadowed {
            self.end_shadow();
        }
        // Behind a call nobody looks whether an event waits, which STI let in.
        if self.single() || self.shadowed {
            self.leave_indirect();
        } else {
            self.e.bytes(&[0xc3]);
        }
        Some(Next::End)
    }

    fn indirect_call(&mut self, i: &Instruction) -> Option<Next> {
        self.settle_sp();
        let from = self.target(i)?;
        let kept = from != host::TEMP && from != SP;
        if !kept {
            self.e.store(Mem::gs(gs!(scratch)), from);
        }
        self.check_target(from);
        self.held = None;
        // Two operands and a return address of eight bytes: more code than a
        // jump to the first operand's stub reaches over.
        self.island_here();
        self.push_value(i.next_ip())?;
        self.settle_sp();
        if kept {
            self.put_address(from);
        } else {
            self.load_word(host::ADDRESS, Mem::gs(gs!(scratch)));
        }
        if self.single() {
            self.leave_indirect();
        } else {
            self.call_indirect();
            return Some(self.returned_to(i.next_ip()));
        }
        Some(Next::End)
    }

    /// The host register that holds the target of an indirect branch: one of the guest's,
    /// or TEMP. In 32-bit code the upper half may be anything.
    fn target(&mut self, i: &Instruction) -> Option<u8> {
        if i.op0_kind() == OpKind::Memory {
            return self.load_to_temp(i).then_some(host::TEMP);
        }
        let n = gpr_number(i.op0_register())?;
        Some(PINNED[n].unwrap_or_else(|| {
            self.e.load(host::TEMP, Mem::gs(gpr_home(n)));
            host::TEMP
        }))
    }

    /// ADDRESS = a target in a register.
    fn put_address(&mut self, from: u8) {
        match self.r.mode.narrow {
            false => self.e.mov(host::ADDRESS, from),
            true => self.e.lea32(host::ADDRESS, Mem::base(from, 0)),
        }
    }

    /// Whether an address is one that instructions can be fetched from.
    fn reaches(&self, address: u64) -> bool {
        let address = self.linear(address);
        (address as i64) << 16 >> 16 == address as i64
    }

    /// Leave, with nothing changed, if the target in `from` is not canonical: the
    /// interpreter raises #GP. One in the other half of the address space is the
    /// interpreter's, too. Changes TEMP.
    fn check_target(&mut self, from: u8) {
        if self.r.mode.narrow {
            return;
        }
        if self.r.va >> 47 == 0 {
            self.probe(from, 1, gs!(user_probe));
            return;
        }
        self.e.pext_gs(host::TEMP, from, gs!(sign_mask));
        self.e.lea32(host::TEMP, Mem::base(host::TEMP, -UPPER));
        let canonical = self.e.jrcxz();
        self.stub(Exit::Interpret, self.index);
        let reached = self.e.land_short(canonical);
        debug_assert!(reached, "a stub is short");
    }

    /// Note where this jump or return is instead, which takes one store: where its target
    /// is found, it is canonical. A return that changes more than RSP by eight cannot be
    /// undone so.
    fn note_branch(&mut self, returns: bool) {
        if self.r.mode.narrow {
            return;
        }
        let place = self.r.at + self.e.len() as u32;
        // A host return moves the host's stack pointer in between.
        let at = if returns && !self.single() { note::AT + 8 } else { note::AT };
        self.e.store32_imm(Mem::base(host::RSP, at), note::new(place, returns) as i32);
    }

    /// The displacement of a branch, whose exit [`Builder::branch_exits`] makes.
    fn branch(&mut self, target: u64, call: bool) {
        self.s.branches.push(Branch { displacement: self.e.len(), target, call });
        self.e.u32(0);
    }

    /// The exits of the branches so far, behind the block's code.
    pub(super) fn branch_exits(&mut self) {
        let mut branches = std::mem::take(&mut self.s.branches);
        for b in branches.drain(..) {
            let here = (self.e.len() - (b.displacement + 4)) as u32;
            self.e.patch_u32(b.displacement, here);
            self.leave_by(&b);
        }
        self.s.branches = branches;
    }

    /// What a displacement that leads here leaves to: if the link needs no guard,
    /// it is the displacement itself that is patched.
    fn leave_by(&mut self, b: &Branch) {
        let target = self.linear(b.target);
        let variant = self.variant_of(target);
        // Calls look wherever they lead: what they call returns without a look, so calls
        // that lead forward alone can run for ages.
        let forward = target > self.ip && !b.call;
        if self.needs_guard(target) {
            self.exit(target, variant, forward);
        } else if let Some(known) = self.known(target, variant, forward) {
            let distance = known.wrapping_sub(self.r.at + b.displacement as u32 + 4);
            self.e.patch_u32(b.displacement, distance);
        } else {
            let patch = self.r.at + b.displacement as u32;
            self.link(Link { target, variant, forward, patch, call: false, guard: None });
        }
    }

    /// Exit to a known address: a jump that is patched to the target block once
    /// that exists. Across pages of code that is not shared the link holds only
    /// while the address space is the one it was made in.
    pub(super) fn leave_to(&mut self, target: u64) {
        let target = self.linear(target);
        self.exit(target, self.variant_of(target), target > self.ip);
    }

    /// The same where an event may have become deliverable: the next block looks.
    pub(super) fn leave_to_look(&mut self, target: u64) {
        let target = self.linear(target);
        self.exit(target, self.variant_of(target), false);
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
        self.exit(target, variant, target > self.ip);
    }

    /// The exit to a linear address. `forward`: without a look at the token.
    fn exit(&mut self, target: u64, variant: Variant, forward: bool) {
        let here = |b: &Self| b.r.at + b.e.len() as u32;
        if !self.needs_guard(target) {
            if let Some(known) = self.known(target, variant, forward) {
                self.e.branch(&[0xe9], self.r.at, known, &[]);
                return;
            }
            self.link(Link { target, variant, forward, patch: here(self), call: true, guard: None });
            return;
        }
        let guard = self.r.at + self.compare_mapping(NO_SPACE) as u32;
        self.e.bytes(&[0xe3, STUB as u8]);
        // Until the link is made, no mapping has the number, and the jump is not reached.
        let patch = here(self) + STUB as u32 + 1;
        self.link(Link { target, variant, forward, patch, call: false, guard: Some(guard) });
        self.e.bytes(&[0xe9, 0, 0, 0, 0]);
    }

    /// Where code for a link that needs no guard is already: there is no need of a stub.
    fn known(&self, target: u64, variant: Variant, forward: bool) -> Option<u32> {
        if self.single() || self.r.straddling.is_some() {
            return None;
        }
        if target == self.r.va && variant == self.r.mode.variant {
            return Some(self.r.at + self.entry);
        }
        let (entry, inner) = (self.r.known)(target, variant)?;
        Some(if forward { inner } else { entry })
    }

    /// Emit the stub of a link.
    fn link(&mut self, link: Link) {
        let number = u8::try_from(self.s.links.len()).unwrap_or(u8::MAX);
        debug_assert!(usize::from(number) == self.s.links.len(), "a block has few windows and branches");
        self.s.links.push(link);
        self.stub(Exit::Link, number);
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
        self.e.bytes(&[0xe3, STUB as u8]);
        self.stub(Exit::Stale, 0);
        at as u32
    }

    /// Whether a link is right only while the code mapping is: across pages, to code
    /// that is not shared.
    fn needs_guard(&self, target: u64) -> bool {
        (target ^ self.r.va) >> 12 != 0 && !self.r.mode.shares(target)
    }

    /// Blocks of one instruction keep no call stack: nothing in them is linked.
    pub(super) fn single(&self) -> bool {
        self.r.mode.longest == 1
    }

    /// Call a known address: a host call, so that the host predicts the return.
    fn call_to(&mut self, target: u64, next_ip: u64) -> Next {
        self.e.bytes(&[0xe8]);
        self.branch(target, true);
        self.returned_to(next_ip)
    }

    /// Where a host return lands, the guest's return address in ADDRESS: if that
    /// is the address behind this call, go on there, in this block if it has more.
    /// The code mapping and the privilege are those of the call: where they change,
    /// or a block is dropped, the engine empties the call stack.
    fn returned_to(&mut self, next_ip: u64) -> Next {
        let negated = self.linear(next_ip).wrapping_neg();
        match i32::try_from(negated as i64) {
            Ok(disp) => self.e.lea(host::TEMP, Mem::base(host::ADDRESS, disp)),
            Err(_) => {
                self.e.mov_imm(host::TEMP, negated);
                self.e.lea(host::TEMP, Mem::indexed(host::TEMP, host::ADDRESS, 0));
            }
        }
        let expected = self.e.jrcxz();
        self.e.branch(&[0xe9], self.r.at, self.r.thunks.mismatch, &[]);
        let reached = self.e.land_short(expected);
        debug_assert!(reached, "a jump is five bytes");
        if self.goes_on {
            self.stack_aligned = false;
            return Next::Continue;
        }
        self.leave_to(next_ip);
        Next::End
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
