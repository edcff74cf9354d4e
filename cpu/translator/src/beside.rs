//! Stores beside code: guests that keep data in the pages they run from.
//!
//! A page with cached code has no entry in the store table, and an exit for each
//! store costs a hundred times the store. So a stub for a missing entry first
//! looks here: if the page is known to be writable and no code is cached of the
//! 64-byte lines that the store may touch, it goes on with the page's addend.
//!
//! On machines with one processor only: nobody else marks code while translated
//! code runs, so what the line map says holds until the store.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::layout::{State, StringState, gs};

/// A page with code that may be stored to.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside {
    /// Linear address of the page; [`NONE`] when this entry is free.
    page: u64,
    /// The store table in force: it stands for address space and privilege.
    table: u64,
    addend: u64,
    /// Host address of the page's line map.
    lines: u64,
}

/// Entries, a power of two.
pub(crate) const ENTRIES: usize = 16;
/// No page begins here.
const NONE: u64 = 1;
/// What stands between a stub's call and its payload: the start of a NOP whose
/// displacement the payload is.
pub(crate) const PAYLOAD_OPCODE: [u8; 3] = [0x0f, 0x1f, 0x40];
/// Most bytes a store looks up at once.
const WIDEST: i32 = 32;

const _: () = assert!(size_of::<Beside>() == 32, "the thunk scales the index by this");

impl State {
    /// Stores to `linear`'s page may go on beside the code that `lines` marks.
    pub fn allow_beside(&mut self, linear: u64, table: u64, addend: u64, lines: u64) {
        let page = linear & !0xfff;
        self.beside[(page >> 12) as usize % ENTRIES] = Beside { page, table, addend, lines };
    }

    /// No more stores beside code: what is where may have changed.
    pub fn forbid_beside(&mut self) {
        for b in &mut self.beside {
            b.page = NONE;
        }
    }
}

macro_rules! saved {
    ($field:ident) => {
        qword_ptr((gs!(string) as i64 + std::mem::offset_of!(StringState, $field) as i64) as u64).gs()
    };
}

macro_rules! entry {
    ($field:ident) => {
        qword_ptr(rax + (gs!(beside) + std::mem::offset_of!(Beside, $field) as i32)).gs()
    };
}

/// The thunk, called by a stub with the linear address in RDI: back with the
/// addend in RCX, or on to `exit` as if the stub had called that.
pub(crate) fn thunk(a: &mut CodeAssembler, exit: u64) -> Result<(), IcedError> {
    let mut no = a.create_label();
    a.mov(saved!(rax), rax)?;
    a.mov(saved!(rdx), rdx)?;
    a.lahf()?;
    a.seto(al)?;
    a.mov(saved!(flags), rax)?;
    a.mov(eax, edi)?;
    a.shr(eax, 12)?;
    a.and(eax, ENTRIES as i32 - 1)?;
    a.shl(eax, 5)?;
    a.mov(rdx, rdi)?;
    a.and(rdx, -0x1000)?;
    a.cmp(rdx, entry!(page))?;
    a.jne(no)?;
    a.rdgsbase(rdx)?;
    a.cmp(rdx, entry!(table))?;
    a.jne(no)?;
    a.mov(ecx, edi)?;
    a.and(ecx, 0xfff)?;
    a.cmp(ecx, 0x1000 - WIDEST)?;
    a.ja(no)?;
    a.mov(rdx, entry!(lines))?;
    a.mov(rdx, qword_ptr(rdx))?;
    a.shr(ecx, 6)?;
    a.bt(rdx, rcx)?;
    a.jc(no)?;
    a.mov(ecx, edi)?;
    a.and(ecx, 0xfff)?;
    a.add(ecx, WIDEST - 1)?;
    a.shr(ecx, 6)?;
    a.bt(rdx, rcx)?;
    a.jc(no)?;
    a.mov(rcx, entry!(addend))?;
    restore(a)?;
    a.ret()?;
    a.set_label(&mut no)?;
    restore(a)?;
    a.pop(rcx)?;
    a.lea(rcx, qword_ptr(rcx + PAYLOAD_OPCODE.len()))?;
    a.push(rcx)?;
    a.jmp(exit)
}

/// RAX, RDX and flags as they were.
fn restore(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, saved!(flags))?;
    a.add(al, 0x7f)?;
    a.sahf()?;
    a.mov(rdx, saved!(rdx))?;
    a.mov(rax, saved!(rax))
}
