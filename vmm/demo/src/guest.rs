//! The demo guest's source.
//!
//! Assembled at run time, one piece for each mode it passes through. Phase
//! marks tell the observer when each part begins and ends.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::layout::{address, selector};
use crate::machine::port;

/// Phase numbers, as written to [`port::MARK`] at the phase's begin, and with
/// [`phase::END`] added at its end.
pub mod phase {
    #![allow(missing_docs, reason = "the names say it")]
    pub const HELLO: u32 = 1;
    pub const COMPUTE: u32 = 2;
    pub const MEMORY: u32 = 3;
    pub const TIMER: u32 = 4;
    pub const USER: u32 = 5;
    pub const SYSCALLS: u32 = 6;
    pub const END: u32 = 0x100;
}

/// Exit status of a guest that found everything right.
pub const SUCCESS: u32 = 0x600d;
/// Exit status, plus the vector, of a guest that took an exception it did not expect.
pub const UNEXPECTED: u32 = 0xe000;
/// What it says.
pub const HELLO: &str = "Hello from long mode.\n";
/// Timer interrupts waited for.
pub const TICKS: u32 = 20;
/// Timer period in nanoseconds.
pub const TICK_NS: u32 = 1_000_000;
/// 64-bit words written and checked in the memory phase.
pub const WORDS: u32 = 32 * 1024;
/// Instructions of one iteration of the compute loop.
pub const COMPUTE_INSTRUCTIONS: u32 = 6;
/// Multiplier and increment of the compute loop (Knuth's MMIX generator).
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
const INCREMENT: u64 = 1_442_695_040_888_963_407;

const TIMER_VECTOR: u8 = 0x20;
const APIC: u64 = 0xfee0_0000;
/// Where the interrupt handler counts ticks.
const TICK_COUNT: u64 = address::DATA - 8;
const HELLO_TEXT: u64 = address::DATA - 0x100;
const GDT_POINTER: u64 = address::DATA - 0x200;

/// A piece of the guest: what and where.
pub struct Piece {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub bytes: Vec<u8>,
}

/// Interrupt vectors and the addresses of their handlers.
pub type Handlers = Vec<(u8, u64)>;

/// The demo guest.
pub struct Guest {
    /// All its pieces.
    pub pieces: Vec<Piece>,
    /// Handler of each interrupt vector it uses.
    pub handlers: Handlers,
}

/// Assemble the guest.
///
/// # Errors
/// Never for the source as it is; the assembler's error otherwise.
pub fn assemble() -> Result<Guest, IcedError> {
    let (kernel, handlers) = kernel()?;
    let pieces = vec![
        Piece { address: address::REAL_CODE, bytes: real_mode()? },
        Piece { address: address::PROTECTED_CODE, bytes: protected_mode()? },
        Piece { address: address::CODE, bytes: kernel },
        Piece { address: address::USER_CODE, bytes: user()? },
        Piece { address: HELLO_TEXT, bytes: format!("{HELLO}\0").into_bytes() },
        Piece { address: GDT_POINTER, bytes: crate::layout::gdt_pointer().to_vec() },
    ];
    Ok(Guest { pieces, handlers })
}

/// A far jump through a pointer that follows the instruction: `db 66?, ea, ...`
/// has no mnemonic in the assembler.
fn far_jump_32(a: &mut CodeAssembler, prefix: &[u8], target: u32, selector: u16) -> Result<(), IcedError> {
    let mut bytes = prefix.to_vec();
    bytes.push(0xea);
    bytes.extend(target.to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    a.db(&bytes)
}

/// Real mode: load the GDT, switch protection on.
fn real_mode() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    a.cli()?;
    // LGDT with a 32-bit offset: the pointer is above 64 KiB, so through a segment.
    a.mov(ax, (GDT_POINTER >> 4 & 0xf000) as i32)?;
    a.mov(ds, ax)?;
    // o32 lgdt [GDT_POINTER & 0xffff]
    let offset = (GDT_POINTER & 0xffff) as u16;
    a.db(&[0x66, 0x0f, 0x01, 0x16, offset as u8, (offset >> 8) as u8])?;
    a.mov(eax, cr0)?;
    a.or(eax, 1)?;
    a.mov(cr0, eax)?;
    far_jump_32(&mut a, &[0x66], address::PROTECTED_CODE as u32, selector::CODE32)?;
    a.assemble(address::REAL_CODE)
}

