//! Gathers: elements loaded from base plus index (SDM volume 2, VPGATHERDD).

use iced_x86::{Instruction, Mnemonic as M};

use super::{VEX128, VEX256};
use crate::cpu::{Cpu, Step};
use crate::insn::{Handler, Insn};

/// The handler of a gather.
pub(super) fn handler(i: &Instruction) -> Option<Handler> {
    // The index may be a YMM register where the result is not, and the reverse:
    // the number of elements is that of the shorter.
    Some(match (i.mnemonic(), i.op0_register().is_ymm()) {
        (M::Vgatherdps | M::Vpgatherdd, false) => gather::<VEX128, 4, 4, 4>,
        (M::Vgatherdps | M::Vpgatherdd, true) => gather::<VEX256, 4, 4, 8>,
        (M::Vgatherdpd | M::Vpgatherdq, false) => gather::<VEX128, 8, 4, 2>,
        (M::Vgatherdpd | M::Vpgatherdq, true) => gather::<VEX256, 8, 4, 4>,
        (M::Vgatherqps | M::Vpgatherqd, _) if i.memory_index().is_ymm() => gather::<VEX128, 4, 8, 4>,
        (M::Vgatherqps | M::Vpgatherqd, _) => gather::<VEX128, 4, 8, 2>,
        (M::Vgatherqpd | M::Vpgatherqq, false) => gather::<VEX128, 8, 8, 2>,
        (M::Vgatherqpd | M::Vpgatherqq, true) => gather::<VEX256, 8, 8, 4>,
        _ => return None,
    })
}

/// Element `n` of `width` bytes.
fn element(v: [u128; 2], n: u32, width: u32) -> u64 {
    let at = n * width;
    let value = (v[(at >> 4) as usize & 1] >> (8 * (at & 15))) as u64;
    if width == 4 { value & 0xffff_ffff } else { value }
}

/// Replace element `n` of `width` bytes.
fn set_element(v: &mut [u128; 2], n: u32, width: u32, value: u64) {
    let at = n * width;
    let shift = 8 * (at & 15);
    let mask = u128::from(u64::MAX >> (64 - 8 * width)) << shift;
    let half = &mut v[(at >> 4) as usize & 1];
    *half = *half & !mask | u128::from(value) << shift & mask;
}

/// `WIDTH` bytes an element, `INDEX` bytes an index, `COUNT` elements. A fault
/// leaves the elements done so far in the destination and their masks cleared,
/// so that the instruction can be restarted.
fn gather<const E: u8, const WIDTH: u32, const INDEX: u32, const COUNT: u32>(
    cpu: &mut Cpu,
    i: &Insn,
) -> Step {
    cpu.ready::<E>()?;
    let (to, index, mask) = (i.ops[0], i.index, i.ops[2]);
    if to & 15 == index & 15 || to & 15 == mask & 15 || index & 15 == mask & 15 {
        return Err(cpu.ud());
    }
    let indices = cpu.read_ymm(index);
    let mut result = cpu.read_ymm(to);
    let mut masks = cpu.read_ymm(mask);
    // All masks become all sign before anything is loaded.
    for n in 0..COUNT {
        let on = element(masks, n, WIDTH) >> (8 * WIDTH - 1) != 0;
        set_element(&mut masks, n, WIDTH, if on { u64::MAX } else { 0 });
    }
    let base = cpu.regs[usize::from(i.base & 31)].wrapping_add(i.disp);
    let shift = i.address_shift & 63;
    for n in 0..COUNT {
        if element(masks, n, WIDTH) == 0 {
            continue;
        }
        let raw = element(indices, n, INDEX);
        let raw = if INDEX == 4 { raw as i32 as u64 } else { raw };
        let offset = base.wrapping_add(raw << (i.scale & 3)) << shift >> shift;
        let loaded = if WIDTH == 4 {
            cpu.read_seg::<u32>(i.seg, offset).map(u64::from)
        } else {
            cpu.read_seg::<u64>(i.seg, offset)
        };
        match loaded {
            Ok(v) => set_element(&mut result, n, WIDTH, v),
            Err(stop) => {
                cpu.write_ymm(to, result);
                cpu.write_ymm(mask, masks);
                return Err(stop);
            }
        }
        set_element(&mut masks, n, WIDTH, 0);
    }
    // Elements beyond those gathered, and the upper half of a short form, are zero.
    let bytes = COUNT * WIDTH;
    let keep = |half: u32, v: u128| match bytes.saturating_sub(16 * half) {
        0 => 0,
        n if n >= 16 => v,
        n => v & (u128::MAX >> (128 - 8 * n)),
    };
    cpu.write_ymm(to, [keep(0, result[0]), keep(1, result[1])]);
    cpu.write_ymm(mask, [0, 0]);
    Ok(())
}
