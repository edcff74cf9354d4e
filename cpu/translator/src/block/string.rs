//! MOVS, STOS, LODS, CMPS and SCAS. Single ones are ordinary accesses; repeated
//! ones call a thunk that does them a page at a time.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::Builder;
use super::access::{Access, Place};
use crate::emit::Mem;
use crate::layout::{PINNED, gs, host};
use crate::string_thunks::{PAYLOAD_OPCODE, Repeated};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
}

/// What an instruction does, and the size of its elements.
fn form(i: &Instruction) -> Option<(Kind, usize)> {
    Some(match i.code() {
        Code::Movsb_m8_m8 => (Kind::Movs, 1),
        Code::Movsw_m16_m16 => (Kind::Movs, 2),
        Code::Movsd_m32_m32 => (Kind::Movs, 4),
        Code::Movsq_m64_m64 => (Kind::Movs, 8),
        Code::Stosb_m8_AL => (Kind::Stos, 1),
        Code::Stosw_m16_AX => (Kind::Stos, 2),
        Code::Stosd_m32_EAX => (Kind::Stos, 4),
        Code::Stosq_m64_RAX => (Kind::Stos, 8),
        Code::Lodsb_AL_m8 => (Kind::Lods, 1),
        Code::Lodsw_AX_m16 => (Kind::Lods, 2),
        Code::Lodsd_EAX_m32 => (Kind::Lods, 4),
        Code::Lodsq_RAX_m64 => (Kind::Lods, 8),
        Code::Cmpsb_m8_m8 => (Kind::Cmps, 1),
        Code::Cmpsw_m16_m16 => (Kind::Cmps, 2),
        Code::Cmpsd_m32_m32 => (Kind::Cmps, 4),
        Code::Cmpsq_m64_m64 => (Kind::Cmps, 8),
        Code::Scasb_AL_m8 => (Kind::Scas, 1),
        Code::Scasw_AX_m16 => (Kind::Scas, 2),
        Code::Scasd_EAX_m32 => (Kind::Scas, 4),
        Code::Scasq_RAX_m64 => (Kind::Scas, 8),
        _ => return None,
    })
}

/// Host registers of guest RSI and RDI.
const SOURCE: u8 = host::RSI;
const DESTINATION: u8 = host::R8;
const _: () =
    assert!(matches!((PINNED[6], PINNED[7], PINNED[1]), (Some(SOURCE), Some(DESTINATION), Some(host::R10))));

/// Whether a string instruction is one that is translated: 64-bit addresses, no
/// segment base, and not REP LODS, which nobody uses.
pub(super) fn is_native(i: &Instruction) -> bool {
    let Some((kind, _)) = form(i) else { return false };
    let wide = (0..i.op_count()).all(|n| {
        !matches!(
            i.op_kind(n),
            OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemoryESDI | OpKind::MemoryESEDI
        )
    });
    let based = matches!(i.segment_prefix(), Register::FS | Register::GS);
    wide && !based && !(kind == Kind::Lods && repeats(i))
}

fn repeats(i: &Instruction) -> bool {
    i.has_rep_prefix() || i.has_repne_prefix()
}

impl Builder<'_> {
    /// `None`: not a string instruction.
    pub(super) fn string(&mut self, i: &Instruction) -> Option<()> {
        let (kind, size) = form(i)?;
        if repeats(i) {
            self.repeated(kind, size, i.has_rep_prefix());
            Some(())
        } else {
            self.element(kind, size)
        }
    }

    /// `call thunk; mov ecx, payload`: the thunk finds the payload if it must leave.
    fn repeated(&mut self, kind: Kind, size: usize, equal: bool) {
        let kind = match kind {
            Kind::Movs | Kind::Lods => Repeated::Movs,
            Kind::Stos => Repeated::Stos,
            Kind::Cmps if equal => Repeated::CmpsEqual,
            Kind::Cmps => Repeated::CmpsDifferent,
            Kind::Scas if equal => Repeated::ScasEqual,
            Kind::Scas => Repeated::ScasDifferent,
        };
        let thunk = self.r.strings.of(kind, size);
        self.e.branch(&[0xe8], self.r.at, thunk, &[]);
        self.e.bytes(&[PAYLOAD_OPCODE]);
        self.e.u32(self.index.into());
    }

    fn element(&mut self, kind: Kind, size: usize) -> Option<()> {
        if matches!(kind, Kind::Movs | Kind::Cmps) {
            let source = self.look_up(Access::Load, Place::Register(SOURCE, 0), size, false)?;
            self.sized(size, 0x8a, host::TEMP, source.mem());
            self.e.store(Mem::gs(gs!(scratch)), host::TEMP);
        }
        let register = if kind == Kind::Lods { SOURCE } else { DESTINATION };
        let access = if matches!(kind, Kind::Movs | Kind::Stos) { Access::Store } else { Access::Load };
        let found = self.look_up(access, Place::Register(register, 0), size, false)?;
        let operand = found.mem();
        match kind {
            Kind::Movs | Kind::Cmps => {
                self.fold(found);
                self.e.load(host::TEMP, Mem::gs(gs!(scratch)));
                let opcode = if kind == Kind::Movs { 0x88 } else { 0x3a };
                self.sized(size, opcode, host::TEMP, Mem::base(host::ADDRESS, 0));
                self.e.lea(SOURCE, Mem::base(SOURCE, size as i32));
            }
            Kind::Stos => self.sized(size, 0x88, host::RAX, operand),
            Kind::Lods => self.sized(size, 0x8a, host::RAX, operand),
            Kind::Scas => self.sized(size, 0x3a, host::RAX, operand),
        }
        self.e.lea(register, Mem::base(register, size as i32));
        Some(())
    }

    /// An instruction of 1, 2, 4 or 8 bytes whose byte form has `opcode` and whose
    /// other forms have the next. Neither register needs REX.
    fn sized(&mut self, size: usize, opcode: u8, register: u8, m: Mem) {
        if size == 2 {
            self.e.bytes(&[0x66]);
        }
        self.e.op_mem(size == 8, &[opcode | u8::from(size > 1)], register, m);
    }
}
