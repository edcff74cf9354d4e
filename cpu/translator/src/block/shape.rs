//! Common forms of 64-bit instructions decoded by what was learnt of their opcodes.
//!
//! Own because the decoder takes ten times as long as this does for what most instructions
//! are: one opcode with registers, an address and a constant in the usual places. What an
//! opcode's instructions have in common is what the decoder made of the first one that was
//! met; of others only the registers, the address and the constant are taken from their
//! bytes. The decoder decodes all that is not of such a form. A test compares the two for
//! every opcode, prefix and ModRM byte.

use iced_x86::{Code, EncodingKind, Instruction, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind};
use iced_x86::{OpCodeTableKind, OpKind, Register};

use super::facts::{Known, Masks};

/// Registers that an operand may be, by number.
type Row = [Register; 16];

/// Numbers of rows in [`ROWS`]. [`BYTE_WITH_REX`] follows [`BYTE`].
const NONE: u8 = 0;
const BYTE: u8 = 1;
const BYTE_WITH_REX: u8 = 2;
const WORD: u8 = 3;
const DOUBLE: u8 = 4;
const QUAD: u8 = 5;
const VECTOR: u8 = 6;
const AL: u8 = 7;
const AX: u8 = 8;
const EAX: u8 = 9;
const RAX: u8 = 10;
const CL: u8 = 11;
const DX: u8 = 12;

static ROWS: [Row; 16] = {
    use Register as R;
    let mut rows = [[R::None; 16]; 16];
    rows[BYTE as usize] = [
        R::AL,
        R::CL,
        R::DL,
        R::BL,
        R::AH,
        R::CH,
        R::DH,
        R::BH,
        R::R8L,
        R::R9L,
        R::R10L,
        R::R11L,
        R::R12L,
        R::R13L,
        R::R14L,
        R::R15L,
    ];
    rows[BYTE_WITH_REX as usize] = [
        R::AL,
        R::CL,
        R::DL,
        R::BL,
        R::SPL,
        R::BPL,
        R::SIL,
        R::DIL,
        R::R8L,
        R::R9L,
        R::R10L,
        R::R11L,
        R::R12L,
        R::R13L,
        R::R14L,
        R::R15L,
    ];
    rows[WORD as usize] = [
        R::AX,
        R::CX,
        R::DX,
        R::BX,
        R::SP,
        R::BP,
        R::SI,
        R::DI,
        R::R8W,
        R::R9W,
        R::R10W,
        R::R11W,
        R::R12W,
        R::R13W,
        R::R14W,
        R::R15W,
    ];
    rows[DOUBLE as usize] = [
        R::EAX,
        R::ECX,
        R::EDX,
        R::EBX,
        R::ESP,
        R::EBP,
        R::ESI,
        R::EDI,
        R::R8D,
        R::R9D,
        R::R10D,
        R::R11D,
        R::R12D,
        R::R13D,
        R::R14D,
        R::R15D,
    ];
    rows[QUAD as usize] = [
        R::RAX,
        R::RCX,
        R::RDX,
        R::RBX,
        R::RSP,
        R::RBP,
        R::RSI,
        R::RDI,
        R::R8,
        R::R9,
        R::R10,
        R::R11,
        R::R12,
        R::R13,
        R::R14,
        R::R15,
    ];
    rows[VECTOR as usize] = [
        R::XMM0,
        R::XMM1,
        R::XMM2,
        R::XMM3,
        R::XMM4,
        R::XMM5,
        R::XMM6,
        R::XMM7,
        R::XMM8,
        R::XMM9,
        R::XMM10,
        R::XMM11,
        R::XMM12,
        R::XMM13,
        R::XMM14,
        R::XMM15,
    ];
    rows[AL as usize] = [R::AL; 16];
    rows[AX as usize] = [R::AX; 16];
    rows[EAX as usize] = [R::EAX; 16];
    rows[RAX as usize] = [R::RAX; 16];
    rows[CL as usize] = [R::CL; 16];
    rows[DX as usize] = [R::DX; 16];
    rows
};

/// What follows an opcode and its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Constant {
    None,
    Byte,
    Word,
    Double,
    Quad,
    /// How far a branch goes, in one byte or four.
    Near,
    Far,
}

/// A register operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Operand {
    /// Sixteen times its row.
    row: u8,
    /// Sixteen where any REX prefix means the next row.
    rex: u8,
    /// Its number is that of ModRM.rm, or the opcode's, instead of ModRM.reg's.
    rm: bool,
}

