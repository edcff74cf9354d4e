//! Rewritten guest instructions as bytes.
//!
//! What an opcode's encoding looks like is worked out once, from the decoder's
//! description of it; after that an instruction is put together in a few steps.
//! Asking the decoder's own encoder takes several times as long, since that checks
//! every operand anew. It is asked for what has no template.

use iced_x86::{
    Code, EncodingKind, Instruction, MandatoryPrefix, OpCodeOperandKind, OpCodeTableKind, OpKind, Register,
};

use super::access::gpr_number;
use super::copy::{HOSTS, host_register};
use super::facts::Facts;
use crate::emit::Mem;

/// Where an opcode's operands go, none of them being more than once: operand numbers.
#[derive(Debug, Clone, Copy)]
struct Operands {
    /// ModRM.reg, ModRM.rm or the low bits of the opcode, and VEX.vvvv.
    reg: u8,
    rm: u8,
    vvvv: u8,
    /// The upper half of a last byte.
    is4: u8,
    /// 7 if [`Operands::rm`] is in the opcode, or else 0.
    in_opcode: u8,
    /// Bytes of the immediate.
    immediate: u8,
}

impl Operands {
    /// In place of an operand's number: the last operand, which is never a register.
    const NONE: u8 = 4;
}

impl Default for Operands {
    fn default() -> Self {
        let none = Self::NONE;
        Operands { reg: none, rm: none, vvvv: none, is4: none, in_opcode: 0, immediate: 0 }
    }
}

/// How instructions with one opcode are encoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Template {
    operands: Operands,
    /// 66, F2 or F3, or nothing; what leads to the opcode's table, and the opcode, from the
    /// lowest byte on; in a VEX encoding the opcode alone. How long that is, in bits.
    plain: u64,
    plain_len: u8,
    /// The same with a REX prefix, which is eight bits longer, and where that begins, in bits.
    with_rex: u64,
    rex: u8,
    /// ModRM.reg, where that belongs to the opcode.
    extension: u8,
    modrm: bool,
    /// REX.W or VEX.W: 8 or 0.
    wide: u8,
    vex: Option<Vex>,
}

/// What a VEX prefix says of the opcode.
#[derive(Debug, Clone, Copy)]
struct Vex {
    /// VEX.L and VEX.pp.
    low: u8,
    /// VEX.mmmmm.
    table: u8,
}

/// Part of an instruction under construction, from the lowest byte on.
#[derive(Clone, Copy, Default)]
struct Bytes {
    value: u64,
    /// In bits.
    len: u32,
}

impl Bytes {
    #[inline(always)]
    fn push(&mut self, b: u8) {
        self.put(u64::from(b), 1);
    }

    /// One byte, or nothing: without a branch.
    #[inline(always)]
    fn push_if(&mut self, is: bool, b: u8) {
        let is = u8::from(is);
        self.put(u64::from(b & is.wrapping_neg()), u32::from(is));
    }

    /// The low `len` bytes of a value that has no others.
    #[inline(always)]
    fn put(&mut self, value: u64, len: u32) {
        self.value |= value.wrapping_shl(self.len);
        self.len = self.len.wrapping_add(8 * len);
    }
}

/// A register as encodings have it: a number below 16, and one of the two below.
type Number = u8;

/// SPL and the like need a REX prefix, AH and the like forbid one.
const NEEDS_REX: Number = 0x20;
const FORBIDS_REX: Number = 0x40;

/// In [`REGISTERS`], besides a number: a general register; one of a byte; AH or the like.
const GENERAL: u8 = 0x10;
const BYTE: u8 = 0x20;
const HIGH_BYTE: u8 = 0x40;

