//! What every instruction with one opcode has in common, worked out the first
//! time one is seen: asking the decoder's tables for each instruction anew costs
//! several times what decoding does.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpCodeOperandKind, OpKind, Register,
};

use super::access::{Access, GPR_NUMBERS, gpr_number};
use super::bits::is_bit_instruction;
use super::classify::{HostFeatures, is_vector, never_native};
use super::copy::{access_size, fixed_rcx, is_hint, shift_count, writes};
use super::homes::memory_operand;
use super::system::is_kindred;
use super::template::Template;
use super::windows::is_barrier;
use crate::layout::PINNED;

/// Most operands an instruction has.
const OPERANDS: usize = 5;

/// In place of an operand's number: none. No opcode has five operands of which one may be
/// memory, or a general register as the fourth.
const NONE: u8 = 3;

/// The facts about one opcode; two loads copy them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(align(16))]
pub(crate) struct Facts {
    /// What happens to each operand.
    pub access: [OpAccess; OPERANDS],
    /// General registers that are written without being named, by number.
    pub written: u16,
    /// RCX is used without being named.
    pub rcx: Option<OpAccess>,
    /// Another register that is not where the guest has it is used without being named.
    pub hidden: bool,
    /// The guest's model has it, the host has it, and it may run natively unless
    /// its operands forbid that.
    pub native: bool,
    /// An x87 or MMX instruction.
    pub x87: bool,
    /// It uses vector registers or their control register.
    pub vector: bool,
    pub vex: bool,
    pub sha: bool,
    /// The register operand that may be memory instead, or [`NONE`].
    memory_operand: u8,
    pub flow: FlowControl,
    /// PUSH, POP, calls, returns and the like.
    pub stack: bool,
    pub string: bool,
    /// It may be one of those that `system` translates: see [`super::system`].
    pub system: bool,
    /// It may change what memory is where, or who may reach it.
    pub barrier: bool,
    pub route: Route,
    /// The operand that is or may be memory, or [`NONE`].
    memory: u8,
    /// What happens to it; `None` where it is not accessed or its size is not known.
    pub accessed: Option<Access>,
    /// Bytes of it, as far as a page crossing matters; 0 if that is not known.
    pub size: u8,
    /// It may run natively in every mode, whatever its operands.
    pub anywhere: bool,
    /// It may, and nothing else need be looked at: it is not the last of a block.
    pub usual: bool,
    /// The operand that is CL without a choice, a shift's count, or [`NONE`].
    count: u8,
    /// Operands that may be general registers, but for a shift's count, and those of them
    /// that are written: a bit each.
    registers: u8,
    writes: u8,
    /// A window may hold its operand.
    pub windowed: bool,
    /// It may set a general register to another, or itself, plus a constant.
    pub steps: bool,
}

impl Facts {
    const NONE: Facts = Facts {
        access: [OpAccess::None; OPERANDS],
        written: 0,
        rcx: None,
        hidden: false,
        native: false,
        x87: false,
        vector: false,
        vex: false,
        sha: false,
        memory_operand: NONE,
        flow: FlowControl::Next,
        stack: false,
        string: false,
        system: false,
        barrier: false,
        route: Route::Other,
        memory: NONE,
        accessed: None,
        size: 0,
        anywhere: false,
        usual: false,
        count: NONE,
        registers: 0,
        writes: 0,
        windowed: false,
        steps: false,
    };

    /// The memory operand of an instruction with this opcode.
    #[inline(always)]
    pub fn memory(&self, i: &Instruction) -> Option<u32> {
        let n = u32::from(self.memory & 3);
        (i.op_kind(n) == OpKind::Memory).then_some(n)
    }

    /// The register operand that may be memory instead.
    pub fn may_be_memory(&self) -> Option<u32> {
        (self.memory_operand != NONE).then_some(u32::from(self.memory_operand))
    }

    /// Of the first two operands: all bits where they may be general registers, and where
    /// those are written.
    pub fn masks(&self) -> Masks {
        let of = |operands: u8| [0, 1].map(|n| u32::from(operands >> n & 1).wrapping_neg());
        Masks { named: of(self.registers), written: of(self.writes) }
    }

