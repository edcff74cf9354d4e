//! Vigilant blocks: for code that is rewritten again and again.
//!
//! A page with code has no store entry, so a store to code leaves translated code, and
//! what it changed is translated anew: both cost a thousand times the store. Code that
//! has been rewritten a few times becomes a vigilant block. Whenever it is entered it
//! compares the guest's bytes with those it was made from; so its page is not marked,
//! and stores to it are plain stores. Constants, which are what programs patch, are not
//! compared but read from the guest's bytes as data.
//!
//! A vigilant block stores nothing, so it cannot change itself on the way; what other
//! processors and devices store meanwhile has no order with it. Each entry takes one of
//! a number of turns that all these blocks of a vCPU share; the one that finds none left
//! is made anew as an ordinary block, until it is rewritten as often again.

use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpKind};

use super::Builder;
use super::access::gpr_number;
use super::facts::Facts;
use crate::emit::Mem;
use crate::layout::{PINNED, gs, host};

/// Most guest bytes of such a block: each costs some four bytes of code.
const MOST_BYTES: u64 = 64;

/// How the constant of an instruction is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 32 bits, as the operand of an instruction of 32 bits.
    Double,
    /// 32 bits that are sign-extended to 64.
    Extended,
    /// 64 bits.
    Quad,
}

/// An instruction with a constant that is read as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Constant {
    kind: Kind,
    /// The same instruction with a register or memory as its second operand.
    opcode: u8,
    /// Host register of its first.
    register: u8,
    /// The constant's address, and its size in bytes.
    at: u64,
    size: u64,
}

/// An instruction's constant, if it is one that is read as data.
fn constant(i: &Instruction) -> Option<Constant> {
    use Mnemonic as M;
    if i.op_count() != 2 || i.op0_kind() != OpKind::Register {
        return None;
    }
    let opcode = match i.mnemonic() {
        M::Add => 0x03,
        M::Or => 0x0b,
        M::Adc => 0x13,
        M::Sbb => 0x1b,
        M::And => 0x23,
        M::Sub => 0x2b,
        M::Xor => 0x33,
        M::Cmp => 0x3b,
        M::Mov => 0x8b,
        _ => return None,
    };
    let (kind, size) = match (i.op1_kind(), i.op0_register().size()) {
        (OpKind::Immediate32, 4) => (Kind::Double, 4),
        (OpKind::Immediate32to64, 8) => (Kind::Extended, 4),
        (OpKind::Immediate64, 8) => (Kind::Quad, 8),
        _ => return None,
    };
    // What is known of RSP follows from constants.
    let guest = gpr_number(i.op0_register()).filter(|n| *n != 4)?;
    Some(Constant { kind, opcode, register: PINNED[guest]?, at: i.next_ip().wrapping_sub(size), size })
}

/// How the bytes `from..to` are compared: pieces of four bytes, two or one, given by
/// their offset and size. The last of four may overlap the one before.
fn pieces(from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = from;
    std::iter::from_fn(move || {
        let left = to.checked_sub(at).filter(|left| *left > 0)?;
        let (place, size) = match left {
            4.. => (at, 4),
            _ if to - from >= 4 => (to - 4, 4),
            2.. => (at, 2),
            _ => (at, 1),
        };
        at = place + size;
        Some((place, size))
    })
}