/// By register: its number and what it is; 0 for those that no template names.
static REGISTERS: [u8; 256] = {
    let mut all = [0; 256];
    let mut n = 0;
    while n < 16 {
        let number = n as u8;
        if n < 4 {
            all[Register::AL as usize + n] = number | GENERAL | BYTE;
            all[Register::AH as usize + n] = number | GENERAL | HIGH_BYTE;
        } else {
            all[Register::SPL as usize + n - 4] = number | GENERAL | BYTE;
        }
        all[Register::AX as usize + n] = number | GENERAL;
        all[Register::EAX as usize + n] = number | GENERAL;
        all[Register::RAX as usize + n] = number | GENERAL;
        all[Register::XMM0 as usize + n] = number;
        all[Register::YMM0 as usize + n] = number;
        if n < 8 {
            all[Register::MM0 as usize + n] = number;
        }
        n += 1;
    }
    all
};

/// By register: what it is where general registers are in [`HOSTS`].
static HOSTED: [Number; 256] = {
    let (mut all, mut n) = ([0; 256], 0);
    while n < all.len() {
        all[n] = number(REGISTERS[n], &HOSTS);
        n += 1;
    }
    all
};

/// What an entry of [`REGISTERS`] is where general registers are in `hosts`.
#[inline(always)]
const fn number(code: u8, hosts: &[u8; 16]) -> Number {
    let host = hosts[(code & 15) as usize];
    let number = if code & GENERAL != 0 { host } else { code & 15 };
    if code & HIGH_BYTE != 0 {
        return (4 + (number & 3)) | FORBIDS_REX;
    }
    if code & BYTE != 0 && number >= 4 && number < 8 { number | NEEDS_REX } else { number }
}

impl Template {
    /// That of an opcode, if its encoding is one of the simple ones.
    pub fn of(code: Code) -> Option<Template> {
        let info = code.op_code();
        let vex = match info.encoding() {
            EncodingKind::Legacy => false,
            EncodingKind::VEX if info.l() <= 1 => true,
            _ => return None,
        };
        if !info.is_instruction()
            || !info.mode64()
            || info.fwait()
            || info.op_code_len() != 1
            || info.is_rm_group()
            || info.address_size() != 0
        {
            return None;
        }
        let (prefix, pp) = match info.mandatory_prefix() {
            MandatoryPrefix::None | MandatoryPrefix::PNP => (0, 0),
            MandatoryPrefix::P66 => (0x66, 1),
            MandatoryPrefix::PF3 => (0xf3, 2),
            MandatoryPrefix::PF2 => (0xf2, 3),
        };
        let narrow = !vex && info.operand_size() == 16;
        if narrow && prefix != 0 {
            return None;
        }
        let (escape, escape_len, table) = match info.table() {
            OpCodeTableKind::Normal if !vex => (0, 0, 0),
            OpCodeTableKind::T0F => (0x0f, 1, 1),
            OpCodeTableKind::T0F38 => (0x380f, 2, 2),
            OpCodeTableKind::T0F3A => (0x3a0f, 2, 3),
            _ => return None,
        };
        let operands = Operands::of(code)?;
        let opcode = u32::from(info.op_code() as u8);
        let named =
            operands.reg != Operands::NONE || operands.rm != Operands::NONE && operands.in_opcode == 0;
        let prefix: u64 = match vex {
            true => 0,
            false if narrow => 0x66,
            false => prefix,
        };
        let rex = 8 * u8::from(prefix != 0);
        let (opcode, opcode_len) = match vex {
            true => (opcode, 8),
            false => (escape | opcode << (8 * escape_len), 8 * (escape_len + 1)),
        };
        Some(Template {
            operands,
            plain: u64::from(opcode) << rex | prefix,
            plain_len: rex + opcode_len,
            with_rex: u64::from(opcode) << (rex + 8) | 0x40 << rex | prefix,
            rex,
            extension: info.group_index().max(0) as u8,
            modrm: named || info.is_group(),
            wide: 8 * u8::from(match vex {
                true => info.w() == 1,
                false => info.operand_size() == 64 && !info.default_op_size64() && !info.force_op_size64(),
            }),
            vex: vex.then_some(Vex { low: (info.l() as u8) << 2 | pp, table }),
        })
    }