impl Operand {
    const NONE: Operand = Operand { row: NONE, rex: 0, rm: false };

    fn new(row: u8, rm: bool) -> Self {
        Operand { row: row << 4, rex: if row == BYTE { 16 } else { 0 }, rm }
    }

    #[inline(always)]
    fn register(&self, reg: u32, rm: u32, rex: u32) -> Register {
        let number = if self.rm { rm } else { reg };
        let next = if rex != 0 { self.rex } else { 0 };
        let place = usize::from(self.row.wrapping_add(next)) | (number & 15) as usize;
        ROWS[place >> 4 & 15][place & 15]
    }
}

/// What the instructions with one [`Opcode`] have in common.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// One without its registers, address and constant.
    instruction: Instruction,
    known: Known,
    operands: [Operand; 2],
    masks: Masks,
    /// The opcode is followed by a ModRM byte.
    modrm: bool,
    constant: Constant,
}

/// The place of what is known of an opcode: the byte itself, whether it follows 0F, which of
/// 66, F3 and F2 is in front of it, REX.W, and whether ModRM.rm would be a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Opcode {
    place: usize,
    /// Where it ends.
    end: usize,
    prefix: u32,
    rex: u32,
    escaped: bool,
    byte: u32,
    modrm: u32,
}

impl Opcode {
    const PLACES: usize = 1 << 13;

    #[inline(always)]
    fn of(bytes: &[u8; 16]) -> Opcode {
        let (mut end, mut byte) = (1, u32::from(bytes[0]));
        let (mut prefix, mut rex) = (0, 0);
        if byte == 0x66 || byte & 0xfe == 0xf2 {
            seldom();
            prefix = if byte == 0x66 { 1 } else { byte & 3 ^ 1 };
            byte = bytes[1].into();
            end = 2;
        }
        if byte & 0xf0 == 0x40 {
            rex = byte;
            byte = bytes[end].into();
            end += 1;
        }
        let escaped = byte == 0x0f;
        if escaped {
            byte = bytes[end].into();
            end += 1;
        }
        let modrm = u32::from(bytes[end]);
        let place =
            byte << 5 | u32::from(escaped) << 4 | prefix << 2 | rex >> 2 & 2 | u32::from(modrm >= 0xc0);
        Opcode { place: place as usize & (Self::PLACES - 1), end, prefix, rex, escaped, byte, modrm }
    }
}

/// Where this is called, the compiler prefers a branch to doing all that may be needed.
#[cold]
fn seldom() {}

/// In [`Shapes::places`]: nothing is known yet; the decoder's; it depends on ModRM.reg, and
/// the rest is the number of a group.
const UNKNOWN: u16 = 0x7fff;
const UNFIT: u16 = 0x7ffe;
const GROUP: u16 = 0x8000;

/// What is known of opcodes.
pub(super) struct Shapes {
    places: Box<[u16; Opcode::PLACES]>,
    groups: Vec<[u16; 8]>,
    list: Vec<Shape>,
}

impl Default for Shapes {
    fn default() -> Self {
        Shapes { places: Box::new([UNKNOWN; Opcode::PLACES]), groups: Vec::new(), list: Vec::new() }
    }
}

impl Shapes {
    /// Decode the instruction at `ip`, as the decoder would and as is known of its opcode: its
    /// length. `None`: it is the decoder's.
    #[inline(always)]
    pub fn decode(&self, bytes: &[u8], ip: u64, i: &mut Instruction, known: &mut Known) -> Option<usize> {
        self.try_decode(bytes.first_chunk()?, ip, i, known)
    }

