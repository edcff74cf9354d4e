//! Event delivery and task switches.

use x86_state::{CpuState, Exception, cr0, cr4, dr6, reg, rflags, vector};

use super::machine::{CODE, GDT, HANDLERS, IDT, INNER_STACK, Machine, Outcome, STACK, TARGET, TSS, gdt};
use super::{Env, Mode, long, protected, step};

/// The IDT gate of a vector in 64-bit mode, to be patched at `offset`.
fn patch_gate(m: &Machine, v: u8, offset: u64, bytes: &[u8]) {
    m.poke(IDT + 16 * u64::from(v) + offset, bytes);
}

#[test]
fn faults_while_delivering_faults() {
    use vector::{DE, DF, GP, NP, PF, UD};
    let absent = [0x0e];
    // (first fault's code, gates made absent, handler reached with which error code)
    let divide: &[u8] = &[0xf7, 0xf1];
    let undefined: &[u8] = &[0x0f, 0x0b];
    // MOV RAX, [RBX] with RBX beyond the mapped 2 MiB.
    let page: &[u8] = &[0x48, 0x8b, 0x03];
    let np = |v: u8| u32::from(v) << 3 | 2 | 1;
    let table: [(&[u8], &[u8], Outcome); 8] = [
        (divide, &[], Outcome::Fault(DE, 0)),
        // Contributory after contributory.
        (divide, &[DE], Outcome::Fault(DF, 0)),
        // Contributory after benign: handled serially.
        (undefined, &[UD], Outcome::Fault(NP, np(UD))),
        (page, &[], Outcome::Fault(PF, 0)),
        // Contributory after a page fault.
        (page, &[PF], Outcome::Fault(DF, 0)),
        // The second fault's own gate is absent: double fault.
        (undefined, &[UD, NP], Outcome::Fault(DF, 0)),
        // Nothing left: shutdown.
        (divide, &[DE, DF], Outcome::Fault(255, 0)),
        (page, &[PF, DF, NP, GP], Outcome::Fault(255, 0)),
    ];
    for (code, missing, expected) in table {
        let prepare = |m: &Machine, s: &mut CpuState| {
            s.gpr[reg::RBX] = 0x40_0000;
            missing.iter().for_each(|v| patch_gate(m, *v, 5, &absent));
        };
        let (outcome, after, _) = step(&long(0), code, prepare);
        assert_eq!(outcome, expected, "{code:x?} without {missing:?}");
        if code == page {
            assert_eq!(after.cr2, 0x40_0000);
        }
    }
}

#[test]
fn a_software_interrupt_reports_its_gate_without_ext() {
    let absent = |m: &Machine, _: &mut CpuState| patch_gate(m, 0x40, 5, &[0x6e]);
    let got = step(&long(3), &[0xcd, 0x40], absent).0;
    assert_eq!(got, Outcome::Fault(vector::NP, 0x40 << 3 | 2));
    let beyond = |_: &Machine, s: &mut CpuState| s.idtr.limit = 0x3ff;
    let got = step(&long(0), &[0xcd, 0x40], beyond).0;
    assert_eq!(got, Outcome::Fault(vector::GP, 0x40 << 3 | 2));
}

#[test]
fn stacks_of_64_bit_gates() {
    // (CPL, IST index, RSP before, stack top expected)
    for (cpl, ist, rsp, top) in [
        (0, 0, STACK, STACK),
        (0, 0, STACK - 3, STACK - 16),
        (0, 1, STACK, 0x5ff0),
        (3, 0, STACK, INNER_STACK),
        (3, 1, STACK, 0x5ff0),
    ] {
        let prepare = |m: &Machine, s: &mut CpuState| {
            s.gpr[reg::RSP] = rsp;
            m.poke(TSS + 0x24, &0x5ffbu64.to_le_bytes());
            patch_gate(m, 0x40, 4, &[ist]);
        };
        let (outcome, s, m) = step(&long(cpl), &[0xcd, 0x40], prepare);
        let case = format!("CPL {cpl} IST {ist} RSP {rsp:#x}");
        assert_eq!((outcome, s.gpr[reg::RSP]), (Outcome::Done, top - 40), "{case}");
        assert_eq!(m.peek(top - 16, 8), rsp, "{case}: pushed RSP");
        let ss = if cpl == 0 { gdt::data(0) } else { 0 };
        assert_eq!(s.segments[2].selector, ss, "{case}: SS is null after a change of level only");
    }
    let not_canonical = |m: &Machine, _: &mut CpuState| {
        m.poke(TSS + 0x24, &(1u64 << 47 | 0x100).to_le_bytes());
        patch_gate(m, 0x40, 4, &[1]);
    };
    assert_eq!(step(&long(0), &[0xcd, 0x40], not_canonical).0, Outcome::Fault(vector::SS, 0));
    let short = |_: &Machine, s: &mut CpuState| s.tr.limit = 8;
    assert_eq!(
        step(&long(3), &[0xcd, 0x40], short).0,
        Outcome::Fault(255, 0),
        "no stack for the fault either"
    );
}