    /// The bytes of an instruction with this opcode, and how many, with its general
    /// registers in [`HOSTS`] and `memory` as its memory operand. `None` if its prefixes are
    /// unusual. `odd`: it has prefixes (see [`super::facts::Known::odd`]).
    #[inline(always)]
    pub fn encode(&self, i: &Instruction, odd: bool, memory: Option<&Mem>) -> Option<([u8; 16], usize)> {
        self.encode_with(i, odd, memory, |r| HOSTED[r as usize & 255])
    }

    /// The same with its general registers in `hosts`, by number.
    #[inline(always)]
    pub fn encode_for(
        &self,
        i: &Instruction,
        hosts: &[u8; 16],
        memory: Option<&Mem>,
    ) -> Option<([u8; 16], usize)> {
        self.encode_with(i, true, memory, |r| number(REGISTERS[r as usize & 255], hosts))
    }

    #[inline(always)]
    fn encode_with(
        &self,
        i: &Instruction,
        odd: bool,
        memory: Option<&Mem>,
        number: impl Fn(Register) -> Number,
    ) -> Option<([u8; 16], usize)> {
        let mut b = Bytes::default();
        if memory.is_some_and(|m| m.gs) {
            b.push(0x65);
        }
        if odd {
            let segment = i.segment_prefix() != Register::None && memory.is_none();
            if i.has_rep_prefix() || i.has_repne_prefix() || segment {
                return None;
            }
            if i.has_lock_prefix() {
                b.push(0xf0);
            }
        }
        let o = &self.operands;
        let register = |n: u8| number(i.op_register(u32::from(n)));
        // One of the two is 0.
        let reg = register(o.reg) | self.extension;
        let (rm, index) = match memory {
            Some(m) => (m.base.unwrap_or(0), m.index.map_or(0, |(n, _)| n)),
            None => (register(o.rm), 0),
        };
        match self.vex {
            Some(vex) => {
                self.put_vex(&mut b, vex, [reg, index, rm], register(o.vvvv));
                b.put(self.plain, 1);
            }
            None => self.put_legacy(&mut b, reg, index, rm)?,
        }
        // ModRM and SIB are to have room, and a byte is to be left.
        if b.len > 40 {
            return None;
        }
        let mut rest = Bytes::default();
        if let Some(m) = memory {
            put_memory(&mut b, &mut rest, reg, m);
        } else {
            b.push_if(self.modrm, 0xc0 | (reg & 7) << 3 | rm & 7);
        }
        match o.immediate {
            0 => {}
            8 => rest.put(i.immediate64(), 8),
            len => {
                rest.put(u64::from(i.immediate32() & (u32::MAX >> (32 - 8 * u32::from(len & 7)))), len.into())
            }
        }
        if o.is4 != Operands::NONE {
            rest.push(register(o.is4) << 4);
        }
        let low = b.value | rest.value.wrapping_shl(b.len);
        let value = u128::from(low) | u128::from(rest.value.wrapping_shr(64_u32.wrapping_sub(b.len))) << 64;
        Some((value.to_le_bytes(), (b.len.wrapping_add(rest.len) / 8) as usize))
    }

    /// Prefixes and opcode. `None` where one register needs REX and another forbids it.
    #[inline(always)]
    fn put_legacy(&self, b: &mut Bytes, reg: Number, index: u8, rm: Number) -> Option<()> {
        let bits = self.wide | (reg >> 3 & 1) << 2 | (index >> 3 & 1) << 1 | rm >> 3 & 1;
        let named = reg | rm;
        let rex = bits != 0 || named & NEEDS_REX != 0;
        let in_opcode = u64::from(rm & self.operands.in_opcode);
        let mut len = u32::from(self.plain_len);
        let mut value = self.plain;
        if rex {
            if named & FORBIDS_REX != 0 {
                return None;
            }
            value = self.with_rex | u64::from(bits) << (self.rex & 15);
            len = len.wrapping_add(8);
        }
        // The opcode's last byte is the last.
        value |= in_opcode.wrapping_shl(len.wrapping_sub(8));
        b.value |= value.wrapping_shl(b.len);
        b.len = b.len.wrapping_add(len);
        Some(())
    }

