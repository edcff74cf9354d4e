//! The supervisor of a random program: exception handlers, system calls, ways out.
//!
//! An exception is logged and then got over: a lazy page is made accessible, a
//! masked or cleared cause retried, anything else skipped by the length table.
//! What no table knows goes to the place the current segment names.

use std::sync::OnceLock;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::layout::{self, HIGH, LOW, system, variable};

/// Addresses of the supervisor's entries.
#[derive(Debug, Clone)]
pub struct Handlers {
    /// Code at [`layout::HANDLERS`].
    pub bytes: Vec<u8>,
    /// By vector.
    pub vectors: [u64; 256],
    /// SYSCALL.
    pub syscall: u64,
    /// Jump here to end the program.
    pub end: u64,
}

/// The handlers, assembled once.
pub fn handlers() -> &'static Handlers {
    static HANDLERS: OnceLock<Handlers> = OnceLock::new();
    HANDLERS.get_or_init(|| assemble().expect("the handlers assemble: they are constant"))
}

fn own(offset: u64) -> AsmMemoryOperand {
    qword_ptr(HIGH + layout::SYSTEM + offset)
}

/// The frame in a handler, from RSP: saved registers, then what `entries` pushed.
mod frame {
    const SAVED: i32 = 8 * 6;
    pub const VECTOR: i32 = SAVED;
    pub const RIP: i32 = SAVED + 16;
    pub const CS: i32 = SAVED + 24;
    pub const RFLAGS: i32 = SAVED + 32;
    pub const RSP: i32 = SAVED + 40;
    pub const SS: i32 = SAVED + 48;
}

fn assemble() -> Result<Handlers, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut common, mut syscall, mut end) = (a.create_label(), a.create_label(), a.create_label());
    let (mut count, mut leave, mut nmi) = (a.create_label(), a.create_label(), a.create_label());
    let mut stubs = Vec::new();
    for vector in 0..32 {
        let mut stub = a.create_label();
        a.set_label(&mut stub)?;
        if !matches!(vector, 8 | 10..=14 | 17 | 21) {
            a.push(0)?;
        }
        a.push(vector)?;
        a.jmp(common)?;
        stubs.push(stub);
    }
    a.set_label(&mut common)?;
    exception(&mut a, end)?;
    a.set_label(&mut syscall)?;
    system_call(&mut a)?;
    a.set_label(&mut count)?;
    a.inc(own(system::CALLS))?;
    a.iretq()?;
    a.set_label(&mut leave)?;
    a.mov(rsp, own(system::LEFT))?;
    a.jmp(own(system::LEFT + 8))?;
    a.set_label(&mut nmi)?;
    a.push(rax)?;
    a.xor(eax, eax)?;
    a.pop(rax)?;
    a.iretq()?;
    a.set_label(&mut end)?;
    a.cli()?;
    let mut halted = a.create_label();
    a.set_label(&mut halted)?;
    a.hlt()?;
    a.jmp(halted)?;

    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let r = a.assemble_options(HIGH + layout::HANDLERS, options)?;
    let mut vectors = [r.label_ip(&count)?; 256];
    for (v, stub) in vectors.iter_mut().zip(&stubs) {
        *v = r.label_ip(stub)?;
    }
    vectors[2] = r.label_ip(&nmi)?;
    vectors[0x81] = r.label_ip(&leave)?;
    let (syscall, end) = (r.label_ip(&syscall)?, r.label_ip(&end)?);
    Ok(Handlers { bytes: r.inner.code_buffer, vectors, syscall, end })
}

/// Log what happened, then get over it.
fn exception(a: &mut CodeAssembler, end: CodeLabel) -> Result<(), IcedError> {
    let (mut done, mut skip, mut retry) = (a.create_label(), a.create_label(), a.create_label());
    let (mut debug, mut fault) = (a.create_label(), a.create_label());
    let (mut x87, mut vector, mut absent) = (a.create_label(), a.create_label(), a.create_label());
    for r in [rax, rcx, rdx, rbx, rsi, rdi] {
        a.push(r)?;
    }
    a.cld()?;
    a.mov(rbx, own(system::LOGGED))?;
    a.inc(own(system::LOGGED))?;
    a.and(ebx, layout::LOG_ENTRIES as u32 - 1)?;
    a.shl(ebx, 5)?;
    a.mov(rax, qword_ptr(rsp + frame::VECTOR))?;
    a.mov(rcx, qword_ptr(rsp + frame::VECTOR + 8))?;
    a.shl(rcx, 8)?;
    a.or(rax, rcx)?;
    let log = (HIGH + layout::LOG) as i64 as i32;
    a.mov(qword_ptr(rbx + log), rax)?;
    for (offset, field) in [(8, frame::RIP), (16, frame::RFLAGS), (24, frame::RSP)] {
        a.mov(rcx, qword_ptr(rsp + field))?;
        a.mov(qword_ptr(rbx + (log + offset)), rcx)?;
    }
    a.dec(own(system::FUEL))?;
    a.js(end)?;
    a.movzx(eax, al)?;
    for (number, to) in [(14, fault), (1, debug), (16, x87), (19, vector), (7, absent), (3, done), (4, done)]
    {
        a.cmp(eax, number)?;
        a.je(to)?;
    }
    a.jmp(skip)?;
    // Unmasked x87 exceptions are cleared, those of SSE masked, the FPU is given back.
    a.set_label(&mut x87)?;
    a.fnclex()?;
    a.jmp(done)?;
    a.set_label(&mut vector)?;
    a.push(0x1f80)?;
    a.ldmxcsr(dword_ptr(rsp))?;
    a.pop(rax)?;
    a.jmp(skip)?;
    a.set_label(&mut absent)?;
    a.clts()?;
    a.jmp(done)?;
    a.set_label(&mut debug)?;
    debug_exception(a)?;
    a.jmp(done)?;
    a.set_label(&mut fault)?;
    page_fault(a, retry)?;
    a.jmp(skip)?;
    a.set_label(&mut skip)?;
    skip_instruction(a, done)?;
    a.set_label(&mut retry)?;
    a.mov(rax, cr2)?;
    a.invlpg(ptr(rax))?;
    a.set_label(&mut done)?;
    for r in [rdi, rsi, rbx, rdx, rcx, rax] {
        a.pop(r)?;
    }
    a.add(rsp, 16)?;
    a.iretq()
}

