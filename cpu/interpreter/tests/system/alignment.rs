//! Alignment checks (CR0.AM, RFLAGS.AC, CPL 3). What each instruction asks for was read off
//! a processor: an AMD EPYC, where SDM volume 3, 6.15, leaves a choice.

use x86_state::{CpuState, cr0, cr4, reg, rflags, vector};

use super::machine::{DATA, Machine, Outcome, STACK, gdt};
use super::{GP0, long};

const AC: Outcome = Outcome::Fault(vector::AC, 0);

fn machine() -> Machine {
    Machine::of("x86-64-v3".parse().expect("the model exists"))
}

/// One instruction at CPL 3.
fn step(code: &[u8], prepare: impl FnOnce(&Machine, &mut CpuState)) -> (Outcome, CpuState, Machine) {
    let mut machine = machine();
    let mut state = machine.prepare(&long(3), code);
    prepare(&machine, &mut state);
    let (outcome, after) = machine.step(&state);
    (outcome, after, machine)
}

/// User code with alignment checked, everything enabled, RDI `offset` into [`DATA`].
fn checked(offset: u64) -> impl Fn(&Machine, &mut CpuState) {
    move |_, s| {
        s.cr0 |= cr0::AM;
        s.cr4 |= cr4::OSFXSR | cr4::OSXSAVE;
        s.xcr0 = 7;
        s.rflags |= rflags::AC | 3 << rflags::IOPL_SHIFT;
        s.gpr[reg::RDI] = DATA + offset;
        // Every element of a mask.
        s.fpu.ymm[1] = [u64::MAX; 4];
    }
}

#[test]
fn each_operand_has_its_own_alignment() {
    // (instruction on [RDI], its bytes, the alignment it asks for)
    let table: [(&str, &[u8], u64); 22] = [
        ("MOV r16", &[0x66, 0x8b, 0x07], 2),
        ("MOV r64", &[0x48, 0x8b, 0x07], 8),
        ("ADD m32", &[0x01, 0x07], 4),
        ("CMPXCHG8B", &[0x0f, 0xc7, 0x0f], 8),
        ("FLD m80", &[0xdb, 0x2f], 8),
        ("FSTP m80", &[0xdb, 0x3f], 8),
        ("FBSTP", &[0xdf, 0x37], 8),
        ("FNSTCW", &[0xd9, 0x3f], 2),
        ("FNSTENV", &[0xd9, 0x37], 4),
        ("FNSTENV, 16-bit", &[0x66, 0xd9, 0x37], 2),
        ("FLDENV", &[0xd9, 0x27], 4),
        ("FNSAVE", &[0xdd, 0x37], 4),
        ("FNSAVE, 16-bit", &[0x66, 0xdd, 0x37], 2),
        ("FRSTOR", &[0xdd, 0x27], 4),
        ("MOVQ xmm", &[0xf3, 0x0f, 0x7e, 0x07], 8),
        ("MOVUPS", &[0x0f, 0x10, 0x07], 16),
        ("MOVUPS to memory", &[0x0f, 0x11, 0x07], 16),
        ("LDDQU", &[0xf2, 0x0f, 0xf0, 0x07], 16),
        ("VMOVUPS ymm", &[0xc5, 0xfc, 0x10, 0x07], 16),
        ("VADDPS", &[0xc5, 0xf8, 0x58, 0x07], 16),
        ("VPMASKMOVD", &[0xc4, 0xe2, 0x71, 0x8c, 0x07], 1),
        ("VPMASKMOVD to memory", &[0xc4, 0xe2, 0x71, 0x8e, 0x07], 1),
    ];
    for (name, code, alignment) in table {
        for offset in 0..=16 {
            let expected = if offset % alignment == 0 { Outcome::Done } else { AC };
            assert_eq!(step(code, checked(offset)).0, expected, "{name} at {offset}");
            let unchecked = |m: &Machine, s: &mut CpuState| {
                checked(offset)(m, s);
                s.rflags &= !rflags::AC;
            };
            assert_eq!(step(code, unchecked).0, Outcome::Done, "{name} at {offset}, unchecked");
        }
    }
}

#[test]
fn transfers_by_a_misaligned_stack() {
    let misaligned = |m: &Machine, s: &mut CpuState| {
        checked(0)(m, s);
        let frame = [u64::from(gdt::code64(3) | 3), s.rflags, STACK, u64::from(gdt::data(3) | 3)];
        s.gpr[reg::RSP] = STACK - 0x60 + 4;
        m.poke(STACK - 0x60 + 4, &super::machine::CODE.to_le_bytes());
        for (n, v) in frame.into_iter().enumerate() {
            m.poke(STACK - 0x60 + 12 + 8 * n as u64, &v.to_le_bytes());
        }
    };
    for (name, code) in [("IRETQ", [0x48, 0xcf]), ("RETFQ", [0x48, 0xcb])] {
        assert_eq!(step(&code, misaligned).0, AC, "{name}");
        let unchecked = |m: &Machine, s: &mut CpuState| {
            misaligned(m, s);
            s.rflags &= !rflags::AC;
        };
        assert_eq!(step(&code, unchecked).0, Outcome::Done, "{name}, unchecked");
    }
}

/// A sum of the segment base that matches nothing and such an address is canonical.
#[test]
fn addresses_that_are_not_canonical_fault_where_alignment_is_checked() {
    for top in [0x4000, 0x8000, 0xc000u64] {
        let far = |m: &Machine, s: &mut CpuState| {
            checked(0)(m, s);
            s.gpr[reg::RDI] |= top << 48;
        };
        // The second access finds what the first, to the page itself, has entered.
        let both = [0x48, 0x8b, 0x06, 0x48, 0x8b, 0x07];
        let mut machine = machine();
        let mut state = machine.prepare(&long(3), &both);
        far(&machine, &mut state);
        state.gpr[reg::RSI] = DATA;
        assert_eq!(machine.run(&state, 2).0, GP0, "{top:#x}");
    }
}
