//! Privileged instructions, control and model-specific registers, I/O permission,
//! event delivery and task switches, as tables.

#[path = "../sensitive/machine.rs"]
mod machine;

mod alignment;
mod delivery;
mod registers;
mod survival;

use machine::{DATA, Env, Machine, Mode, Outcome, environments};
use x86_state::{CpuState, cr4, reg, rflags, vector};

const GP0: Outcome = Outcome::Fault(vector::GP, 0);
const UD: Outcome = Outcome::Fault(vector::UD, 0);

/// 64-bit mode at a privilege level.
fn long(cpl: u8) -> Env {
    Env { mode: Mode::Long, cpl, iopl: 0, umip: false, vme: false }
}

/// 32-bit protected mode without paging, level 0.
fn protected() -> Env {
    Env { mode: Mode::Protected32, ..long(0) }
}

/// One instruction in one environment.
fn step(
    env: &Env,
    code: &[u8],
    prepare: impl FnOnce(&Machine, &mut CpuState),
) -> (Outcome, CpuState, Machine) {
    let mut machine = Machine::new();
    let mut state = machine.prepare(env, code);
    prepare(&machine, &mut state);
    let (outcome, after) = machine.step(&state);
    (outcome, after, machine)
}

#[test]
fn privileged_instructions_fault_outside_level_0() {
    /// Name, code with [BX] as memory operand, needs protected mode.
    type Row = (&'static str, fn(&Env) -> Vec<u8>, bool);
    let table: [Row; 17] = [
        ("CLTS", |_| vec![0x0f, 0x06], false),
        ("INVD", |_| vec![0x0f, 0x08], false),
        ("WBINVD", |_| vec![0x0f, 0x09], false),
        ("INVLPG", |e| vec![0x0f, 0x01, e.at_bx(7)], false),
        ("LGDT", |e| vec![0x0f, 0x01, e.at_bx(2)], false),
        ("LIDT", |e| vec![0x0f, 0x01, e.at_bx(3)], false),
        ("LMSW AX", |_| vec![0x0f, 0x01, 0xf0], false),
        ("LLDT CX", |_| vec![0x0f, 0x00, 0xd1], true),
        ("MOV CR0", |_| vec![0x0f, 0x22, 0xc0], false),
        ("MOV from CR0", |_| vec![0x0f, 0x20, 0xc0], false),
        ("MOV CR3", |_| vec![0x0f, 0x22, 0xd8], false),
        ("MOV CR4", |_| vec![0x0f, 0x22, 0xe0], false),
        ("MOV DR0", |_| vec![0x0f, 0x23, 0xc0], false),
        ("MOV from DR7", |_| vec![0x0f, 0x21, 0xf8], false),
        ("RDMSR", |_| vec![0x0f, 0x32], false),
        ("WRMSR", |_| vec![0x0f, 0x30], false),
        ("HLT", |_| vec![0xf4], false),
    ];
    for (name, code, needs_protected) in table {
        for env in environments() {
            let expected = if needs_protected && env.real_segments() {
                UD
            } else if env.cpl > 0 {
                GP0
            } else {
                continue;
            };
            // Registers hold zero: a missing check would show as another outcome.
            assert_eq!(step(&env, &code(&env), |_, _| ()).0, expected, "{name} in {env:?}");
        }
    }
}

#[test]
fn interrupt_flag_instructions() {
    for env in environments() {
        for pvi in [false, true] {
            for (code, sets) in [(0xfa, false), (0xfb, true)] {
                let prepare = |_: &Machine, s: &mut CpuState| {
                    s.rflags |= if sets { 0 } else { rflags::IF | rflags::VIF };
                    s.cr4 |= if pvi { cr4::PVI } else { 0 };
                };
                let (outcome, after, _) = step(&env, &[code], prepare);
                let real = env.mode == Mode::Real || env.cpl <= env.iopl;
                let virtual_flag = if env.mode == Mode::V86 { env.vme } else { pvi && env.cpl == 3 };
                let case = format!("{code:#x} PVI {pvi} in {env:?}");
                if !real && !virtual_flag {
                    assert_eq!(outcome, GP0, "{case}");
                    continue;
                }
                assert_eq!(outcome, Outcome::Done, "{case}");
                let bit = if real { rflags::IF } else { rflags::VIF };
                assert_eq!(after.rflags & bit != 0, sets, "{case}");
                let kept = (rflags::IF | rflags::VIF) & !bit;
                assert_eq!(after.rflags & kept != 0, !sets, "{case}: the other flag stays");
            }
            // STI with VIP set traps to the monitor.
            if env.cpl > env.iopl && env.mode == Mode::V86 && env.vme {
                let pending = |_: &Machine, s: &mut CpuState| s.rflags |= rflags::VIP;
                assert_eq!(step(&env, &[0xfb], pending).0, GP0);
            }
        }
    }
}

/// IN and OUT of `size` bytes at DX.
fn port_instructions(env: &Env, size: u8) -> [Vec<u8>; 2] {
    let operand = u64::from(size) != 1 && u64::from(size) != env.operand();
    [0xec, 0xee].map(|code| {
        let mut bytes = if operand { vec![0x66] } else { vec![] };
        bytes.push(if size == 1 { code } else { code + 1 });
        bytes
    })
}

#[test]
fn io_permission() {
    // (port, size, bits of the bitmap that are set, allowed)
    let cases: [(u16, u8, &[u16], bool); 9] = [
        (0x70, 1, &[], true),
        (0x70, 1, &[0x70], false),
        (0x71, 1, &[0x70], true),
        (0x70, 2, &[0x71], false),
        (0x70, 4, &[0x73], false),
        (0x70, 4, &[0x74], true),
        (0x77, 2, &[0x78], false),
        // The bitmap ends with the TSS: offset 0x100 of limit 0x1ff covers ports below 0x7f8.
        (0x7f0, 1, &[], true),
        (0x7f8, 1, &[], false),
    ];
    for env in environments() {
        for (port, size, denied, allowed) in cases {
            for code in port_instructions(&env, size) {
                let prepare = |m: &Machine, s: &mut CpuState| {
                    s.gpr[reg::RDX] = port.into();
                    for p in denied {
                        m.poke(machine::TSS + 0x100 + u64::from(p / 8), &[1 << (p % 8)]);
                    }
                };
                let by_iopl = env.mode == Mode::Real || env.mode != Mode::V86 && env.cpl <= env.iopl;
                let expected = if by_iopl || allowed { Outcome::Done } else { GP0 };
                let got = step(&env, &code, prepare).0;
                assert_eq!(got, expected, "port {port:#x} size {size} denied {denied:x?} in {env:?}");
            }
        }
    }
}

#[test]
fn repeated_port_input_restarts_where_it_faulted() {
    // REP INSB to the end of memory: 5 bytes fit, then the page is not there.
    let end = 0x20_0000;
    let (outcome, after, m) = step(&long(0), &[0xf3, 0x6c], |m, s| {
        s.gpr[reg::RDI] = end - 5;
        s.gpr[reg::RCX] = 9;
        m.poke(end - 6, &[0xcc; 6]);
    });
    assert_eq!(outcome, Outcome::Fault(vector::PF, 2), "a write to a page that is not present");
    assert_eq!((after.gpr[reg::RCX], after.gpr[reg::RDI], after.cr2), (4, end, end));
    assert_eq!(m.peek(end - 6, 6), 0xcc, "the bus gave zeros");
}

#[test]
fn bound_and_into() {
    let legacy = protected();
    for (index, expected) in [
        (-6i32, Outcome::Fault(vector::BR, 0)),
        (-5, Outcome::Done),
        (7, Outcome::Done),
        (8, Outcome::Fault(vector::BR, 0)),
    ] {
        let got = step(&legacy, &[0x62, 0x03], |m, s| {
            s.gpr[reg::RAX] = u64::from(index as u32);
            m.poke(DATA, &(-5i32).to_le_bytes());
            m.poke(DATA + 4, &7i32.to_le_bytes());
        });
        assert_eq!(got.0, expected, "{index}");
    }
    let overflow = |_: &Machine, s: &mut CpuState| s.rflags |= rflags::OF;
    let (_, after, m) = step(&legacy, &[0xce], overflow);
    assert_eq!(after.rip, machine::HANDLERS + 16 * 4, "INTO calls handler 4");
    assert_eq!(m.peek(after.gpr[reg::RSP], 4), machine::CODE + 1, "and returns behind itself");
    assert_eq!(step(&legacy, &[0xce], |_, _| ()).1.rip, machine::CODE + 1);
    assert_eq!(step(&long(0), &[0xce], overflow).0, UD);
}
