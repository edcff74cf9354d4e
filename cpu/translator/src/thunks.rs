//! The ways into and out of translated code.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::call_stack::note;
use crate::layout::{Exit, PAGE_NUMBER, PINNED, State, gpr_home, gs};

/// Cache offsets of the entry and of each exit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thunks {
    /// `extern "sysv64" fn(*mut State)`.
    pub enter: u32,
    /// By `Exit`; called from stubs, with the site as return address.
    pub exits: [u32; 8],
    /// Called by stubs where a store may go on beside code: see [`crate::beside`].
    pub beside: u32,
    /// Where a return goes that its call does not expect; `ADDRESS` is the target.
    pub mismatch: u32,
    /// What lies at the bottom of the call stack, reached by a return without a call.
    pub bottom: u32,
    /// Indirect exit that is jumped to: what an empty jump-cache entry holds.
    pub indirect: u32,
    /// Where the fault handler sends a faulting thread; the handler has stored
    /// the site.
    pub fault: u32,
}

const SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];
const HOST: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const XMM: [AsmRegisterXmm; 16] =
    [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15];
const YMM: [AsmRegisterYmm; 16] =
    [ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15];

macro_rules! field {
    ($f:ident) => {
        rdi + std::mem::offset_of!(State, $f) as i32
    };
}

fn enter(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for r in SAVED {
        a.push(r)?;
    }
    a.mov(qword_ptr(field!(native_rsp)), rsp)?;
    a.stmxcsr(dword_ptr(field!(native_mxcsr)))?;
    a.ldmxcsr(dword_ptr(field!(mxcsr)))?;
    a.mov(rax, qword_ptr(field!(table_store)))?;
    a.wrgsbase(rax)?;
    load_vectors(a)?;
    a.mov(r15, qword_ptr(field!(table_load)))?;
    a.mov(r14, PAGE_NUMBER)?;
    // OF from 1 + 0x7f; then the rest, which leaves OF alone.
    a.mov(al, byte_ptr(field!(flags_of)))?;
    a.mov(ah, byte_ptr(field!(flags_ah)))?;
    a.add(al, 0x7f)?;
    a.sahf()?;
    for (n, host) in PINNED.iter().enumerate() {
        if let Some(h) = host {
            a.mov(HOST[usize::from(*h)], qword_ptr(rdi + (std::mem::offset_of!(State, gpr) + 8 * n) as i32))?;
        }
    }
    a.mov(rsp, qword_ptr(gs!(call_rsp) as i64 as u64).gs())?;
    a.jmp(qword_ptr(gs!(target) as i64 as u64).gs())
}

/// Load YMM0 to YMM15. Where all upper halves are zero the processor must know it, as it
/// does after VZEROUPPER and VEX.128 loads: once a register was written whole, every
/// SSE instruction that writes it has to merge with what it held before, which makes
/// chains of independent instructions and costs a factor of two and more.
fn load_vectors(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let home = |i: usize, offset: usize| rdi + (std::mem::offset_of!(State, ymm) + 32 * i + offset) as i32;
    let (mut wide, mut loaded) = (a.create_label(), a.create_label());
    a.vmovups(xmm0, xmmword_ptr(home(0, 16)))?;
    for i in 1..YMM.len() {
        a.vorps(xmm0, xmm0, xmmword_ptr(home(i, 16)))?;
    }
    a.vptest(xmm0, xmm0)?;
    a.jnz(wide)?;
    for (i, x) in XMM.iter().enumerate() {
        a.vmovups(*x, xmmword_ptr(home(i, 0)))?;
    }
    a.jmp(loaded)?;
    a.set_label(&mut wide)?;
    for (i, y) in YMM.iter().enumerate() {
        a.vmovups(*y, ymmword_ptr(home(i, 0)))?;
    }
    a.set_label(&mut loaded)
}