    /// The VEX prefix, of two bytes if those hold all.
    #[inline(always)]
    fn put_vex(&self, b: &mut Bytes, vex: Vex, [reg, index, rm]: [u8; 3], vvvv: Number) {
        let last = (!vvvv & 15) << 3 | vex.low;
        let (r, x, rm) = (!reg >> 3 & 1, !index >> 3 & 1, !rm >> 3 & 1);
        if x & rm == 1 && self.wide == 0 && vex.table == 1 {
            b.push(0xc5);
            b.push(r << 7 | last);
            return;
        }
        b.push(0xc4);
        b.push(r << 7 | x << 6 | rm << 5 | vex.table);
        b.push(self.wide << 4 | last);
    }
}

/// ModRM and SIB, and in `rest` the displacement, as short as they can be.
#[inline(always)]
fn put_memory(b: &mut Bytes, rest: &mut Bytes, reg: u8, m: &Mem) {
    let reg = (reg & 7) << 3;
    let Some(base) = m.base else {
        let (n, scale) = m.index.unwrap_or((4, 0));
        b.push(reg | 4);
        b.push(scale << 6 | (n & 7) << 3 | 5);
        rest.put(u64::from(m.disp as u32), 4);
        return;
    };
    let (mode, len) = match m.disp {
        0 if base & 7 != 5 => (0, 0),
        -128..128 => (0x40, 1),
        _ => (0x80, 4),
    };
    match m.index {
        Some((n, scale)) => {
            b.push(mode | reg | 4);
            b.push(scale << 6 | (n & 7) << 3 | base & 7);
        }
        None => {
            b.push(mode | reg | base & 7);
            b.push_if(base & 7 == 4, 0x24);
        }
    }
    let mask = (1_u64 << (8 * len)) - 1;
    rest.put(u64::from(m.disp as u32) & mask, len);
}

/// The same for the decoder's encoder: an instruction with its general registers in
/// `hosts` and this memory operand.
#[cold]
pub(super) fn placed(i: &Instruction, facts: &Facts, hosts: &[u8; 16], memory: Option<&Mem>) -> Instruction {
    let mut out = *i;
    for n in 0..i.op_count() {
        let register = i.op_register(n);
        if i.op_kind(n) == OpKind::Register
            && !facts.is_count(n)
            && let Some(guest) = gpr_number(register)
        {
            out.set_op_register(n, host_register(hosts[guest & 15], register));
        }
    }
    if let Some(m) = memory {
        let wide = |n: u8| Register::RAX + u32::from(n);
        out.set_segment_prefix(if m.gs { Register::GS } else { Register::None });
        out.set_memory_base(m.base.map_or(Register::None, wide));
        out.set_memory_index(m.index.map_or(Register::None, |(n, _)| wide(n)));
        out.set_memory_index_scale(m.index.map_or(1, |(_, scale)| 1 << scale));
        out.set_memory_displacement64(i64::from(m.disp) as u64);
        out.set_memory_displ_size(match m.disp {
            _ if m.base.is_none() => 8,
            0 => 0,
            -128..128 => 1,
            _ => 8,
        });
    }
    out
}

