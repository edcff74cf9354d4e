//! Repeated string instructions: the host's own `rep`, a page at a time.
//!
//! Each thunk is called by translated code with the guest's registers in place.
//! It looks up the pages, repeats up to the nearer page end (STOS: as far as pages
//! follow each other in the host too), and advances the
//! guest's registers before it looks again, so that whatever stops it leaves
//! the guest between two elements: the instruction can simply be executed again.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::layout::{Exit, StringState, gs};

/// A repeated string instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeated {
    Movs,
    Stos,
    /// CMPS while equal.
    CmpsEqual,
    /// CMPS while different.
    CmpsDifferent,
    /// SCAS while equal.
    ScasEqual,
    /// SCAS while different.
    ScasDifferent,
}

impl Repeated {
    const ALL: [Repeated; 6] = [
        Repeated::Movs,
        Repeated::Stos,
        Repeated::CmpsEqual,
        Repeated::CmpsDifferent,
        Repeated::ScasEqual,
        Repeated::ScasDifferent,
    ];

    /// It reads at RSI.
    fn has_source(self) -> bool {
        matches!(self, Repeated::Movs | Repeated::CmpsEqual | Repeated::CmpsDifferent)
    }

    /// It changes the flags, and may end by them.
    fn compares(self) -> bool {
        !matches!(self, Repeated::Movs | Repeated::Stos)
    }
}

/// Cache offsets of the thunks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StringThunks {
    /// By kind and binary logarithm of the element size.
    at: [[u32; 4]; 6],
}

impl StringThunks {
    /// The thunk for elements of `size` bytes (1, 2, 4 or 8).
    pub fn of(&self, kind: Repeated, size: usize) -> u32 {
        self.at[kind as usize][size.trailing_zeros() as usize & 3]
    }
}

/// What lies between the return address in translated code and the payload that
/// names the instruction: the opcode of `mov ecx, imm32`, which carries it.
pub(crate) const PAYLOAD_OPCODE: u8 = 0xb9;

/// Where a thunk keeps something: a field of [`StringState`].
macro_rules! saved {
    ($field:ident) => {
        qword_ptr((gs!(string) as i64 + std::mem::offset_of!(StringState, $field) as i64) as u64).gs()
    };
}

/// Guest RDI and RCX.
const DESTINATION: AsmRegister64 = r8;
const COUNT: AsmRegister64 = r10;

/// Assemble all for cache offset `at`, executing at `base`; `exits` are the exit
/// thunks by `Exit`.
pub(crate) fn assemble(base: u64, at: u32, exits: &[u32; 8]) -> Result<(Vec<u8>, StringThunks), IcedError> {
    let mut code: Vec<u8> = Vec::new();
    let mut thunks = StringThunks { at: [[0; 4]; 6] };
    for kind in Repeated::ALL {
        for shift in 0..4 {
            code.resize(code.len().next_multiple_of(16), 0xcc);
            let offset = at + code.len() as u32;
            let mut a = CodeAssembler::new(64)?;
            let exit = |e: Exit| base + u64::from(exits[e as usize]);
            thunk(&mut a, kind, shift, &exit)?;
            code.extend(a.assemble(base + u64::from(offset))?);
            thunks.at[kind as usize][shift as usize] = offset;
        }
    }
    Ok((code, thunks))
}

