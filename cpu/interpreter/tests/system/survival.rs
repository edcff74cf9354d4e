//! Whatever a guest puts into its code, registers and tables, `run` comes back:
//! no panic, no endless loop inside the engine.

use x86_state::{CpuState, Segment, cr0, cr4, reg};

use super::machine::{CODE, GDT, IDT, Machine, TSS, environments};

/// Xorshift: the cases are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// A value near one of the borders that checks care about.
    fn value(&mut self) -> u64 {
        const BORDERS: [u64; 10] = [
            0,
            0x6000,
            0x7fff,
            0xffff,
            0x1f_ffff,
            0x7fff_ffff,
            0xffff_ffff,
            1 << 47,
            0xffff_8000_0000_0000,
            u64::MAX,
        ];
        match self.below(4) {
            0 => self.next(),
            _ => BORDERS[self.below(10) as usize].wrapping_add(self.below(32)).wrapping_sub(16),
        }
    }
}

/// Code that is likelier than noise to be an instruction of the system group.
fn code(r: &mut Random) -> Vec<u8> {
    const OPENINGS: [&[u8]; 24] = [
        &[0x0f, 0x00],
        &[0x0f, 0x01],
        &[0x0f, 0x02],
        &[0x0f, 0x20],
        &[0x0f, 0x22],
        &[0x0f, 0x23],
        &[0x0f, 0x30],
        &[0x0f, 0xa1],
        &[0x8e],
        &[0xff],
        &[0xcf],
        &[0x48, 0xcf],
        &[0xcb],
        &[0x66, 0xcb],
        &[0xcd],
        &[0x9a],
        &[0xea],
        &[0xf3, 0x6c],
        &[0x9d],
        &[0x17],
        &[0x0f, 0x05],
        &[0x0f, 0x34],
        &[0xc8],
        &[0xf0],
    ];
    let mut bytes = Vec::new();
    while bytes.len() < 48 {
        if r.below(3) > 0 {
            bytes.extend(OPENINGS[r.below(24) as usize]);
        }
        bytes.extend(r.next().to_le_bytes().iter().take(1 + r.below(6) as usize));
    }
    bytes
}

/// Disturb registers, but leave a state that a processor can be in.
fn disturb(r: &mut Random, s: &mut CpuState) {
    for g in &mut s.gpr {
        if r.below(2) == 0 {
            *g = r.value();
        }
    }
    // A repeated instruction of 2^32 elements is right, but takes its time.
    s.gpr[reg::RCX] &= 0xf_ffff;
    for index in 0..6 {
        if r.below(8) == 0 {
            let access = (s.segments[index].access ^ 1 << r.below(16)) | u32::from(index == 2) << 4;
            s.segments[index] = Segment {
                base: r.value() & 0xffff_ffff,
                limit: r.value() as u32,
                access,
                ..s.segments[index]
            };
        }
    }
    s.rflags |= r.next() & 0x0024_7fd5;
    s.cr0 |= r.next() & (cr0::WP | cr0::TS | cr0::AM | cr0::NE);
    s.cr4 |= r.next() & (cr4::DE | cr4::PSE | cr4::PGE | cr4::OSFXSR | cr4::SMEP | cr4::FSGSBASE | cr4::PVI);
    s.dr7 |= r.next() & 0xffff_03ff;
    s.dr = [r.value(), r.value(), CODE + r.below(16), 0x6000];
    if r.below(4) == 0 {
        s.idtr.limit = r.value() as u16;
        s.gdtr.limit = r.value() as u16;
        s.tr.limit = r.value() as u32;
    }
}

#[test]
fn any_guest_comes_back() {
    // A longer hunt sets the number of cases, which changes them too.
    let cases = std::env::var("STRATA_SURVIVAL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000u64);
    let mut r = Random(0x9e37_79b9_7f4a_7c15 ^ cases << 8);
    let environments = environments();
    let mut refused = 0;
    for _ in 0..cases {
        let env = environments[r.below(environments.len() as u64) as usize];
        let mut machine = Machine::new();
        let bytes = code(&mut r);
        let mut state = machine.prepare(&env, &bytes);
        disturb(&mut r, &mut state);
        for _ in 0..r.below(24) {
            let table = [GDT, IDT, TSS, 0x1_0000, 0x1_1000, 0x1_2000, 0x7000, 0x6000][r.below(8) as usize];
            let at = table + r.below(0x140);
            let old = machine.peek(at, 1) as u8;
            machine.poke(at, &[old ^ 1 << r.below(8)]);
        }
        if !machine.survives(&state, 300) {
            refused += 1;
        }
    }
    assert!(refused < cases / 10, "{refused} states were refused: the cases miss their aim");
}
