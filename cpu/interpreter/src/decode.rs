//! From bytes to [`Insn`]: iced-x86 decodes, a group's hook names the handler.

use iced_x86::{
    Code, CodeSize, CpuidFeature, Decoder, DecoderError, DecoderOptions, EncodingKind, FlowControl,
    Instruction, Mnemonic, OpKind, Register,
};
use x86_state::{CpuModel, Feature};

use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn, REG_RIP, REG_ZERO, SEG_FLAT};
use crate::{fpu, integer, system, vector};

/// Longest valid instruction.
pub(crate) const MAX_LENGTH: usize = 15;

/// What [`decode`] did with its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Bytes of the complete instructions.
    pub bytes: usize,
    /// Instructions appended.
    pub count: usize,
}

/// Decode instructions at `rip` until a control transfer, `max` instructions, or
/// the end of `bytes`; append them to `out`. A count of zero means that the
/// first instruction needs more bytes.
pub(crate) fn decode(
    model: &CpuModel,
    code_bits: u8,
    rip: u64,
    bytes: &[u8],
    max: usize,
    out: &mut Vec<Insn>,
) -> Decoded {
    let mut decoder = Decoder::with_ip(u32::from(code_bits), bytes, rip, options(model));
    let mut done = Decoded { bytes: 0, count: 0 };
    let mut instruction = Instruction::default();
    while done.count < max && decoder.can_decode() {
        let left = bytes.len() - decoder.position();
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        exchange_for_pause(&bytes[done.bytes..], &mut instruction);
        let valid = !instruction.is_invalid();
        let insn = if valid {
            convert(model, &instruction, code_bits)
        } else {
            let too_long = instruction.len() >= MAX_LENGTH && left >= MAX_LENGTH;
            blank(&instruction, if too_long { exceeds_length } else { undefined })
        };
        out.push(insn);
        done.count += 1;
        done.bytes = decoder.position();
        if !valid || instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    done
}

/// Replace a PAUSE with REX.B, at the start of `bytes`, by the XCHG that a processor executes:
/// only without it is register 0 of opcode 90 RAX itself, and the exchange nothing. iced-x86
/// has PAUSE for any 90 behind F3.
#[inline(always)]
pub fn exchange_for_pause(bytes: &[u8], instruction: &mut Instruction) {
    // F3, REX and 90 at least.
    if instruction.code() == Code::Pause && instruction.len() > 2 {
        with_rex_b(bytes, instruction);
    }
}

#[cold]
fn with_rex_b(bytes: &[u8], instruction: &mut Instruction) {
    let rex = bytes.get(instruction.len() - 2).copied().unwrap_or_default();
    if instruction.code_size() == CodeSize::Code64 && rex & 0xf1 == 0x41 {
        Decoder::with_ip(64, bytes, instruction.ip(), DecoderOptions::NO_PAUSE).decode_out(instruction);
        instruction.set_has_repe_prefix(false);
    }
}

/// Decode as the model's processor would.
fn options(model: &CpuModel) -> u32 {
    let unless = |f: Feature, option: u32| if model.has(f) { 0 } else { option };
    DecoderOptions::NO_WBNOINVD
        | unless(Feature::Bmi1, DecoderOptions::NO_MPFX_0FBC)
        | unless(Feature::Abm, DecoderOptions::NO_MPFX_0FBD)
        | unless(Feature::LahfLm, DecoderOptions::NO_LAHF_SAHF_64)
}

/// #UD.
pub(crate) fn undefined(cpu: &mut Cpu, _: &Insn) -> Step {
    Err(cpu.ud())
}

/// #GP(0): more than 15 bytes.
fn exceeds_length(cpu: &mut Cpu, _: &Insn) -> Step {
    Err(cpu.gp(0))
}

fn blank(instruction: &Instruction, handler: Handler) -> Insn {
    Insn {
        handler,
        imm: 0,
        disp: 0,
        aux: 0,
        code: instruction.code() as u16,
        len: instruction.len() as u8,
        base: REG_ZERO,
        index: REG_ZERO,
        scale: 0,
        address_shift: 0,
        seg: SEG_FLAT,
        ops: [0; 4],
        size: 0,
        bits: 0,
    }
}

fn convert(model: &CpuModel, instruction: &Instruction, code_bits: u8) -> Insn {
    let mut insn = blank(instruction, undefined);
    match available(model, instruction) {
        Availability::Yes => {}
        Availability::Hint => {
            insn.handler = integer::nop;
            return insn;
        }
        Availability::No => return insn,
    }
    if code_bits == 64 {
        insn.bits |= Insn::LONG;
    }
    if instruction.has_lock_prefix() {
        insn.bits |= Insn::LOCK;
    }
    if instruction.has_rep_prefix() {
        insn.bits |= Insn::REP;
    }
    if instruction.has_repne_prefix() {
        insn.bits |= Insn::REPNE;
    }
    if instruction.code().encoding() == EncodingKind::VEX {
        insn.bits |= Insn::VEX;
    }
    operands(instruction, &mut insn, code_bits);
    let plain = integer::handler(instruction, &mut insn).or_else(|| system::handler(instruction, &mut insn));
    insn.handler = plain.unwrap_or_else(|| {
        insn.bits |= Insn::FPU;
        let handler =
            fpu::handler(instruction, &mut insn).or_else(|| vector::handler(instruction, &mut insn));
        handler.unwrap_or(undefined)
    });
    insn
}

fn operands(instruction: &Instruction, insn: &mut Insn, code_bits: u8) {
    let mut immediates = 0;
    insn.size = operand_size(instruction);
    for n in 0..instruction.op_count().min(4) {
        match instruction.op_kind(n) {
            OpKind::Register => insn.ops[n as usize] = register_number(instruction.op_register(n)),
            OpKind::Memory => memory_operand(instruction, insn, code_bits),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                insn.imm = instruction.near_branch_target().wrapping_sub(instruction.next_ip());
            }
            OpKind::FarBranch16 => {
                insn.imm = u64::from(instruction.far_branch16());
                insn.aux = u32::from(instruction.far_branch_selector());
            }
            OpKind::FarBranch32 => {
                insn.imm = u64::from(instruction.far_branch32());
                insn.aux = u32::from(instruction.far_branch_selector());
            }
            kind if is_immediate(kind) => {
                let v = sign_extended(kind, instruction.immediate(n));
                if immediates == 0 {
                    insn.imm = v
                } else {
                    insn.aux = v as u32 & 0xff
                }
                immediates += 1;
            }
            kind => implied_memory(instruction, insn, kind, code_bits),
        }
    }
}