    /// Whether an operand is CL without a choice: a shift's count.
    #[inline(always)]
    pub fn is_count(&self, operand: u32) -> bool {
        operand == u32::from(self.count) && self.count != NONE
    }
}

/// See [`Facts::masks`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Masks {
    named: [u32; 2],
    written: [u32; 2],
}

/// What is known of one instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub facts: Facts,
    /// General registers that it names as operands, a bit each.
    pub named: u16,
    /// Those that it writes, named or not.
    pub written: u16,
    /// It names AH or the like.
    pub high_byte: bool,
    /// It has a memory operand.
    pub memory: bool,
    /// It has prefixes that say something besides operands' sizes.
    pub odd: bool,
    /// Its opcode's number in the table.
    pub opcode: u16,
}

/// By register: the bit of the general register that it is or is part of, if it is one, and
/// [`HIGH_BYTE`].
static NAMES: [u32; 256] = {
    let mut names = [0; 256];
    let mut n = 0;
    while n < names.len() {
        if GPR_NUMBERS[n] < 16 {
            names[n] = 1 << GPR_NUMBERS[n];
        }
        n += 1;
    }
    n = 0;
    while n < 4 {
        names[Register::AH as usize + n] |= HIGH_BYTE;
        n += 1;
    }
    names
};

/// In [`NAMES`]: it is AH or the like.
const HIGH_BYTE: u32 = 1 << 16;

impl Known {
    /// Nothing.
    pub const NONE: Known = Known {
        facts: Facts::NONE,
        named: 0,
        written: 0,
        high_byte: false,
        memory: false,
        odd: true,
        opcode: u16::MAX,
    };

    /// What is known of an instruction with this opcode.
    #[cfg(test)]
    pub fn of(i: &Instruction, facts: Facts) -> Self {
        let mut known = Known { facts, ..Known::NONE };
        known.look_at(i);
        known
    }

    /// The rest, from what its opcode has in common.
    #[inline(always)]
    pub fn look_at(&mut self, i: &Instruction) {
        self.name(i);
        self.memory = self.facts.memory(i).is_some();
        self.odd = is_odd(i);
    }

    /// What it names of two operands; it names no others, or they are fixed.
    #[inline(always)]
    pub fn name_first(&mut self, registers: [Register; 2], masks: &Masks) {
        let [a, b] = registers.map(|r| NAMES[r as usize & 255]);
        let named = a & masks.named[0] | b & masks.named[1];
        let written = a & masks.written[0] | b & masks.written[1];
        self.written = self.facts.written | written as u16;
        self.named = named as u16;
        self.high_byte = named & HIGH_BYTE != 0;
    }

    /// What it names, from what its opcode has in common. Without a branch: that is
    /// anybody's guess.
    #[inline(always)]
    pub fn name(&mut self, i: &Instruction) {
        let f = &self.facts;
        let of = |operands: u8, n: u8| u32::from(operands >> n & 1).wrapping_neg();
        let names = [i.op0_register(), i.op1_register(), i.op2_register()].map(|r| NAMES[r as usize & 255]);
        let [a, b, c] = names;
        let named = a & of(f.registers, 0) | b & of(f.registers, 1) | c & of(f.registers, 2);
        let written = a & of(f.writes, 0) | b & of(f.writes, 1) | c & of(f.writes, 2);
        self.written = f.written | written as u16;
        self.named = named as u16;
        self.high_byte = named & HIGH_BYTE != 0;
    }
}

/// See [`Known::odd`].
#[inline(always)]
pub(super) fn is_odd(i: &Instruction) -> bool {
    i.has_lock_prefix() || i.has_rep_prefix() || i.has_repne_prefix() || i.segment_prefix() != Register::None
}

/// How instructions with one opcode are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// As themselves, with other registers and addresses.
    Copy,
    Lea,
    /// Nothing is to be done.
    Hint,
    /// It depends.
    Other,
}

/// Facts by opcode.
pub(crate) struct FactTable {
    info: InstructionInfoFactory,
    /// By opcode: which of the known it is, or [`FactTable::UNKNOWN`].
    places: Box<[u16]>,
    /// A program has some hundred opcodes.
    known: Vec<Facts>,
    templates: Vec<Option<Template>>,
    features: HostFeatures,
}

