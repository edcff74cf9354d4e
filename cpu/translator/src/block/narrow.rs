//! 32-bit code, protected and compatibility mode, on a host in 64-bit mode.
//!
//! Most instructions are the same in both. Those that are not are changed to
//! 64-bit forms here, and whoever emits those uses words of 4 bytes and addresses
//! that wrap at 4 GiB. All eight registers are pinned; nothing relies on their
//! upper halves, which may hold what 64-bit code has left there. CS, SS, DS and ES
//! are flat ([`super::Mode`]).

use iced_x86::{Code, Instruction, OpKind, Register};

use super::Builder;
use super::access::{Access, Place, gpr_number};
use super::stack::SP;
use crate::emit::Mem;
use crate::layout::{PINNED, gs, host};

/// Bytes of PUSHAD's frame.
const FRAME: i32 = 32;

/// Change an instruction of 32-bit code into the one of 64-bit code that does the
/// same, but for the size of words and addresses. What has none stays as it is and
/// cannot be encoded.
pub(super) fn widen(i: &mut Instruction) {
    use Code as C;
    let register = i.op_count() > 0 && i.op0_kind() == OpKind::Register;
    let code = match i.code() {
        C::Inc_r32 => C::Inc_rm32,
        C::Dec_r32 => C::Dec_rm32,
        C::Inc_r16 => C::Inc_rm16,
        C::Dec_r16 => C::Dec_rm16,
        C::Mov_AL_moffs8 => C::Mov_r8_rm8,
        C::Mov_AX_moffs16 => C::Mov_r16_rm16,
        C::Mov_EAX_moffs32 => C::Mov_r32_rm32,
        C::Mov_moffs8_AL => C::Mov_rm8_r8,
        C::Mov_moffs16_AX => C::Mov_rm16_r16,
        C::Mov_moffs32_EAX => C::Mov_rm32_r32,
        C::Push_r32 => C::Push_r64,
        C::Push_rm32 if register => C::Push_r64,
        C::Push_rm32 => C::Push_rm64,
        C::Pushd_imm8 => C::Pushq_imm8,
        C::Pushd_imm32 => C::Pushq_imm32,
        C::Pop_r32 => C::Pop_r64,
        C::Pop_rm32 if register => C::Pop_r64,
        C::Leaved => C::Leaveq,
        C::Call_rel32_32 => C::Call_rel32_64,
        C::Retnd => C::Retnq,
        C::Retnd_imm16 => C::Retnq_imm16,
        C::Jmp_rm32 => C::Jmp_rm64,
        C::Call_rm32 => C::Call_rm64,
        other => other,
    };
    i.set_code(code);
    if i.op_count() > 0 && i.op0_kind() == OpKind::NearBranch32 {
        let target = i.near_branch_target();
        i.set_op0_kind(OpKind::NearBranch64);
        i.set_near_branch64(target);
    }
}

/// Host register of a guest register that 32-bit code can name.
fn pinned(r: Register) -> Option<u8> {
    PINNED[gpr_number(r)?]
}