/// Size of the first operand: of a register, or of what memory holds.
fn operand_size(instruction: &Instruction) -> u8 {
    if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register {
        instruction.op0_register().size() as u8
    } else {
        instruction.memory_size().size().min(255) as u8
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

fn sign_extended(kind: OpKind, v: u64) -> u64 {
    match kind {
        OpKind::Immediate8 | OpKind::Immediate8_2nd => v as i8 as u64,
        OpKind::Immediate16 => v as i16 as u64,
        OpKind::Immediate32 => v as i32 as u64,
        _ => v,
    }
}

/// Number of a register as [`Insn::ops`] has it.
fn register_number(r: Register) -> u8 {
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            (r as u32 - Register::AH as u32) as u8 + 20
        }
        r if r.is_gpr8() => r.full_register().number() as u8,
        _ => r.number() as u8,
    }
}

fn memory_operand(instruction: &Instruction, insn: &mut Insn, code_bits: u8) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let number = |r: Register| match r {
        Register::None => REG_ZERO,
        Register::RIP | Register::EIP => REG_RIP,
        r => r.number() as u8,
    };
    insn.bits |= Insn::MEM;
    insn.base = number(base);
    insn.index = number(index);
    insn.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    insn.disp = instruction.memory_displacement64();
    if insn.base == REG_RIP {
        // The handler's RIP is that of the next instruction.
        insn.disp = insn.disp.wrapping_sub(instruction.next_ip());
    }
    let address_bytes = match (base, index) {
        (Register::None, i) if i.is_gpr() => i.size(),
        (Register::None, _) => match instruction.memory_displ_size() {
            2 => 2,
            4 => 4,
            _ => usize::from(code_bits) / 8,
        },
        (b, _) => b.size(),
    };
    insn.address_shift = 64 - 8 * address_bytes.clamp(1, 8) as u8;
    let stack = matches!(base, Register::RSP | Register::RBP | Register::ESP | Register::EBP);
    insn.seg = match segment_number(instruction.memory_segment(), code_bits) {
        SEG_FLAT if stack => 2,
        n => n,
    };
}

/// In 64-bit mode only FS and GS have a base, and prefixes of the others are ignored. SS stays
/// known where it is the default, because its violations are #SS.
fn segment_number(r: Register, code_bits: u8) -> u8 {
    match r {
        Register::FS => 4,
        Register::GS => 5,
        _ if code_bits == 64 => SEG_FLAT,
        Register::SS => 2,
        Register::ES => 0,
        Register::CS => 1,
        _ => 3,
    }
}