impl Operands {
    fn of(code: Code) -> Option<Operands> {
        use OpCodeOperandKind as K;
        let mut o = Operands::default();
        for (n, kind) in (0..).zip(code.op_code().op_kinds()) {
            let place = match kind {
                K::mem
                | K::r8_or_mem
                | K::r16_or_mem
                | K::r32_or_mem
                | K::r64_or_mem
                | K::mm_or_mem
                | K::xmm_or_mem
                | K::ymm_or_mem
                | K::r16_rm
                | K::r32_rm
                | K::r64_rm
                | K::mm_rm
                | K::xmm_rm
                | K::ymm_rm => &mut o.rm,
                K::r8_reg | K::r16_reg | K::r32_reg | K::r64_reg | K::mm_reg | K::xmm_reg | K::ymm_reg => {
                    &mut o.reg
                }
                K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => {
                    o.in_opcode = 7;
                    &mut o.rm
                }
                K::r32_vvvv | K::r64_vvvv | K::xmm_vvvv | K::ymm_vvvv => &mut o.vvvv,
                K::xmm_is4 | K::ymm_is4 => &mut o.is4,
                K::al | K::cl | K::ax | K::dx | K::eax | K::rax | K::imm8_const_1 => continue,
                K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 if o.immediate == 0 => {
                    o.immediate = 1;
                    continue;
                }
                K::imm16 if o.immediate == 0 => {
                    o.immediate = 2;
                    continue;
                }
                K::imm32 | K::imm32sex64 if o.immediate == 0 => {
                    o.immediate = 4;
                    continue;
                }
                K::imm64 if o.immediate == 0 => {
                    o.immediate = 8;
                    continue;
                }
                _ => return None,
            };
            if std::mem::replace(place, n) != Operands::NONE || n == Operands::NONE {
                return None;
            }
        }
        Some(o)
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions, Encoder};

    use super::super::classify::HostFeatures;
    use super::super::cost::sample;
    use super::super::facts::{FactTable, is_odd};
    use super::*;

