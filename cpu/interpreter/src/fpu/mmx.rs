//! MMX: eight 64-bit registers that alias the significands of R0-R7, and every
//! instruction that touches one, those with an XMM operand included.
//!
//! Any of them makes TOP zero and all tags valid (EMMS: empty); a write also sets
//! the register's sign and exponent to ones (SDM volume 3, table 13-2).

use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86_semantics::simd::{self, mmx};
use x86_semantics::sse_fp::{self, Env};
use x86_semantics::x87::status;
use x86_state::{cr0, cr4, vector};

use crate::cpu::{Cpu, Step, Stop};
use crate::insn::{Handler, Insn};

/// Destination, source; result.
type Operation = fn(u64, u64) -> u64;

macro_rules! table {
    ([$($lane:ident)*] [$($own:ident)*] [$($shift:ident)*] [$($unary:ident)*]) => {
        &[
            $((stringify!($lane), (|a, b| simd::$lane(a.into(), b.into()) as u64) as Operation),)*
            $((stringify!($own), mmx::$own as Operation),)*
            $((stringify!($shift), (|a, count| simd::$shift(a.into(), count) as u64) as Operation),)*
            $((stringify!($unary), (|_, b| simd::$unary(b.into()) as u64) as Operation),)*
        ]
    };
}

/// By lower-case mnemonic: plain two-operand instructions and shifts.
static OPERATIONS: &[(&str, Operation)] = table! {
    [paddb paddw paddd paddq paddsb paddsw paddusb paddusw psubb psubw psubd psubq psubsb psubsw psubusb
     psubusw pmullw pmulhw pmulhuw pmulhrsw pmaddwd pmaddubsw psadbw pavgb pavgw pminub pmaxub pminsw pmaxsw
     pand pandn por pxor pcmpeqb pcmpeqw pcmpeqd pcmpgtb pcmpgtw pcmpgtd psignb psignw psignd
     punpcklbw punpcklwd punpckldq]
    [packsswb packuswb packssdw phaddw phaddd phaddsw phsubw phsubd phsubsw punpckhbw punpckhwd punpckhdq
     pshufb pmuludq]
    [psllw pslld psllq psrlw psrld psrlq psraw psrad]
    [pabsb pabsw pabsd]
};

pub(super) fn handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    if i.code() == Code::Emms {
        return Some(emms);
    }
    let touches = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && i.op_register(n).is_mm());
    let converts = matches!(i.code(), Code::Cvtpi2ps_xmm_mmm64 | Code::Cvtpi2pd_xmm_mmm64);
    if !touches && !converts {
        return None;
    }
    let memory = insn.has(Insn::MEM);
    Some(match i.code() {
        Code::Movd_mm_rm32 => load_general::<u32>,
        Code::Movq_mm_rm64 => load_general::<u64>,
        Code::Movd_rm32_mm if memory => store_low,
        Code::Movd_rm32_mm => to_general::<u32>,
        Code::Movq_rm64_mm if memory => store,
        Code::Movq_rm64_mm => to_general::<u64>,
        Code::Movq_mm_mmm64 => copy,
        Code::Movq_mmm64_mm if memory => store,
        Code::Movq_mmm64_mm => copy,
        Code::Movntq_m64_mm => store,
        Code::Maskmovq_rDI_mm_mm => store_masked,
        Code::Movq2dq_xmm_mm => to_xmm,
        Code::Movdq2q_mm_xmm => from_xmm,
        Code::Pshufw_mm_mmm64_imm8 => shuffle,
        Code::Palignr_mm_mmm64_imm8 => align,
        Code::Pinsrw_mm_r32m16_imm8 | Code::Pinsrw_mm_r64m16_imm8 => insert,
        Code::Pextrw_r32_mm_imm8 | Code::Pextrw_r64_mm_imm8 => extract,
        Code::Pmovmskb_r32_mm | Code::Pmovmskb_r64_mm => byte_mask,
        Code::Cvtpi2ps_xmm_mmm64 => cvtpi2ps,
        Code::Cvtpi2pd_xmm_mmm64 => cvtpi2pd,
        Code::Cvtps2pi_mm_xmmm64 => cvt_to_mmx::<8>,
        Code::Cvttps2pi_mm_xmmm64 => cvt_to_mmx::<8>,
        Code::Cvtpd2pi_mm_xmmm128 => cvt_to_mmx::<16>,
        Code::Cvttpd2pi_mm_xmmm128 => cvt_to_mmx::<16>,
        _ => return operation(i, insn),
    })
}