impl FactTable {
    /// None known yet; `features` are those both guest and host have.
    pub fn new(features: HostFeatures) -> Self {
        let places = vec![Self::UNKNOWN; Code::values().len()].into();
        FactTable {
            info: InstructionInfoFactory::new(),
            places,
            known: Vec::new(),
            templates: Vec::new(),
            features,
        }
    }

    const UNKNOWN: u16 = u16::MAX;

    /// The facts about an instruction's opcode.
    pub fn of(&mut self, i: &Instruction) -> Facts {
        match self.known.get(usize::from(self.places[i.code() as usize])) {
            Some(f) => *f,
            None => self.learn(i),
        }
    }

    /// What is known of an instruction.
    #[inline(always)]
    pub fn note(&mut self, i: &Instruction, known: &mut Known) {
        known.opcode = self.places[i.code() as usize];
        match self.known.get(usize::from(known.opcode)) {
            Some(f) => known.facts = *f,
            None => {
                known.facts = self.learn(i);
                known.opcode = self.places[i.code() as usize];
            }
        }
        known.look_at(i);
    }

    /// How an instruction's opcode is encoded, if that is simple and the opcode has been
    /// met.
    #[inline(always)]
    pub fn template(&self, i: &Instruction) -> Option<&Template> {
        self.templates.get(usize::from(self.places[i.code() as usize]))?.as_ref()
    }

    /// The same of what is known of an instruction.
    #[inline(always)]
    pub fn template_of(&self, known: &Known) -> Option<&Template> {
        self.templates.get(usize::from(known.opcode))?.as_ref()
    }

    #[cold]
    fn learn(&mut self, i: &Instruction) -> Facts {
        let f = self.work_out(i);
        self.places[i.code() as usize] = self.known.len() as u16;
        self.known.push(f);
        self.templates.push(Template::of(i.code()));
        f
    }

    fn work_out(&mut self, i: &Instruction) -> Facts {
        let i = with_neutral_registers(i);
        let info = self.info.info(&i);
        // The host would accept a bit that the model reserves, and then not check the
        // alignment that aligned operands rely on.
        let unsafe_mxcsr =
            self.features.misaligned_sse && matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr);
        let mut f = Facts {
            access: std::array::from_fn(|n| info.op_access(n as u32)),
            native: i.cpuid_features().iter().all(|f| self.features.has(*f))
                && !i.is_privileged()
                && !never_native(&i)
                && !unsafe_mxcsr,
            x87: is_x87(&i),
            vector: is_vector(&i),
            vex: i.encoding() == EncodingKind::VEX,
            sha: i.cpuid_features().contains(&CpuidFeature::SHA),
            memory_operand: memory_operand(i.code()).unwrap_or(NONE),
            flow: i.flow_control(),
            stack: i.is_stack_instruction(),
            string: i.is_string_instruction(),
            system: is_kindred(i.code()),
            barrier: is_barrier(&i),
            memory: may_be_memory(i.code()).unwrap_or(NONE),
            size: access_size(&i).unwrap_or(0) as u8,
            count: shift_count(&i).unwrap_or(NONE),
            steps: steps(i.code()),
            ..Facts::NONE
        };
        f.route = route(&i, &f);
        f.accessed = accessed(i.code(), &f);
        f.windowed = may_be_windowed(&f);
        for (n, kind) in i.op_code().op_kinds().iter().enumerate() {
            f.registers |= u8::from(is_general(*kind) && !f.is_count(n as u32)) << n;
            f.writes |= u8::from(f.access.get(n).is_some_and(|a| writes(*a))) << n;
        }
        f.writes &= f.registers;
        f.anywhere = f.native && !f.x87 && !f.vector && !f.sha && !f.system && !f.string;
        f.usual = f.anywhere && f.flow == FlowControl::Next && i.code() != Code::INVALID;
        for used in info.used_registers() {
            let Some(g) = gpr_number(used.register()) else { continue };
            if g >= NEUTRAL {
                continue;
            }
            if writes(used.access()) {
                f.written |= 1 << g;
            }
            match g {
                _ if PINNED[g] == Some(g as u8) => {}
                1 if fixed_rcx(&i) => f.rcx = Some(used.access()),
                _ => f.hidden = true,
            }
        }
        if i.is_string_instruction() {
            // RCX with a prefix only, RSI and RDI.
            f.written |= 1 << 1 | 1 << 6 | 1 << 7;
        }
        f
    }
}

