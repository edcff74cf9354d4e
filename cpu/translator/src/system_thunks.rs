//! SYSCALL, SYSRET and IRETQ between flat 64-bit segments, shared by all blocks.
//!
//! Each is called from its site with the site's payload behind the call. It
//! checks first and changes guest state last: what is unusual leaves by
//! [`Exit::Interpret`] as if the instruction had not begun. None faults on the
//! host: addresses were looked up by the block, or are looked up here with an
//! explicit test.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_state::rflags;

use crate::layout::{Crossing, Exit, gpr_home, gs, system};
use crate::modes::Kind;

/// Cache offsets of the thunks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemThunks {
    /// SYSCALL from CPL 3. ADDRESS: the next instruction's RIP.
    pub syscall: u32,
    /// SYSRETQ.
    pub sysret: u32,
    /// IRETQ from CPL 0. ADDRESS: host address of the frame.
    pub iret: u32,
}

/// Flags SYSRET may load here: others make the next instruction an unusual one.
const SYSRET_LOADS: u64 = rflags::STATUS | rflags::IF | rflags::FIXED | rflags::ID;
/// Flags SYSRET takes from R11 (SDM volume 2, SYSRET).
const SYSRET_TAKES: u64 = 0x3c_7fd7 & !rflags::RF;
const IRET_LOADS: u64 = SYSRET_LOADS | rflags::RF;

/// Descriptors of flat 64-bit code and of flat writable data, accessed.
const SUPERVISOR_CODE: u64 = 0x00af_9b00_0000_ffff;
const SUPERVISOR_DATA: u64 = 0x00cf_9300_0000_ffff;
const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
const USER_DATA: u64 = 0x00cf_f300_0000_ffff;

/// Offsets in the frame of IRETQ.
mod frame {
    pub const RIP: i32 = 0;
    pub const CS: i32 = 8;
    pub const RFLAGS: i32 = 16;
    pub const RSP: i32 = 24;
    pub const SS: i32 = 32;
}

/// A qword in the state.
fn q(disp: i32) -> AsmMemoryOperand {
    qword_ptr(i64::from(disp) as u64).gs()
}

/// A dword in the state.
fn d(disp: i32) -> AsmMemoryOperand {
    dword_ptr(i64::from(disp) as u64).gs()
}

fn view(kind: Kind, table: usize) -> AsmMemoryOperand {
    q(system!(views) + (kind as i32 * 2 + table as i32) * 8)
}

fn selector(n: i32) -> AsmMemoryOperand {
    d(system!(selectors) + 4 * n)
}

/// Emits the thunks with addresses of the exits they leave by.
struct Thunk<'a> {
    a: CodeAssembler,
    /// Execution addresses of the exit thunks, by `Exit`.
    exits: &'a [u64; 8],
    /// Everything is as it was: leave.
    bail: CodeLabel,
    /// The table has no entry for the address in RAX.
    miss: CodeLabel,
}

type Done = Result<(), IcedError>;