/// Protected mode: paging and long mode on.
fn protected_mode() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.mov(eax, i32::from(selector::DATA))?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(segment, eax)?;
    }
    a.mov(esp, address::STACK as i32)?;
    // PAE, OSFXSR, OSXMMEXCPT.
    a.mov(eax, 0x620)?;
    a.mov(cr4, eax)?;
    a.mov(eax, address::PML4 as i32)?;
    a.mov(cr3, eax)?;
    // EFER.LME and SCE.
    a.mov(ecx, 0xc000_0080u32)?;
    a.rdmsr()?;
    a.or(eax, 0x101)?;
    a.wrmsr()?;
    // Paging, write protection, native x87 errors.
    a.mov(eax, cr0)?;
    a.or(eax, 0x8001_0022u32 as i32)?;
    a.mov(cr0, eax)?;
    far_jump_32(&mut a, &[], address::CODE as u32, selector::CODE64)?;
    a.assemble(address::PROTECTED_CODE)
}

fn mark(a: &mut CodeAssembler, number: u32) -> Result<(), IcedError> {
    a.mov(eax, number)?;
    a.mov(edx, u32::from(port::MARK))?;
    a.out(dx, eax)
}

fn report(a: &mut CodeAssembler, value: AsmRegister32) -> Result<(), IcedError> {
    a.mov(eax, value)?;
    a.mov(edx, u32::from(port::VALUE))?;
    a.out(dx, eax)
}

fn write_msr(a: &mut CodeAssembler, index: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}

/// Long mode, ring 0.
fn kernel() -> Result<(Vec<u8>, Handlers), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut exceptions: Vec<CodeLabel> = (0..32).map(|_| a.create_label()).collect();
    let mut tick = a.create_label();
    let mut system_call = a.create_label();
    let mut after_user = a.create_label();
    hello(&mut a)?;
    compute(&mut a)?;
    memory(&mut a)?;
    timer(&mut a)?;
    enter_user(&mut a, system_call)?;
    a.set_label(&mut after_user)?;
    a.mov(eax, SUCCESS)?;
    a.mov(edx, u32::from(port::EXIT))?;
    a.out(dx, eax)?;
    let mut stop = a.create_label();
    a.set_label(&mut stop)?;
    a.hlt()?;
    a.jmp(stop)?;

    a.set_label(&mut tick)?;
    a.push(rax)?;
    a.inc(dword_ptr(TICK_COUNT))?;
    a.mov(rax, APIC + 0xb0)?;
    a.mov(dword_ptr(rax), 0)?;
    a.pop(rax)?;
    a.iretq()?;

    // System calls by number in EAX: 0 nothing, 1 mark EDI, 2 read the count, 3 leave ring 3.
    a.set_label(&mut system_call)?;
    let (mut not_mark, mut not_count, mut back) = (a.create_label(), a.create_label(), a.create_label());
    a.test(eax, eax)?;
    a.jz(back)?;
    a.cmp(eax, 1)?;
    a.jne(not_mark)?;
    a.mov(eax, edi)?;
    a.mov(edx, u32::from(port::MARK))?;
    a.out(dx, eax)?;
    a.jmp(back)?;
    a.set_label(&mut not_mark)?;
    a.cmp(eax, 2)?;
    a.jne(not_count)?;
    a.mov(edx, u32::from(port::COUNT))?;
    a.in_(eax, dx)?;
    a.jmp(back)?;
    a.set_label(&mut not_count)?;
    a.mov(rsp, address::STACK)?;
    a.jmp(after_user)?;
    a.set_label(&mut back)?;
    a.sysretq()?;

    for (vector, label) in exceptions.iter_mut().enumerate() {
        a.set_label(label)?;
        a.mov(eax, UNEXPECTED + vector as u32)?;
        a.mov(edx, u32::from(port::EXIT))?;
        a.out(dx, eax)?;
        a.jmp(stop)?;
    }
    let code =
        a.assemble_options(address::CODE, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let mut handlers = Vec::new();
    for (vector, label) in exceptions.iter().enumerate() {
        handlers.push((vector as u8, code.label_ip(label)?));
    }
    handlers.push((TIMER_VECTOR, code.label_ip(&tick)?));
    Ok((code.inner.code_buffer, handlers))
}