    #[inline(always)]
    fn try_decode(&self, bytes: &[u8; 16], ip: u64, i: &mut Instruction, known: &mut Known) -> Option<usize> {
        let o = Opcode::of(bytes);
        let mut place = self.places[o.place & (Opcode::PLACES - 1)];
        if place & GROUP != 0 {
            place = self.groups.get(usize::from(place & !GROUP))?[(o.modrm >> 3 & 7) as usize];
        }
        let s = self.list.get(usize::from(place))?;
        *i = s.instruction;
        *known = s.known;
        let mut at = o.end;
        let high = o.rex << 3 & 8;
        let (reg, mut rm, mut relative) = (o.modrm >> 3 & 7 | o.rex << 1 & 8, o.byte & 7 | high, false);
        if s.modrm {
            at += 1;
            rm = o.modrm & 7 | high;
            if o.modrm < 0xc0 {
                relative = address(bytes, &mut at, &o, i)?;
            }
        }
        let [first, second] = &s.operands;
        let registers = [first.register(reg, rm, o.rex), second.register(reg, rm, o.rex)];
        i.set_op0_register(registers[0]);
        i.set_op1_register(registers[1]);
        known.name_first(registers, &s.masks);
        let mut target = None;
        match s.constant {
            Constant::None => {}
            Constant::Byte => {
                i.set_immediate8(bytes[at & 15]);
                at += 1;
            }
            Constant::Word => i.set_immediate16(u16::from_le_bytes(some(bytes, &mut at)?)),
            Constant::Double => i.set_immediate32(u32::from_le_bytes(some(bytes, &mut at)?)),
            Constant::Quad => i.set_immediate64(u64::from_le_bytes(some(bytes, &mut at)?)),
            Constant::Near => {
                target = Some(i64::from(bytes[at & 15] as i8));
                at += 1;
            }
            Constant::Far => target = Some(i32::from_le_bytes(some(bytes, &mut at)?).into()),
        }
        let next = ip.wrapping_add(at as u64);
        i.set_len(at);
        i.set_next_ip(next);
        if relative {
            i.set_memory_displacement64(next.wrapping_add(i.memory_displacement64()));
        }
        if let Some(by) = target {
            i.set_near_branch64(next.wrapping_add(by as u64));
        }
        Some(at)
    }

    /// What the decoder made of an instruction, and what is known of it.
    #[cold]
    pub fn learn(&mut self, bytes: &[u8], i: &Instruction, known: &Known) {
        let Some(bytes) = bytes.first_chunk() else { return };
        let o = Opcode::of(bytes);
        let place = &mut self.places[o.place & (Opcode::PLACES - 1)];
        // Some are reserved, but for one ModRM.reg.
        let reserved = o.escaped && o.byte == 0x1f;
        if *place == UNKNOWN && (reserved || i.op_code().is_group()) {
            *place = GROUP | self.groups.len() as u16;
            self.groups.push([UNKNOWN; 8]);
        }
        let place = match *place & GROUP {
            0 => place,
            _ => match self.groups.get_mut(usize::from(*place & !GROUP)) {
                Some(group) => &mut group[(o.modrm >> 3 & 7) as usize],
                None => return,
            },
        };
        if *place != UNKNOWN {
            return;
        }
        *place = UNFIT;
        if let Some(shape) = Shape::of(&o, i, known) {
            *place = self.list.len() as u16;
            self.list.push(shape);
        }
    }
}

/// The next bytes.
#[inline(always)]
fn some<const N: usize>(bytes: &[u8; 16], at: &mut usize) -> Option<[u8; N]> {
    let found = *bytes.get(*at..)?.first_chunk()?;
    *at += N;
    Some(found)
}

/// The address that ModRM, in front of `at`, and what follows say. Whether it is relative to
/// the next instruction's.
#[inline(always)]
fn address(bytes: &[u8; 16], at: &mut usize, o: &Opcode, i: &mut Instruction) -> Option<bool> {
    let wide = |n: u32| ROWS[usize::from(QUAD)][(n & 15) as usize];
    let (mode, rm, high) = (o.modrm >> 6, o.modrm & 7, o.rex << 3 & 8);
    let (mut base, mut relative) = (wide(rm | high), false);
    let mut far = mode == 2;
    if rm == 4 {
        let sib = u32::from(bytes[*at & 15]);
        *at += 1;
        let index = sib >> 3 & 7 | o.rex << 2 & 8;
        if index != 4 {
            i.set_memory_index(wide(index));
        }
        if sib >= 0x40 {
            i.set_memory_index_scale(1 << (sib >> 6));
        }
        base = wide(sib & 7 | high);
        if sib & 7 == 5 && mode == 0 {
            (base, far) = (Register::None, true);
        }
    } else if o.modrm & 0xc7 == 5 {
        (base, far, relative) = (Register::RIP, true, true);
    }
    i.set_memory_base(base);
    if far {
        i.set_memory_displacement64(i64::from(i32::from_le_bytes(some(bytes, at)?)) as u64);
        i.set_memory_displ_size(8);
    } else if mode == 1 {
        i.set_memory_displacement64(i64::from(bytes[*at & 15] as i8) as u64);
        i.set_memory_displ_size(1);
        *at += 1;
    }
    Some(relative)
}