impl Thunk<'_> {
    /// Save guest flags, RAX and ADDRESS. The host stack is left alone: it holds the
    /// site, and pushing might empty it.
    fn begin(&mut self) -> Done {
        let a = &mut self.a;
        a.mov(q(system!(saved)), rax)?;
        a.mov(q(system!(saved) + 8), rdi)?;
        a.lahf()?;
        a.seto(al)?;
        a.mov(q(system!(saved_flags)), rax)
    }

    /// Guest flags and RAX as they were.
    fn restore(&mut self) -> Done {
        let a = &mut self.a;
        a.mov(rax, q(system!(saved_flags)))?;
        // OF from 1 + 0x7f; then the rest, which leaves OF alone.
        a.add(al, 0x7f)?;
        a.sahf()?;
        a.mov(rax, q(system!(saved)))
    }

    /// The ways out without having done anything.
    fn finish(&mut self) -> Done {
        self.a.set_label(&mut self.miss)?;
        self.a.mov(rdi, rax)?;
        self.restore()?;
        self.a.jmp(self.exits[Exit::MissLoad as usize])?;
        self.a.set_label(&mut self.bail)?;
        self.a.mov(rdi, q(system!(saved) + 8))?;
        self.restore()?;
        self.a.jmp(self.exits[Exit::Interpret as usize])
    }

    /// Leave if the qword is not zero.
    fn bail_if_set(&mut self, m: AsmMemoryOperand) -> Done {
        self.a.cmp(m, 0)?;
        self.a.jne(self.bail)
    }

    /// Continue with the tables and link numbers of `kind`. Changes RCX.
    fn enter_view(&mut self, kind: Kind) -> Done {
        let user = i32::from(kind == Kind::User);
        let a = &mut self.a;
        a.mov(d(gs!(class)), user)?;
        a.mov(ecx, d(system!(spaces) + 4 * user))?;
        a.mov(d(gs!(space)), ecx)?;
        a.mov(r15, view(kind, 0))?;
        a.mov(rcx, view(kind, 1))?;
        // `State` is the same memory below every store table.
        a.wrgsbase(rcx)
    }

    /// Set IF (RCX: zero or IF): an event that waits ends translated code at the
    /// next block. Changes flags.
    fn set_interrupt_flag(&mut self) -> Done {
        let a = &mut self.a;
        let mut quiet = a.create_label();
        a.mov(q(system!(interrupt_flag)), rcx)?;
        a.test(ecx, ecx)?;
        a.je(quiet)?;
        a.cmp(d(system!(pending)), 0)?;
        a.je(quiet)?;
        a.mov(d(gs!(token)), 0)?;
        a.set_label(&mut quiet)?;
        a.zero_bytes()
    }

    /// Status flags from the image in RDI, and guest RAX back into its register.
    fn load_status(&mut self) -> Done {
        let a = &mut self.a;
        a.mov(eax, edi)?;
        a.shr(eax, 11)?;
        a.and(eax, 1)?;
        a.mov(ecx, edi)?;
        a.mov(ah, cl)?;
        a.add(al, 0x7f)?;
        a.sahf()?;
        a.mov(rax, q(system!(saved)))
    }

    /// Go to the guest address in ADDRESS through the jump cache, at another privilege
    /// than the outstanding calls were made at. Changes no flags.
    fn leave(&mut self) -> Done {
        self.a.mov(rsp, q(gs!(call_rsp_empty)))?;
        self.jump()
    }

    fn jump(&mut self) -> Done {
        let a = &mut self.a;
        a.pext(rcx, rdi, q(gs!(jump_index_mask)))?;
        a.jmp(qword_ptr(rcx * 8 + i64::from(gs!(jump_cache))).gs())
    }

    /// RAX = the descriptor that the selector in EAX names in the GDT. Changes RCX.
    fn descriptor(&mut self) -> Done {
        let a = &mut self.a;
        a.or(eax, 7)?;
        a.cmp(rax, q(system!(gdt_limit)))?;
        a.ja(self.bail)?;
        a.and(eax, -8)?;
        a.je(self.bail)?;
        a.add(rax, q(system!(gdt_base)))?;
        a.pext(rcx, rax, r14)?;
        a.mov(rcx, qword_ptr(r15 + rcx * 8))?;
        a.test(rcx, rcx)?;
        a.je(self.miss)?;
        a.mov(rax, qword_ptr(rax + rcx))
    }

    /// Leave unless the selector at `at` in the frame has this RPL, lies in the
    /// GDT and names exactly this descriptor.
    fn require(&mut self, at: i32, level: i32, descriptor: u64) -> Done {
        self.a.movzx(eax, word_ptr(rdi + at))?;
        self.a.mov(ecx, eax)?;
        self.a.and(ecx, 7)?;
        self.a.cmp(ecx, level)?;
        self.a.jne(self.bail)?;
        self.descriptor()?;
        self.a.mov(rcx, descriptor)?;
        self.a.cmp(rax, rcx)?;
        self.a.jne(self.bail)
    }
}

fn syscall(t: &mut Thunk<'_>) -> Done {
    t.begin()?;
    t.bail_if_set(q(system!(syscall_barred)))?;
    let a = &mut t.a;
    // RAX: SF ZF AF PF CF in AH, OF in AL.
    a.movzx(ecx, ah)?;
    a.and(ecx, (rflags::STATUS & 0xff) as i32)?;
    a.movzx(eax, al)?;
    a.shl(eax, 11)?;
    a.or(ecx, eax)?;
    a.or(rcx, q(system!(interrupt_flag)))?;
    a.or(rcx, q(system!(access_flag)))?;
    a.mov(rax, q(system!(other_flags)))?;
    a.or(rcx, rax)?;
    a.mov(q(gpr_home(11)), rcx)?;
    // Guest RCX.
    a.mov(r10, rdi)?;
    a.and(rax, q(system!(syscall_keeps)))?;
    a.mov(q(system!(other_flags)), rax)?;
    a.mov(q(system!(interrupt_flag)), 0)?;
    a.mov(q(system!(access_flag)), 0)?;
    for (n, from) in [(1, system!(syscall_cs)), (2, system!(syscall_ss))] {
        a.mov(eax, d(from))?;
        a.mov(selector(n), eax)?;
    }
    a.mov(d(system!(crossing)), Crossing::Supervisor as i32)?;
    t.enter_view(Kind::Supervisor)?;
    let a = &mut t.a;
    a.mov(rax, q(system!(saved)))?;
    a.mov(rdi, q(system!(lstar)))?;
    // The mask clears every status flag: so does 0 + 1.
    a.xor(ecx, ecx)?;
    a.add(ecx, 1)?;
    t.leave()?;
    t.finish()
}