#[test]
fn resume_flag_in_the_pushed_image() {
    let image = |code: &[u8]| {
        let (_, s, m) = step(&long(0), code, |_, _| ());
        let has_error = s.rip == HANDLERS + 16 * u64::from(vector::GP);
        m.peek(s.gpr[reg::RSP] + if has_error { 24 } else { 16 }, 8) & rflags::RF
    };
    assert_eq!(image(&[0x0f, 0x0b]), rflags::RF, "a fault");
    assert_eq!(image(&[0xf7, 0xf1]), rflags::RF, "a fault");
    assert_eq!(image(&[0xcc]), 0, "a trap");
    assert_eq!(image(&[0xcd, 0x40]), 0, "a software interrupt");
}

#[test]
fn debug_traps() {
    // NOP under TF, and with a pending breakpoint that came with the state.
    let single = |_: &Machine, s: &mut CpuState| s.rflags |= rflags::TF;
    let mut machine = Machine::new();
    let mut state = machine.prepare(&long(0), &[0x90]);
    single(&machine, &mut state);
    let (outcome, s) = machine.run(&state, 2);
    assert_eq!(outcome, Outcome::Fault(vector::DB, 0));
    assert_eq!(s.dr6 & 0xf00f, dr6::BS);
    assert_eq!(machine.peek(s.gpr[reg::RSP], 8), CODE + 1, "behind the instruction");
    assert_eq!(s.rflags & rflags::TF, 0);
    assert_ne!(machine.peek(s.gpr[reg::RSP] + 16, 8) & rflags::TF, 0, "TF is in the image");

    state.rflags &= !rflags::TF;
    state.pending_exception = Some(Exception { vector: vector::DB, error_code: None, payload: 2 });
    let (outcome, s) = machine.run(&state, 1);
    assert_eq!((outcome, s.dr6 & 0xf00f), (Outcome::Fault(vector::DB, 0), 2));
    assert_eq!(machine.peek(s.gpr[reg::RSP], 8), CODE, "before the next instruction");
}

/// With DEBUGCTL.BTF set TF traps behind taken branches only, and the trap clears it.
#[test]
fn single_stepping_on_branches() {
    const BTF: u64 = 2;
    // XOR EAX, EAX; JNE +0x10 (not taken); STOSB by REP; JMP +2; two NOP; NOP.
    let code = [0x31, 0xc0, 0x75, 0x10, 0xf3, 0xaa, 0xeb, 0x02, 0x90, 0x90, 0x90];
    let run = |debugctl: u64, limit: u64| {
        let mut machine = Machine::new();
        let mut state = machine.prepare(&long(0), &code);
        state.rflags |= rflags::TF;
        state.msrs.debugctl = debugctl;
        (state.gpr[reg::RDI], state.gpr[reg::RCX]) = (super::machine::DATA, 3);
        let (outcome, s) = machine.run(&state, limit);
        let behind = machine.peek(s.gpr[reg::RSP], 8);
        (outcome, behind, s)
    };
    let (outcome, behind, _) = run(0, 2);
    assert_eq!((outcome, behind), (Outcome::Fault(vector::DB, 0), CODE + 2), "without BTF");
    // XOR, JNE, three elements, JMP: nothing traps before the last.
    assert_eq!(run(BTF, 4).0, Outcome::Done);
    let (outcome, behind, s) = run(BTF, 20);
    assert_eq!((outcome, behind), (Outcome::Fault(vector::DB, 0), CODE + 10));
    assert_eq!((s.dr6 & 0xf00f, s.msrs.debugctl), (dr6::BS, 0), "the trap ends branch trapping");
}

/// Events whose delivery another engine had begun.
#[test]
fn events_that_come_with_the_state() {
    let mut machine = Machine::new();
    let mut state = machine.prepare(&long(0), &[0x90]);
    let event = |vector, payload| Some(Exception { vector, error_code: None, payload });
    // An acknowledged interrupt is no fault: its image has RF clear.
    state.pending_exception = event(0x50, 0);
    let (_, s) = machine.run(&state, 1);
    assert_eq!(machine.peek(s.gpr[reg::RSP], 8), CODE);
    assert_eq!(machine.peek(s.gpr[reg::RSP] + 16, 8) & rflags::RF, 0);
    // DR6 has a debug exception's conditions already.
    state.pending_exception = event(vector::DB, 0);
    state.dr6 = dr6::FIXED | dr6::BS;
    let (outcome, s) = machine.run(&state, 1);
    assert_eq!((outcome, s.dr6 & 0xf00f), (Outcome::Fault(vector::DB, 0), dr6::BS));
    assert_eq!(machine.peek(s.gpr[reg::RSP] + 16, 8) & rflags::RF, 0);
}

