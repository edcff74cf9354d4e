//! BT, BTS, BTR and BTC with a memory operand and the bit's number in a register:
//! the operand is a bit string, and the number chooses an element of it as well
//! as a bit (SDM volume 2, BT).

use iced_x86::{Code, Instruction, OpKind, Register};

use super::access::{Access, Place, gpr_number};
use super::{Builder, host_register};
use crate::emit::Mem;
use crate::layout::{PINNED, gpr_home, gs, host};

/// A bit string's elements, by the operand's size.
struct Elements {
    /// Size in bytes, and as a power of two.
    size: usize,
    shift: u8,
    /// Where the masks are that select an element's number and a bit's.
    element_mask: i32,
    bit_mask: i32,
    /// BT with this size and a register operand.
    test: Code,
}

impl Elements {
    fn of(i: &Instruction) -> Option<Elements> {
        Some(match i.op1_register().size() {
            4 => Elements {
                size: 4,
                shift: 2,
                element_mask: gs!(dword_element_mask),
                bit_mask: gs!(dword_bit_mask),
                test: Code::Bt_rm32_r32,
            },
            8 => Elements {
                size: 8,
                shift: 3,
                element_mask: gs!(qword_element_mask),
                bit_mask: gs!(qword_bit_mask),
                test: Code::Bt_rm64_r64,
            },
            _ => return None,
        })
    }
}

/// The bit number in a register reaches beyond the operand.
pub(super) fn is_bit_string(i: &Instruction) -> bool {
    is_bit_instruction(i.code()) && i.op0_kind() == OpKind::Memory
}

/// An opcode whose first operand may be a bit string.
pub(super) fn is_bit_instruction(code: Code) -> bool {
    matches!(
        code,
        Code::Bt_rm16_r16
            | Code::Bt_rm32_r32
            | Code::Bt_rm64_r64
            | Code::Bts_rm16_r16
            | Code::Bts_rm32_r32
            | Code::Bts_rm64_r64
            | Code::Btr_rm16_r16
            | Code::Btr_rm32_r32
            | Code::Btr_rm64_r64
            | Code::Btc_rm16_r16
            | Code::Btc_rm32_r32
            | Code::Btc_rm64_r64
    )
}

impl Builder<'_> {
    /// `None`: no bit string. `Some(false)`: the interpreter's.
    pub(super) fn bit_string(&mut self, i: &Instruction) -> Option<bool> {
        is_bit_string(i).then(|| self.bit_string_operand(i).is_some())
    }

    fn bit_string_operand(&mut self, i: &Instruction) -> Option<()> {
        // With 32-bit addresses the element's would have to wrap.
        let narrow = self.r.mode.narrow || i.memory_base().size() == 4 || i.memory_index().size() == 4;
        let elements = Elements::of(i).filter(|_| !narrow)?;
        let number = gpr_number(i.op1_register())?;
        match self.address(i)? {
            Place::Constant(linear) => self.e.mov_imm(host::ADDRESS, linear),
            Place::Register(host::ADDRESS, 0) => {}
            Place::Register(base, disp) => self.e.lea(host::ADDRESS, Mem::base(base, disp)),
        }
        // Numbers are signed. A negative one loses its sign here, which puts the
        // address out of the canonical range: the access faults and the interpreter
        // finds the element.
        self.number_to_temp(number, elements.size);
        self.e.pext_gs(host::TEMP, host::TEMP, elements.element_mask);
        self.e.lea(host::ADDRESS, Mem::indexed(host::ADDRESS, host::TEMP, elements.shift));
        let tests = i.code() == elements.test;
        let access = if tests { Access::Load } else { Access::Store };
        let found = self.look_up(access, Place::Register(host::ADDRESS, 0), elements.size, false)?;
        let mut out = *i;
        if tests {
            // With a register operand the number is taken modulo its size.
            match elements.size {
                8 => self.e.load(host::TEMP, found.mem()),
                _ => self.e.load32(host::TEMP, found.mem()),
            }
            let from = PINNED[number].unwrap_or(host::ADDRESS);
            if PINNED[number].is_none() {
                self.e.load(host::ADDRESS, Mem::gs(gpr_home(number)));
            }
            let like = i.op1_register();
            let (element, bit) = (host_register(host::TEMP, like), host_register(from, like));
            out = Instruction::with2(elements.test, element, bit).ok()?;
        } else {
            self.fold(found);
            self.number_to_temp(number, elements.size);
            self.e.pext_gs(host::TEMP, host::TEMP, elements.bit_mask);
            out.set_segment_prefix(Register::None);
            out.set_memory_base(Register::RDI);
            out.set_memory_index(Register::None);
            out.set_memory_displacement64(0);
            out.set_memory_displ_size(0);
            out.set_op1_register(host_register(host::TEMP, i.op1_register()));
        }
        self.encode(&out).then_some(())
    }

    /// TEMP = a guest register, sign-extended from `size` bytes.
    fn number_to_temp(&mut self, guest: usize, size: usize) {
        match (PINNED[guest], size) {
            (Some(h), 8) => self.e.mov(host::TEMP, h),
            (Some(h), _) => self.e.sign_extend32(host::TEMP, h),
            (None, 8) => self.e.load(host::TEMP, Mem::gs(gpr_home(guest))),
            // MOVSXD r64, dword.
            (None, _) => self.e.op_mem(true, &[0x63], host::TEMP, Mem::gs(gpr_home(guest))),
        }
    }
}