fn sysret(t: &mut Thunk<'_>) -> Done {
    t.begin()?;
    t.bail_if_set(q(system!(syscall_barred)))?;
    let a = &mut t.a;
    a.cmp(view(Kind::User, 0), 0)?;
    a.je(t.bail)?;
    a.mov(rdi, q(gpr_home(11)))?;
    a.and(edi, SYSRET_TAKES as i32)?;
    a.test(edi, !(SYSRET_LOADS as i32))?;
    a.jne(t.bail)?;
    // Guest RCX: the target, in the lower half.
    a.mov(rcx, r10)?;
    a.shr(rcx, 47)?;
    a.jne(t.bail)?;
    load_plain_flags(t)?;
    let a = &mut t.a;
    for (n, from) in [(1, system!(sysret_cs)), (2, system!(sysret_ss))] {
        a.mov(eax, d(from))?;
        a.mov(selector(n), eax)?;
    }
    a.mov(d(system!(crossing)), Crossing::User as i32)?;
    t.enter_view(Kind::User)?;
    t.load_status()?;
    t.a.mov(rdi, r10)?;
    t.leave()?;
    t.finish()
}

/// System flags from the image in RDI, which has no unusual ones. Changes RCX.
fn load_plain_flags(t: &mut Thunk<'_>) -> Done {
    let a = &mut t.a;
    a.mov(ecx, edi)?;
    a.and(ecx, rflags::ID as i32)?;
    a.or(ecx, rflags::FIXED as i32)?;
    a.mov(q(system!(other_flags)), rcx)?;
    a.mov(q(system!(access_flag)), 0)?;
    a.mov(ecx, edi)?;
    a.and(ecx, rflags::IF as i32)?;
    t.set_interrupt_flag()
}

fn iret(t: &mut Thunk<'_>) -> Done {
    t.begin()?;
    t.bail_if_set(q(system!(iret_barred)))?;
    // With AC set the tables allow what an access to the GDT is not allowed.
    t.bail_if_set(q(system!(access_flag)))?;
    t.a.mov(rcx, q(system!(other_flags)))?;
    t.a.test(ecx, rflags::NT as i32)?;
    t.a.jne(t.bail)?;
    let mut to_user = t.a.create_label();
    t.a.test(byte_ptr(rdi + frame::CS), 3)?;
    t.a.jne(to_user)?;
    iret_to_supervisor(t)?;
    t.a.set_label(&mut to_user)?;
    iret_to_user(t)?;
    t.finish()
}

fn iret_to_supervisor(t: &mut Thunk<'_>) -> Done {
    t.a.mov(rcx, qword_ptr(rdi + frame::RFLAGS))?;
    t.a.test(rcx, !((IRET_LOADS | rflags::AC) as i32))?;
    t.a.jne(t.bail)?;
    t.a.mov(rcx, qword_ptr(rdi + frame::RIP))?;
    t.a.sar(rcx, 47)?;
    t.a.cmp(rcx, -1)?;
    t.a.jne(t.bail)?;
    t.require(frame::CS, 0, SUPERVISOR_CODE)?;
    let (mut null, mut checked) = (t.a.create_label(), t.a.create_label());
    t.a.cmp(word_ptr(rdi + frame::SS), 0)?;
    t.a.je(null)?;
    t.require(frame::SS, 0, SUPERVISOR_DATA)?;
    t.a.mov(eax, Crossing::Supervisor as i32)?;
    t.a.jmp(checked)?;
    t.a.set_label(&mut null)?;
    t.a.mov(eax, Crossing::SupervisorNullStack as i32)?;
    t.a.set_label(&mut checked)?;
    iret_loads(t)?;
    // RDI: flags.
    let (mut plain, mut entered) = (t.a.create_label(), t.a.create_label());
    t.a.mov(ecx, edi)?;
    t.a.and(ecx, rflags::AC as i32)?;
    t.a.mov(q(system!(access_flag)), rcx)?;
    t.a.je(plain)?;
    t.enter_view(Kind::SupervisorAc)?;
    t.a.jmp(entered)?;
    t.a.set_label(&mut plain)?;
    t.enter_view(Kind::Supervisor)?;
    t.a.set_label(&mut entered)?;
    iret_ends(t)?;
    // Drop the site.
    t.a.lea(rsp, rsp + 8)?;
    t.jump()
}