/// A row of [`OPERATIONS`], in `aux`.
fn operation(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    let name = format!("{:?}", i.mnemonic()).to_ascii_lowercase();
    insn.aux = OPERATIONS.iter().position(|(n, _)| *n == name)? as u32;
    let low = matches!(i.mnemonic(), Mnemonic::Punpcklbw | Mnemonic::Punpcklwd | Mnemonic::Punpckldq);
    Some(match i.op1_kind() {
        OpKind::Immediate8 => binary_immediate,
        OpKind::Memory if low => binary_low,
        _ => binary,
    })
}

impl Cpu {
    /// #UD for CR0.EM, #NM for CR0.TS, then a pending #MF.
    fn mmx_available(&mut self) -> Step {
        if self.cr0 & cr0::EM != 0 {
            return Err(self.ud());
        }
        if self.cr0 & cr0::TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        self.fpu_pending()
    }

    /// The x87's view after an MMX instruction. To be called once no fault can follow.
    fn mmx_enter(&mut self) {
        self.fpu.fsw &= !status::TOP;
        self.fpu.ftw = 0xff;
    }

    fn mm(&self, n: u8) -> u64 {
        self.fpu.regs[usize::from(n & 7)].significand
    }

    fn set_mm(&mut self, n: u8, v: u64) {
        self.mmx_enter();
        let r = &mut self.fpu.regs[usize::from(n & 7)];
        r.significand = v;
        r.sign_exponent = 0xffff;
    }

    /// The second operand: MMX register or memory.
    fn mm_source(&mut self, i: &Insn) -> Result<u64, Stop> {
        if i.has(Insn::MEM) { self.load(i) } else { Ok(self.mm(i.ops[1])) }
    }

    /// #UD unless the operating system has enabled SSE.
    fn xmm_available(&mut self) -> Step {
        if self.cr4 & cr4::OSFXSR == 0 {
            return Err(self.ud());
        }
        self.mmx_available()
    }

    /// Record SSE exceptions; #XM (or #UD without CR4.OSXMMEXCPT) if one is unmasked.
    fn mmx_commit(&mut self, env: &Env) -> Step {
        if !sse_fp::commit(env, &mut self.fpu.mxcsr) {
            return Ok(());
        }
        if self.cr4 & cr4::OSXMMEXCPT != 0 { Err(self.raise(vector::XM, None)) } else { Err(self.ud()) }
    }
}

/// The XMM register `n`.
fn xmm(cpu: &Cpu, n: u8) -> u128 {
    let v = cpu.fpu.ymm[usize::from(n & 15)];
    u128::from(v[0]) | u128::from(v[1]) << 64
}

/// Write XMM register `n`; the upper half of the YMM register stays.
fn set_xmm(cpu: &mut Cpu, n: u8, v: u128) {
    let r = &mut cpu.fpu.ymm[usize::from(n & 15)];
    r[0] = v as u64;
    r[1] = (v >> 64) as u64;
}

fn emms(cpu: &mut Cpu, _: &Insn) -> Step {
    cpu.mmx_available()?;
    cpu.fpu.ftw = 0;
    cpu.fpu.fsw &= !status::TOP;
    Ok(())
}

fn apply(i: &Insn, a: u64, b: u64) -> u64 {
    OPERATIONS[i.aux as usize % OPERATIONS.len()].1(a, b)
}

fn binary(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    let b = cpu.mm_source(i)?;
    cpu.set_mm(i.ops[0], apply(i, cpu.mm(i.ops[0]), b));
    Ok(())
}

/// With a 32-bit memory operand.
fn binary_low(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    let b = cpu.load::<u32>(i)?;
    cpu.set_mm(i.ops[0], apply(i, cpu.mm(i.ops[0]), b.into()));
    Ok(())
}

/// Shifts by an immediate count.
fn binary_immediate(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    cpu.set_mm(i.ops[0], apply(i, cpu.mm(i.ops[0]), i.imm & 0xff));
    Ok(())
}

/// A general-register or memory source, zero-extended.
trait General: guest_memory::Scalar + Into<u64> {
    fn from_low(v: u64) -> Self;
}

impl General for u32 {
    fn from_low(v: u64) -> Self {
        v as u32
    }
}

impl General for u64 {
    fn from_low(v: u64) -> Self {
        v
    }
}

fn load_general<T: General>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    let v = if i.has(Insn::MEM) { cpu.load(i)? } else { T::from_low(cpu.regs[usize::from(i.ops[1] & 15)]) };
    cpu.set_mm(i.ops[0], v.into());
    Ok(())
}

fn to_general<T: General>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    cpu.mmx_enter();
    cpu.regs[usize::from(i.ops[0] & 15)] = T::from_low(cpu.mm(i.ops[1])).into();
    Ok(())
}

fn copy(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    let v = cpu.mm_source(i)?;
    cpu.set_mm(i.ops[0], v);
    Ok(())
}

