//! What every instruction with one opcode has in common, worked out the first
//! time one is seen: asking the decoder's tables for each instruction anew costs
//! several times what decoding does.

use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpCodeOperandKind, OpKind, Register,
};

use super::access::gpr_number;
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

/// The facts about one opcode; aligned so that two loads copy them.
#[derive(Debug, Clone, Copy)]
#[repr(align(32))]
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
    /// The register operand that may be memory instead.
    pub memory_operand: Option<u8>,
    pub flow: FlowControl,
    /// PUSH, POP, calls, returns and the like.
    pub stack: bool,
    pub string: bool,
    /// It may be one of those that `system` translates: see [`super::system`].
    pub system: bool,
    /// It may change what memory is where, or who may reach it.
    pub barrier: bool,
    pub route: Route,
    /// The operand that is or may be memory.
    pub memory: Option<u8>,
    /// Bytes of it, as far as a page crossing matters; 0 if that is not known.
    pub size: u8,
    /// It may run natively in every mode, whatever its operands.
    pub anywhere: bool,
    /// The operand that is CL without a choice: a shift's count.
    pub count: Option<u8>,
}

impl Facts {
    /// The memory operand of an instruction with this opcode.
    #[inline(always)]
    pub fn memory(&self, i: &Instruction) -> Option<u32> {
        self.memory.map(u32::from).filter(|n| i.op_kind(*n) == OpKind::Memory)
    }
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
    #[inline(always)]
    pub fn of(&mut self, i: &Instruction) -> Facts {
        match self.known.get(usize::from(self.places[i.code() as usize])) {
            Some(f) => *f,
            None => self.learn(i),
        }
    }

    /// How an instruction's opcode is encoded, if that is simple.
    #[inline(always)]
    pub fn template(&mut self, i: &Instruction) -> Option<&Template> {
        if self.places[i.code() as usize] == Self::UNKNOWN {
            self.learn(i);
        }
        self.templates.get(usize::from(self.places[i.code() as usize]))?.as_ref()
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
            written: 0,
            rcx: None,
            hidden: false,
            native: i.cpuid_features().iter().all(|f| self.features.has(*f))
                && !i.is_privileged()
                && !never_native(&i)
                && !unsafe_mxcsr,
            x87: is_x87(&i),
            vector: is_vector(&i),
            vex: i.encoding() == EncodingKind::VEX,
            sha: i.cpuid_features().contains(&CpuidFeature::SHA),
            memory_operand: memory_operand(i.code()),
            flow: i.flow_control(),
            stack: i.is_stack_instruction(),
            string: i.is_string_instruction(),
            system: is_kindred(i.code()),
            barrier: is_barrier(&i),
            route: Route::Other,
            memory: may_be_memory(i.code()),
            size: access_size(&i).unwrap_or(0) as u8,
            anywhere: false,
            count: shift_count(&i),
        };
        f.route = route(&i, &f);
        f.anywhere = f.native && !f.x87 && !f.vector && !f.sha && !f.system && !f.string;
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

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

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