fn task_env(cpl: u8) -> Env {
    Env { cpl, ..protected() }
}

/// A far JMP to the other task, with its TSS patched.
fn jump_to_task(patch: impl FnOnce(&Machine, &mut CpuState)) -> (Outcome, CpuState, Machine) {
    let mut code = vec![0xea, 0, 0, 0, 0];
    code.extend(gdt::OTHER_TSS.to_le_bytes());
    let mut machine = Machine::new();
    let mut state = machine.prepare(&task_env(0), &code);
    patch(&machine, &mut state);
    let (outcome, after) = machine.run(&state, 1);
    (outcome, after, machine)
}

#[test]
fn task_switch_checks() {
    use super::machine::OTHER_TSS;
    use vector::{GP, NP, TS};
    let descriptor = GDT + u64::from(gdt::OTHER_TSS);
    let set = |offset: u64, selector: u16| {
        move |m: &Machine, _: &mut CpuState| m.poke(OTHER_TSS + offset, &selector.to_le_bytes())
    };
    let tss = u32::from(gdt::OTHER_TSS);
    let check = |case: &str, got: (Outcome, CpuState, Machine), expected: Outcome, switched: bool| {
        assert_eq!(got.0, expected, "{case}");
        let tr = if switched { gdt::OTHER_TSS } else { gdt::TSS };
        assert_eq!(got.1.tr.selector, tr, "{case}: whose fault it is");
        let size = 4;
        let ip = got.2.peek(got.1.gpr[reg::RSP] + size, size);
        if expected != Outcome::Done {
            assert_eq!(ip, if switched { TARGET } else { CODE }, "{case}: saved EIP");
        }
    };
    // Faults of the old task.
    let absent = jump_to_task(|m, _| m.poke(descriptor + 5, &[0x69]));
    check("absent TSS", absent, Outcome::Fault(NP, tss), false);
    let small = jump_to_task(|m, _| m.poke(descriptor, &0x66u16.to_le_bytes()));
    check("small TSS", small, Outcome::Fault(TS, tss), false);
    let busy = jump_to_task(|m, _| m.poke(descriptor + 5, &[0xeb]));
    check("busy TSS", busy, Outcome::Fault(GP, tss), false);
    // Faults of the new task, at its first instruction.
    let named = |selector: u16| u32::from(selector & !3);
    for (case, offset, selector, expected) in [
        ("LDT not an LDT", 0x60, gdt::TSS16, Outcome::Fault(TS, named(gdt::TSS16))),
        ("CS null", 0x4c, 0, Outcome::Fault(TS, 0)),
        ("CS is data", 0x4c, gdt::data(0), Outcome::Fault(TS, named(gdt::data(0)))),
        ("CS DPL", 0x4c, gdt::code32(1), Outcome::Fault(TS, named(gdt::code32(1)))),
        ("CS absent", 0x4c, gdt::ABSENT_CODE, Outcome::Fault(NP, named(gdt::ABSENT_CODE))),
        ("SS null", 0x50, 0, Outcome::Fault(TS, 0)),
        ("SS DPL", 0x50, gdt::data(1), Outcome::Fault(TS, named(gdt::data(1)))),
        ("SS read-only", 0x50, gdt::read_only(0), Outcome::Fault(TS, named(gdt::read_only(0)))),
        ("DS system", 0x54, gdt::LDT, Outcome::Fault(TS, named(gdt::LDT))),
        ("DS absent", 0x54, gdt::ABSENT_DATA, Outcome::Fault(NP, named(gdt::ABSENT_DATA))),
        ("DS null", 0x54, 0, Outcome::Done),
        ("GS beyond", 0x5c, gdt::BEYOND, Outcome::Fault(TS, named(gdt::BEYOND))),
    ] {
        // Before SS is loaded a fault of level 0 has no stack to be pushed on.
        let got = jump_to_task(set(offset, selector));
        if offset == 0x50 || offset == 0x4c || offset == 0x60 {
            assert_eq!(got.1.tr.selector, gdt::OTHER_TSS, "{case}");
            assert_eq!(got.0, Outcome::Fault(255, 0), "{case}: no usable stack yet");
            continue;
        }
        check(case, got, expected, true);
    }
}

