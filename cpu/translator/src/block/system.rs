//! Instructions that see or change system state which translated code holds in
//! the shared state: flags, privilege, segment bases, control registers.

use iced_x86::{Code, FlowControl, Instruction, OpKind, Register};
use x86_state::rflags;

use super::access::{Access, Place, gpr_number};
use super::stack::SP;
use super::{Builder, Next};
use crate::emit::Mem;
use crate::layout::{Asked, Exit, PINNED, gpr_home, gs, host, system};
use crate::modes::Kind;

/// GS-relative displacement of one table of a view.
fn view(kind: Kind, table: i32) -> i32 {
    system!(views) + (kind as i32 * 2 + table) * 8
}

/// What [`Builder::system`] does with an instruction; `None` where it is not one
/// of this module's or not native in this mode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kindred {
    Syscall,
    Sysret,
    Iret,
    SwapGs,
    Cli,
    Sti,
    Cld,
    Stac,
    Clac,
    PushFlags,
    PopFlags,
    /// MOV r, CRn: the register's number.
    ReadControl(i32),
    /// MOV r, Sreg.
    ReadSelector(i32),
    ReadBase(i32),
    WriteBase(i32),
    /// RDTSC or RDTSCP.
    TimeStamp(Asked),
}

/// Whether [`Builder::system`] translates instructions of this opcode in some mode.
pub(super) fn is_kindred(code: Code) -> bool {
    use Code as C;
    matches!(
        code,
        C::Syscall
            | C::Sysretq
            | C::Iretq
            | C::Swapgs
            | C::Cli
            | C::Sti
            | C::Cld
            | C::Stac
            | C::Clac
            | C::Pushfq
            | C::Popfq
            | C::Mov_r64_cr
            | C::Mov_r32m16_Sreg
            | C::Mov_r64m16_Sreg
            | C::Mov_rm16_Sreg
            | C::Rdfsbase_r64
            | C::Rdgsbase_r64
            | C::Wrfsbase_r64
            | C::Wrgsbase_r64
            | C::Rdtsc
            | C::Rdtscp
    )
}