/// One thunk. Guest RAX, RDX and flags (AL as SETO, AH as LAHF give them) are in
/// the state meanwhile: the stack holds return addresses only.
fn thunk(
    a: &mut CodeAssembler,
    kind: Repeated,
    shift: u32,
    exit: &dyn Fn(Exit) -> u64,
) -> Result<(), IcedError> {
    let mut again = a.create_label();
    let mut nothing = a.create_label();
    let mut ended = a.create_label();
    let mut interpret = a.create_label();
    let mut miss_load = a.create_label();
    let mut miss_store = a.create_label();
    a.mov(rcx, COUNT)?;
    a.jrcxz(nothing)?;
    a.mov(saved!(rax), rax)?;
    a.mov(saved!(rdx), rdx)?;
    a.lahf()?;
    a.seto(al)?;
    a.mov(saved!(flags), rax)?;
    a.set_label(&mut again)?;
    if kind.has_source() {
        a.mov(rdi, rsi)?;
        a.pext(rcx, rdi, r14)?;
        a.mov(rcx, qword_ptr(r15 + rcx * 8))?;
        a.jrcxz(miss_load)?;
        a.lea(rdx, qword_ptr(rdi + rcx))?;
    }
    a.mov(rdi, DESTINATION)?;
    a.pext(rcx, rdi, r14)?;
    if kind.compares() {
        a.mov(rcx, qword_ptr(r15 + rcx * 8))?;
        a.jrcxz(miss_load)?;
    } else {
        a.mov(rcx, qword_ptr(rcx * 8).gs())?;
        a.jrcxz(miss_store)?;
    }
    a.add(rdi, rcx)?;
    let mut straddles = a.create_label();
    let stores = kind == Repeated::Stos;
    elements(a, kind, shift, if stores { straddles } else { interpret }, interpret)?;
    repeat(a, kind, shift, ended)?;
    let mut onward = a.create_label();
    a.set_label(&mut onward)?;
    a.mov(saved!(between), 1)?;
    a.cmp(dword_ptr(gs!(token) as i64 as u64).gs(), 0)?;
    a.jne(again)?;
    for (label, why) in [
        (&mut interpret, Exit::Interpret),
        (&mut miss_load, Exit::MissLoad),
        (&mut miss_store, Exit::MissStore),
    ] {
        if why == Exit::MissStore && kind.compares() {
            break;
        }
        a.set_label(label)?;
        restore(a)?;
        a.pop(rcx)?;
        a.lea(rcx, qword_ptr(rcx + 1))?;
        a.push(rcx)?;
        a.jmp(exit(why))?;
    }
    a.set_label(&mut ended)?;
    a.mov(saved!(between), 0)?;
    restore(a)?;
    a.set_label(&mut nothing)?;
    a.ret()?;
    if stores {
        a.set_label(&mut straddles)?;
        store_across(a, shift, miss_store, interpret)?;
        a.jne(onward)?;
        a.jmp(ended)?;
    }
    Ok(())
}

/// Store one element at RDI that ends in another page, advance the guest's registers;
/// ZF: that was all. Both pages are looked up before any byte is written.
fn store_across(
    a: &mut CodeAssembler,
    shift: u32,
    miss_store: CodeLabel,
    interpret: CodeLabel,
) -> Result<(), IcedError> {
    let size = 1 << shift;
    a.mov(rdx, rdi)?;
    a.lea(rdi, qword_ptr(DESTINATION + (size - 1)))?;
    a.pext(rcx, rdi, r14)?;
    a.mov(rcx, qword_ptr(rcx * 8).gs())?;
    a.jrcxz(miss_store)?;
    a.add(rdi, rcx)?;
    a.mov(rcx, rdi)?;
    a.shr(rcx, 47)?;
    a.jne(interpret)?;
    a.and(rdi, -0x1000)?;
    a.mov(rax, saved!(rax))?;
    let (mut byte, mut same_page) = (a.create_label(), a.create_label());
    a.mov(ecx, size)?;
    a.set_label(&mut byte)?;
    a.mov(byte_ptr(rdx), al)?;
    a.shr(rax, 8)?;
    a.inc(rdx)?;
    a.test(edx, 0xfff)?;
    a.jne(same_page)?;
    a.mov(rdx, rdi)?;
    a.set_label(&mut same_page)?;
    a.dec(ecx)?;
    a.jne(byte)?;
    a.lea(DESTINATION, qword_ptr(DESTINATION + size))?;
    a.dec(COUNT)
}

/// RCX more elements fit: those of the next pages too, as long as they follow in the
/// host's memory as they do in the guest's, up to some 64 KiB. Changes RAX and RDX.
fn extend(a: &mut CodeAssembler, shift: u32) -> Result<(), IcedError> {
    let size = 1 << shift;
    let (mut next, mut enough) = (a.create_label(), a.create_label());
    // The addend of these pages.
    a.mov(rdx, rdi)?;
    a.sub(rdx, DESTINATION)?;
    a.set_label(&mut next)?;
    a.cmp(rcx, COUNT)?;
    a.jae(enough)?;
    a.cmp(ecx, 0x1_0000 >> shift)?;
    a.jae(enough)?;
    // The last byte of the first element that does not fit.
    a.lea(rax, qword_ptr(DESTINATION + rcx * size + (size - 1)))?;
    a.pext(rax, rax, r14)?;
    a.cmp(rdx, qword_ptr(rax * 8).gs())?;
    a.jne(enough)?;
    a.add(ecx, 0x1000 >> shift)?;
    a.jmp(next)?;
    a.set_label(&mut enough)?;
    a.zero_bytes()
}