impl Builder<'_> {
    /// An instruction pointer of this code.
    #[inline(always)]
    pub(super) fn linear(&self, ip: u64) -> u64 {
        if self.r.mode.narrow { ip & 0xffff_ffff } else { ip }
    }

    /// Bytes of a stack slot or code pointer.
    #[inline(always)]
    pub(super) fn word(&self) -> i32 {
        if self.r.mode.narrow { 4 } else { 8 }
    }

    #[inline(always)]
    pub(super) fn load_word(&mut self, to: u8, m: Mem) {
        if self.r.mode.narrow { self.e.load32(to, m) } else { self.e.load(to, m) }
    }

    #[inline(always)]
    pub(super) fn store_word(&mut self, m: Mem, from: u8) {
        self.e.op_mem(!self.r.mode.narrow, &[0x89], from, m);
    }

    pub(super) fn store_imm32(&mut self, m: Mem, value: u32) {
        self.e.op_mem(false, &[0xc7], 0, m);
        self.e.u32(value);
    }

    /// The address that `m`, a register and a displacement, has in this code: in
    /// ADDRESS if it may wrap.
    #[inline(always)]
    pub(super) fn wrapped(&mut self, m: Mem) -> Place {
        match m.base {
            Some(base) if !self.r.mode.narrow => Place::Register(base, m.disp),
            _ => {
                self.e.lea32(host::ADDRESS, m);
                Place::Register(host::ADDRESS, 0)
            }
        }
    }

    /// PUSHAD and POPAD; a frame that crosses a page is the interpreter's. `None`:
    /// another instruction. `Some(None)`: one for the interpreter.
    pub(super) fn all_registers(&mut self, i: &Instruction) -> Option<Option<()>> {
        match i.code() {
            Code::Pushad => Some(self.push_all()),
            Code::Popad => Some(self.pop_all()),
            _ => None,
        }
    }

    /// All registers with ESP as it was.
    fn push_all(&mut self) -> Option<()> {
        let place = self.wrapped(Mem::base(SP, -FRAME));
        let frame = self.look_up(Access::Store, place, FRAME as usize, false)?;
        self.fold(frame);
        for (n, from) in PINNED[..8].iter().enumerate() {
            self.store_word(Mem::base(host::ADDRESS, FRAME - 4 - 4 * n as i32), (*from)?);
        }
        self.move_sp(-FRAME);
        Some(())
    }

    /// All registers but ESP.
    fn pop_all(&mut self) -> Option<()> {
        let place = self.wrapped(Mem::base(SP, 0));
        let frame = self.look_up(Access::Load, place, FRAME as usize, false)?;
        self.fold(frame);
        for (n, to) in PINNED[..8].iter().enumerate() {
            if *to != Some(SP) {
                self.load_word((*to)?, Mem::base(host::ADDRESS, FRAME - 4 - 4 * n as i32));
            }
        }
        self.move_sp(FRAME);
        Some(())
    }

    /// The linear address of a memory operand of 32-bit code, mostly in ADDRESS. Uses
    /// TEMP.
    pub(super) fn narrow_address(&mut self, i: &Instruction) -> Option<Place> {
        let segment = match i.memory_segment() {
            Register::DS | Register::ES | Register::SS => None,
            Register::FS if self.r.mode.fs => Some(gs!(fs_base)),
            Register::GS if self.r.mode.gs => Some(gs!(gs_base)),
            _ => return None,
        };
        let m = effective_address(i)?;
        let constant = m.base.is_none() && m.index.is_none();
        match segment {
            None if constant => return Some(Place::Constant(u64::from(m.disp as u32))),
            None => self.e.lea32(host::ADDRESS, m),
            Some(base) if constant => {
                self.e.load32(host::ADDRESS, Mem::gs(base));
                self.e.lea32(host::ADDRESS, Mem::base(host::ADDRESS, m.disp));
            }
            Some(base) => {
                self.e.lea32(host::ADDRESS, m);
                self.e.load32(host::TEMP, Mem::gs(base));
                self.e.lea32(host::ADDRESS, Mem::indexed(host::ADDRESS, host::TEMP, 0));
            }
        }
        Some(Place::Register(host::ADDRESS, 0))
    }

    /// LEA with a 32-bit result.
    pub(super) fn narrow_lea(&mut self, i: &Instruction) -> bool {
        let (Code::Lea_r32_m, Some(m)) = (i.code(), effective_address(i)) else { return false };
        let Some(to) = pinned(i.op0_register()) else { return false };
        if m.base.is_none() && m.index.is_none() {
            self.e.mov_imm(to, u64::from(m.disp as u32));
        } else {
            self.e.lea32(to, m);
        }
        if to == SP {
            self.stack_aligned &= m.base == Some(SP) && m.index.is_none() && m.disp % 4 == 0;
        }
        true
    }
}

/// The memory operand in host registers, to be computed modulo 2^32. `None` for
/// 16-bit addressing.
fn effective_address(i: &Instruction) -> Option<Mem> {
    let place = |r: Register| match r {
        Register::None => Some(None),
        r if r.size() == 4 => pinned(r).map(Some),
        _ => None,
    };
    let (base, index) = (place(i.memory_base())?, place(i.memory_index())?);
    if base.is_none() && index.is_none() && i.memory_displ_size() == 2 {
        return None;
    }
    let scale = i.memory_index_scale().trailing_zeros() as u8;
    let disp = i.memory_displacement32() as i32;
    Some(Mem { gs: false, base, index: index.map(|x| (x, scale)), disp })
}