    /// Numbers below a bound, the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: u32) -> u32 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as u32 % bound
        }

        fn memory(&mut self) -> Mem {
            // RSP is no index.
            let index = self.below(16) as u8;
            let scale = self.below(4) as u8;
            let index = (index != 4 && self.below(2) == 0).then_some((index, scale));
            let base = (self.below(8) != 0).then_some(self.below(16) as u8);
            let disp = [0, -8, 127, 0x1234, -0x4000_0000][self.below(5) as usize];
            Mem { gs: self.below(4) == 0, base, index, disp }
        }

        /// Where general registers are, none of them twice.
        fn hosts(&mut self) -> [u8; 16] {
            let mut hosts = std::array::from_fn(|n| n as u8);
            for n in 0..16 {
                hosts.swap(n, self.below(16) as usize);
            }
            hosts
        }
    }

    /// Whether there is a template, which then says what the decoder's encoder does.
    fn agrees(i: &Instruction, table: &mut FactTable, random: &mut Random) -> bool {
        let facts = table.of(i);
        let (hosts, memory) = (random.hosts(), facts.memory(i).map(|_| random.memory()));
        // High bytes are those of the first four registers.
        let high = |n| matches!(i.op_register(n), Register::AH | Register::CH | Register::DH | Register::BH);
        let hosts = if (0..i.op_count()).any(high) { std::array::from_fn(|n| n as u8) } else { hosts };
        let ours = table.template(i).and_then(|t| t.encode_for(i, &hosts, memory.as_ref()));
        let odd = is_odd(i);
        let at_home = table.template(i).map(|t| t.encode(i, odd, memory.as_ref()));
        assert_eq!(at_home, table.template(i).map(|t| t.encode_for(i, &HOSTS, memory.as_ref())), "{i}");
        let mut out = placed(i, &facts, &hosts, memory.as_ref());
        // The encoding fixes these.
        for (n, kind) in (0..).zip(i.op_code().op_kinds()) {
            use OpCodeOperandKind as K;
            if matches!(kind, K::al | K::cl | K::ax | K::dx | K::eax | K::rax) {
                out.set_op_register(n, i.op_register(n));
            }
        }
        let mut encoder = Encoder::new(64);
        let Ok(_) = encoder.encode(&out, 0) else {
            assert_eq!(ours, None, "{out} cannot be encoded");
            return true;
        };
        let Some((bytes, len)) = ours else { return false };
        assert_eq!(bytes[..len], encoder.take_buffer()[..], "{out} {:?}", i.code());
        true
    }

    #[test]
    fn a_program_is_encoded_as_by_the_decoder() {
        let code = sample();
        let decoder = Decoder::new(64, &code, DecoderOptions::NONE);
        let mut table = FactTable::new(HostFeatures::detect());
        let mut random = Random(1);
        let (mut all, mut ours) = (0, 0);
        for i in decoder.into_iter().filter(|i| !i.is_invalid()).take(100_000) {
            let jumps = i.is_jcc_short_or_near() || i.is_jmp_short_or_near() || i.is_call_near();
            if !jumps {
                all += 1;
                ours += usize::from(agrees(&i, &mut table, &mut random));
            }
        }
        assert!(ours * 100 > all * 95, "{ours} of {all}");
    }

    /// Registers of every kind in every place of every opcode.
    #[test]
    fn every_opcode_takes_every_register() {
        let mut random = Random(2);
        let mut table = FactTable::new(HostFeatures::detect());
        let mut opcodes = 0;
        for code in Code::values().filter(|c| Template::of(*c).is_some()) {
            for _ in 0..20 {
                if let Some(i) = random_instruction(code, &mut random) {
                    agrees(&i, &mut table, &mut random);
                }
            }
            opcodes += 1;
        }
        assert!(opcodes > 1500, "{opcodes}");
    }

    fn random_instruction(code: Code, random: &mut Random) -> Option<Instruction> {
        use OpCodeOperandKind as K;
        let mut i = Instruction::default();
        i.set_code(code);
        for (n, kind) in (0..).zip(code.op_code().op_kinds()) {
            let (first, count) = match kind {
                K::r8_or_mem | K::r8_reg | K::r8_opcode => (Register::AL, 20),
                K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => (Register::AX, 16),
                K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv => (Register::EAX, 16),
                K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv => (Register::RAX, 16),
                K::mm_or_mem | K::mm_reg | K::mm_rm => (Register::MM0, 8),
                K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => (Register::XMM0, 16),
                K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => (Register::YMM0, 16),
                K::al => (Register::AL, 1),
                K::cl => (Register::CL, 1),
                K::ax => (Register::AX, 1),
                K::dx => (Register::DX, 1),
                K::eax => (Register::EAX, 1),
                K::rax => (Register::RAX, 1),
                K::mem => (Register::None, 0),
                _ => {
                    set_immediate(&mut i, n, *kind, random.below(256) as i8)?;
                    continue;
                }
            };
            let is_memory = super::super::facts::may_be_memory(code) == Some(n as u8);
            if count == 0 || is_memory && random.below(2) == 0 {
                i.set_op_kind(n, OpKind::Memory);
                i.set_memory_base(Register::RBX);
            } else {
                i.set_op_kind(n, OpKind::Register);
                i.set_op_register(n, first + random.below(count));
            }
        }
        Some(i)
    }

    fn set_immediate(i: &mut Instruction, n: u32, kind: OpCodeOperandKind, value: i8) -> Option<()> {
        use OpCodeOperandKind as K;
        let kind = match kind {
            K::imm8 | K::imm8_const_1 => OpKind::Immediate8,
            K::imm8sex16 => OpKind::Immediate8to16,
            K::imm8sex32 => OpKind::Immediate8to32,
            K::imm8sex64 => OpKind::Immediate8to64,
            K::imm16 => OpKind::Immediate16,
            K::imm32 => OpKind::Immediate32,
            K::imm32sex64 => OpKind::Immediate32to64,
            K::imm64 => OpKind::Immediate64,
            _ => return None,
        };
        let one = i.op_code().op_kind(n) == K::imm8_const_1;
        i.set_op_kind(n, kind);
        i.set_immediate_i64(n, if one { 1 } else { value.into() });
        Some(())
    }
}
