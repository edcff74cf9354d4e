//! Hints, fences, cache control and random numbers.

use iced_x86::{Instruction, Mnemonic};
use x86_semantics::flags::Flags;
use x86_state::rflags;

use super::{Width, nop, sized_wide};
use crate::cpu::{Cpu, Privilege, Step};
use crate::insn::{Handler, Insn};
use crate::memory::Intent;

pub(super) fn handler(i: &Instruction, insn: &Insn) -> Option<Handler> {
    Some(match i.mnemonic() {
        Mnemonic::Nop
        | Mnemonic::Pause
        | Mnemonic::Reservednop
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw => nop,
        Mnemonic::Lfence | Mnemonic::Sfence => nop,
        Mnemonic::Mfence => full_fence,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => flush_line,
        Mnemonic::Rdrand | Mnemonic::Rdseed => sized_wide!(insn.size, random),
        _ => return None,
    })
}

/// Orders stores with later loads of other processors' data.
fn full_fence(_: &mut Cpu, _: &Insn) -> Step {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

/// Faults as a load does; there is no cache to write back.
fn flush_line(cpu: &mut Cpu, i: &Insn) -> Step {
    let offset = cpu.effective_address(i);
    let linear = cpu.segment_address(i.seg, offset, 1, false)?;
    cpu.translate(linear, Intent::Read, Privilege::Current)?;
    Ok(())
}

/// CF says that the value is valid; the other status flags are cleared, and
/// without a value the destination too.
fn random<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    debug_assert!(T::SIZE > 1);
    let v = cpu.entropy();
    T::set_reg(cpu, i.ops[0], T::from_u64(v.unwrap_or(0)));
    cpu.flags = Flags::from_rflags(if v.is_some() { rflags::CF } else { 0 });
    Ok(())
}
