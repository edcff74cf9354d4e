//! Which instructions may run natively in the guest's place.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind, Register};

use x86_state::{CpuModel, Feature};

use super::Builder;
use super::facts::Facts;

/// What the host processor can execute.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HostFeatures {
    pub avx: bool,
    pub avx2: bool,
    pub fma: bool,
    pub bmi: bool,
    pub f16c: bool,
    pub aes: bool,
    pub pclmul: bool,
    pub sha: bool,
    pub movbe: bool,
    pub adx: bool,
    pub lzcnt: bool,
    pub popcnt: bool,
    pub sse42: bool,
    /// MXCSR has AMD's misalignment bit, which the model has not.
    pub misaligned_sse: bool,
    /// Executed in the guest's place, so the host need not have them.
    pub smap: bool,
    pub fsgsbase: bool,
    pub rdtscp: bool,
}

impl HostFeatures {
    /// Ask the host.
    pub fn detect() -> Self {
        use std::arch::is_x86_feature_detected as has;
        HostFeatures {
            avx: has!("avx"),
            avx2: has!("avx2"),
            fma: has!("fma"),
            bmi: has!("bmi1") && has!("bmi2"),
            f16c: has!("f16c"),
            aes: has!("aes"),
            pclmul: has!("pclmulqdq"),
            sha: has!("sha"),
            movbe: has!("movbe"),
            adx: has!("adx"),
            lzcnt: has!("lzcnt"),
            popcnt: has!("popcnt"),
            sse42: has!("sse4.2") && has!("sse4.1") && has!("ssse3"),
            misaligned_sse: std::arch::x86_64::__cpuid(0x8000_0001).ecx >> 7 & 1 != 0,
            smap: true,
            fsgsbase: true,
            rdtscp: true,
        }
    }

    /// Those that the guest's model has too.
    pub fn within(self, model: &CpuModel) -> Self {
        use Feature as F;
        HostFeatures {
            avx: self.avx && model.has(F::Avx),
            avx2: self.avx2 && model.has(F::Avx2),
            fma: self.fma && model.has(F::Fma),
            bmi: self.bmi && model.has(F::Bmi1) && model.has(F::Bmi2),
            f16c: self.f16c && model.has(F::F16c),
            aes: self.aes && model.has(F::Aes),
            pclmul: self.pclmul && model.has(F::Pclmulqdq),
            sha: self.sha && model.has(F::Sha),
            movbe: self.movbe && model.has(F::Movbe),
            adx: self.adx && model.has(F::Adx),
            lzcnt: self.lzcnt && model.has(F::Abm),
            popcnt: self.popcnt && model.has(F::Popcnt),
            misaligned_sse: self.misaligned_sse,
            sse42: self.sse42 && model.has(F::Sse42) && model.has(F::Sse41) && model.has(F::Ssse3),
            smap: self.smap && model.has(F::Smap),
            fsgsbase: self.fsgsbase && model.has(F::Fsgsbase),
            rdtscp: self.rdtscp && model.has(F::Rdtscp),
        }
    }

    /// Whether translated code can run at all: PEXT is part of every access.
    pub fn sufficient(&self) -> bool {
        self.bmi && self.avx && self.sse42
    }

    pub(super) fn has(&self, f: CpuidFeature) -> bool {
        use CpuidFeature as F;
        match f {
            F::AVX => self.avx,
            F::AVX2 => self.avx2,
            F::FMA => self.fma,
            F::BMI1 | F::BMI2 => self.bmi,
            F::F16C => self.f16c,
            F::AES => self.aes,
            F::PCLMULQDQ => self.pclmul,
            F::SHA => self.sha,
            F::MOVBE => self.movbe,
            F::ADX => self.adx,
            F::LZCNT => self.lzcnt,
            F::POPCNT => self.popcnt,
            F::SSSE3 | F::SSE4_1 | F::SSE4_2 => self.sse42,
            F::INTEL8086 | F::INTEL8086_ONLY | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 => true,
            F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::SSE | F::SSE2 | F::SSE3 => true,
            F::X64 | F::CMOV | F::MULTIBYTENOP | F::CX8 | F::CMPXCHG16B | F::PAUSE | F::CLFSH => true,
            F::PREFETCHW | F::CET_IBT => true,
            _ => false,
        }
    }
}