/// Say hello on the serial port, waiting for the transmitter each time.
fn hello(a: &mut CodeAssembler) -> Result<(), IcedError> {
    mark(a, phase::HELLO)?;
    let (mut next, mut wait, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rsi, HELLO_TEXT)?;
    a.set_label(&mut next)?;
    a.mov(bl, byte_ptr(rsi))?;
    a.inc(rsi)?;
    a.test(bl, bl)?;
    a.jz(end)?;
    a.mov(edx, u32::from(port::SERIAL + 5))?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.jz(wait)?;
    a.mov(edx, u32::from(port::SERIAL))?;
    a.mov(al, bl)?;
    a.out(dx, al)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    mark(a, phase::HELLO + phase::END)
}

/// The measured loop: as many iterations as ECX says, result in R8.
fn compute_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r9, MULTIPLIER)?;
    a.mov(r10, INCREMENT)?;
    a.mov(r8d, 1)?;
    a.xor(ebx, ebx)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.imul_2(r8, r9)?;
    a.add(r8, r10)?;
    a.mov(rax, r8)?;
    a.xor(rbx, rax)?;
    a.dec(ecx)?;
    a.jnz(again)
}

/// The loop, repeated with counts from the observer until that is 0.
fn compute(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut end) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(edx, u32::from(port::COUNT))?;
    a.in_(eax, dx)?;
    a.test(eax, eax)?;
    a.jz(end)?;
    a.mov(esi, eax)?;
    mark(a, phase::COMPUTE)?;
    a.mov(ecx, esi)?;
    compute_loop(a)?;
    mark(a, phase::COMPUTE + phase::END)?;
    a.mov(rax, rbx)?;
    a.shr(rax, 32)?;
    a.mov(edi, eax)?;
    report(a, edi)?;
    a.jmp(again)?;
    a.set_label(&mut end)?;
    a.nop()
}

/// Write a pattern over memory and read it back; report the count of errors.
fn memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    mark(a, phase::MEMORY)?;
    let (mut write, mut check, mut right) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rdi, address::DATA)?;
    a.mov(ecx, WORDS)?;
    a.xor(ebx, ebx)?;
    a.set_label(&mut write)?;
    a.lea(rax, qword_ptr(rdi + rbx * 8))?;
    a.mov(qword_ptr(rdi + rbx * 8), rax)?;
    a.inc(ebx)?;
    a.cmp(ebx, ecx)?;
    a.jne(write)?;
    a.xor(ebx, ebx)?;
    a.xor(esi, esi)?;
    a.set_label(&mut check)?;
    a.lea(rax, qword_ptr(rdi + rbx * 8))?;
    a.cmp(rax, qword_ptr(rdi + rbx * 8))?;
    a.je(right)?;
    a.inc(esi)?;
    a.set_label(&mut right)?;
    a.inc(ebx)?;
    a.cmp(ebx, ecx)?;
    a.jne(check)?;
    mark(a, phase::MEMORY + phase::END)?;
    report(a, esi)
}