impl Builder<'_> {
    /// Whether a vigilant block may go on with an instruction: it stores nothing.
    pub(super) fn may_be_vigilant(&self, i: &Instruction, facts: &Facts) -> bool {
        let stores = facts.memory(i).is_some_and(|n| {
            let access = facts.access.get(n as usize);
            !access.is_some_and(|a| {
                matches!(a, OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess)
            })
        });
        let pops = matches!(i.code(), Code::Pop_r64 | Code::Retnq | Code::Retnq_imm16);
        let long = i.next_ip().wrapping_sub(self.r.va) > MOST_BYTES;
        !long && !stores && (!facts.stack || pops) && !facts.system && !facts.string
    }

    /// Leave by the stub at `leave` unless a turn is left and the guest's bytes, from this
    /// host address on, are those that `list` was made from.
    pub(super) fn be_vigilant(&mut self, list: &[Instruction], from: u64, leave: usize) {
        self.e.load(host::TEMP, Mem::gs(gs!(turns)));
        let left = self.e.jrcxz();
        self.e.patch_u8(left, leave.wrapping_sub(left + 1) as u8);
        self.e.lea(host::TEMP, Mem::base(host::TEMP, -1));
        self.e.store(Mem::gs(gs!(turns)), host::TEMP);
        self.e.mov_imm(host::ADDRESS, from);
        let mut begin = 0;
        for i in list {
            if let Some(c) = constant(i) {
                let at = c.at.wrapping_sub(self.r.va) as usize;
                self.compare_bytes(begin, at, leave);
                begin = at + c.size as usize;
            }
        }
        let end = list.last().map_or(0, |i| i.next_ip().wrapping_sub(self.r.va) as usize);
        self.compare_bytes(begin, end, leave);
    }

    /// Leave unless the bytes at these offsets are what they were; ADDRESS is the first's.
    fn compare_bytes(&mut self, from: usize, to: usize, leave: usize) {
        let bytes = self.r.bytes;
        for (at, size) in pieces(from, to) {
            let m = Mem::base(host::ADDRESS, at as i32);
            match size {
                4 => self.e.load32(host::TEMP, m),
                2 => self.e.op_mem(false, &[0x0f, 0xb7], host::TEMP, m),
                _ => self.e.load_byte(host::TEMP, m),
            }
            let mut expected = [0; 4];
            expected[..size].copy_from_slice(&bytes[at..at + size]);
            self.e.lea32(host::TEMP, Mem::base(host::TEMP, i32::from_le_bytes(expected).wrapping_neg()));
            let same = self.e.jrcxz();
            self.e.jmp_back(leave);
            let reached = self.e.land_short(same);
            debug_assert!(reached, "a jump is short");
        }
    }

    /// In a vigilant block, an instruction whose constant is read as data. False: none.
    pub(super) fn with_constant(&mut self, i: &Instruction) -> bool {
        let (Some(from), Some(c)) = (self.r.vigilant, constant(i)) else { return false };
        self.e.mov_imm(host::ADDRESS, from.wrapping_add(c.at.wrapping_sub(self.r.va)));
        let m = Mem::base(host::ADDRESS, 0);
        match c.kind {
            Kind::Double => self.e.op_mem(false, &[c.opcode], c.register, m),
            Kind::Quad => self.e.op_mem(true, &[c.opcode], c.register, m),
            Kind::Extended => {
                // MOVSXD r64, dword.
                self.e.op_mem(true, &[0x63], host::TEMP, m);
                let rex = 0x48 | (c.register >> 3) << 2;
                self.e.bytes(&[rex, c.opcode, 0xc0 | (c.register & 7) << 3 | host::TEMP]);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    #[test]
    fn every_byte_is_in_a_piece_and_no_other() {
        for from in 0..3 {
            for to in from..from + 20 {
                let mut seen = [false; 32];
                for (at, size) in pieces(from, to) {
                    assert!(at >= from && at + size <= to, "{at}+{size} of {from}..{to}");
                    seen[at..at + size].fill(true);
                }
                assert_eq!(seen.iter().filter(|s| **s).count(), to - from, "{from}..{to}");
            }
        }
    }

    #[test]
    fn constants_that_are_data() {
        let check = |code: &[u8], expected: Option<(Kind, u64)>| {
            let i = Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE).decode();
            assert_eq!(constant(&i).map(|c| (c.kind, c.at)), expected, "{i}");
        };
        check(&[0x48, 0x05, 1, 0, 0, 0], Some((Kind::Extended, 0x1002))); // add rax, 1
        check(&[0x05, 1, 0, 0, 0], Some((Kind::Double, 0x1001))); // add eax, 1
        check(&[0x81, 0xf9, 1, 0, 0, 0], Some((Kind::Double, 0x1002))); // cmp ecx, 1
        check(&[0xb8, 1, 0, 0, 0], Some((Kind::Double, 0x1001))); // mov eax, 1
        check(&[0x48, 0xb8, 1, 0, 0, 0, 0, 0, 0, 0], Some((Kind::Quad, 0x1002))); // mov rax, 1
        check(&[0x48, 0x83, 0xc0, 1], None); // add rax, 1 in a byte
        check(&[0x48, 0x81, 0xc4, 0, 1, 0, 0], None); // add rsp, 0x100
        check(&[0x49, 0x81, 0xc2, 0, 1, 0, 0], None); // add r10, 0x100: in the state
        check(&[0x81, 0x00, 1, 0, 0, 0], None); // add dword [rax], 1
    }
}