fn store(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    cpu.store(i, cpu.mm(i.ops[1]))?;
    cpu.mmx_enter();
    Ok(())
}

fn store_low(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    cpu.store(i, cpu.mm(i.ops[1]) as u32)?;
    cpu.mmx_enter();
    Ok(())
}

/// MASKMOVQ: the bytes of the first register whose mask byte is negative, to DS:rDI.
fn store_masked(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    let (value, mask) = (cpu.mm(i.ops[1]).to_le_bytes(), cpu.mm(i.ops[2]).to_le_bytes());
    let shift = i.address_shift & 63;
    let base = cpu.regs[x86_state::reg::RDI];
    let address = |n: u64| base.wrapping_add(n) << shift >> shift;
    if mask.iter().any(|m| m >> 7 != 0) {
        let linear = cpu.segment_address(i.seg, address(0), 8, true)?;
        cpu.probe_write(linear, 8, crate::cpu::Privilege::Current)?;
    }
    for n in 0..8 {
        if mask[n] >> 7 != 0 {
            cpu.write_seg(i.seg, address(n as u64), value[n])?;
        }
    }
    cpu.mmx_enter();
    Ok(())
}

fn shuffle(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    let b = cpu.mm_source(i)?;
    cpu.set_mm(i.ops[0], mmx::pshufw(b, i.imm as u8));
    Ok(())
}

fn align(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    let b = cpu.mm_source(i)?;
    cpu.set_mm(i.ops[0], mmx::palignr(cpu.mm(i.ops[0]), b, i.imm as u8));
    Ok(())
}

fn insert(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    let v = if i.has(Insn::MEM) { cpu.load(i)? } else { cpu.regs[usize::from(i.ops[1] & 15)] as u16 };
    cpu.set_mm(i.ops[0], mmx::pinsrw(cpu.mm(i.ops[0]), v, i.imm as u8));
    Ok(())
}

fn extract(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    cpu.mmx_enter();
    cpu.regs[usize::from(i.ops[0] & 15)] = mmx::pextrw(cpu.mm(i.ops[1]), i.imm as u8).into();
    Ok(())
}

fn byte_mask(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.mmx_available()?;
    cpu.mmx_enter();
    cpu.regs[usize::from(i.ops[0] & 15)] = mmx::pmovmskb(cpu.mm(i.ops[1])).into();
    Ok(())
}

fn to_xmm(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.xmm_available()?;
    cpu.mmx_enter();
    let v = cpu.mm(i.ops[1]);
    set_xmm(cpu, i.ops[0], v.into());
    Ok(())
}

fn from_xmm(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.xmm_available()?;
    let v = xmm(cpu, i.ops[1]) as u64;
    cpu.set_mm(i.ops[0], v);
    Ok(())
}

fn cvtpi2ps(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.xmm_available()?;
    let b = cpu.mm_source(i)?;
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let r = sse_fp::cvtpi2ps(xmm(cpu, i.ops[0]), b, &mut env);
    cpu.mmx_commit(&env)?;
    cpu.mmx_enter();
    set_xmm(cpu, i.ops[0], r);
    Ok(())
}

/// With a memory source this one leaves the x87 alone (SDM volume 2, CVTPI2PD).
fn cvtpi2pd(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.xmm_available()?;
    let b = cpu.mm_source(i)?;
    if !i.has(Insn::MEM) {
        cpu.mmx_enter();
    }
    set_xmm(cpu, i.ops[0], sse_fp::cvtpi2pd(b));
    Ok(())
}

/// CVT[T]PS2PI (8-byte source) and CVT[T]PD2PI (16-byte source).
fn cvt_to_mmx<const SOURCE: usize>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.xmm_available()?;
    let b = match (i.has(Insn::MEM), SOURCE) {
        (false, _) => xmm(cpu, i.ops[1]),
        (true, 8) => u128::from(cpu.load::<u64>(i)?),
        (true, _) => {
            cpu.aligned(i, 16)?;
            cpu.load::<u128>(i)?
        }
    };
    let mut env = Env::sse(cpu.fpu.mxcsr);
    let truncate = matches!(
        Code::try_from(usize::from(i.code)),
        Ok(Code::Cvttps2pi_mm_xmmm64 | Code::Cvttpd2pi_mm_xmmm128)
    );
    let r = match (SOURCE, truncate) {
        (8, false) => sse_fp::cvtps2pi(b, &mut env),
        (8, true) => sse_fp::cvttps2pi(b, &mut env),
        (_, false) => sse_fp::cvtpd2pi(b, &mut env),
        (_, true) => sse_fp::cvttpd2pi(b, &mut env),
    };
    cpu.mmx_commit(&env)?;
    cpu.set_mm(i.ops[0], r);
    Ok(())
}