/// RCX = how many elements to do at once: what is left, within the pages that
/// hold RDI (and RDX). To `straddles` if an element crosses a page; to `interpret` if an
/// address is not canonical: it has found the entry of the page it aliases.
fn elements(
    a: &mut CodeAssembler,
    kind: Repeated,
    shift: u32,
    straddles: CodeLabel,
    interpret: CodeLabel,
) -> Result<(), IcedError> {
    a.mov(rcx, rdi)?;
    if kind.has_source() {
        a.or(rcx, rdx)?;
    }
    a.shr(rcx, 47)?;
    a.jne(interpret)?;
    a.mov(ecx, edi)?;
    a.and(ecx, 0xfff)?;
    if kind.has_source() {
        a.mov(eax, edx)?;
        a.and(eax, 0xfff)?;
        a.cmp(ecx, eax)?;
        a.cmovb(ecx, eax)?;
    }
    a.neg(ecx)?;
    a.add(ecx, 0x1000)?;
    if shift > 0 {
        a.shr(ecx, shift)?;
    }
    if kind == Repeated::Stos {
        extend(a, shift)?;
        a.test(ecx, ecx)?;
    }
    if shift > 0 {
        a.je(straddles)?;
    }
    a.cmp(rcx, COUNT)?;
    a.cmova(rcx, COUNT)
}

/// Repeat RCX times, advance the guest's registers; to `ended` when that was all.
fn repeat(a: &mut CodeAssembler, kind: Repeated, shift: u32, ended: CodeLabel) -> Result<(), IcedError> {
    let size = 1 << shift;
    // RDX: how many, or guest RSI with how many in RAX.
    if kind.has_source() {
        a.xchg(rsi, rdx)?;
        a.mov(rax, rcx)?;
    } else {
        a.mov(rdx, rcx)?;
        a.mov(rax, saved!(rax))?;
    }
    match kind {
        Repeated::Movs | Repeated::Stos => {
            let a = a.rep();
            match (kind == Repeated::Movs, shift) {
                (true, 0) => a.movsb(),
                (true, 1) => a.movsw(),
                (true, 2) => a.movsd(),
                (true, _) => a.movsq(),
                (false, 0) => a.stosb(),
                (false, 1) => a.stosw(),
                (false, 2) => a.stosd(),
                (false, _) => a.stosq(),
            }?;
        }
        _ => {
            a.mov(saved!(count), rax)?;
            let equal = matches!(kind, Repeated::CmpsEqual | Repeated::ScasEqual);
            let cmps = kind.has_source();
            let a = if equal { a.repe() } else { a.repne() };
            match (cmps, shift) {
                (true, 0) => a.cmpsb(),
                (true, 1) => a.cmpsw(),
                (true, 2) => a.cmpsd(),
                (true, _) => a.cmpsq(),
                (false, 0) => a.scasb(),
                (false, 1) => a.scasw(),
                (false, 2) => a.scasd(),
                (false, _) => a.scasq(),
            }?;
        }
    }
    if kind.compares() {
        a.lahf()?;
        a.seto(al)?;
        a.mov(saved!(flags), rax)?;
        a.mov(rax, saved!(count))?;
        if kind.has_source() { a.sub(rax, rcx) } else { a.sub(rdx, rcx) }?;
    }
    let done = if kind.has_source() {
        a.lea(rsi, qword_ptr(rdx + rax * size))?;
        rax
    } else {
        rdx
    };
    a.lea(DESTINATION, qword_ptr(DESTINATION + done * size))?;
    a.sub(COUNT, done)?;
    a.je(ended)?;
    if kind.compares() {
        // ZF as LAHF gives it.
        a.test(saved!(flags), 0x4000)?;
        let equal = matches!(kind, Repeated::CmpsEqual | Repeated::ScasEqual);
        if equal { a.je(ended) } else { a.jne(ended) }?;
    }
    Ok(())
}

/// Everything but the advanced registers as it was.
fn restore(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, saved!(flags))?;
    a.add(al, 0x7f)?;
    a.sahf()?;
    a.mov(rdx, saved!(rdx))?;
    a.mov(rax, saved!(rax))
}
