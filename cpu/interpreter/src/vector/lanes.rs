//! AVX and AVX2 instructions that cross or copy 128-bit lanes.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use x86_semantics::simd;

use super::{VEX128, VEX256};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// The handler of a lane instruction. For broadcasts `aux` becomes the element
/// width in bytes.
pub(super) fn handler(i: &Instruction, insn: &mut Insn, encoding: usize) -> Option<Handler> {
    let element = match i.mnemonic() {
        M::Vpbroadcastb => Some(1),
        M::Vpbroadcastw => Some(2),
        M::Vbroadcastss | M::Vpbroadcastd => Some(4),
        M::Vbroadcastsd | M::Vpbroadcastq => Some(8),
        M::Vbroadcastf128 | M::Vbroadcasti128 => Some(16),
        _ => None,
    };
    if let Some(width) = element {
        insn.aux = width;
        return Some(if encoding == 2 { broadcast::<VEX256> } else { broadcast::<VEX128> });
    }
    Some(match i.mnemonic() {
        M::Vinsertf128 | M::Vinserti128 => insert_lane,
        M::Vextractf128 | M::Vextracti128 if i.op0_kind() == OpKind::Memory => extract_lane_to_memory,
        M::Vextractf128 | M::Vextracti128 => extract_lane,
        M::Vperm2f128 | M::Vperm2i128 => permute_lanes,
        M::Vpermd | M::Vpermps => permute_dwords,
        M::Vpermq | M::Vpermpd => permute_qwords,
        _ => return None,
    })
}

fn broadcast<const E: u8>(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<E>()?;
    let v = cpu.narrow_source::<E>(i, 1, i.aux as u8)?;
    let lane = match i.aux {
        1 => u128::from(v as u8) * (u128::MAX / 0xff),
        2 => u128::from(v as u16) * (u128::MAX / 0xffff),
        4 => u128::from(v as u32) * (u128::MAX / 0xffff_ffff),
        8 => simd::movddup(v),
        _ => v,
    };
    cpu.set_vector::<E>(i.ops[0], [lane, lane]);
    Ok(())
}

fn insert_lane(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<VEX256>()?;
    let v = cpu.narrow_source::<VEX256>(i, 2, 16)?;
    let mut r = cpu.read_ymm(i.ops[1]);
    r[i.imm as usize & 1] = v;
    cpu.write_ymm(i.ops[0], r);
    Ok(())
}

fn extract_lane(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<VEX256>()?;
    let v = cpu.read_ymm(i.ops[1])[i.imm as usize & 1];
    cpu.write_ymm(i.ops[0], [v, 0]);
    Ok(())
}

fn extract_lane_to_memory(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<VEX256>()?;
    let v = cpu.read_ymm(i.ops[1])[i.imm as usize & 1];
    cpu.store(i, v)
}

/// VPERM2F128: each half of the result is one of four lanes, or zero.
fn permute_lanes(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<VEX256>()?;
    let b = cpu.source::<VEX256>(i, 2)?;
    let a = cpu.read_ymm(i.ops[1]);
    let lanes = [a[0], a[1], b[0], b[1]];
    let choose = |c: u64| if c & 8 != 0 { 0 } else { lanes[c as usize & 3] };
    cpu.write_ymm(i.ops[0], [choose(i.imm), choose(i.imm >> 4)]);
    Ok(())
}

fn permute_dwords(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<VEX256>()?;
    let v = cpu.source::<VEX256>(i, 2)?;
    let index = cpu.read_ymm(i.ops[1]);
    cpu.write_ymm(i.ops[0], simd::vpermd(index, v));
    Ok(())
}

fn permute_qwords(cpu: &mut Cpu, i: &Insn) -> Step {
    cpu.ready::<VEX256>()?;
    let v = cpu.source::<VEX256>(i, 1)?;
    cpu.write_ymm(i.ops[0], simd::vpermq(v, i.imm as u8));
    Ok(())
}