/// Wait, halted, for a number of interrupts of the local APIC's timer.
fn timer(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    // LIDT from the stack.
    a.mov(rax, address::IDT)?;
    a.push(rax)?;
    a.mov(word_ptr(rsp - 2), 0xfff)?;
    a.lidt(ptr(rsp - 2))?;
    a.pop(rax)?;
    a.mov(ax, u32::from(selector::TSS))?;
    a.ltr(ax)?;
    a.mov(dword_ptr(TICK_COUNT), 0)?;
    mark(a, phase::TIMER)?;
    a.mov(rbx, APIC)?;
    a.mov(dword_ptr(rbx + 0xf0), 0x1ff)?;
    // Divide by 1, periodic.
    a.mov(dword_ptr(rbx + 0x3e0), 0xb)?;
    a.mov(dword_ptr(rbx + 0x320), 1 << 17 | u32::from(TIMER_VECTOR))?;
    a.mov(dword_ptr(rbx + 0x380), TICK_NS)?;
    a.set_label(&mut wait)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.cmp(dword_ptr(TICK_COUNT), TICKS)?;
    a.jb(wait)?;
    a.mov(dword_ptr(rbx + 0x380), 0)?;
    mark(a, phase::TIMER + phase::END)
}

/// Set system calls up and go to ring 3.
fn enter_user(a: &mut CodeAssembler, system_call: CodeLabel) -> Result<(), IcedError> {
    write_msr(
        a,
        0xc000_0081,
        u64::from(selector::SYSRET_BASE | 3) << 48 | u64::from(selector::CODE64) << 32,
    )?;
    a.lea(rax, ptr(system_call))?;
    a.mov(rdx, rax)?;
    a.shr(rdx, 32)?;
    a.mov(ecx, 0xc000_0082u32)?;
    a.wrmsr()?;
    // Interrupts off in system calls.
    write_msr(a, 0xc000_0084, 0x200)?;
    a.push(i32::from(selector::USER_DATA | 3))?;
    a.push(address::USER_STACK as i32)?;
    a.push(0x2)?;
    a.push(i32::from(selector::USER_CODE64 | 3))?;
    a.push(address::USER_CODE as i32)?;
    a.iretq()
}

fn call_kernel(a: &mut CodeAssembler, number: u32, argument: u32) -> Result<(), IcedError> {
    a.mov(edi, argument)?;
    a.mov(eax, number)?;
    a.syscall()
}

/// Ring 3: the measured loop again, then empty system calls.
fn user() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut again, mut calls) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    call_kernel(&mut a, 2, 0)?;
    a.test(eax, eax)?;
    a.jz(calls)?;
    a.mov(esi, eax)?;
    call_kernel(&mut a, 1, phase::USER)?;
    a.mov(ecx, esi)?;
    compute_loop(&mut a)?;
    call_kernel(&mut a, 1, phase::USER + phase::END)?;
    a.jmp(again)?;
    let (mut call, mut end) = (a.create_label(), a.create_label());
    a.set_label(&mut calls)?;
    call_kernel(&mut a, 2, 0)?;
    a.test(eax, eax)?;
    a.jz(end)?;
    a.mov(ebp, eax)?;
    call_kernel(&mut a, 1, phase::SYSCALLS)?;
    a.set_label(&mut call)?;
    a.xor(eax, eax)?;
    a.syscall()?;
    a.dec(ebp)?;
    a.jnz(call)?;
    call_kernel(&mut a, 1, phase::SYSCALLS + phase::END)?;
    a.jmp(calls)?;
    a.set_label(&mut end)?;
    call_kernel(&mut a, 3, 0)?;
    a.assemble(address::USER_CODE)
}

/// What the compute loop leaves after `iterations`: the value the guest reports.
pub fn compute_result(iterations: u32) -> u32 {
    let (mut x, mut sum) = (1u64, 0u64);
    for _ in 0..iterations {
        x = x.wrapping_mul(MULTIPLIER).wrapping_add(INCREMENT);
        sum ^= x;
    }
    (sum >> 32) as u32
}