impl Builder<'_> {
    /// Whether [`Builder::system`] translates the instruction in the current mode.
    pub(super) fn is_native_system(&self, i: &Instruction) -> bool {
        self.kindred(i).is_some()
    }

    /// STI: its shadow reaches over the next instruction.
    pub(super) fn is_native_sti(&self, i: &Instruction) -> bool {
        i.code() == Code::Sti && self.kindred(i) == Some(Kindred::Sti)
    }

    fn kindred(&self, i: &Instruction) -> Option<Kindred> {
        if self.r.mode.narrow {
            return None;
        }
        let user = self.r.mode.user;
        let f = self.r.features;
        let fsgsbase = |k| f.fsgsbase.then_some(k);
        Some(match i.code() {
            Code::Syscall if user => Kindred::Syscall,
            Code::Sysretq if !user => Kindred::Sysret,
            Code::Iretq if !user => Kindred::Iret,
            Code::Swapgs if !user => Kindred::SwapGs,
            Code::Cli if !user => Kindred::Cli,
            Code::Sti if !user => Kindred::Sti,
            Code::Cld => Kindred::Cld,
            Code::Stac if !user && f.smap => Kindred::Stac,
            Code::Clac if !user && f.smap => Kindred::Clac,
            Code::Pushfq => Kindred::PushFlags,
            Code::Popfq if !user => Kindred::PopFlags,
            Code::Mov_r64_cr if !user => Kindred::ReadControl(match i.op1_register() {
                Register::CR0 => 0,
                Register::CR2 => 2,
                Register::CR3 => 3,
                Register::CR4 => 4,
                _ => return None,
            }),
            Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg | Code::Mov_rm16_Sreg => {
                let memory = i.op0_kind() == OpKind::Memory;
                if !memory && i.op0_register().size() == 2 {
                    return None;
                }
                Kindred::ReadSelector(i.op1_register() as i32 - Register::ES as i32)
            }
            Code::Rdfsbase_r64 => fsgsbase(Kindred::ReadBase(gs!(fs_base)))?,
            Code::Rdgsbase_r64 => fsgsbase(Kindred::ReadBase(gs!(gs_base)))?,
            Code::Wrfsbase_r64 => fsgsbase(Kindred::WriteBase(gs!(fs_base)))?,
            Code::Wrgsbase_r64 => fsgsbase(Kindred::WriteBase(gs!(gs_base)))?,
            Code::Rdtsc => Kindred::TimeStamp(Asked::TimeStamp),
            Code::Rdtscp if f.rdtscp => Kindred::TimeStamp(Asked::TimeStampAndId),
            _ => return None,
        })
    }

    /// `None`: not an instruction of this module.
    pub(super) fn system(&mut self, i: &Instruction) -> Option<Next> {
        match self.kindred(i)? {
            Kindred::Syscall => {
                self.e.mov_imm(host::ADDRESS, i.next_ip());
                self.call_system(self.r.system.syscall);
                return Some(Next::End);
            }
            Kindred::Sysret => {
                self.call_system(self.r.system.sysret);
                return Some(Next::End);
            }
            Kindred::Iret => {
                self.check_stack();
                let frame = self.look_up(Access::Load, Place::Register(SP, 0), 40, false)?;
                self.fold(frame);
                // An address that is not canonical faults here, not in the thunk.
                self.e.load_byte(host::TEMP, Mem::base(host::ADDRESS, 0));
                self.call_system(self.r.system.iret);
                return Some(Next::End);
            }
            Kindred::SwapGs => {
                self.e.load(host::TEMP, Mem::gs(gs!(gs_base)));
                self.e.load(host::ADDRESS, Mem::gs(system!(kernel_gs_base)));
                self.e.store(Mem::gs(system!(kernel_gs_base)), host::TEMP);
                self.e.store(Mem::gs(gs!(gs_base)), host::ADDRESS);
            }
            Kindred::Cli => self.e.store_imm(Mem::gs(system!(interrupt_flag)), 0),
            Kindred::Sti => self.sti(),
            // Translated code runs with DF clear only.
            Kindred::Cld => {}
            Kindred::Stac => self.access_flag(true),
            Kindred::Clac => self.access_flag(false),
            Kindred::PushFlags => self.push_flags()?,
            Kindred::PopFlags => {
                self.pop_flags()?;
                self.leave_to_look(i.next_ip());
                return Some(Next::End);
            }
            Kindred::ReadControl(n) => self.load_into(i, Mem::gs(system!(cr) + 8 * n))?,
            Kindred::ReadSelector(n) if i.op0_kind() == OpKind::Memory => self.store_selector(i, n)?,
            Kindred::TimeStamp(asked) => self.time_stamp(asked),
            Kindred::ReadSelector(n) => self.load32_into(i, Mem::gs(system!(selectors) + 4 * n))?,
            Kindred::ReadBase(home) => {
                self.interpret_if_set(system!(fsgsbase_barred));
                self.load_into(i, Mem::gs(home))?;
            }
            Kindred::WriteBase(home) => self.write_base(i, home)?,
        }
        Some(Next::Continue)
    }

    /// RDTSC and RDTSCP: computed from the host's TSC, or asked for.
    fn time_stamp(&mut self, asked: Asked) {
        self.e.load(host::TEMP, Mem::gs(system!(tsc_ticks)));
        let ask = self.e.jrcxz();
        if asked == Asked::TimeStampAndId {
            // RDTSCP waits for what is in front of it as the guest's would; RCX goes.
            self.e.bytes(&[0x0f, 0x01, 0xf9]);
            self.e.load(host::TEMP, Mem::gs(system!(tsc_ticks)));
        } else {
            self.e.bytes(&[0x0f, 0x31]);
        }
        // RORX RDX, RDX, 32; RDX = the host's TSC; the counts since its origin, times 8.
        self.e.bytes(&[0xc4, 0xe3, 0xfb, 0xf0, 0xd2, 32]);
        self.e.lea(host::RDX, Mem::indexed(host::RAX, host::RDX, 0));
        self.e.load(host::ADDRESS, Mem::gs(system!(tsc_minus_origin)));
        self.e.lea(host::RDX, Mem::indexed(host::ADDRESS, host::RDX, 3));
        // MULX RDI, RAX, RCX.
        self.e.bytes(&[0xc4, 0xe2, 0xfb, 0xf6, 0xf9]);
        self.e.load(host::TEMP, Mem::gs(system!(tsc_offset)));
        self.e.lea(host::ADDRESS, Mem::indexed(host::ADDRESS, host::TEMP, 0));
        // MOV EAX, EDI; RORX RDX, RDI, 32; MOV EDX, EDX.
        self.e.bytes(&[0x89, 0xf8, 0xc4, 0xe3, 0xfb, 0xf0, 0xd7, 32, 0x89, 0xd2]);
        if asked == Asked::TimeStampAndId {
            // Guest RCX.
            self.e.load32(host::R10, Mem::gs(system!(tsc_aux)));
        }
        let done = self.e.jmp_short();
        let reached = self.e.land_short(ask);
        debug_assert!(reached, "some eighty bytes");
        // The engine goes on behind the stub.
        self.e.store32_imm(Mem::gs(system!(asked)), asked as i32);
        self.stub(Exit::Interpret, self.index);
        let reached = self.e.land_short(done);
        debug_assert!(reached, "a stub is short");
    }

    /// Call a thunk of `system_thunks`, which comes back to the engine or not at all.
    fn call_system(&mut self, thunk: u32) {
        self.e.branch(&[0xe8], self.r.at, thunk, &[]);
        self.e.bytes(&[self.index]);
    }

    /// Leave to the interpreter unless TEMP is zero.
    fn interpret_unless_zero(&mut self) {
        let zero = self.e.jrcxz();
        self.stub(Exit::Interpret, self.index);
        let reached = self.e.land_short(zero);
        debug_assert!(reached, "a stub is short");
    }

    fn interpret_if_set(&mut self, disp: i32) {
        self.e.load(host::TEMP, Mem::gs(disp));
        self.interpret_unless_zero();
    }

    fn load_into(&mut self, i: &Instruction, from: Mem) -> Option<()> {
        let n = gpr_number(i.op0_register())?;
        self.e.load(PINNED[n].unwrap_or(host::TEMP), from);
        self.keep(n);
        Some(())
    }

    /// MOV to memory writes 16 bits, whatever the operand size.
    fn store_selector(&mut self, i: &Instruction, n: i32) -> Option<()> {
        let place = self.address(i)?;
        let found = self.look_up(Access::Store, place, 2, false)?;
        self.fold(found);
        self.e.load32(host::TEMP, Mem::gs(system!(selectors) + 4 * n));
        // MOV [RDI], CX.
        self.e.bytes(&[0x66, 0x89, 0x0f]);
        Some(())
    }

    fn load32_into(&mut self, i: &Instruction, from: Mem) -> Option<()> {
        let n = gpr_number(i.op0_register())?;
        self.e.load32(PINNED[n].unwrap_or(host::TEMP), from);
        self.keep(n);
        Some(())
    }

    /// Guest register `n` has a new value, in TEMP if it has no host register.
    fn keep(&mut self, n: usize) {
        match PINNED[n] {
            None => self.e.store(Mem::gs(gpr_home(n)), host::TEMP),
            Some(SP) => self.stack_aligned = false,
            Some(_) => {}
        }
    }

    fn write_base(&mut self, i: &Instruction, home: i32) -> Option<()> {
        let n = gpr_number(i.op0_register())?;
        self.interpret_if_set(system!(fsgsbase_barred));
        let from = match PINNED[n] {
            Some(h) => h,
            None => {
                self.e.load(host::ADDRESS, Mem::gs(gpr_home(n)));
                host::ADDRESS
            }
        };
        // Lower-half bases only, tested without flags: bits 47 to 63 are zero.
        self.e.pext_gs(host::TEMP, from, system!(upper_mask));
        self.interpret_unless_zero();
        self.e.store(Mem::gs(home), from);
        Some(())
    }

    /// STI: an event that waits ends translated code after the next instruction,
    /// which is in this block.
    fn sti(&mut self) {
        self.e.load(host::TEMP, Mem::gs(system!(interrupt_flag)));
        // TEMP - IF is zero when there is nothing to do.
        self.e.lea(host::TEMP, Mem::base(host::TEMP, -(rflags::IF as i32)));
        let set = self.e.jrcxz();
        self.e.store_imm(Mem::gs(system!(interrupt_flag)), rflags::IF as i32);
        self.e.store32_imm(Mem::gs(system!(shadow)), 1);
        self.clear_token_if_pending();
        let reached = self.e.land_short(set);
        debug_assert!(reached, "five instructions");
    }

    /// Whether an instruction behind STI leaves the block, if it does, only before it
    /// has begun or by an exit that [`Builder::end_shadow`] precedes.
    pub(super) fn may_follow_sti(&mut self, i: &Instruction) -> bool {
        let leaves_once = match i.flow_control() {
            FlowControl::Next | FlowControl::UnconditionalBranch => true,
            FlowControl::Return => i.code() == Code::Retnq,
            _ => false,
        };
        leaves_once && !self.is_native_system(i) && !i.is_string_instruction()
    }

    /// The instruction after STI is complete, or cannot fail any more.
    pub(super) fn end_shadow(&mut self) {
        self.e.store32_imm(Mem::gs(system!(shadow)), 0);
    }

    fn clear_token_if_pending(&mut self) {
        self.e.load32(host::TEMP, Mem::gs(system!(pending)));
        let quiet = self.e.jrcxz();
        self.e.store32_imm(Mem::gs(gs!(token)), 0);
        let reached = self.e.land_short(quiet);
        debug_assert!(reached, "one instruction");
    }

    /// STAC and CLAC: nothing to do if AC is as it should be, else change tables too.
    fn access_flag(&mut self, set: bool) {
        let kind = if set { Kind::SupervisorAc } else { Kind::Supervisor };
        let value = if set { rflags::AC as i32 } else { 0 };
        self.e.load(host::TEMP, Mem::gs(system!(access_flag)));
        if set {
            self.e.lea(host::TEMP, Mem::base(host::TEMP, -value));
        }
        let same = self.e.jrcxz();
        self.e.store_imm(Mem::gs(system!(access_flag)), value);
        self.e.load(host::TABLE, Mem::gs(view(kind, 0)));
        self.e.load(host::TEMP, Mem::gs(view(kind, 1)));
        // WRGSBASE RCX.
        self.e.bytes(&[0xf3, 0x48, 0x0f, 0xae, 0xd9]);
        let reached = self.e.land_short(same);
        debug_assert!(reached, "four instructions");
    }

    /// PUSHFQ: RF is pushed as zero, and so it is kept.
    fn push_flags(&mut self) -> Option<()> {
        // PUSHFQ; POP RCX.
        self.e.bytes(&[0x9c, 0x59]);
        self.e.pext_gs(host::TEMP, host::TEMP, system!(status_mask));
        self.e.pdep_gs(host::TEMP, host::TEMP, system!(status_mask));
        for part in [system!(interrupt_flag), system!(access_flag), system!(other_flags)] {
            self.e.load(host::ADDRESS, Mem::gs(part));
            self.e.lea(host::TEMP, Mem::indexed(host::TEMP, host::ADDRESS, 0));
        }
        self.e.store(Mem::gs(gs!(scratch)), host::TEMP);
        let slot = self.push_slot()?;
        self.fold(slot);
        self.e.load(host::TEMP, Mem::gs(gs!(scratch)));
        self.e.store(Mem::base(host::ADDRESS, 0), host::TEMP);
        self.move_sp(-8);
        Some(())
    }

    /// POPFQ of status flags and IF at CPL 0 while no other flag is or becomes set.
    fn pop_flags(&mut self) -> Option<()> {
        let slot = self.pop_slot()?;
        self.e.load(host::ADDRESS, slot.mem());
        self.e.pext_gs(host::TEMP, host::ADDRESS, system!(unusual_mask));
        self.interpret_unless_zero();
        self.interpret_if_set(system!(access_flag));
        self.e.load(host::TEMP, Mem::gs(system!(other_flags)));
        self.e.lea(host::TEMP, Mem::base(host::TEMP, -(rflags::FIXED as i32)));
        self.interpret_unless_zero();
        self.move_sp(8);
        self.e.store(Mem::gs(system!(saved)), host::RAX);
        self.e.pext_gs(host::RAX, host::ADDRESS, system!(overflow_mask));
        self.e.mov(host::TEMP, host::ADDRESS);
        // MOV AH, CL; ADD AL, 0x7f (OF from 1 + 0x7f); SAHF.
        self.e.bytes(&[0x88, 0xcc, 0x04, 0x7f, 0x9e]);
        self.e.load(host::RAX, Mem::gs(system!(saved)));
        self.e.pext_gs(host::TEMP, host::ADDRESS, system!(interrupt_mask));
        self.e.pdep_gs(host::TEMP, host::TEMP, system!(interrupt_mask));
        self.e.store(Mem::gs(system!(interrupt_flag)), host::TEMP);
        let masked = self.e.jrcxz();
        self.clear_token_if_pending();
        let reached = self.e.land_short(masked);
        debug_assert!(reached, "three instructions");
        Some(())
    }
}