#[test]
fn task_switch_saves_and_loads_registers() {
    use super::machine::OTHER_TSS;
    let (outcome, s, m) = jump_to_task(|m, s| {
        for n in 0..8u32 {
            m.poke(OTHER_TSS + 0x28 + 4 * u64::from(n), &(0x100 * (n + 1)).to_le_bytes());
        }
        m.poke(OTHER_TSS + 0x24, &(rflags::FIXED as u32 | 0x4001).to_le_bytes());
        s.gpr[reg::RSI] = 0x1234_5678;
        s.rflags |= rflags::ZF;
        s.dr7 |= 0x3ff;
    });
    assert_eq!(outcome, Outcome::Done);
    let loaded: Vec<u64> = s.gpr[..8].to_vec();
    assert_eq!(loaded, (1..=8).map(|n| 0x100 * n).collect::<Vec<u64>>());
    assert_eq!(s.rflags, rflags::FIXED | 0x4001);
    assert_eq!(s.dr7 & 0x3ff, 0x2aa, "local breakpoints end with the task");
    assert_ne!(s.cr0 & cr0::TS, 0);
    assert_eq!(m.peek(TSS + 0x40, 4), 0x1234_5678, "ESI");
    assert_eq!(m.peek(TSS + 0x20, 4), CODE + 7, "EIP of the next instruction");
    assert_ne!(m.peek(TSS + 0x24, 4) & rflags::ZF, 0);
    assert_eq!(m.peek(TSS + 0x4c, 2), gdt::code32(0).into());
}

#[test]
fn task_gates_in_the_idt() {
    let gate = |m: &Machine, _: &mut CpuState| {
        let raw = u64::from(gdt::OTHER_TSS) << 16 | 0xe500 << 32;
        m.poke(IDT + 8 * u64::from(vector::NP), &raw.to_le_bytes());
        m.poke(TARGET, &[0xf4]);
    };
    // MOV DS, AX with a descriptor that is absent.
    let mut machine = Machine::new();
    let mut state = machine.prepare(&task_env(0), &[0x8e, 0xd8]);
    gate(&machine, &mut state);
    state.gpr[reg::RAX] = gdt::ABSENT_DATA.into();
    let s = machine.run_to_halt(&state);
    assert_eq!((s.rip, s.tr.selector), (TARGET + 1, gdt::OTHER_TSS));
    let sp = s.gpr[reg::RSP];
    assert_eq!((sp, machine.peek(sp, 4)), (STACK - 4, gdt::ABSENT_DATA.into()), "the error code");
    assert_eq!(machine.peek(super::machine::OTHER_TSS, 2), gdt::TSS.into(), "back link");
    assert_ne!(s.rflags & rflags::NT, 0);
    assert_eq!(machine.peek(TSS + 0x20, 4), CODE, "the faulting instruction");
    assert_ne!(machine.peek(TSS + 0x24, 4) & rflags::RF, 0, "a fault's image has RF");
}

#[test]
fn virtual_8086_interrupts() {
    let v86 = Env { mode: Mode::V86, cpl: 3, iopl: 3, umip: false, vme: false };
    let (outcome, s, m) = step(&v86, &[0xcd, 0x40], |_, s| s.segments[3].selector = 0x777);
    assert_eq!((outcome, s.cpl()), (Outcome::Done, 0));
    let sp = s.gpr[reg::RSP];
    assert_eq!(sp, INNER_STACK - 9 * 4);
    assert_ne!(m.peek(sp + 8, 4) & rflags::VM, 0);
    assert_eq!(m.peek(sp + 24, 4), 0x777, "DS is pushed");
    assert!([0, 3, 4, 5].iter().all(|n| !s.segments[*n].usable() && s.segments[*n].selector == 0));

    // With VME and a clear redirection bit the 8086 program's own handler runs.
    let own = Env { vme: true, iopl: 0, ..v86 };
    let redirect = |m: &Machine, s: &mut CpuState| {
        m.poke(TSS + 0xe0 + 8, &[0]);
        m.poke(4 * 0x40, &0x0123_4567u32.to_le_bytes());
        s.rflags |= rflags::VIF | rflags::IF;
        assert_ne!(s.cr4 & cr4::VME, 0);
    };
    let (outcome, s, m) = step(&own, &[0xcd, 0x40], redirect);
    assert_eq!((outcome, s.cpl(), s.rip, s.segments[1].selector), (Outcome::Done, 3, 0x4567, 0x123));
    assert_eq!(s.rflags & (rflags::VIF | rflags::IF | rflags::VM), rflags::IF | rflags::VM);
    let image = m.peek(STACK - 2, 2);
    assert_eq!(image & (rflags::IF | rflags::IOPL), rflags::IF | rflags::IOPL, "VIF is pushed as IF");
}