impl Builder<'_> {
    /// Whether an instruction belongs to the guest's model, the current mode and
    /// the host, and is none of those that must never run natively.
    pub(super) fn supported(&self, i: &Instruction, f: &Facts) -> bool {
        if f.anywhere {
            return true;
        }
        if f.system && self.is_native_system(i) {
            return true;
        }
        if f.string {
            return super::string::is_native(i);
        }
        let mode = &self.r.mode;
        // AMD processors let SHA instructions have misaligned operands, the model does not.
        let misaligned = f.sha && i.op_count() > 1 && i.op1_kind() == OpKind::Memory;
        // In 32-bit code they reach eight registers, here sixteen.
        let reaches = mode.narrow && matches!(i.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper);
        let absent = f.x87 && !mode.x87 || f.vector && (!mode.sse || f.vex && !mode.avx);
        f.native && !absent && !misaligned && !reaches
    }

    /// TZCNT and LZCNT are BSF and BSR on a model without them.
    pub(super) fn without_count_instructions(&self, i: &mut Instruction) {
        let (f, code) = (self.r.features, i.code());
        let plain = match code {
            Code::Tzcnt_r16_rm16 if !f.bmi => Code::Bsf_r16_rm16,
            Code::Tzcnt_r32_rm32 if !f.bmi => Code::Bsf_r32_rm32,
            Code::Tzcnt_r64_rm64 if !f.bmi => Code::Bsf_r64_rm64,
            Code::Lzcnt_r16_rm16 if !f.lzcnt => Code::Bsr_r16_rm16,
            Code::Lzcnt_r32_rm32 if !f.lzcnt => Code::Bsr_r32_rm32,
            Code::Lzcnt_r64_rm64 if !f.lzcnt => Code::Bsr_r64_rm64,
            other => other,
        };
        i.set_code(plain);
    }
}

/// Whether an instruction uses vector registers or MXCSR.
pub(super) fn is_vector(i: &Instruction) -> bool {
    let named =
        (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_vector_register());
    named
        || matches!(
            i.mnemonic(),
            Mnemonic::Ldmxcsr
                | Mnemonic::Stmxcsr
                | Mnemonic::Vldmxcsr
                | Mnemonic::Vstmxcsr
                | Mnemonic::Vzeroupper
                | Mnemonic::Vzeroall
                // From memory to a general register, with MXCSR's rounding and flags.
                | Mnemonic::Cvtss2si
                | Mnemonic::Cvttss2si
                | Mnemonic::Cvtsd2si
                | Mnemonic::Cvttsd2si
                | Mnemonic::Vcvtss2si
                | Mnemonic::Vcvttss2si
                | Mnemonic::Vcvtsd2si
                | Mnemonic::Vcvttsd2si
        )
}

/// Instructions that see or change what translated code does not hold: system
/// state, code addresses, implicit operands in moved registers.
pub(super) fn never_native(i: &Instruction) -> bool {
    if i.is_save_restore_instruction() || i.is_vsib() {
        return true;
    }
    let odd_register = |r: Register| {
        r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr() || r.is_k() || r.is_zmm()
    };
    if (0..i.op_count()).any(|n| match i.op_kind(n) {
        OpKind::Register => odd_register(i.op_register(n)),
        OpKind::Memory | OpKind::NearBranch32 | OpKind::NearBranch64 => false,
        k => {
            k >= OpKind::NearBranch16 && k <= OpKind::FarBranch32
                || k >= OpKind::MemorySegSI && k <= OpKind::MemoryESRDI
        }
    }) {
        return true;
    }
    if i.encoding() == EncodingKind::EVEX
        || i.encoding() == EncodingKind::XOP
        || i.encoding() == EncodingKind::D3NOW
    {
        return true;
    }
    let m = i.mnemonic();
    system_state(m) || foreign_x87(m) && i.code() != Code::Fnstsw_AX
}

/// Instructions of the x87 environment, whose pointers are the interpreter's
/// business, and those whose MMX transition is each processor's own.
fn foreign_x87(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Fldenv
            | M::Frstor
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Fnstsw
            | M::Fstsw
            | M::Fclex
            | M::Fninit
            | M::Finit
            | M::Cvtpi2ps
            | M::Cvtpi2pd
            | M::Cvtps2pi
            | M::Cvttps2pi
            | M::Cvtpd2pi
            | M::Cvttpd2pi
    )
}

/// Instructions that see or change system state, or have operands in registers
/// that translated code holds elsewhere.
fn system_state(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        m,
        M::Cpuid
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpmc
            | M::Rdpid
            | M::Xgetbv
            | M::Rdrand
            | M::Rdseed
            | M::In
            | M::Out
            | M::Lfs
            | M::Lgs
            | M::Lss
            | M::Syscall
            | M::Sysenter
            | M::Sysexit
            | M::Sysret
            | M::Sysexitq
            | M::Sysretq
            | M::Int
            | M::Int1
            | M::Int3
            | M::Into
            | M::Iret
            | M::Iretd
            | M::Iretq
            | M::Cli
            | M::Sti
            | M::Std
            | M::Cld
            | M::Pushf
            | M::Pushfd
            | M::Pushfq
            | M::Popf
            | M::Popfd
            | M::Popfq
            | M::Sgdt
            | M::Sidt
            | M::Sldt
            | M::Str
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Enter
            | M::Xlatb
            | M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Vmaskmovdqu
            | M::Monitor
            | M::Mwait
            | M::Clflush
            | M::Clflushopt
            | M::Clwb
            | M::Loop
            | M::Loope
            | M::Loopne
            | M::Swapgs
            | M::Hlt
            | M::Xbegin
            | M::Xend
            | M::Xabort
            | M::Xtest
            | M::Bound
            | M::Serialize
            | M::Rdsspd
            | M::Rdsspq
            | M::Clts
            | M::Salc
    )
}
