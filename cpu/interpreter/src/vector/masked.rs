//! Loads and stores under a mask: VMASKMOVPS and its kin, MASKMOVDQU, MASKMOVQ.
//! Elements masked off are not accessed and raise no faults.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use x86_state::reg;

use super::shapes::encodings;
use super::{Encodings, LEGACY, VEX128, VEX256};
use crate::cpu::{Cpu, Privilege, Step};
use crate::insn::{Handler, Insn};

/// The handler of a masked move.
pub(super) fn handler(i: &Instruction, encoding: usize) -> Option<Handler> {
    let to_memory = i.op0_kind() == OpKind::Memory;
    let handlers: Encodings = match i.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd if to_memory => encodings!(store_dwords),
        M::Vmaskmovps | M::Vpmaskmovd => encodings!(load_dwords),
        M::Vmaskmovpd | M::Vpmaskmovq if to_memory => encodings!(store_qwords),
        M::Vmaskmovpd | M::Vpmaskmovq => encodings!(load_qwords),
        M::Maskmovdqu | M::Vmaskmovdqu => encodings!(store_bytes),
        _ => return None,
    };
    Some(handlers[encoding])
}

/// Elements of `WIDTH` bytes whose mask has the top bit.
#[inline(always)]
fn selected<const WIDTH: u32>(mask: [u128; 2], n: u32) -> bool {
    let bit = (n + 1) * WIDTH * 8 - 1;
    mask[(bit >> 7) as usize & 1] >> (bit & 127) & 1 != 0
}

/// Number of elements of `WIDTH` bytes.
const fn count<const E: u8, const WIDTH: u32>() -> u32 {
    (if E == VEX256 { 32 } else { 16 }) / WIDTH
}

/// No mask makes #AC (SDM volume 2, VMASKMOV).
fn masked_load<const E: u8, const WIDTH: u32>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    cpu.in_pieces(|cpu| load_selected::<E, WIDTH>(cpu, i))
}

fn load_selected<const E: u8, const WIDTH: u32>(cpu: &mut Cpu, i: &Insn) -> Step {
    let mask = cpu.read_ymm(i.ops[1]);
    let mut v = [0u128; 2];
    for n in 0..count::<E, WIDTH>() {
        if selected::<WIDTH>(mask, n) {
            let at = u64::from(n * WIDTH);
            let element =
                if WIDTH == 4 { cpu.load_at::<u32>(i, at)?.into() } else { cpu.load_at::<u64>(i, at)? };
            v[(at >> 4) as usize & 1] |= u128::from(element) << (8 * (at & 15));
        }
    }
    cpu.set_vector::<E>(i.ops[0], v);
    Ok(())
}

fn masked_store<const E: u8, const WIDTH: u32>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    cpu.in_pieces(|cpu| store_selected::<E, WIDTH>(cpu, i))
}

fn store_selected<const E: u8, const WIDTH: u32>(cpu: &mut Cpu, i: &Insn) -> Step {
    let (mask, v) = (cpu.read_ymm(i.ops[1]), cpu.read_ymm(i.ops[2]));
    let elements = 0..count::<E, WIDTH>();
    // Every element must be storable before the first is stored.
    for n in elements.clone().filter(|n| selected::<WIDTH>(mask, *n)) {
        let offset = cpu.operand_at(i, u64::from(n * WIDTH));
        let linear = cpu.segment_address(i.seg, offset, WIDTH.into(), true)?;
        cpu.probe_write(linear, WIDTH.into(), Privilege::Current)?;
    }
    for n in elements.filter(|n| selected::<WIDTH>(mask, *n)) {
        let at = u64::from(n * WIDTH);
        let element = v[(at >> 4) as usize & 1] >> (8 * (at & 15));
        if WIDTH == 4 {
            cpu.store_at(i, at, element as u32)?;
        } else {
            cpu.store_at(i, at, element as u64)?;
        }
    }
    Ok(())
}

fn load_dwords<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    masked_load::<E, 4>(cpu, i)
}

fn load_qwords<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    masked_load::<E, 8>(cpu, i)
}

fn store_dwords<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    masked_store::<E, 4>(cpu, i)
}

fn store_qwords<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    masked_store::<E, 8>(cpu, i)
}

/// MASKMOVDQU: bytes of the first operand to DS:rDI, where the second has the top bit.
fn store_bytes<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let base = cpu.regs[reg::RDI];
    let (v, mask) = (cpu.read_xmm(i.ops[1]), cpu.read_xmm(i.ops[2]));
    let offset = |n: u32| {
        let shift = i.address_shift & 63;
        base.wrapping_add(n.into()) << shift >> shift
    };
    for n in (0..16).filter(|n| selected::<1>([mask, 0], *n)) {
        let linear = cpu.segment_address(i.seg, offset(n), 1, true)?;
        cpu.probe_write(linear, 1, Privilege::Current)?;
    }
    for n in (0..16).filter(|n| selected::<1>([mask, 0], *n)) {
        cpu.write_seg(i.seg, offset(n), (v >> (8 * n)) as u8)?;
    }
    Ok(())
}