/// Operands of string instructions: the address size, and the segment of the
/// source.
fn implied_memory(instruction: &Instruction, insn: &mut Insn, kind: OpKind, code_bits: u8) {
    insn.address_shift = match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => 48,
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => 32,
        _ => 0,
    };
    let source = matches!(
        kind,
        OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI
    );
    if source {
        insn.seg = segment_number(instruction.memory_segment(), code_bits);
    }
}

enum Availability {
    Yes,
    /// Not there, but encoded in the space of reserved NOPs.
    Hint,
    No,
}

fn available(model: &CpuModel, instruction: &Instruction) -> Availability {
    let hint = matches!(
        instruction.mnemonic(),
        Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
            | Mnemonic::Cldemote
            | Mnemonic::Prefetchw
            | Mnemonic::Prefetchwt1
            | Mnemonic::Prefetchit0
            | Mnemonic::Prefetchit1
    );
    if hint {
        return Availability::Hint;
    }
    if matches!(instruction.mnemonic(), Mnemonic::Vmcall | Mnemonic::Vmmcall) {
        // The hypercalls of the hypervisor that CPUID reports.
        return if model.has(Feature::Hypervisor) { Availability::Yes } else { Availability::No };
    }
    let all = instruction.cpuid_features().iter().all(|f| match requirement(*f) {
        Requirement::None => true,
        Requirement::Feature(f) => model.has(f),
        Requirement::Never => false,
    });
    if all { Availability::Yes } else { Availability::No }
}

enum Requirement {
    None,
    Feature(Feature),
    Never,
}

/// The model's feature for one of iced's.
fn requirement(f: CpuidFeature) -> Requirement {
    use CpuidFeature as F;
    let feature = match f {
        F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::CPUID | F::PAUSE => {
            return Requirement::None;
        }
        F::MULTIBYTENOP | F::RDPMC | F::SMM | F::PREFETCHW => return Requirement::None,
        // Three-operand forms of legacy features list both; 256-bit ones AVX2.
        F::X64 => Feature::Lm,
        F::ADX => Feature::Adx,
        F::AES => Feature::Aes,
        F::AVX => Feature::Avx,
        F::AVX2 => Feature::Avx2,
        F::BMI1 => Feature::Bmi1,
        F::BMI2 => Feature::Bmi2,
        F::CLFLUSHOPT => Feature::Clflushopt,
        F::CLFSH => Feature::Clflush,
        F::CLWB => Feature::Clwb,
        F::CMOV => Feature::Cmov,
        F::CMPXCHG16B => Feature::Cx16,
        F::CX8 => Feature::Cx8,
        F::F16C => Feature::F16c,
        F::FMA => Feature::Fma,
        F::FPU | F::FPU287 | F::FPU387 => Feature::Fpu,
        F::FSGSBASE => Feature::Fsgsbase,
        F::FXSR => Feature::Fxsr,
        F::INVPCID => Feature::Invpcid,
        F::LZCNT => Feature::Abm,
        F::MMX => Feature::Mmx,
        F::MOVBE => Feature::Movbe,
        F::MSR => Feature::Msr,
        F::PCLMULQDQ => Feature::Pclmulqdq,
        F::POPCNT => Feature::Popcnt,
        F::RDPID => Feature::Rdpid,
        F::RDRAND => Feature::Rdrand,
        F::RDSEED => Feature::Rdseed,
        F::RDTSCP => Feature::Rdtscp,
        F::SEP => Feature::Sep,
        F::SHA => Feature::Sha,
        F::SMAP => Feature::Smap,
        F::SSE => Feature::Sse,
        F::SSE2 => Feature::Sse2,
        F::SSE3 => Feature::Sse3,
        F::SSSE3 => Feature::Ssse3,
        F::SSE4_1 => Feature::Sse41,
        F::SSE4_2 => Feature::Sse42,
        F::SYSCALL => Feature::Syscall,
        F::TSC => Feature::Tsc,
        F::VAES => Feature::Vaes,
        F::VPCLMULQDQ => Feature::Vpclmulqdq,
        F::XSAVE => Feature::Xsave,
        F::XSAVEC => Feature::Xsavec,
        F::XSAVEOPT => Feature::Xsaveopt,
        _ => return Requirement::Never,
    };
    Requirement::Feature(feature)
}

/// An instruction that raises #UD, to fill a place.
pub(crate) fn placeholder() -> Insn {
    blank(&Instruction::default(), undefined)
}