fn iret_to_user(t: &mut Thunk<'_>) -> Done {
    t.bail_if_set(q(system!(user_iret_barred)))?;
    t.a.cmp(view(Kind::User, 0), 0)?;
    t.a.je(t.bail)?;
    t.a.mov(rcx, qword_ptr(rdi + frame::RFLAGS))?;
    t.a.test(rcx, !(IRET_LOADS as i32))?;
    t.a.jne(t.bail)?;
    t.a.mov(rcx, qword_ptr(rdi + frame::RIP))?;
    t.a.shr(rcx, 47)?;
    t.a.jne(t.bail)?;
    t.require(frame::CS, 3, USER_CODE)?;
    t.require(frame::SS, 3, USER_DATA)?;
    t.a.mov(eax, Crossing::User as i32)?;
    iret_loads(t)?;
    t.enter_view(Kind::User)?;
    iret_ends(t)?;
    t.leave()
}

/// All checks are passed. Load segments (EAX: the crossing), RSP and system flags
/// from the frame at RDI; RDI = flags, RIP saved.
fn iret_loads(t: &mut Thunk<'_>) -> Done {
    let a = &mut t.a;
    a.mov(d(system!(crossing)), eax)?;
    for (n, at) in [(1, frame::CS), (2, frame::SS)] {
        a.movzx(eax, word_ptr(rdi + at))?;
        a.mov(selector(n), eax)?;
    }
    // Guest RSP.
    a.mov(r9, qword_ptr(rdi + frame::RSP))?;
    a.mov(rax, qword_ptr(rdi + frame::RIP))?;
    a.mov(q(system!(saved) + 8), rax)?;
    a.mov(rdi, qword_ptr(rdi + frame::RFLAGS))?;
    load_plain_flags(t)?;
    // RF is seen at the target only, so by nobody unless translated code is left there.
    let a = &mut t.a;
    let (mut left, mut without) = (a.create_label(), a.create_label());
    a.test(edi, rflags::RF as i32)?;
    a.je(without)?;
    a.cmp(d(gs!(token)), 0)?;
    a.je(left)?;
    a.cmp(d(system!(counted)), 0)?;
    a.je(without)?;
    a.set_label(&mut left)?;
    a.mov(rax, q(system!(saved) + 8))?;
    a.mov(q(system!(resume_at)), rax)?;
    a.set_label(&mut without)?;
    a.zero_bytes()
}

/// Status flags from RDI; ADDRESS = RIP.
fn iret_ends(t: &mut Thunk<'_>) -> Done {
    t.load_status()?;
    t.a.mov(rdi, q(system!(saved) + 8))
}

/// Assemble the thunks for cache offset `at`, executing at `base`; `exits` are the
/// cache offsets of the exit thunks.
pub(crate) fn assemble(base: u64, at: u32, exits: &[u32; 8]) -> Result<(Vec<u8>, SystemThunks), IcedError> {
    let exits = exits.map(|e| base + u64::from(e));
    let mut code = Vec::new();
    let mut place = |build: fn(&mut Thunk<'_>) -> Done| -> Result<u32, IcedError> {
        code.resize(code.len().next_multiple_of(16), 0xcc);
        let offset = at + code.len() as u32;
        let mut a = CodeAssembler::new(64)?;
        let (bail, miss) = (a.create_label(), a.create_label());
        let mut t = Thunk { a, exits: &exits, bail, miss };
        build(&mut t)?;
        code.extend(t.a.assemble(base + u64::from(offset))?);
        Ok(offset)
    };
    let thunks = SystemThunks { syscall: place(syscall)?, sysret: place(sysret)?, iret: place(iret)? };
    Ok((code, thunks))
}