/// Count single steps and end them; resume behind instruction breakpoints.
fn debug_exception(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut no_step = a.create_label();
    a.mov(rax, dr6)?;
    a.mov(qword_ptr(rbx + ((HIGH + layout::LOG) as i64 as i32 + 24)), rax)?;
    a.mov(ecx, 0xffff_0ff0u32)?;
    a.mov(dr6, rcx)?;
    a.bts(qword_ptr(rsp + frame::RFLAGS), 16)?;
    a.bt(eax, 14)?;
    a.jnc(no_step)?;
    a.dec(own(system::STEPS))?;
    a.jns(no_step)?;
    a.btr(qword_ptr(rsp + frame::RFLAGS), 8)?;
    a.mov(own(system::STEPS), 11)?;
    a.set_label(&mut no_step)?;
    a.nop()
}

/// To `retry` when the page was lazy; otherwise on.
fn page_fault(a: &mut CodeAssembler, retry: CodeLabel) -> Result<(), IcedError> {
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rbx + ((HIGH + layout::LOG) as i64 as i32 + 24)), rax)?;
    for (base, table) in [(LOW, layout::LOW_TABLE), (HIGH, layout::HIGH_TABLE)] {
        let mut not = a.create_label();
        a.mov(rcx, rax)?;
        a.mov(rdx, base + layout::DATA)?;
        a.sub(rcx, rdx)?;
        a.cmp(rcx, layout::DATA_LEN as i32)?;
        a.jae(not)?;
        a.shr(ecx, 12)?;
        let entries = (HIGH + table + (layout::DATA >> 12) * 8) as i64 as i32;
        a.lea(rdx, qword_ptr(rcx * 8 + entries))?;
        a.btr(qword_ptr(rdx), 9)?;
        a.jnc(not)?;
        a.or(qword_ptr(rdx), 7)?;
        a.jmp(retry)?;
        a.set_label(&mut not)?;
        a.nop()?;
    }
    Ok(())
}

/// Change the frame so that execution goes on behind the instruction, or returns from
/// a window, or recovers.
fn skip_instruction(a: &mut CodeAssembler, done: CodeLabel) -> Result<(), IcedError> {
    let mut from_window = a.create_label();
    a.mov(rax, qword_ptr(rsp + frame::RIP))?;
    for base in [LOW, HIGH] {
        let mut not = a.create_label();
        a.mov(rcx, rax)?;
        a.mov(rdx, base + layout::CODE)?;
        a.sub(rcx, rdx)?;
        a.cmp(rcx, layout::CODE_LEN as i32)?;
        a.jae(not)?;
        a.movzx(edx, byte_ptr(rcx + (HIGH + layout::LENGTHS) as i64 as i32))?;
        a.test(edx, edx)?;
        a.je(not)?;
        a.add(qword_ptr(rsp + frame::RIP), rdx)?;
        a.jmp(done)?;
        a.set_label(&mut not)?;
        a.mov(rcx, rax)?;
        a.mov(rdx, base + layout::WINDOWS)?;
        a.sub(rcx, rdx)?;
        a.cmp(rcx, (layout::WINDOW_COUNT << 12) as i32)?;
        a.jb(from_window)?;
    }
    a.mov(rax, own(system::RECOVER))?;
    a.mov(qword_ptr(rsp + frame::RIP), rax)?;
    a.mov(qword_ptr(rsp + frame::CS), layout::KERNEL_CS as i32)?;
    a.mov(qword_ptr(rsp + frame::RFLAGS), 2)?;
    a.mov(rax, HIGH + layout::KERNEL_STACK_TOP)?;
    a.mov(qword_ptr(rsp + frame::RSP), rax)?;
    a.mov(qword_ptr(rsp + frame::SS), layout::KERNEL_SS as i32)?;
    a.jmp(done)?;
    a.set_label(&mut from_window)?;
    let variables = HIGH + layout::VARIABLES;
    a.mov(rax, qword_ptr(variables + variable::WINDOW_RETURN))?;
    a.mov(qword_ptr(rsp + frame::RIP), rax)?;
    a.mov(rax, qword_ptr(variables + variable::WINDOW_RETURN + 8))?;
    a.mov(qword_ptr(rsp + frame::RSP), rax)?;
    a.jmp(done)
}

/// EAX 1 leaves user code, anything else is counted.
fn system_call(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut leave = a.create_label();
    a.swapgs()?;
    a.mov(own(system::USER_STACK), rsp)?;
    a.mov(rsp, HIGH + layout::ENTRY_STACK_TOP)?;
    a.push(rcx)?;
    a.push(r11)?;
    a.cmp(eax, 1)?;
    a.je(leave)?;
    a.inc(own(system::CALLS))?;
    a.pop(r11)?;
    a.pop(rcx)?;
    a.mov(rsp, own(system::USER_STACK))?;
    a.swapgs()?;
    a.sysretq()?;
    a.set_label(&mut leave)?;
    a.swapgs()?;
    a.mov(rsp, own(system::LEFT))?;
    a.jmp(own(system::LEFT + 8))
}