impl Shape {
    /// That of an instruction's opcode, if it has one.
    fn of(o: &Opcode, i: &Instruction, known: &Known) -> Option<Shape> {
        let info = i.op_code();
        // NOP with REX.B is XCHG; hints take the places of reserved ones.
        let hint = o.byte == 0x90 || o.escaped && matches!(o.byte, 0x0d | 0x18..=0x1f);
        let hint = hint && !matches!(i.code(), Code::Nop_rm16 | Code::Nop_rm32);
        let simple = is_as_read(info, o) && !hint && !info.is_rm_group() && !info.fwait();
        if !simple || i.code() == Code::INVALID || known.odd {
            return None;
        }
        let mut s = Shape {
            instruction: *i,
            known: *known,
            operands: [Operand::NONE; 2],
            masks: known.facts.masks(),
            modrm: info.is_group(),
            constant: Constant::None,
        };
        let (mut has_rm, mut in_opcode) = (false, false);
        for (n, kind) in info.op_kinds().iter().enumerate() {
            use OpCodeOperandKind as K;
            let constant = match kind {
                K::imm8_const_1 => continue,
                K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => Constant::Byte,
                K::imm16 => Constant::Word,
                K::imm32 | K::imm32sex64 => Constant::Double,
                K::imm64 => Constant::Quad,
                K::br64_1 => Constant::Near,
                K::br64_4 => Constant::Far,
                _ => Constant::None,
            };
            if constant != Constant::None {
                if s.constant != Constant::None {
                    return None;
                }
                s.constant = constant;
                continue;
            }
            let (row, place) = place(*kind)?;
            let is_memory = i.op_kind(n as u32) == OpKind::Memory;
            match place {
                Place::Reg => s.modrm = true,
                Place::Rm => (s.modrm, has_rm) = (true, true),
                Place::Opcode => in_opcode = true,
                Place::Fixed => {}
            }
            let row = if is_memory { NONE } else { row };
            let operand = Operand::new(row, matches!(place, Place::Rm | Place::Opcode));
            match s.operands.get_mut(n) {
                Some(to) => *to = operand,
                // It stays as it is.
                None if place == Place::Fixed && n < 3 => {}
                None => return None,
            }
        }
        if s.modrm && (!has_rm || in_opcode) {
            return None;
        }
        let plain = &mut s.instruction;
        plain.set_memory_base(Register::None);
        plain.set_memory_index(Register::None);
        plain.set_memory_index_scale(1);
        plain.set_memory_displ_size(0);
        plain.set_memory_displacement64(0);
        if s.constant != Constant::None {
            plain.set_immediate32(0);
        }
        Some(s)
    }
}

/// Whether an opcode is where it was taken to be, behind what was taken for its prefixes.
fn is_as_read(info: &OpCodeInfo, o: &Opcode) -> bool {
    let table = match o.escaped {
        false => OpCodeTableKind::Normal,
        true => OpCodeTableKind::T0F,
    };
    let in_opcode = info.op_kinds().iter().any(|k| matches!(place(*k), Some((_, Place::Opcode))));
    let byte = if in_opcode { o.byte & !7 } else { o.byte };
    let prefix = match info.mandatory_prefix() {
        MandatoryPrefix::None => o.prefix == 0 || o.prefix == 1 && info.operand_size() == 16,
        MandatoryPrefix::PNP => o.prefix == 0,
        MandatoryPrefix::P66 => o.prefix == 1,
        MandatoryPrefix::PF3 => o.prefix == 2,
        MandatoryPrefix::PF2 => o.prefix == 3,
    };
    info.encoding() == EncodingKind::Legacy
        && info.table() == table
        && info.op_code_len() == 1
        && info.op_code() == byte
        && info.address_size() != 32
        && prefix
}

/// Where an operand's number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Reg,
    Rm,
    Opcode,
    Fixed,
}

