//! MOVS, STOS, LODS, CMPS, SCAS and the repetition of string instructions.
//!
//! Registers advance with every element, so a repeated instruction can stop
//! between any two: at a fault, or when something wants the processor.

use engine::attention_bits;
use guest_memory::RamOffset;
use iced_x86::{Code, Instruction};
use x86_semantics::int;
use x86_state::rflags;

use super::{Width, sized};
use crate::cpu::{Cpu, Step, Stop};
use crate::insn::{Handler, Insn, REG_RIP};
use crate::memory::ram;

const RAX: u8 = 0;
pub(crate) const RCX: u8 = 1;
pub(crate) const RSI: u8 = 6;
pub(crate) const RDI: u8 = 7;
const ES: u8 = 0;

pub(super) fn handler(i: &Instruction, insn: &mut Insn) -> Option<Handler> {
    use Code::*;
    let (kind, size) = match i.code() {
        Movsb_m8_m8 => (0, 1),
        Movsw_m16_m16 => (0, 2),
        Movsd_m32_m32 => (0, 4),
        Movsq_m64_m64 => (0, 8),
        Stosb_m8_AL => (1, 1),
        Stosw_m16_AX => (1, 2),
        Stosd_m32_EAX => (1, 4),
        Stosq_m64_RAX => (1, 8),
        Lodsb_AL_m8 => (2, 1),
        Lodsw_AX_m16 => (2, 2),
        Lodsd_EAX_m32 => (2, 4),
        Lodsq_RAX_m64 => (2, 8),
        Cmpsb_m8_m8 => (3, 1),
        Cmpsw_m16_m16 => (3, 2),
        Cmpsd_m32_m32 => (3, 4),
        Cmpsq_m64_m64 => (3, 8),
        Scasb_AL_m8 => (4, 1),
        Scasw_AX_m16 => (4, 2),
        Scasd_EAX_m32 => (4, 4),
        Scasq_RAX_m64 => (4, 8),
        _ => return None,
    };
    insn.size = size;
    let repeated = insn.bits & (Insn::REP | Insn::REPNE) != 0;
    Some(match (kind, repeated) {
        (0, false) => sized!(size, movs),
        (0, true) => sized!(size, rep_movs),
        (1, false) => sized!(size, stos),
        (1, true) => sized!(size, rep_stos),
        (2, false) => sized!(size, lods),
        (2, true) => sized!(size, rep_lods),
        (3, false) => sized!(size, cmps),
        (3, true) => sized!(size, rep_cmps),
        (_, false) => sized!(size, scas),
        (_, true) => sized!(size, rep_scas),
    })
}

impl Cpu {
    /// A string register, truncated to the address size.
    #[inline(always)]
    pub(crate) fn string_register(&self, i: &Insn, r: u8) -> u64 {
        self.regs[r as usize & 31] & u64::MAX >> (i.address_shift & 63)
    }

    /// Replace a string register as the address size does.
    #[inline(always)]
    pub(crate) fn set_string_register(&mut self, i: &Insn, r: u8, v: u64) {
        match i.address_shift {
            0 => u64::set_reg(self, r, v),
            32 => u32::set_reg(self, r, v as u32),
            _ => u16::set_reg(self, r, v as u16),
        }
    }

    /// Advance a string register by `elements` in the direction of DF.
    #[inline(always)]
    pub(crate) fn advance_string(&mut self, i: &Insn, r: u8, size: usize, elements: u64) {
        let bytes = elements.wrapping_mul(size as u64);
        let delta = if self.system_flags & rflags::DF == 0 { bytes } else { bytes.wrapping_neg() };
        let v = self.regs[r as usize & 31].wrapping_add(delta);
        self.set_string_register(i, r, v);
    }

    /// Run `element` until the count is used up or it says to end; it returns how
    /// many elements it did and whether to end.
    #[inline(always)]
    pub(crate) fn repeat(
        &mut self,
        i: &Insn,
        mut element: impl FnMut(&mut Cpu, u64) -> Result<(u64, bool), Stop>,
    ) -> Step {
        loop {
            let count = self.string_register(i, RCX);
            if count == 0 {
                return Ok(());
            }
            let (done, end) = element(self, count)?;
            let left = count.wrapping_sub(done);
            self.set_string_register(i, RCX, left);
            if end || left == 0 {
                return Ok(());
            }
            if self.wanted() {
                return Err(self.suspend(i));
            }
        }
    }

    /// Whether a repeated instruction must stop between elements.
    #[inline(always)]
    fn wanted(&self) -> bool {
        let bits = self.attention.bits();
        let interrupts = self.system_flags & rflags::IF != 0;
        bits & !attention_bits::INTERRUPT != 0
            || bits != 0 && interrupts
            || self.system_flags & rflags::TF != 0
            || self.pending_debug != 0
    }

    /// Stop a repeated instruction between elements: RIP stays at it, and it has
    /// not retired.
    #[cold]
    fn suspend(&mut self, i: &Insn) -> Stop {
        let rip = self.regs[REG_RIP as usize].wrapping_sub(u64::from(i.len));
        self.regs[REG_RIP as usize] = rip;
        self.retired = self.retired.wrapping_sub(1);
        // What interrupts it here pushes RF set (SDM volume 3, 18.3.1.1).
        self.system_flags |= rflags::RF;
        Stop::Resync
    }

    /// Elements of `size` bytes from `at` to the end of its page, if the
    /// address register cannot wrap on the way.
    #[inline(always)]
    fn elements_in_page(at: u64, size: usize) -> u64 {
        (4096 - (at & 0xfff)) / size as u64
    }
}