fn is_x87(i: &Instruction) -> bool {
    use CpuidFeature as F;
    let named = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm());
    // WAIT is older than any x87, but faults as one of its instructions does.
    named
        || i.mnemonic() == Mnemonic::Wait
        || i.cpuid_features().iter().any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX))
}

/// What instructions with an opcode need beyond being copied.
fn route(i: &Instruction, f: &Facts) -> Route {
    let other = f.flow != FlowControl::Next
        || f.stack
        || f.string
        || f.system
        || is_bit_instruction(i.code())
        || matches!(i.code(), Code::Pause | Code::Pushad | Code::Popad);
    match () {
        () if is_hint(i) => Route::Hint,
        () if other => Route::Other,
        () if i.mnemonic() == Mnemonic::Lea => Route::Lea,
        () => Route::Copy,
    }
}

/// What happens to the memory operand of instructions with an opcode.
fn accessed(code: Code, f: &Facts) -> Option<Access> {
    match f.access.get(usize::from(f.memory))? {
        _ if f.size == 0 || f.memory == NONE && may_be_memory(code).is_none() => None,
        OpAccess::Read | OpAccess::CondRead => Some(Access::Load),
        OpAccess::None | OpAccess::NoMemAccess => None,
        _ => Some(Access::Store),
    }
}

/// Whether a window may hold the operand of an instruction with an opcode.
fn may_be_windowed(f: &Facts) -> bool {
    let named = f.accessed.is_some() && f.flow == FlowControl::Next && !f.string;
    f.stack || named && !matches!(f.route, Route::Hint | Route::Lea)
}

/// Opcodes that may set a general register to another, or itself, plus a constant.
fn steps(code: Code) -> bool {
    use Mnemonic as M;
    matches!(code.mnemonic(), M::Push | M::Pop | M::Add | M::Sub | M::Inc | M::Dec | M::Lea | M::Mov)
}

/// The operand of an opcode that is memory, or may be.
pub(super) fn may_be_memory(code: Code) -> Option<u8> {
    use OpCodeOperandKind as K;
    let is = |k: &OpCodeOperandKind| {
        matches!(
            k,
            K::mem
                | K::mem_offs
                | K::mem_mpx
                | K::mem_mib
                | K::sibmem
                | K::mem_vsib32x
                | K::mem_vsib64x
                | K::mem_vsib32y
                | K::mem_vsib64y
                | K::mem_vsib32z
                | K::mem_vsib64z
                | K::r8_or_mem
                | K::r16_or_mem
                | K::r32_or_mem
                | K::r32_or_mem_mpx
                | K::r64_or_mem
                | K::r64_or_mem_mpx
                | K::mm_or_mem
                | K::xmm_or_mem
                | K::ymm_or_mem
                | K::zmm_or_mem
                | K::bnd_or_mem_mpx
                | K::k_or_mem
        )
    };
    code.op_code().op_kinds().iter().position(is).map(|n| n as u8)
}

/// No instruction uses registers from this number on without naming them, but
/// for R11 (SYSCALL), which is below them as the replacements are R12 to R15.
const NEUTRAL: usize = 12;

/// The instruction with every register that it may choose replaced by one of its
/// own, so that what remains is what the opcode uses.
fn with_neutral_registers(i: &Instruction) -> Instruction {
    let mut out = *i;
    let op_code = i.op_code();
    let mut next = NEUTRAL as u32;
    for n in 0..i.op_count() {
        if i.op_kind(n) == OpKind::Register && is_choice(op_code.op_kind(n)) {
            let first = match i.op_register(n).size() {
                8 => Register::RAX,
                4 => Register::EAX,
                2 => Register::AX,
                // R12L and on; before them SPL to DIL.
                _ => Register::SPL - 4,
            };
            out.set_op_register(n, first + next.min(14));
            next += 1;
        }
    }
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
        out.set_memory_base(Register::R15);
        out.set_memory_index(Register::None);
        out.set_segment_prefix(Register::None);
    }
    out
}

