//! Effective addresses and the table look-up in front of every access.

use iced_x86::{Instruction, Register};

use super::{Builder, Pending, PendingKind};
use crate::emit::Mem;
use crate::layout::{Exit, GUARD, PINNED, gpr_home, gs, host};

/// What an access does; read-modify-write counts as a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Load,
    Store,
}

/// Number of a general register of any size, or `None` for others.
#[inline(always)]
pub(super) fn gpr_number(r: Register) -> Option<usize> {
    let n = GPR_NUMBERS[usize::from(r as u8)];
    (n < 16).then_some(usize::from(n))
}

/// By register: the number of the general register that it is or is part of.
pub(super) static GPR_NUMBERS: [u8; 256] = {
    let mut numbers = [u8::MAX; 256];
    let mut n = 0;
    while n < 16 {
        let byte = match n {
            0..4 => Register::AL as usize + n,
            _ => Register::SPL as usize + n - 4,
        };
        if n < 4 {
            numbers[Register::AH as usize + n] = n as u8;
        }
        let all = [byte, Register::AX as usize + n, Register::EAX as usize + n, Register::RAX as usize + n];
        let mut size = 0;
        while size < all.len() {
            numbers[all[size]] = n as u8;
            size += 1;
        }
        n += 1;
    }
    numbers
};

/// Where a memory operand is: a linear address.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// In this host register plus a displacement.
    Register(u8, i32),
    /// Known.
    Constant(u64),
}

impl Place {
    /// Most bytes that bringing it to ADDRESS takes.
    #[inline(always)]
    pub fn len(self) -> usize {
        match self {
            Place::Register(host::ADDRESS, _) => 0,
            Place::Register(..) => 3,
            Place::Constant(_) => 10,
        }
    }
}

/// An operand that has been looked up: `TEMP` holds its page's addend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// The host register with its linear address, if one has it.
    base: Option<u8>,
    /// What to add, when none has.
    disp: i32,
}

impl Found {
    /// `disp` bytes from the host address in TEMP.
    pub fn at_temp(disp: i32) -> Self {
        Found { base: None, disp }
    }

    /// ADDRESS is no part of it.
    pub fn leaves_address(self) -> bool {
        self.base != Some(host::ADDRESS)
    }

    /// The operand.
    #[inline(always)]
    pub fn mem(self) -> Mem {
        match self.base {
            Some(b) => Mem::indexed(b, host::TEMP, 0),
            None => Mem::base(host::TEMP, self.disp),
        }
    }
}

