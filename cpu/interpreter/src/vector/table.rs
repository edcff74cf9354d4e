//! Instructions that are a function of whole vectors or of the lowest lane.

use std::sync::LazyLock;

use iced_x86::Mnemonic as M;
use x86_semantics::sse_fp::{self as fp, Env};
use x86_semantics::{crypto, simd};

use crate::insn::Insn;

/// Order of the operands of a fused multiply-add: which two are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// First and third; the second is added.
    F132,
    /// Second and first; the third is added.
    F213,
    /// Second and third; the first is added.
    F231,
}

type F1 = fn(u128, &mut Env) -> u128;
type F1Imm = fn(u128, u8, &mut Env) -> u128;
type F2 = fn(u128, u128, &mut Env) -> u128;
type F2Imm = fn(u128, u128, u8, &mut Env) -> u128;

/// Shape and function. Byte counts are the size of a memory operand.
#[derive(Clone, Copy)]
pub(super) enum Op {
    /// `dst = f(a, b)` in each lane.
    Int2(fn(u128, u128) -> u128),
    /// With an immediate, shifted right by this for the upper lane.
    Int2Imm(fn(u128, u128, u8) -> u128, u8),
    /// `dst = f(b)`.
    Int1(fn(u128) -> u128),
    /// With an immediate, shifted right by this for the upper lane.
    Int1Imm(fn(u128, u8) -> u128, u8),
    /// Shift by an immediate or by a 128-bit operand's low quadword.
    Shift(fn(u128, u64) -> u128),
    /// Shift by bytes.
    ShiftBytes(fn(u128, u8) -> u128),
    /// Extend elements; bytes read for each lane.
    Extend(fn(u128) -> u128, u8),
    /// `dst = f(a, b, mask)`.
    Select(fn(u128, u128, u128) -> u128),
    /// Floating point `f(a, b)`.
    Float2(F2),
    /// With an immediate.
    Float2Imm(F2Imm),
    /// Floating point `f(b)`.
    Float1(F1),
    /// With an immediate.
    Float1Imm(F1Imm),
    /// Lowest lane; bytes read.
    Scalar2(F2, u8),
    /// Lowest lane, with an immediate; bytes read.
    Scalar2Imm(F2Imm, u8),
    /// Eight source bytes make a lane.
    Widen(F1),
    /// A lane makes eight result bytes.
    Narrow(F1),
    /// Fused multiply-add.
    Fused(fn(u128, u128, u128, &mut Env) -> u128, Order),
    /// Fused multiply-add of the lowest lane; bytes read.
    FusedScalar(fn(u128, u128, u128, u128, &mut Env) -> u128, Order, u8),
}

/// One instruction in its two encodings; `INVALID` where there is none.
pub(super) struct Row {
    /// Legacy mnemonic.
    pub legacy: M,
    /// VEX mnemonic.
    pub vex: M,
    /// What it does.
    pub op: Op,
}

macro_rules! rows {
    ($($shape:ident { $($legacy:ident $vex:ident $f:expr $(, $extra:expr)*;)* })*) => {
        static ROWS: &[Row] = &[$($(
            Row { legacy: M::$legacy, vex: M::$vex, op: Op::$shape($f $(, $extra)*) },
        )*)*];
    };
}

/// The row an instruction was decoded to.
#[inline(always)]
pub(super) fn row(i: &Insn) -> &'static Row {
    &ROWS[(i.aux as usize).min(ROWS.len() - 1)]
}

/// Index of the row for a mnemonic; the two forms of VPERMILPS and VPERMILPD
/// differ by the immediate.
pub(super) fn find(mnemonic: M, immediate: bool) -> Option<usize> {
    static INDEX: LazyLock<Vec<[u16; 2]>> = LazyLock::new(|| {
        let mut index = vec![[u16::MAX; 2]; M::values().len()];
        for (n, row) in ROWS.iter().enumerate() {
            let forms: &[usize] = match row.op {
                Op::Int2Imm(..)
                | Op::Int1Imm(..)
                | Op::ShiftBytes(_)
                | Op::Float2Imm(_)
                | Op::Float1Imm(_)
                | Op::Scalar2Imm(..) => &[1],
                Op::Shift(_) => &[0, 1],
                _ => &[0],
            };
            for m in [row.legacy, row.vex] {
                for form in forms {
                    index[m as usize][*form] = n as u16;
                }
            }
        }
        index[M::INVALID as usize] = [u16::MAX; 2];
        index
    });
    let n = INDEX.get(mnemonic as usize)?[usize::from(immediate)];
    (n != u16::MAX).then_some(usize::from(n))
}

