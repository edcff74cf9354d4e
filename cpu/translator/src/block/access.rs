//! Effective addresses and the table look-up in front of every access.

use iced_x86::{Instruction, Register};

use super::Builder;
use crate::emit::Mem;
use crate::layout::{Exit, GUARD, PINNED, gpr_home, gs, host};

/// What an access does; read-modify-write counts as a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Load,
    Store,
}

/// Number of a general register of any size, or `None` for others.
pub(super) fn gpr_number(r: Register) -> Option<usize> {
    r.is_gpr().then(|| r.full_register() as usize - Register::RAX as usize)
}

impl Builder<'_> {
    /// ADDRESS = BIAS + the memory operand's effective (linear) address. Uses TEMP.
    /// False for forms the translator leaves to the interpreter.
    pub(super) fn address(&mut self, i: &Instruction) -> bool {
        let segment = match i.segment_prefix() {
            Register::FS => Some(gs!(fs_base)),
            Register::GS => Some(gs!(gs_base)),
            _ => None,
        };
        let (base, index) = (i.memory_base(), i.memory_index());
        if index != Register::None && gpr_number(index).is_none() {
            return false;
        }
        let narrow = base.size() == 4 || index.size() == 4;
        if base == Register::EIP {
            return false;
        }
        if base == Register::RIP || base == Register::None && index == Register::None {
            let target = i.memory_displacement64().wrapping_add(crate::layout::BIAS);
            self.e.mov_imm(host::ADDRESS, target);
            return self.add_segment(segment);
        }
        let disp = i.memory_displacement64() as i32;
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        let base = self.base_register(gpr_number(base));
        let index = match gpr_number(index) {
            None => None,
            Some(n) => Some((
                match PINNED[n] {
                    Some(h) => h,
                    None => {
                        self.e.load(host::TEMP, Mem::gs(gpr_home(n)));
                        host::TEMP
                    }
                },
                scale,
            )),
        };
        if narrow
            || segment.is_some()
            || (base.is_some() && index.is_some())
            || index.is_some_and(|(_, s)| s != 0)
        {
            let m = Mem { gs: false, base, index, disp };
            if narrow {
                self.e.lea32(host::ADDRESS, m)
            } else {
                self.e.lea(host::ADDRESS, m)
            };
            if !self.add_segment(segment) {
                return false;
            }
            self.e.lea(host::ADDRESS, Mem::indexed(host::ADDRESS, host::BIAS, 0));
        } else {
            // One register: the bias takes the index's place.
            let r = base.or(index.map(|(r, _)| r)).unwrap_or(host::ADDRESS);
            self.e.lea(host::ADDRESS, Mem { gs: false, base: Some(r), index: Some((host::BIAS, 0)), disp });
        }
        true
    }

    fn base_register(&mut self, n: Option<usize>) -> Option<u8> {
        let n = n?;
        Some(match PINNED[n] {
            Some(h) => h,
            None => {
                self.e.load(host::ADDRESS, Mem::gs(gpr_home(n)));
                host::ADDRESS
            }
        })
    }

    fn add_segment(&mut self, base: Option<i32>) -> bool {
        if let Some(disp) = base {
            self.e.load(host::TEMP, Mem::gs(disp));
            self.e.lea(host::ADDRESS, Mem::indexed(host::ADDRESS, host::TEMP, 0));
        }
        true
    }

    /// TEMP = the addend of ADDRESS's page, or leave. Afterwards the operand is
    /// `[ADDRESS + TEMP]`. `size` above 1 probes for a page crossing unless the
    /// address is known to be aligned.
    pub(super) fn look_up(&mut self, access: Access, size: usize, aligned: bool) {
        if size > 1 && !aligned {
            self.e.pext_gs(host::TEMP, host::ADDRESS, gs!(page_offset_mask));
            let guard = size as i32 - 1 - GUARD as i32;
            self.e.load_byte(host::TEMP, Mem { gs: true, base: Some(host::TEMP), index: None, disp: guard });
        }
        self.e.pext(host::TEMP, host::ADDRESS, host::BIAS);
        match access {
            Access::Load => {
                self.e.load(host::TEMP, Mem::indexed(host::TABLE, host::TEMP, 3));
                self.if_zero_leave(Exit::MissLoad);
            }
            Access::Store => {
                self.e.load(host::TEMP, Mem { gs: true, base: None, index: Some((host::TEMP, 3)), disp: 0 });
                self.if_zero_leave(Exit::MissStore);
            }
        }
    }

    /// ADDRESS += TEMP: the host address of the operand, leaving TEMP free.
    pub(super) fn fold(&mut self) {
        self.e.lea(host::ADDRESS, Mem::indexed(host::ADDRESS, host::TEMP, 0));
    }

    /// Whether the operand's address is a multiple of its size because RSP is.
    pub(super) fn stack_slot(&self, i: &Instruction, size: usize) -> bool {
        self.stack_aligned
            && i.memory_base() == Register::RSP
            && i.memory_index() == Register::None
            && size <= 8
            && i.memory_displacement64() % size as u64 == 0
            && !matches!(i.segment_prefix(), Register::FS | Register::GS)
    }
}