impl Builder<'_> {
    /// The memory operand's linear address. May use ADDRESS and TEMP. `None` for
    /// forms the translator leaves to the interpreter.
    pub(super) fn address(&mut self, i: &Instruction) -> Option<Place> {
        if self.r.mode.narrow {
            return self.narrow_address(i);
        }
        let segment = match i.segment_prefix() {
            Register::FS => Some(gs!(fs_base)),
            Register::GS => Some(gs!(gs_base)),
            _ => None,
        };
        let (base, index) = (i.memory_base(), i.memory_index());
        if index != Register::None && gpr_number(index).is_none() || base == Register::EIP {
            return None;
        }
        if base == Register::RIP || base == Register::None && index == Register::None {
            let target = i.memory_displacement64();
            let Some(segment) = segment else { return Some(Place::Constant(target)) };
            self.e.load(host::ADDRESS, Mem::gs(segment));
            return Some(match i32::try_from(target as i64) {
                Ok(disp) => Place::Register(host::ADDRESS, disp),
                Err(_) => {
                    self.e.mov_imm(host::TEMP, target);
                    self.e.lea(host::ADDRESS, Mem::indexed(host::ADDRESS, host::TEMP, 0));
                    Place::Register(host::ADDRESS, 0)
                }
            });
        }
        let narrow = base.size() == 4 || index.size() == 4;
        let disp = i.memory_displacement64() as i32;
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        let base = gpr_number(base).map(|n| self.register(n, host::ADDRESS));
        let index = gpr_number(index).map(|n| (self.register(n, host::TEMP), scale));
        let m = Mem { gs: false, base, index, disp };
        let place = match (base, index) {
            (Some(r), None) | (None, Some((r, 0))) if !narrow => Place::Register(r, disp),
            _ if narrow => {
                self.e.lea32(host::ADDRESS, m);
                Place::Register(host::ADDRESS, 0)
            }
            _ => {
                self.e.lea(host::ADDRESS, m);
                Place::Register(host::ADDRESS, 0)
            }
        };
        Some(match (segment, place) {
            (Some(segment), Place::Register(r, disp)) => {
                let to = if r == host::TEMP { host::ADDRESS } else { host::TEMP };
                self.e.load(to, Mem::gs(segment));
                let sum = Mem { gs: false, base: Some(r), index: Some((to, 0)), disp };
                self.e.lea(host::ADDRESS, sum);
                Place::Register(host::ADDRESS, 0)
            }
            (_, place) => place,
        })
    }

    /// The host register of a guest register, loaded into `scratch` if it has none.
    fn register(&mut self, n: usize, scratch: u8) -> u8 {
        PINNED[n].unwrap_or_else(|| {
            self.e.load(scratch, Mem::gs(gpr_home(n)));
            scratch
        })
    }

    /// TEMP = the addend of the operand's page, or leave. `size` above 1 probes for
    /// a page crossing unless the address is known to be aligned. `None`: it
    /// crosses for certain.
    pub(super) fn look_up(
        &mut self,
        access: Access,
        place: Place,
        size: usize,
        aligned: bool,
    ) -> Option<Found> {
        match place {
            Place::Constant(linear) => {
                if (linear & 0xfff) + size as u64 > 0x1000 {
                    return None;
                }
                Some(self.look_up_constant(access, linear))
            }
            Place::Register(base, disp) => {
                // Code beside the stack is not worth a longer stub.
                let stack = aligned && (base == super::stack::SP || self.r.mode.narrow);
                let mut base = base;
                if disp != 0 || base == host::TEMP {
                    self.e.lea(host::ADDRESS, Mem::base(base, disp));
                    base = host::ADDRESS;
                }
                let probes = size > 1 && !aligned;
                let found = Some(Found { base: Some(base), disp: 0 });
                let user = self.r.mode.user && !self.r.mode.narrow && !self.r.careful;
                if probes && user && access == Access::Load && base != host::ADDRESS {
                    // What PEXT would leave out of the page's number is zero: SHRX gives it in
                    // one cycle instead of three, which a chain of loads would wait for.
                    self.probe(base, size, gs!(user_probe));
                    self.e.mov_imm(host::ADDRESS, 12);
                    self.e.shrx(host::TEMP, base, host::ADDRESS);
                    self.load_entry(access, Mem::indexed(host::TABLE, host::TEMP, 3), place_of(base), !stack);
                    return found;
                }
                if probes {
                    self.probe(base, size, gs!(page_offset_mask));
                }
                self.look_up_page(access, base, !stack);
                found
            }
        }
    }

    /// Fault where `size` bytes at a linear address cross a page, or leave if they are
    /// known to do so often. `mask`: of the page offset, or of that and what must be zero
    /// above it.
    pub(super) fn probe(&mut self, linear: u8, size: usize, mask: i32) {
        self.e.pext_gs(host::TEMP, linear, mask);
        if self.r.careful && mask == gs!(page_offset_mask) {
            let last = gs!(within_page) + size as i32 - 1;
            self.e.load_byte(host::TEMP, Mem { gs: true, base: Some(host::TEMP), index: None, disp: last });
            self.if_zero_leave(Exit::Interpret, Place::Register(host::ADDRESS, 0));
            return;
        }
        let disp = size as i32 - 1 - GUARD as i32;
        self.e.load_byte(host::TEMP, Mem { gs: true, base: Some(host::TEMP), index: None, disp });
    }

    fn look_up_constant(&mut self, access: Access, linear: u64) -> Found {
        let number = linear >> 12 & 0xf_ffff_ffff;
        match (i32::try_from(number * 8), i32::try_from(linear as i64)) {
            (Ok(entry), Ok(disp)) => {
                self.load_entry(access, Mem::base(host::TABLE, entry), Place::Constant(linear), true);
                Found { base: None, disp }
            }
            _ => {
                self.e.mov_imm(host::ADDRESS, linear);
                self.look_up_page(access, host::ADDRESS, true);
                Found { base: Some(host::ADDRESS), disp: 0 }
            }
        }
    }

    /// TEMP = a table entry (given as one of the load table), or leave. `operand`: it is
    /// for one operand, not a window, and not the stack's.
    #[inline(always)]
    pub(super) fn load_entry(&mut self, access: Access, m: Mem, place: Place, operand: bool) {
        match access {
            Access::Load => self.e.load(host::TEMP, m),
            Access::Store => self.e.load(host::TEMP, Mem { gs: true, base: None, ..m }),
        }
        let at = self.e.jrcxz();
        self.pend_miss(at, access, place, operand);
    }

    /// TEMP = the table entry of the page of the address in a host register, or leave.
    #[inline(always)]
    pub(super) fn look_up_page(&mut self, access: Access, linear: u8, operand: bool) {
        let at = self.e.page_entry(linear, access == Access::Store);
        self.pend_miss(at, access, place_of(linear), operand);
    }

    /// Emit the stub of a JRCXZ behind an empty entry later.
    #[inline(always)]
    fn pend_miss(&mut self, at: usize, access: Access, place: Place, operand: bool) {
        let index = self.index;
        let kind = match access {
            Access::Load => PendingKind::Miss { exit: Exit::MissLoad, index, place },
            Access::Store if operand && self.r.mode.user => PendingKind::Beside { index, place },
            Access::Store => PendingKind::Miss { exit: Exit::MissStore, index, place },
        };
        self.pend(Pending { at, kind });
    }

    /// ADDRESS = the host address of the operand, leaving TEMP free.
    #[inline(always)]
    pub(super) fn fold(&mut self, found: Found) {
        self.e.lea(host::ADDRESS, found.mem());
    }

    /// Whether the operand's address is a multiple of its size because RSP is.
    #[inline(always)]
    pub(super) fn stack_slot(&self, i: &Instruction, size: usize) -> bool {
        let (base, word) = if self.r.mode.narrow { (Register::ESP, 4) } else { (Register::RSP, 8) };
        self.stack_aligned
            && i.memory_base() == base
            && i.memory_index() == Register::None
            && size <= word
            && i.memory_displacement64() % size as u64 == 0
            && !matches!(i.segment_prefix(), Register::FS | Register::GS)
    }
}

fn place_of(register: u8) -> Place {
    Place::Register(register, 0)
}