/// Whether a register operand is one the encoding chooses.
fn is_choice(k: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        k,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::r8_reg
            | K::r8_opcode
            | K::r16_reg
            | K::r16_reg_mem
            | K::r16_rm
            | K::r16_opcode
            | K::r32_reg
            | K::r32_reg_mem
            | K::r32_rm
            | K::r32_opcode
            | K::r32_vvvv
            | K::r64_reg
            | K::r64_reg_mem
            | K::r64_rm
            | K::r64_opcode
            | K::r64_vvvv
    )
}

/// Whether a register operand may be a general register.
fn is_general(k: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    is_choice(k) || matches!(k, K::al | K::cl | K::ax | K::dx | K::eax | K::rax)
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::super::copy::is_high_byte;
    use super::super::cost::sample;
    use super::*;

    #[test]
    fn general_registers_are_among_the_first_three_operands() {
        for code in Code::values().filter(|c| *c != Code::INVALID) {
            let info = code.op_code();
            let others = info.op_kinds().iter().skip(3).filter(|k| is_general(**k));
            assert!(others.count() == 0, "{code:?}");
            assert!(may_be_memory(code).is_none_or(|n| n <= 3), "{code:?}");
            assert!(memory_operand(code).is_none_or(|n| n < 3), "{code:?}");
        }
    }

    #[test]
    fn named_registers_are_those_of_all_operands() {
        let code = sample();
        let mut table = FactTable::new(HostFeatures::detect());
        let mut high_bytes = 0;
        for i in Decoder::new(64, &code, DecoderOptions::NONE).into_iter().filter(|i| !i.is_invalid()) {
            let known = Known::of(&i, table.of(&i));
            let f = &known.facts;
            let (mut named, mut written, mut high_byte) = (0, f.written, false);
            for n in (0..i.op_count()).filter(|n| i.op_kind(*n) == OpKind::Register) {
                let Some(g) = gpr_number(i.op_register(n)).filter(|_| !f.is_count(n)) else {
                    continue;
                };
                named |= 1 << g;
                high_byte |= is_high_byte(i.op_register(n));
                written |= u16::from(writes(f.access[n as usize])) << g;
            }
            assert_eq!((known.named, known.written, known.high_byte), (named, written, high_byte), "{i}");
            high_bytes += usize::from(high_byte);
        }
        assert!(high_bytes > 0, "the sample has high bytes");
    }

    fn check(code: &[u8], written: u16, rcx: Option<OpAccess>, hidden: bool) {
        let i = Decoder::new(64, code, DecoderOptions::NONE).decode();
        let mut table = FactTable::new(HostFeatures::detect());
        let f = table.of(&i);
        assert_eq!((f.written, f.rcx, f.hidden), (written, rcx, hidden), "{i}");
    }

    #[test]
    fn what_is_used_without_being_named() {
        let read = Some(OpAccess::Read);
        check(&[0x48, 0x01, 0xc8], 0, None, false); // add rax, rcx
        check(&[0x48, 0xf7, 0xe1], 1 << 0 | 1 << 2, None, false); // mul rcx
        check(&[0x48, 0xf7, 0xe0], 1 << 0 | 1 << 2, None, false); // mul rax
        check(&[0x48, 0xd3, 0xe1], 0, read, false); // shl rcx, cl
        check(&[0x48, 0x0f, 0xc7, 0x09], 1 << 0 | 1 << 2, Some(OpAccess::CondRead), false); // cmpxchg16b [rcx]
        check(&[0x31, 0xc0], 0, None, false); // xor eax, eax
        check(&[0x88, 0xe0], 0, None, false); // mov al, ah
        check(&[0xf3, 0xa4], 1 << 1 | 1 << 6 | 1 << 7, None, true); // rep movsb
    }

    #[test]
    fn an_idiom_does_not_speak_for_its_opcode() {
        let i = Decoder::new(64, &[0x31, 0xc0], DecoderOptions::NONE).decode(); // xor eax, eax
        let mut table = FactTable::new(HostFeatures::detect());
        assert_eq!(table.of(&i).access[..2], [OpAccess::ReadWrite, OpAccess::Read]);
    }
}
