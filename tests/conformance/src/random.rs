//! Where random cases come from: numbers, instructions, register contents.

use std::ops::Range;

use iced_x86::{FlowControl, Instruction, Mnemonic};
use x86_state::{CpuState, F80};

/// SplitMix64: any seed is as good as any other.
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    #[allow(clippy::should_implement_trait, reason = "an endless source, not an iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A number that finds corners: small, near a power of two, an address of `data`, or anything.
    pub fn number(&mut self, data: &Range<u64>) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => (1u64 << self.below(64)).wrapping_sub(self.below(3)),
            2..5 => data.start + self.below(data.end - data.start),
            5 => self.next() as i32 as u64,
            _ => self.next(),
        }
    }
}

/// Instructions whose result is each engine's own: the last bit of functions, the time,
/// chance, what processors differ in. A case that has run wild may meet one; what follows
/// then says nothing.
pub fn has_own_result(i: &Instruction) -> bool {
    use Mnemonic as M;
    // x87 functions without a prescribed last bit.
    let approximate = matches!(
        i.mnemonic(),
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::Fpatan | M::F2xm1 | M::Fyl2x | M::Fyl2xp1
    );
    // They leave C1 alone on some processors, which the manual clears.
    let keeps_c1 = matches!(i.mnemonic(), M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip);
    let time_or_chance = matches!(i.mnemonic(), M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdrand | M::Rdseed);
    approximate || keeps_c1 || time_or_chance
}

/// FNSTENV, FXSAVE and their kin, both ways.
pub fn moves_environment(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Fnsave | Mnemonic::Fnstenv) || i.is_save_restore_instruction()
}

/// Instructions with results of each engine's own, and those that would end a case at once.
pub fn left_out(i: &Instruction) -> bool {
    let ends = matches!(i.flow_control(), FlowControl::Interrupt | FlowControl::Exception);
    has_own_result(i) || i.is_privileged() || ends
}

/// A string instruction with the prefixes that change it.
fn string_instruction(r: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend([None, None, Some(0xf3), Some(0xf3), Some(0xf3), Some(0xf2)][r.below(6) as usize]);
    match r.below(16) {
        0 => bytes.insert(0, 0x67),
        1 => bytes.insert(0, 0x64),
        _ => {}
    }
    match r.below(4) {
        0 => bytes.insert(0, 0x66),
        1 => bytes.push(0x48),
        _ => {}
    }
    bytes.push([0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf][r.below(10) as usize]);
    bytes
}

/// Bytes that are likely to be one instruction.
pub fn candidate(r: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    if r.below(8) == 0 {
        return string_instruction(r);
    }
    if r.below(4) == 0 {
        bytes.push([0x66, 0xf2, 0xf3, 0x66, 0xf0, 0x64][r.below(6) as usize]);
    }
    match r.below(8) {
        0 | 1 => {
            // VEX: no inverted register bits more often than not.
            bytes.clear();
            bytes.extend([0xc4, (0xe0 & r.next() as u8) | (1 + r.below(3) as u8), r.next() as u8]);
        }
        2 | 3 => bytes.push(0x40 | r.below(16) as u8),
        _ => {}
    }
    if bytes.first() != Some(&0xc4) {
        match r.below(8) {
            0..3 => bytes.push(0x0f),
            3 => bytes.extend([0x0f, 0x38]),
            4 => bytes.extend([0x0f, 0x3a]),
            5 => bytes.push(0xd8 | r.below(8) as u8),
            _ => {}
        }
    }
    bytes.extend((0..14).map(|_| r.next() as u8));
    bytes
}

/// Random x87 and vector registers; seldom unmasked exceptions. Some lanes hold
/// addresses of `data`.
pub fn fpu(r: &mut Random, data: &Range<u64>, s: &mut CpuState) {
    let unmasked = if r.below(8) == 0 { r.below(64) as u16 } else { 0 };
    s.fpu.fcw = 0x37f & !unmasked | (r.below(4) as u16) << 10;
    s.fpu.fsw = (r.below(8) as u16) << 11;
    s.fpu.ftw = r.next() as u8;
    let unmasked = if r.below(8) == 0 { r.next() as u32 } else { 0 };
    s.fpu.mxcsr = 0x1f80 & !unmasked | r.next() as u32 & 0xe040;
    for f in &mut s.fpu.regs {
        let exponent = match r.below(4) {
            0 => r.next() as u16,
            1 => 0x7fff,
            _ => 0x3fff - 64 + r.below(128) as u16,
        };
        *f = F80 { significand: r.next() | 1 << 63, sign_exponent: exponent };
    }
    for lane in s.fpu.ymm.iter_mut().flatten() {
        let single = |r: &mut Random| (r.next() as u32 & 0x807f_ffff) as u64 | (120 + r.below(16)) << 23;
        *lane = match r.below(4) {
            0 => r.next(),
            1 => r.number(data),
            2 => single(r) | single(r) << 32,
            _ => (r.next() & 0x800f_ffff_ffff_ffff) | (1015 + r.below(16)) << 52,
        };
    }
}

/// The lines in which two states differ.
pub fn differences(a: &CpuState, b: &CpuState) -> String {
    let lines = |s: &CpuState| format!("{s:#x?}").lines().map(str::to_string).collect::<Vec<_>>();
    let (a, b) = (lines(a), lines(b));
    a.iter()
        .zip(&b)
        .enumerate()
        .filter(|(_, (x, y))| x != y)
        .map(|(n, (x, y))| format!("line {n}: {} | {}", x.trim(), y.trim()))
        .collect::<Vec<_>>()
        .join("\n    ")
}
