//! Loads that replace a register their address is made of: links of lists and trees,
//! where the next look-up waits for this one's answer.
//!
//! Most pages have their neighbour's addend, so such a load does not wait for its
//! page's: it adds the one that its site met last ([`State::foreseen`]), and a branch,
//! which the processor predicts, compares that with the table's. What remains between
//! one link and the next is the load itself. A site that is wrong too often is
//! translated again without: see [`crate::foresight`].
//!
//! ```text
//! pext  rcx, rax, mask       ; page number
//! mov   rcx, [r15 + rcx*8]   ; addend
//! not   rcx
//! mov   rdi, gs:[foreseen]
//! lea   rcx, [rcx + rdi + 1]
//! jrcxz over
//! mov   rdi, rax             ; and leave by a stub
//! over:
//! mov   rax, [rax + rdi]
//! ```
//!
//! [`State::foreseen`]: crate::layout::State::foreseen

use iced_x86::{Code, Instruction, Register};

use super::Builder;
use super::access::gpr_number;
use super::copy::access_size;
use crate::emit::Mem;
use crate::foresight;
use crate::layout::{Exit, PINNED, gs, host};

/// In a stub's payload, besides the instruction's number: its addend was foreseen.
pub(crate) const FORESEEN: u8 = 0x80;

/// Guest RSP.
const RSP: usize = 4;

/// The opcode of a load of a general register: 64 bits wide or not, and its bytes.
fn opcode(code: Code) -> Option<(bool, &'static [u8])> {
    Some(match code {
        Code::Mov_r64_rm64 => (true, &[0x8b]),
        Code::Mov_r32_rm32 => (false, &[0x8b]),
        Code::Movzx_r32_rm8 => (false, &[0x0f, 0xb6]),
        Code::Movzx_r32_rm16 => (false, &[0x0f, 0xb7]),
        _ => return None,
    })
}

impl Builder<'_> {
    /// Emit the instruction if it is such a load, and its site one that foresees.
    pub(super) fn chase(&mut self, i: &Instruction, aligned: bool) -> bool {
        self.try_chase(i, aligned).is_some()
    }

    fn try_chase(&mut self, i: &Instruction, aligned: bool) -> Option<()> {
        let (wide, opcode) = opcode(i.code())?;
        let mode = self.r.mode;
        let flat = !matches!(i.segment_prefix(), Register::FS | Register::GS);
        if mode.narrow || mode.longest == 1 || self.r.straddling.is_some() || !flat {
            return None;
        }
        let register = |r: Register| gpr_number(r).filter(|n| r.size() == 8 && *n != RSP);
        let to = gpr_number(i.op0_register())?;
        let base = register(i.memory_base())?;
        let index = match i.memory_index() {
            Register::None => None,
            r => Some((register(r)?, i.memory_index_scale().trailing_zeros() as u8)),
        };
        let links = to == base || index.is_some_and(|(n, _)| n == to);
        if !links || !self.r.foresight.allows(self.ip) {
            return None;
        }
        let size = access_size(i)?;
        let (target, base_host) = (PINNED[to]?, PINNED[base]?);
        let index = match index {
            Some((n, scale)) => Some((PINNED[n]?, scale)),
            None => None,
        };
        let disp = i32::try_from(i.memory_displacement64() as i64).ok()?;
        let operand = Mem { gs: false, base: Some(base_host), index, disp };
        self.foresee(operand, if aligned { 1 } else { size });
        // ADDRESS has the addend. What changes from link to link is added last.
        let (last, other) = match index {
            Some((n, scale)) if base != to => ((n, scale), Some((base_host, 0))),
            other => ((base_host, 0), other),
        };
        if other.is_some() {
            self.e.lea(host::ADDRESS, Mem { base: Some(host::ADDRESS), index: other, ..Mem::default() });
        }
        let m = Mem { base: Some(host::ADDRESS), index: Some(last), disp, gs: false };
        self.e.op_mem(wide, opcode, target, m);
        Some(())
    }

    /// ADDRESS = the foreseen addend, which is that of the operand's page; or leave.
    /// `size` above 1 probes for a page crossing.
    fn foresee(&mut self, operand: Mem, size: usize) {
        let mut linear = host::ADDRESS;
        match operand {
            Mem { base: Some(base), index: None, disp: 0, .. } => linear = base,
            _ => self.e.lea(host::ADDRESS, operand),
        }
        if size > 1 {
            self.probe(linear, size, gs!(page_offset_mask));
        }
        self.e.pext(host::TEMP, linear, host::PAGE_MASK);
        self.e.load(host::TEMP, Mem::indexed(host::TABLE, host::TEMP, 3));
        self.e.not(host::TEMP);
        let slot = foresight::slot(self.ip) as i32;
        self.e.load(host::ADDRESS, Mem::gs(gs!(foreseen) + 8 * slot));
        self.e.lea(host::TEMP, Mem { disp: 1, ..Mem::indexed(host::TEMP, host::ADDRESS, 0) });
        let right = self.e.jrcxz();
        self.e.lea(host::ADDRESS, operand);
        self.stub(Exit::MissLoad, self.index | FORESEEN);
        let reached = self.e.land_short(right);
        debug_assert!(reached, "a stub is short");
    }
}
