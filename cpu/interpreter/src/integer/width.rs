//! Operand widths: registers and read-modify-write memory.

use guest_memory::{Lockable, RamOffset, Scalar};
use x86_semantics::flags::Flags;
use x86_semantics::int::Int;

use crate::cpu::{Cpu, Privilege, Stop};
use crate::insn::Insn;
use crate::memory::{Intent, Place, adjacent, ram};

/// A general-register width.
pub(crate) trait Width: Int + Scalar + Lockable {
    /// Register `n` in the numbering of [`Insn::ops`].
    fn reg(cpu: &Cpu, n: u8) -> Self;
    /// Replace register `n`. 32-bit values zero-extend; narrower ones keep the rest.
    fn set_reg(cpu: &mut Cpu, n: u8, v: Self);
}

impl Width for u64 {
    #[inline(always)]
    fn reg(cpu: &Cpu, n: u8) -> Self {
        cpu.regs[n as usize & 31]
    }
    #[inline(always)]
    fn set_reg(cpu: &mut Cpu, n: u8, v: Self) {
        cpu.regs[n as usize & 31] = v;
    }
}

impl Width for u32 {
    #[inline(always)]
    fn reg(cpu: &Cpu, n: u8) -> Self {
        cpu.regs[n as usize & 31] as u32
    }
    #[inline(always)]
    fn set_reg(cpu: &mut Cpu, n: u8, v: Self) {
        cpu.regs[n as usize & 31] = u64::from(v);
    }
}

impl Width for u16 {
    #[inline(always)]
    fn reg(cpu: &Cpu, n: u8) -> Self {
        cpu.regs[n as usize & 31] as u16
    }
    #[inline(always)]
    fn set_reg(cpu: &mut Cpu, n: u8, v: Self) {
        let r = &mut cpu.regs[n as usize & 31];
        *r = *r & !0xffff | u64::from(v);
    }
}

/// Register number and bit position of 8-bit register `n`: 20-23 are AH CH DH BH.
#[inline(always)]
fn byte_register(n: u8) -> (usize, u32) {
    let high = n >> 4 & 1;
    (usize::from(n & (15 >> (2 * high))), u32::from(high) * 8)
}

impl Width for u8 {
    #[inline(always)]
    fn reg(cpu: &Cpu, n: u8) -> Self {
        let (r, shift) = byte_register(n);
        (cpu.regs[r & 31] >> shift) as u8
    }
    #[inline(always)]
    fn set_reg(cpu: &mut Cpu, n: u8, v: Self) {
        let (r, shift) = byte_register(n);
        let r = &mut cpu.regs[r & 31];
        *r = *r & !(0xff << shift) | u64::from(v) << shift;
    }
}

/// Where a read-modify-write operand lies.
enum Target {
    Ram(RamOffset),
    /// Device memory, or two pages; a linear address that has been checked.
    Pieces(u64),
}

impl Cpu {
    /// Replace the memory operand by `f(old value, flags)` and set the flags;
    /// atomically if `LOCK`. Returns the old value.
    #[inline(always)]
    pub(crate) fn modify<T: Width, const LOCK: bool>(
        &mut self,
        i: &Insn,
        f: impl Fn(T, Flags) -> (T, Flags),
    ) -> Result<T, Stop> {
        self.modify_at::<T, LOCK>(i.seg, self.effective_address(i), f)
    }

    /// As [`Cpu::modify`], at `seg:offset`.
    #[inline(always)]
    pub(crate) fn modify_at<T: Width, const LOCK: bool>(
        &mut self,
        seg: u8,
        offset: u64,
        f: impl Fn(T, Flags) -> (T, Flags),
    ) -> Result<T, Stop> {
        let linear = self.write_base[seg as usize & 7].wrapping_add(offset);
        let e = self.tlb.entry(linear);
        let at = if e.write == self.tlb.tag(linear, T::SIZE) {
            ram(e, linear)
        } else {
            match self.modify_target(seg, offset, T::SIZE as u64)? {
                Target::Ram(at) => at,
                Target::Pieces(linear) => return self.modify_pieces::<T, LOCK>(linear, f),
            }
        };
        if LOCK && self.smp {
            return Ok(self.modify_locked(at, f));
        }
        let old = self.memory.read::<T>(at);
        let (new, flags) = f(old, self.flags);
        if self.memory.write(at, new) {
            self.leave_at = 0;
        }
        self.flags = flags;
        Ok(old)
    }

    #[inline(always)]
    fn modify_locked<T: Width>(&mut self, at: RamOffset, f: impl Fn(T, Flags) -> (T, Flags)) -> T {
        let generation = self.memory.marks().code_generation(at);
        let mut old = self.memory.read::<T>(at);
        loop {
            let (new, flags) = f(old, self.flags);
            let found = self.memory.compare_exchange(at, old, new);
            if found == old {
                self.flags = flags;
                break;
            }
            old = found;
        }
        if self.memory.marks().code_generation(at) != generation {
            self.leave_at = 0;
        }
        old
    }

    /// As [`Cpu::modify`], in device memory or two pages. A locked one is a single access
    /// where the pages follow each other in RAM; elsewhere only locked accesses of its
    /// kind are kept out.
    #[cold]
    #[inline(never)]
    fn modify_pieces<T: Width, const LOCK: bool>(
        &mut self,
        linear: u64,
        f: impl Fn(T, Flags) -> (T, Flags),
    ) -> Result<T, Stop> {
        let place = self.locate(linear, T::SIZE as u64, Intent::Write, Privilege::Current)?;
        let locked = LOCK && self.smp;
        if let (true, Some(at)) = (locked, adjacent(place)) {
            let old = self.modify_locked(RamOffset(at), f);
            // The look at code generations was at the first page's alone.
            self.leave_at = 0;
            return Ok(old);
        }
        let pages_of_ram = matches!(place, (Place::Ram(_), Some(Place::Ram(_))));
        let _alone = (locked && pages_of_ram).then(guest_memory::split_lock);
        let old = T::from_u64(self.modify_read(linear, T::SIZE)?);
        let (new, flags) = f(old, self.flags);
        self.modify_write(linear, T::SIZE, new.to_u64())?;
        self.flags = flags;
        Ok(old)
    }

    #[cold]
    #[inline(never)]
    fn modify_target(&mut self, seg: u8, offset: u64, len: u64) -> Result<Target, Stop> {
        let linear = self.segment_address(seg, offset, len, true)?;
        if self.alignment_checks {
            self.check_alignment(linear, len, Intent::Write)?;
        }
        let place = self.locate(linear, len, Intent::Write, Privilege::Current)?;
        if self.data_breakpoints {
            self.note_data_access(linear, len, true);
        }
        Ok(match place {
            (Place::Ram(at), None) => Target::Ram(RamOffset(at)),
            _ => Target::Pieces(linear),
        })
    }

    #[cold]
    #[inline(never)]
    fn modify_read(&mut self, linear: u64, size: usize) -> Result<u64, Stop> {
        let (first, second) = self.locate(linear, size as u64, Intent::Write, Privilege::Current)?;
        let mut bytes = [0; 8];
        self.read_places(linear, &mut bytes[..size], first, second);
        Ok(u64::from_le_bytes(bytes))
    }

    #[cold]
    #[inline(never)]
    fn modify_write(&mut self, linear: u64, size: usize, v: u64) -> Result<(), Stop> {
        let (first, second) = self.locate(linear, size as u64, Intent::Write, Privilege::Current)?;
        self.write_places(linear, &v.to_le_bytes()[..size], first, second);
        Ok(())
    }
}