/// The row of a register or memory operand, and where its number is.
fn place(kind: OpCodeOperandKind) -> Option<(u8, Place)> {
    use OpCodeOperandKind as K;
    Some(match kind {
        K::r8_reg => (BYTE, Place::Reg),
        K::r16_reg => (WORD, Place::Reg),
        K::r32_reg => (DOUBLE, Place::Reg),
        K::r64_reg => (QUAD, Place::Reg),
        K::xmm_reg => (VECTOR, Place::Reg),
        K::r8_or_mem => (BYTE, Place::Rm),
        K::r16_or_mem => (WORD, Place::Rm),
        K::r32_or_mem => (DOUBLE, Place::Rm),
        K::r64_or_mem => (QUAD, Place::Rm),
        K::xmm_or_mem | K::xmm_rm => (VECTOR, Place::Rm),
        K::mem => (NONE, Place::Rm),
        K::r8_opcode => (BYTE, Place::Opcode),
        K::r16_opcode => (WORD, Place::Opcode),
        K::r32_opcode => (DOUBLE, Place::Opcode),
        K::r64_opcode => (QUAD, Place::Opcode),
        K::al => (AL, Place::Fixed),
        K::ax => (AX, Place::Fixed),
        K::eax => (EAX, Place::Fixed),
        K::rax => (RAX, Place::Fixed),
        K::cl => (CL, Place::Fixed),
        K::dx => (DX, Place::Fixed),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::super::classify::HostFeatures;
    use super::super::cost::sample;
    use super::super::facts::FactTable;
    use super::*;

    const IP: u64 = 0xffff_8000_1234_5678;

    /// Decode an instruction both ways. Whether it was known.
    fn check(bytes: &[u8; 16], shapes: &mut Shapes, table: &mut FactTable) -> bool {
        let mut i = Decoder::with_ip(64, bytes, IP, DecoderOptions::NONE).decode();
        let (mut ours, mut known) = (Instruction::default(), Known::NONE);
        if shapes.decode(bytes, IP, &mut ours, &mut known).is_some() {
            assert!(i.eq_all_bits(&ours), "{i} ({:?}), not {ours} ({:?}): {bytes:x?}", i.code(), ours.code());
            let mut expected = Known::NONE;
            table.note(&i, &mut expected);
            assert!(known == expected, "{i}: {known:?}, not {expected:?}");
            return true;
        }
        if !i.is_invalid() {
            table.note(&i, &mut known);
            // What is learnt of one holds for all.
            shapes.learn(bytes, &i, &known);
            i = Instruction::default();
            if shapes.decode(bytes, IP, &mut i, &mut known).is_some() {
                check(bytes, shapes, table);
            }
        }
        false
    }

    #[test]
    fn every_opcode_is_decoded_as_by_the_decoder() {
        let (mut shapes, mut table) = (Shapes::default(), FactTable::new(HostFeatures::detect()));
        let rest = [0x8d, 0xf1, 0x82, 0x03, 0xc4, 0x75, 0x26, 0x97, 0xe8, 0x59, 0xaa, 0x1b];
        let mut ours = 0;
        for prefix in [None, Some(0x66), Some(0xf3), Some(0xf2), Some(0x2e)] {
            for rex in [None, Some(0x40), Some(0x41), Some(0x42), Some(0x44), Some(0x48), Some(0x4f)] {
                for (escape, opcode) in
                    [None, Some(0x0f)].into_iter().flat_map(|e| (0..=255_u8).map(move |o| (e, o)))
                {
                    let head = prefix.into_iter().chain(rex).chain(escape).chain([opcode]);
                    for modrm in 0..=255_u8 {
                        // Every SIB byte comes up with some opcode.
                        let sib = opcode.wrapping_mul(29).wrapping_add(modrm.wrapping_mul(73));
                        let all = head.clone().chain([modrm, sib]).chain(rest);
                        let mut bytes = [0; 16];
                        bytes.iter_mut().zip(all).for_each(|(to, b)| *to = b);
                        ours += u64::from(check(&bytes, &mut shapes, &mut table));
                    }
                }
            }
        }
        assert!(ours > 900_000, "{ours}");
    }

    #[test]
    fn most_of_a_program_is_of_a_common_form() {
        let code = sample();
        let (mut shapes, mut table) = (Shapes::default(), FactTable::new(HostFeatures::detect()));
        let (mut all, mut ours) = (0, 0);
        for i in Decoder::new(64, &code, DecoderOptions::NONE).into_iter().take(200_000) {
            let Some(bytes) = code[i.ip() as usize..].first_chunk() else { break };
            all += 1;
            ours += usize::from(check(bytes, &mut shapes, &mut table));
        }
        assert!(ours * 100 > all * 90, "{ours} of {all}");
    }
}