fn movs<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.read_seg::<T>(i.seg, cpu.string_register(i, RSI))?;
    cpu.write_seg(ES, cpu.string_register(i, RDI), v)?;
    cpu.advance_string(i, RSI, T::SIZE, 1);
    cpu.advance_string(i, RDI, T::SIZE, 1);
    Ok(())
}

fn rep_movs<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.repeat(i, |cpu, count| {
        let run = movs_run::<T>(cpu, i, count);
        if run > 0 {
            return Ok((run, false));
        }
        movs::<T>(cpu, i)?;
        Ok((1, false))
    })
}

/// Copy as many elements as lie in RAM within one page of source and
/// destination. 0: take the ordinary path.
fn movs_run<T: Width>(cpu: &mut Cpu, i: &Insn, count: u64) -> u64 {
    if count < 2 || cpu.system_flags & (rflags::DF | rflags::TF) != 0 {
        return 0;
    }
    let (si, di) = (cpu.string_register(i, RSI), cpu.string_register(i, RDI));
    let source = cpu.read_base[i.seg as usize & 7].wrapping_add(si);
    let target = cpu.write_base[ES as usize].wrapping_add(di);
    let (from, to) = (cpu.tlb.entry(source), cpu.tlb.entry(target));
    if from.read != cpu.tlb.tag(source, T::SIZE) || to.write != cpu.tlb.tag(target, T::SIZE) {
        return 0;
    }
    let (from, to) = (ram(from, source), ram(to, target));
    let mut n = count.min(Cpu::elements_in_page(source, T::SIZE)).min(Cpu::elements_in_page(target, T::SIZE));
    // A destination shortly above the source repeats what was just written:
    // copy no further than the distance at once.
    let distance = to.0.wrapping_sub(from.0);
    if distance < n * T::SIZE as u64 {
        n = distance / T::SIZE as u64;
    }
    if n == 0 || wraps(i, si, n, T::SIZE) || wraps(i, di, n, T::SIZE) {
        return 0;
    }
    if cpu.memory.copy_within(from, to, n as usize * T::SIZE) {
        cpu.leave_at = 0;
    }
    cpu.advance_string(i, RSI, T::SIZE, n);
    cpu.advance_string(i, RDI, T::SIZE, n);
    n
}

/// Whether an address register would wrap within a run.
fn wraps(i: &Insn, at: u64, n: u64, size: usize) -> bool {
    let top = u64::MAX >> (i.address_shift & 63);
    top - at < n * size as u64 - 1
}

fn stos<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.write_seg(ES, cpu.string_register(i, RDI), T::reg(cpu, RAX))?;
    cpu.advance_string(i, RDI, T::SIZE, 1);
    Ok(())
}

fn rep_stos<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.repeat(i, |cpu, count| {
        let run = stos_run::<T>(cpu, i, count);
        if run > 0 {
            return Ok((run, false));
        }
        stos::<T>(cpu, i)?;
        Ok((1, false))
    })
}

/// Fill as many elements as lie in RAM within one page. 0: take the ordinary path.
fn stos_run<T: Width>(cpu: &mut Cpu, i: &Insn, count: u64) -> u64 {
    if count < 2 || cpu.system_flags & (rflags::DF | rflags::TF) != 0 {
        return 0;
    }
    let di = cpu.string_register(i, RDI);
    let target = cpu.write_base[ES as usize].wrapping_add(di);
    let to = cpu.tlb.entry(target);
    if to.write != cpu.tlb.tag(target, T::SIZE) {
        return 0;
    }
    let to: RamOffset = ram(to, target);
    let n = count.min(Cpu::elements_in_page(target, T::SIZE));
    if n == 0 || wraps(i, di, n, T::SIZE) {
        return 0;
    }
    if cpu.memory.fill(to, T::reg(cpu, RAX), n as usize) {
        cpu.leave_at = 0;
    }
    cpu.advance_string(i, RDI, T::SIZE, n);
    n
}

fn lods<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let v = cpu.read_seg::<T>(i.seg, cpu.string_register(i, RSI))?;
    T::set_reg(cpu, RAX, v);
    cpu.advance_string(i, RSI, T::SIZE, 1);
    Ok(())
}

fn rep_lods<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.repeat(i, |cpu, _| lods::<T>(cpu, i).map(|()| (1, false)))
}

fn cmps<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let a = cpu.read_seg::<T>(i.seg, cpu.string_register(i, RSI))?;
    let b = cpu.read_seg::<T>(ES, cpu.string_register(i, RDI))?;
    cpu.flags = int::sub(a, b).1;
    cpu.advance_string(i, RSI, T::SIZE, 1);
    cpu.advance_string(i, RDI, T::SIZE, 1);
    Ok(())
}

fn scas<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = cpu.read_seg::<T>(ES, cpu.string_register(i, RDI))?;
    cpu.flags = int::sub(T::reg(cpu, RAX), b).1;
    cpu.advance_string(i, RDI, T::SIZE, 1);
    Ok(())
}

/// REPE ends with the first difference, REPNE with the first match.
fn ends(cpu: &Cpu, i: &Insn) -> bool {
    cpu.flags.zf() != i.has(Insn::REP)
}

fn rep_cmps<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.repeat(i, |cpu, _| {
        cmps::<T>(cpu, i)?;
        Ok((1, ends(cpu, i)))
    })
}

fn rep_scas<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.repeat(i, |cpu, _| {
        scas::<T>(cpu, i)?;
        Ok((1, ends(cpu, i)))
    })
}