rows! {
    Int2 {
        Paddb Vpaddb simd::paddb; Paddw Vpaddw simd::paddw; Paddd Vpaddd simd::paddd;
        Paddq Vpaddq simd::paddq; Paddsb Vpaddsb simd::paddsb; Paddsw Vpaddsw simd::paddsw;
        Paddusb Vpaddusb simd::paddusb; Paddusw Vpaddusw simd::paddusw; Psubb Vpsubb simd::psubb;
        Psubw Vpsubw simd::psubw; Psubd Vpsubd simd::psubd; Psubq Vpsubq simd::psubq;
        Psubsb Vpsubsb simd::psubsb; Psubsw Vpsubsw simd::psubsw; Psubusb Vpsubusb simd::psubusb;
        Psubusw Vpsubusw simd::psubusw; Pavgb Vpavgb simd::pavgb; Pavgw Vpavgw simd::pavgw;
        Psignb Vpsignb simd::psignb; Psignw Vpsignw simd::psignw; Psignd Vpsignd simd::psignd;
        Phaddw Vphaddw simd::phaddw; Phaddd Vphaddd simd::phaddd; Phaddsw Vphaddsw simd::phaddsw;
        Phsubw Vphsubw simd::phsubw; Phsubd Vphsubd simd::phsubd; Phsubsw Vphsubsw simd::phsubsw;
        Pmullw Vpmullw simd::pmullw; Pmulhw Vpmulhw simd::pmulhw; Pmulhuw Vpmulhuw simd::pmulhuw;
        Pmulhrsw Vpmulhrsw simd::pmulhrsw; Pmulld Vpmulld simd::pmulld; Pmuludq Vpmuludq simd::pmuludq;
        Pmuldq Vpmuldq simd::pmuldq; Pmaddwd Vpmaddwd simd::pmaddwd; Pmaddubsw Vpmaddubsw simd::pmaddubsw;
        Psadbw Vpsadbw simd::psadbw;
        Pcmpeqb Vpcmpeqb simd::pcmpeqb; Pcmpeqw Vpcmpeqw simd::pcmpeqw; Pcmpeqd Vpcmpeqd simd::pcmpeqd;
        Pcmpeqq Vpcmpeqq simd::pcmpeqq; Pcmpgtb Vpcmpgtb simd::pcmpgtb; Pcmpgtw Vpcmpgtw simd::pcmpgtw;
        Pcmpgtd Vpcmpgtd simd::pcmpgtd; Pcmpgtq Vpcmpgtq simd::pcmpgtq; Pminub Vpminub simd::pminub;
        Pminuw Vpminuw simd::pminuw; Pminud Vpminud simd::pminud; Pminsb Vpminsb simd::pminsb;
        Pminsw Vpminsw simd::pminsw; Pminsd Vpminsd simd::pminsd; Pmaxub Vpmaxub simd::pmaxub;
        Pmaxuw Vpmaxuw simd::pmaxuw; Pmaxud Vpmaxud simd::pmaxud; Pmaxsb Vpmaxsb simd::pmaxsb;
        Pmaxsw Vpmaxsw simd::pmaxsw; Pmaxsd Vpmaxsd simd::pmaxsd;
        Pand Vpand simd::pand; Pandn Vpandn simd::pandn; Por Vpor simd::por; Pxor Vpxor simd::pxor;
        Andps Vandps simd::pand; Andpd Vandpd simd::pand; Andnps Vandnps simd::pandn;
        Andnpd Vandnpd simd::pandn; Orps Vorps simd::por; Orpd Vorpd simd::por;
        Xorps Vxorps simd::pxor; Xorpd Vxorpd simd::pxor;
        Packsswb Vpacksswb simd::packsswb; Packuswb Vpackuswb simd::packuswb;
        Packssdw Vpackssdw simd::packssdw; Packusdw Vpackusdw simd::packusdw;
        Punpcklbw Vpunpcklbw simd::punpcklbw; Punpcklwd Vpunpcklwd simd::punpcklwd;
        Punpckldq Vpunpckldq simd::punpckldq; Punpcklqdq Vpunpcklqdq simd::punpcklqdq;
        Punpckhbw Vpunpckhbw simd::punpckhbw; Punpckhwd Vpunpckhwd simd::punpckhwd;
        Punpckhdq Vpunpckhdq simd::punpckhdq; Punpckhqdq Vpunpckhqdq simd::punpckhqdq;
        Unpcklps Vunpcklps simd::punpckldq; Unpcklpd Vunpcklpd simd::punpcklqdq;
        Unpckhps Vunpckhps simd::punpckhdq; Unpckhpd Vunpckhpd simd::punpckhqdq;
        Pshufb Vpshufb simd::pshufb; INVALID Vpermilps simd::vpermilps; INVALID Vpermilpd simd::vpermilpd;
        INVALID Vpsllvd simd::vpsllvd; INVALID Vpsllvq simd::vpsllvq; INVALID Vpsrlvd simd::vpsrlvd;
        INVALID Vpsrlvq simd::vpsrlvq; INVALID Vpsravd simd::vpsravd;
        Aesenc Vaesenc crypto::aesenc; Aesenclast Vaesenclast crypto::aesenclast;
        Aesdec Vaesdec crypto::aesdec; Aesdeclast Vaesdeclast crypto::aesdeclast;
        Sha1nexte INVALID crypto::sha1nexte; Sha1msg1 INVALID crypto::sha1msg1;
        Sha1msg2 INVALID crypto::sha1msg2; Sha256msg1 INVALID crypto::sha256msg1;
        Sha256msg2 INVALID crypto::sha256msg2;
    }
    Int2Imm {
        Palignr Vpalignr simd::palignr, 0; Shufps Vshufps simd::shufps, 0; Shufpd Vshufpd simd::shufpd, 2;
        Pblendw Vpblendw simd::pblendw, 0; Blendps Vblendps simd::blendps, 4;
        Blendpd Vblendpd simd::blendpd, 2; INVALID Vpblendd simd::blendps, 4;
        Mpsadbw Vmpsadbw simd::mpsadbw, 3; Pclmulqdq Vpclmulqdq crypto::pclmulqdq, 0;
        Sha1rnds4 INVALID crypto::sha1rnds4, 0;
    }
    Int1 {
        Pabsb Vpabsb simd::pabsb; Pabsw Vpabsw simd::pabsw; Pabsd Vpabsd simd::pabsd;
        Phminposuw Vphminposuw simd::phminposuw; Aesimc Vaesimc crypto::aesimc;
        Movsldup Vmovsldup simd::movsldup; Movshdup Vmovshdup simd::movshdup;
    }
    Int1Imm {
        Pshufd Vpshufd simd::pshufd, 0; Pshuflw Vpshuflw simd::pshuflw, 0; Pshufhw Vpshufhw simd::pshufhw, 0;
        INVALID Vpermilps simd::pshufd, 0; INVALID Vpermilpd |a, imm| simd::shufpd(a, a, imm), 2;
        Aeskeygenassist Vaeskeygenassist crypto::aeskeygenassist, 0;
    }
    Shift {
        Psllw Vpsllw simd::psllw; Pslld Vpslld simd::pslld; Psllq Vpsllq simd::psllq;
        Psrlw Vpsrlw simd::psrlw; Psrld Vpsrld simd::psrld; Psrlq Vpsrlq simd::psrlq;
        Psraw Vpsraw simd::psraw; Psrad Vpsrad simd::psrad;
    }
    ShiftBytes {
        Pslldq Vpslldq simd::pslldq; Psrldq Vpsrldq simd::psrldq;
    }
    Extend {
        Pmovsxbw Vpmovsxbw simd::pmovsxbw, 8; Pmovsxbd Vpmovsxbd simd::pmovsxbd, 4;
        Pmovsxbq Vpmovsxbq simd::pmovsxbq, 2; Pmovsxwd Vpmovsxwd simd::pmovsxwd, 8;
        Pmovsxwq Vpmovsxwq simd::pmovsxwq, 4; Pmovsxdq Vpmovsxdq simd::pmovsxdq, 8;
        Pmovzxbw Vpmovzxbw simd::pmovzxbw, 8; Pmovzxbd Vpmovzxbd simd::pmovzxbd, 4;
        Pmovzxbq Vpmovzxbq simd::pmovzxbq, 2; Pmovzxwd Vpmovzxwd simd::pmovzxwd, 8;
        Pmovzxwq Vpmovzxwq simd::pmovzxwq, 4; Pmovzxdq Vpmovzxdq simd::pmovzxdq, 8;
    }
    Select {
        Pblendvb Vpblendvb simd::pblendvb; Blendvps Vblendvps simd::blendvps;
        Blendvpd Vblendvpd simd::blendvpd; Sha256rnds2 INVALID crypto::sha256rnds2;
    }
    Float2 {
        Addps Vaddps fp::addps; Addpd Vaddpd fp::addpd; Subps Vsubps fp::subps; Subpd Vsubpd fp::subpd;
        Mulps Vmulps fp::mulps; Mulpd Vmulpd fp::mulpd; Divps Vdivps fp::divps; Divpd Vdivpd fp::divpd;
        Minps Vminps fp::minps; Minpd Vminpd fp::minpd; Maxps Vmaxps fp::maxps; Maxpd Vmaxpd fp::maxpd;
        Haddps Vhaddps fp::haddps; Haddpd Vhaddpd fp::haddpd; Hsubps Vhsubps fp::hsubps;
        Hsubpd Vhsubpd fp::hsubpd; Addsubps Vaddsubps fp::addsubps; Addsubpd Vaddsubpd fp::addsubpd;
    }
    Float2Imm {
        Cmpps Vcmpps fp::cmpps; Cmppd Vcmppd fp::cmppd; Dpps Vdpps fp::dpps; Dppd Vdppd fp::dppd;
    }
    Float1 {
        Sqrtps Vsqrtps fp::sqrtps; Sqrtpd Vsqrtpd fp::sqrtpd; Cvtdq2ps Vcvtdq2ps fp::cvtdq2ps;
        Cvtps2dq Vcvtps2dq fp::cvtps2dq; Cvttps2dq Vcvttps2dq fp::cvttps2dq;
        Rcpps Vrcpps |b, _| fp::rcpps(b); Rsqrtps Vrsqrtps |b, _| fp::rsqrtps(b);
    }
    Float1Imm {
        Roundps Vroundps fp::roundps; Roundpd Vroundpd fp::roundpd;
    }
    Scalar2 {
        Addss Vaddss fp::addss, 4; Addsd Vaddsd fp::addsd, 8; Subss Vsubss fp::subss, 4;
        Subsd Vsubsd fp::subsd, 8; Mulss Vmulss fp::mulss, 4; Mulsd Vmulsd fp::mulsd, 8;
        Divss Vdivss fp::divss, 4; Divsd Vdivsd fp::divsd, 8; Minss Vminss fp::minss, 4;
        Minsd Vminsd fp::minsd, 8; Maxss Vmaxss fp::maxss, 4; Maxsd Vmaxsd fp::maxsd, 8;
        Sqrtss Vsqrtss fp::sqrtss, 4; Sqrtsd Vsqrtsd fp::sqrtsd, 8;
        Rcpss Vrcpss |a, b, _| fp::rcpss(a, b), 4; Rsqrtss Vrsqrtss |a, b, _| fp::rsqrtss(a, b), 4;
        Cvtss2sd Vcvtss2sd fp::cvtss2sd, 4; Cvtsd2ss Vcvtsd2ss fp::cvtsd2ss, 8;
    }
    Scalar2Imm {
        Cmpss Vcmpss fp::cmpss, 4; Cmpsd Vcmpsd fp::cmpsd, 8; Roundss Vroundss fp::roundss, 4;
        Roundsd Vroundsd fp::roundsd, 8;
    }
    Widen {
        Cvtps2pd Vcvtps2pd fp::cvtps2pd; Cvtdq2pd Vcvtdq2pd |b, _| fp::cvtdq2pd(b);
        INVALID Vcvtph2ps |b, env| fp::cvtph2ps(b as u64, env);
    }
    Narrow {
        Cvtpd2ps Vcvtpd2ps fp::cvtpd2ps; Cvtpd2dq Vcvtpd2dq fp::cvtpd2dq; Cvttpd2dq Vcvttpd2dq fp::cvttpd2dq;
    }
    Fused {
        INVALID Vfmadd132ps fp::fmaddps, Order::F132;
        INVALID Vfmadd132pd fp::fmaddpd, Order::F132;
        INVALID Vfmadd213ps fp::fmaddps, Order::F213;
        INVALID Vfmadd213pd fp::fmaddpd, Order::F213;
        INVALID Vfmadd231ps fp::fmaddps, Order::F231;
        INVALID Vfmadd231pd fp::fmaddpd, Order::F231;
        INVALID Vfmsub132ps fp::fmsubps, Order::F132;
        INVALID Vfmsub132pd fp::fmsubpd, Order::F132;
        INVALID Vfmsub213ps fp::fmsubps, Order::F213;
        INVALID Vfmsub213pd fp::fmsubpd, Order::F213;
        INVALID Vfmsub231ps fp::fmsubps, Order::F231;
        INVALID Vfmsub231pd fp::fmsubpd, Order::F231;
        INVALID Vfnmadd132ps fp::fnmaddps, Order::F132;
        INVALID Vfnmadd132pd fp::fnmaddpd, Order::F132;
        INVALID Vfnmadd213ps fp::fnmaddps, Order::F213;
        INVALID Vfnmadd213pd fp::fnmaddpd, Order::F213;
        INVALID Vfnmadd231ps fp::fnmaddps, Order::F231;
        INVALID Vfnmadd231pd fp::fnmaddpd, Order::F231;
        INVALID Vfnmsub132ps fp::fnmsubps, Order::F132;
        INVALID Vfnmsub132pd fp::fnmsubpd, Order::F132;
        INVALID Vfnmsub213ps fp::fnmsubps, Order::F213;
        INVALID Vfnmsub213pd fp::fnmsubpd, Order::F213;
        INVALID Vfnmsub231ps fp::fnmsubps, Order::F231;
        INVALID Vfnmsub231pd fp::fnmsubpd, Order::F231;
        INVALID Vfmaddsub132ps fp::fmaddsubps, Order::F132;
        INVALID Vfmaddsub132pd fp::fmaddsubpd, Order::F132;
        INVALID Vfmaddsub213ps fp::fmaddsubps, Order::F213;
        INVALID Vfmaddsub213pd fp::fmaddsubpd, Order::F213;
        INVALID Vfmaddsub231ps fp::fmaddsubps, Order::F231;
        INVALID Vfmaddsub231pd fp::fmaddsubpd, Order::F231;
        INVALID Vfmsubadd132ps fp::fmsubaddps, Order::F132;
        INVALID Vfmsubadd132pd fp::fmsubaddpd, Order::F132;
        INVALID Vfmsubadd213ps fp::fmsubaddps, Order::F213;
        INVALID Vfmsubadd213pd fp::fmsubaddpd, Order::F213;
        INVALID Vfmsubadd231ps fp::fmsubaddps, Order::F231;
        INVALID Vfmsubadd231pd fp::fmsubaddpd, Order::F231;
    }
    FusedScalar {
        INVALID Vfmadd132ss fp::fmaddss, Order::F132, 4;
        INVALID Vfmadd132sd fp::fmaddsd, Order::F132, 8;
        INVALID Vfmadd213ss fp::fmaddss, Order::F213, 4;
        INVALID Vfmadd213sd fp::fmaddsd, Order::F213, 8;
        INVALID Vfmadd231ss fp::fmaddss, Order::F231, 4;
        INVALID Vfmadd231sd fp::fmaddsd, Order::F231, 8;
        INVALID Vfmsub132ss fp::fmsubss, Order::F132, 4;
        INVALID Vfmsub132sd fp::fmsubsd, Order::F132, 8;
        INVALID Vfmsub213ss fp::fmsubss, Order::F213, 4;
        INVALID Vfmsub213sd fp::fmsubsd, Order::F213, 8;
        INVALID Vfmsub231ss fp::fmsubss, Order::F231, 4;
        INVALID Vfmsub231sd fp::fmsubsd, Order::F231, 8;
        INVALID Vfnmadd132ss fp::fnmaddss, Order::F132, 4;
        INVALID Vfnmadd132sd fp::fnmaddsd, Order::F132, 8;
        INVALID Vfnmadd213ss fp::fnmaddss, Order::F213, 4;
        INVALID Vfnmadd213sd fp::fnmaddsd, Order::F213, 8;
        INVALID Vfnmadd231ss fp::fnmaddss, Order::F231, 4;
        INVALID Vfnmadd231sd fp::fnmaddsd, Order::F231, 8;
        INVALID Vfnmsub132ss fp::fnmsubss, Order::F132, 4;
        INVALID Vfnmsub132sd fp::fnmsubsd, Order::F132, 8;
        INVALID Vfnmsub213ss fp::fnmsubss, Order::F213, 4;
        INVALID Vfnmsub213sd fp::fnmsubsd, Order::F213, 8;
        INVALID Vfnmsub231ss fp::fnmsubss, Order::F231, 4;
        INVALID Vfnmsub231sd fp::fnmsubsd, Order::F231, 8;
    }
}
