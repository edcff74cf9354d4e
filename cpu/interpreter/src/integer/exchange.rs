//! XCHG, XADD, CMPXCHG, CMPXCHG8B and CMPXCHG16B.

use guest_memory::{Lockable, RamOffset};
use iced_x86::{Instruction, Mnemonic};
use x86_semantics::int;
use x86_state::rflags;

use super::{Shape, Width, sized};
use crate::cpu::{Cpu, Privilege, Step};
use crate::insn::{Handler, Insn};
use crate::memory::{Intent, Place, adjacent};

const RAX: u8 = 0;

pub(super) fn handler(i: &Instruction, insn: &mut Insn, shape: Shape) -> Option<Handler> {
    let locked = insn.has(Insn::LOCK);
    let size = insn.size;
    Some(match (i.mnemonic(), shape) {
        (Mnemonic::Xchg, Shape::RegReg) => sized!(size, exchange_regs),
        (Mnemonic::Xchg, Shape::RegMem) => {
            insn.ops[1] = insn.ops[0];
            sized!(size, exchange_mem)
        }
        (Mnemonic::Xchg, Shape::MemReg) => sized!(size, exchange_mem),
        (Mnemonic::Xadd, Shape::RegReg) => sized!(size, add_regs),
        (Mnemonic::Xadd, Shape::MemReg) if locked => sized!(size, add_mem, true),
        (Mnemonic::Xadd, Shape::MemReg) => sized!(size, add_mem, false),
        (Mnemonic::Cmpxchg, Shape::RegReg) => sized!(size, compare_regs),
        (Mnemonic::Cmpxchg, Shape::MemReg) if locked => sized!(size, compare_mem, true),
        (Mnemonic::Cmpxchg, Shape::MemReg) => sized!(size, compare_mem, false),
        (Mnemonic::Cmpxchg8b, _) => compare_8_bytes,
        (Mnemonic::Cmpxchg16b, _) => compare_16_bytes,
        _ => return None,
    })
}

fn exchange_regs<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (a, b) = (T::reg(cpu, i.ops[0]), T::reg(cpu, i.ops[1]));
    T::set_reg(cpu, i.ops[0], b);
    T::set_reg(cpu, i.ops[1], a);
    Ok(())
}

/// Always locked.
fn exchange_mem<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let new = T::reg(cpu, i.ops[1]);
    let old = cpu.modify::<T, true>(i, |_, f| (new, f))?;
    T::set_reg(cpu, i.ops[1], old);
    Ok(())
}

fn add_regs<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (a, b) = (T::reg(cpu, i.ops[0]), T::reg(cpu, i.ops[1]));
    let (sum, f) = int::add(a, b);
    T::set_reg(cpu, i.ops[1], a);
    T::set_reg(cpu, i.ops[0], sum);
    cpu.flags = f;
    Ok(())
}

fn add_mem<const LOCK: bool, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let b = T::reg(cpu, i.ops[1]);
    let old = cpu.modify::<T, LOCK>(i, |a, _| int::add(a, b))?;
    T::set_reg(cpu, i.ops[1], old);
    Ok(())
}

/// A failed comparison leaves the destination alone: a 32-bit one is not zero-extended.
fn compare_regs<T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (found, wanted) = (T::reg(cpu, i.ops[0]), T::reg(cpu, RAX));
    cpu.flags = int::sub(wanted, found).1;
    if found == wanted {
        let new = T::reg(cpu, i.ops[1]);
        T::set_reg(cpu, i.ops[0], new);
    } else {
        T::set_reg(cpu, RAX, found);
    }
    Ok(())
}

/// A failed comparison stores the old value back.
fn compare_mem<const LOCK: bool, T: Width>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (wanted, new) = (T::reg(cpu, RAX), T::reg(cpu, i.ops[1]));
    let found = cpu.modify::<T, LOCK>(i, |a, _| {
        let f = int::sub(wanted, a).1;
        (if a == wanted { new } else { a }, f)
    })?;
    if found != wanted {
        T::set_reg(cpu, RAX, found);
    }
    Ok(())
}

/// EDX:EAX or RDX:RAX, and ECX:EBX or RCX:RBX.
fn pairs<T: Width>(cpu: &Cpu) -> (u128, u128) {
    let r = |n| u128::from(T::reg(cpu, n).to_u64());
    (r(0) | r(2) << T::BITS, r(3) | r(1) << T::BITS)
}

fn compare_8_bytes(cpu: &mut Cpu, i: &Insn) -> Step {
    compare_pair::<u32, u64>(cpu, i, |v| v as u64)
}

/// #GP(0) unless aligned.
fn compare_16_bytes(cpu: &mut Cpu, i: &Insn) -> Step {
    let offset = cpu.effective_address(i);
    let linear = cpu.segment_address(i.seg, offset, 16, true)?;
    if linear % 16 != 0 {
        return Err(cpu.gp(0));
    }
    compare_pair::<u64, u128>(cpu, i, |v| v)
}

fn compare_pair<T: Width, P: Lockable>(cpu: &mut Cpu, i: &Insn, narrow: fn(u128) -> P) -> Step {
    let (wanted, new) = pairs::<T>(cpu);
    let offset = cpu.effective_address(i);
    let linear = cpu.segment_address(i.seg, offset, P::SIZE as u64, true)?;
    if cpu.alignment_checks {
        cpu.check_alignment(linear, P::SIZE as u64, Intent::Write)?;
    }
    let place = cpu.locate(linear, P::SIZE as u64, Intent::Write, Privilege::Current)?;
    let found: u128 = match (adjacent(place), place) {
        (Some(at), _) => {
            let at = RamOffset(at);
            let generation = cpu.memory.marks().code_generation(at);
            let found = cpu.memory.compare_exchange(at, narrow(wanted), narrow(new));
            if cpu.memory.marks().code_generation(at) != generation || place.1.is_some() {
                cpu.leave_at = 0;
            }
            found.into()
        }
        (None, (first, second)) => {
            let pages_of_ram = matches!(place, (Place::Ram(_), Some(Place::Ram(_))));
            let _alone = pages_of_ram.then(guest_memory::split_lock);
            let mut bytes = [0; 16];
            cpu.read_places(linear, &mut bytes[..P::SIZE], first, second);
            let found = u128::from_le_bytes(bytes);
            let store = if found == wanted { new } else { found };
            cpu.write_places(linear, &store.to_le_bytes()[..P::SIZE], first, second);
            found
        }
    };
    if cpu.data_breakpoints {
        cpu.note_data_access(linear, P::SIZE as u64, true);
    }
    let equal = found == wanted;
    if !equal {
        T::set_reg(cpu, 0, T::from_u64(found as u64));
        T::set_reg(cpu, 2, T::from_u64((found >> T::BITS) as u64));
    }
    // Only ZF changes.
    let others = cpu.flags.to_rflags() & !rflags::ZF;
    cpu.flags = x86_semantics::flags::Flags::from_rflags(others | if equal { rflags::ZF } else { 0 });
    Ok(())
}