fn leave(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (n, host) in PINNED.iter().enumerate() {
        if let Some(h) = host {
            a.mov(qword_ptr(gpr_home(n) as i64 as u64).gs(), HOST[usize::from(*h)])?;
        }
    }
    a.lahf()?;
    a.seto(byte_ptr(gs!(flags_of) as i64 as u64).gs())?;
    a.mov(al, ah)?;
    a.mov(byte_ptr(gs!(flags_ah) as i64 as u64).gs(), al)?;
    for (i, y) in YMM.iter().enumerate() {
        a.vmovups(ymmword_ptr((gs!(ymm) + 32 * i as i32) as i64 as u64).gs(), *y)?;
    }
    a.vzeroupper()?;
    a.mov(qword_ptr(gs!(call_rsp) as i64 as u64).gs(), rsp)?;
    a.stmxcsr(dword_ptr(gs!(mxcsr) as i64 as u64).gs())?;
    a.ldmxcsr(dword_ptr(gs!(native_mxcsr) as i64 as u64).gs())?;
    a.mov(rsp, qword_ptr(gs!(native_rsp) as i64 as u64).gs())?;
    for r in SAVED.iter().rev() {
        a.pop(*r)?;
    }
    a.ret()
}

/// Jump to the guest address in `ADDRESS` through the jump cache.
fn jump_by_cache(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pext(rcx, rdi, qword_ptr(gs!(jump_index_mask) as i64 as u64).gs())?;
    a.jmp(qword_ptr(rcx * 8 + gs!(jump_cache)).gs())
}

/// Assemble all thunks for cache offset `at`, executing at `base`.
pub(crate) fn assemble(base: u64, at: u32) -> Result<(Vec<u8>, Thunks), IcedError> {
    let mut code = Vec::new();
    let mut place = |build: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| -> Result<u32, IcedError> {
        code.resize(code.len().next_multiple_of(16), 0xcc);
        let offset = at + code.len() as u32;
        let mut a = CodeAssembler::new(64)?;
        build(&mut a)?;
        code.extend(a.assemble(base + u64::from(offset))?);
        Ok(offset)
    };
    let enter = place(&enter)?;
    let common = place(&leave)?;
    let exit = |kind: Exit, site: bool| {
        move |a: &mut CodeAssembler| {
            if site {
                a.pop(qword_ptr(gs!(site) as i64 as u64).gs())?;
            }
            a.mov(dword_ptr(gs!(exit) as i64 as u64).gs(), kind as u32)?;
            a.mov(qword_ptr(gs!(address) as i64 as u64).gs(), rdi)?;
            a.jmp(base + u64::from(common))
        }
    };
    let mut exits = [0; 8];
    for kind in Exit::ALL {
        exits[kind as usize] = place(&exit(kind, true))?;
    }
    let unknown = exit(Exit::Indirect, false);
    let indirect = place(&|a| {
        a.mov(ecx, dword_ptr(rsp + note::AT))?;
        a.mov(dword_ptr(gs!(branch) as i64 as u64).gs(), ecx)?;
        unknown(a)
    })?;
    let fault = place(&exit(Exit::Fault, false))?;
    // Forget the outstanding calls (they are another stack's) and look the target up.
    let mismatch = place(&|a| {
        a.mov(ecx, dword_ptr(rsp + note::AT))?;
        a.mov(rsp, qword_ptr(gs!(call_rsp_empty) as i64 as u64).gs())?;
        a.mov(dword_ptr(rsp + note::AT), ecx)?;
        jump_by_cache(a)
    })?;
    let bottom = place(&|a| {
        a.mov(ecx, dword_ptr(rsp + note::AT))?;
        a.lea(rsp, qword_ptr(rsp - 8))?;
        a.mov(dword_ptr(rsp + note::AT), ecx)?;
        jump_by_cache(a)
    })?;
    let miss = base + u64::from(exits[Exit::MissStore as usize]);
    let beside = place(&|a| crate::beside::thunk(a, miss))?;
    Ok((code, Thunks { enter, exits, beside, mismatch, bottom, indirect, fault }))
}
