//! The instructions that are sensitive but not privileged (Robin and Irvine's
//! list): each at every privilege level and in every mode, with the result or the
//! fault that the manual's page of the instruction gives (SDM volume 2).

mod machine;

use machine::{
    CODE, DATA, Env, GDT, IDT, INNER_STACK, Machine, Mode, Outcome, STACK, TARGET, environments, gdt,
};
use x86_state::{CpuState, reg, rflags, vector};

const UD: Result<(), (u8, u32)> = Err((vector::UD, 0));
const GP0: Result<(), (u8, u32)> = Err((vector::GP, 0));

/// A row: the instructions it covers and what runs them in one environment.
type Row = (&'static str, fn(&mut Bench));

const TABLE: &[Row] = &[
    ("SGDT SIDT", store_tables),
    ("SLDT STR", store_selectors),
    ("SMSW", store_machine_status),
    ("PUSHF", push_flags),
    ("POPF", pop_flags),
    ("LAR", load_access_rights),
    ("LSL", load_segment_limit),
    ("VERR VERW", verify),
    ("MOV from segment", move_from_segment),
    ("MOV to segment", move_to_segment),
    ("POP segment", pop_segment),
    ("PUSH segment", push_segment),
    ("JMP far", jump_far),
    ("CALL far", call_far),
    ("RET far", return_far),
    ("INT n", interrupt),
    ("IRET", interrupt_return),
];

/// One environment, and the machine that runs cases in it.
struct Bench {
    machine: Machine,
    env: Env,
    row: &'static str,
    cases: u32,
}

impl Bench {
    /// Run `code` after `prepare` and compare its fault, or the lack of one.
    /// Returns the state after an instruction that completed, as expected.
    fn check(
        &mut self,
        case: &str,
        code: &[u8],
        prepare: impl FnOnce(&Machine, &mut CpuState),
        expected: Result<(), (u8, u32)>,
    ) -> Option<CpuState> {
        let mut state = self.machine.prepare(&self.env, code);
        prepare(&self.machine, &mut state);
        let (outcome, after) = self.machine.step(&state);
        let expected = expected.map_or_else(|(v, e)| Outcome::Fault(v, e), |()| Outcome::Done);
        assert_eq!(outcome, expected, "{} {case} in {:?}", self.row, self.env);
        self.cases += 1;
        (outcome == Outcome::Done).then_some(after)
    }

    fn same(&self, case: &str, what: &str, found: u64, expected: u64) {
        assert!(
            found == expected,
            "{} {case}: {what} is {found:#x}, not {expected:#x}, in {:?}",
            self.row,
            self.env
        );
    }

    /// #GP(0) of the instructions that CR4.UMIP covers.
    fn umip(&self) -> Result<(), (u8, u32)> {
        if self.env.umip && self.env.cpl > 0 { GP0 } else { Ok(()) }
    }

    /// #UD of the instructions that need protected mode.
    fn protected(&self) -> Result<(), (u8, u32)> {
        if self.env.real_segments() { UD } else { Ok(()) }
    }
}

#[test]
fn every_sensitive_instruction_in_every_mode() {
    let mut total = 0;
    for (row, run) in TABLE {
        for env in environments() {
            let mut bench = Bench { machine: Machine::new(), env, row, cases: 0 };
            run(&mut bench);
            assert!(bench.cases > 0, "{row} has no case in {env:?}");
            total += bench.cases;
        }
    }
    assert!(total > 5_000, "{total} cases");
}

fn nothing(_: &Machine, _: &mut CpuState) {}

fn store_tables(b: &mut Bench) {
    let long = b.env.mode == Mode::Long;
    let idt = if b.env.mode == Mode::Real { (0x3ff, 0) } else { (0xfff, IDT) };
    for (field, (limit, base)) in [(0, (8 * u64::from(gdt::ENTRIES) - 1, GDT)), (1, idt)] {
        let fill = |m: &Machine, _: &mut CpuState| m.poke(DATA, &[0xcc; 12]);
        let expected = b.umip();
        if b.check("m", &[0x0f, 0x01, b.env.at_bx(field)], fill, expected).is_some() {
            b.same("m", "limit", b.machine.peek(DATA, 2), limit);
            b.same("m", "base", b.machine.peek(DATA + 2, if long { 8 } else { 4 }), base);
            b.same("m", "next byte", b.machine.peek(DATA + if long { 10 } else { 6 }, 1), 0xcc);
        }
    }
}

/// What a 32-bit or 16-bit register operand holds when its register was all ones.
fn in_register(b: &Bench, value: u64) -> u64 {
    if b.env.operand() == 2 { !0xffff | value & 0xffff } else { value & 0xffff_ffff }
}

fn store_selectors(b: &mut Bench) {
    let expected = b.protected().and(b.umip());
    for (field, selector) in [(0, gdt::LDT), (1, gdt::TSS)] {
        let ones = |_: &Machine, s: &mut CpuState| s.gpr[reg::RAX] = u64::MAX;
        if let Some(s) = b.check("r", &[0x0f, 0x00, 0xc0 | field << 3], ones, expected) {
            b.same("r", "RAX", s.gpr[reg::RAX], in_register(b, selector.into()));
        }
        let fill = |m: &Machine, _: &mut CpuState| m.poke(DATA, &[0xcc; 4]);
        if b.check("m", &[0x0f, 0x00, b.env.at_bx(field)], fill, expected).is_some() {
            b.same("m", "memory", b.machine.peek(DATA, 4), 0xcccc_0000 | u64::from(selector));
        }
    }
}

fn store_machine_status(b: &mut Bench) {
    let expected = b.umip();
    let mut cr0 = 0;
    let ones = |_: &Machine, s: &mut CpuState| {
        s.gpr[reg::RAX] = u64::MAX;
        cr0 = s.cr0;
    };
    if let Some(s) = b.check("r", &[0x0f, 0x01, 0xe0], ones, expected) {
        b.same("r", "RAX", s.gpr[reg::RAX], in_register(b, cr0));
    }
}

/// Virtual-8086 mode with IOPL below 3: flags belong to the monitor.
fn flags_trapped(env: &Env) -> bool {
    env.mode == Mode::V86 && env.iopl < 3
}

fn push_flags(b: &mut Bench) {
    let flags = rflags::CF | rflags::ZF | rflags::DF | rflags::IF | rflags::NT | rflags::AC | rflags::RF;
    let set = |_: &Machine, s: &mut CpuState| s.rflags |= flags;
    let expected = if flags_trapped(&b.env) && !b.env.vme { GP0 } else { Ok(()) };
    let Some(s) = b.check("", &[0x9c], set, expected) else { return };
    let size = b.env.slot();
    b.same("", "RSP", s.gpr[reg::RSP], STACK - size);
    let mut image = rflags::FIXED | flags & !rflags::RF | u64::from(b.env.iopl) << 12;
    if flags_trapped(&b.env) {
        // VIF, which is clear, is pushed as IF; IOPL as 3.
        image = image & !rflags::IF | rflags::IOPL;
    }
    let mask = if size == 2 { 0xffff } else { u64::MAX };
    b.same("", "image", b.machine.peek(STACK - size, size), image & mask);
    if flags_trapped(&b.env) {
        // With a 32-bit operand size there is no virtual IF.
        b.check("32-bit", &[0x66, 0x9c], set, GP0);
    }
}

fn pop_flags(b: &mut Bench) {
    let image = rflags::CF | rflags::IF | rflags::IOPL | rflags::NT | rflags::ID;
    let set = |m: &Machine, _: &mut CpuState| m.poke(STACK, &image.to_le_bytes());
    let expected = if flags_trapped(&b.env) && !b.env.vme { GP0 } else { Ok(()) };
    let Some(s) = b.check("", &[0x9d], set, expected) else { return };
    let level = if b.env.mode == Mode::Real { 0 } else { b.env.cpl };
    let mut flags = rflags::FIXED | rflags::CF | rflags::NT | u64::from(b.env.iopl) << 12;
    if b.env.slot() > 2 {
        flags |= rflags::ID;
    }
    if level == 0 {
        flags |= rflags::IOPL;
    }
    if level <= b.env.iopl {
        flags |= rflags::IF;
    }
    if b.env.mode == Mode::V86 {
        flags |= rflags::VM | if flags_trapped(&b.env) { rflags::VIF } else { 0 };
    }
    b.same("", "RFLAGS", s.rflags, flags);
    b.same("", "RSP", s.gpr[reg::RSP], STACK + b.env.slot());
    if flags_trapped(&b.env) {
        let trap = |m: &Machine, _: &mut CpuState| m.poke(STACK, &rflags::TF.to_le_bytes());
        b.check("TF", &[0x9d], trap, GP0);
        let pending = |m: &Machine, s: &mut CpuState| {
            m.poke(STACK, &rflags::IF.to_le_bytes());
            s.rflags |= rflags::VIP;
        };
        b.check("IF with VIP", &[0x9d], pending, GP0);
    }
}

/// A selector for LAR, LSL, VERR and VERW: which may succeed on it.
struct Probe {
    selector: u16,
    dpl: u8,
    conforming: bool,
    lar: bool,
    lsl: bool,
    readable: bool,
    writable: bool,
}

fn probes(env: &Env) -> Vec<Probe> {
    let mut all = Vec::new();
    let plain = |selector, dpl| Probe {
        selector,
        dpl,
        conforming: false,
        lar: true,
        lsl: true,
        readable: false,
        writable: false,
    };
    for dpl in 0..4 {
        all.push(Probe { readable: true, writable: true, ..plain(gdt::data(dpl), dpl) });
        all.push(Probe { readable: true, ..plain(gdt::read_only(dpl), dpl) });
        all.push(Probe { readable: true, ..plain(gdt::code32(dpl), dpl) });
    }
    all.push(Probe { readable: true, conforming: true, ..plain(gdt::CONFORMING32, 0) });
    all.push(plain(gdt::EXECUTE_ONLY, 3));
    all.push(Probe { readable: true, writable: true, ..plain(gdt::ABSENT_DATA, 3) });
    all.push(plain(gdt::LDT, 3));
    all.push(plain(gdt::TSS, 3));
    all.push(plain(gdt::OTHER_TSS, 3));
    all.push(Probe { lar: !env.ia32e(), lsl: !env.ia32e(), ..plain(gdt::TSS16, 3) });
    all.push(Probe { lsl: false, ..plain(gdt::CALL_GATE, 3) });
    all.push(Probe { lar: !env.ia32e(), lsl: false, ..plain(gdt::TASK_GATE, 3) });
    all.push(Probe { lar: false, lsl: false, ..plain(gdt::INTERRUPT_GATE, 3) });
    all.push(Probe { lar: false, lsl: false, ..plain(gdt::BEYOND, 3) });
    all.push(Probe { lar: false, lsl: false, ..plain(0, 3) });
    all
}

/// Run `code`, which takes a selector in CX, on every probe; `succeeds` says
/// what privilege-independent conditions hold.
fn each_probe(
    b: &mut Bench,
    code: &[u8],
    succeeds: fn(&Probe) -> bool,
    result: impl Fn(&Machine, &Probe) -> Option<u64>,
) {
    if b.env.real_segments() {
        b.check("", code, nothing, UD);
        return;
    }
    for p in probes(&b.env) {
        for rpl in 0..4u8 {
            let selector = p.selector | u16::from(rpl);
            let set = |_: &Machine, s: &mut CpuState| {
                s.gpr[reg::RCX] = selector.into();
                s.gpr[reg::RAX] = 0x5555;
                s.rflags |= rflags::SF;
            };
            let case = format!("selector {selector:#x}");
            let Some(s) = b.check(&case, code, set, Ok(())) else { continue };
            let visible = p.conforming || p.dpl >= b.env.cpl.max(rpl);
            let good = visible && succeeds(&p);
            b.same(&case, "ZF", s.rflags & rflags::ZF, if good { rflags::ZF } else { 0 });
            b.same(&case, "SF", s.rflags & rflags::SF, rflags::SF);
            let value = result(&b.machine, &p).filter(|_| good).unwrap_or(0x5555);
            b.same(&case, "RAX", s.gpr[reg::RAX], value);
        }
    }
}

fn load_access_rights(b: &mut Bench) {
    let mask = if b.env.operand() == 2 { 0xff00 } else { 0xff_ff00 };
    each_probe(
        b,
        &[0x0f, 0x02, 0xc1],
        |p| p.lar,
        |m, p| Some(m.peek(GDT + u64::from(p.selector) + 4, 4) & mask),
    );
}

fn load_segment_limit(b: &mut Bench) {
    let mask = if b.env.operand() == 2 { 0xffff } else { u64::MAX };
    each_probe(
        b,
        &[0x0f, 0x03, 0xc1],
        |p| p.lsl,
        |m, p| {
            let at = GDT + u64::from(p.selector);
            Some((m.peek(at, 2) | m.peek(at + 6, 1) << 16 & 0xf_0000) & mask)
        },
    );
}

fn verify(b: &mut Bench) {
    each_probe(b, &[0x0f, 0x00, 0xe1], |p| p.readable, |_, _| None);
    each_probe(b, &[0x0f, 0x00, 0xe9], |p| p.writable, |_, _| None);
}

fn move_from_segment(b: &mut Bench) {
    // MOV AX, DS and MOV [BX], SS.
    let set = |_: &Machine, s: &mut CpuState| {
        s.gpr[reg::RAX] = u64::MAX;
        s.segments[3].selector = 0xabcd;
        s.segments[4].selector = 0x1234;
    };
    if let Some(s) = b.check("r", &[0x8c, 0xd8], set, Ok(())) {
        b.same("r", "RAX", s.gpr[reg::RAX], in_register(b, 0xabcd));
    }
    if b.check("m", &[0x8c, b.env.at_bx(4)], set, Ok(())).is_some() {
        b.same("m", "memory", b.machine.peek(DATA, 8), 0x1234);
    }
    b.check("register 6", &[0x8c, 0xf0], set, UD);
}

/// What loading a selector into a data segment register does in protected mode.
fn data_load(env: &Env, selector: u16) -> Result<(), (u8, u32)> {
    let (index, rpl) = (selector & !3, (selector & 3) as u8);
    let named = u32::from(index);
    let level = rpl.max(env.cpl);
    if index == 0 {
        return Ok(());
    }
    if index == gdt::ABSENT_DATA {
        return Err((vector::NP, named));
    }
    let allowed = index == gdt::CONFORMING32
        || (0..4).any(|dpl| [gdt::data(dpl), gdt::read_only(dpl)].contains(&index) && level <= dpl)
        || (0..4).any(|dpl| gdt::code32(dpl) == index && level <= dpl);
    if allowed { Ok(()) } else { Err((vector::GP, named)) }
}

/// The same for SS.
fn stack_load(env: &Env, selector: u16) -> Result<(), (u8, u32)> {
    let (index, rpl) = (selector & !3, (selector & 3) as u8);
    let named = u32::from(index);
    if index == 0 {
        let null_stack = env.mode == Mode::Long && env.cpl < 3 && rpl == env.cpl;
        return if null_stack { Ok(()) } else { GP0 };
    }
    if rpl == env.cpl && index == gdt::data(env.cpl) {
        return Ok(());
    }
    if rpl == env.cpl && env.cpl == 3 && index == gdt::ABSENT_DATA {
        return Err((vector::SS, named));
    }
    Err((vector::GP, named))
}

fn loadable_selectors() -> Vec<u16> {
    let mut all = vec![
        0,
        gdt::CONFORMING32,
        gdt::EXECUTE_ONLY,
        gdt::ABSENT_DATA,
        gdt::BEYOND,
        gdt::TSS,
        gdt::INTERRUPT_GATE,
    ];
    for dpl in 0..4 {
        all.extend([gdt::data(dpl), gdt::read_only(dpl), gdt::code32(dpl)]);
    }
    all.iter().flat_map(|s| (0..4).map(move |rpl| s | rpl)).collect()
}

/// Every selector into segment register `n`, by `code` with the selector in AX
/// and on the stack.
fn each_load(b: &mut Bench, name: &str, code: &[u8], n: usize, popped: u64) {
    for selector in loadable_selectors() {
        let expected = match (b.env.real_segments(), n) {
            (true, _) => Ok(()),
            (_, 2) => stack_load(&b.env, selector),
            _ => data_load(&b.env, selector),
        };
        let set = |m: &Machine, s: &mut CpuState| {
            s.gpr[reg::RAX] = 0xffff_0000 | u64::from(selector);
            m.poke(STACK, &selector.to_le_bytes());
        };
        let case = format!("{name}, {selector:#x}");
        let Some(s) = b.check(&case, code, set, expected) else { continue };
        let segment = s.segments[n];
        b.same(&case, "selector", segment.selector.into(), selector.into());
        b.same(&case, "RSP", s.gpr[reg::RSP], STACK + popped);
        if b.env.real_segments() {
            b.same(&case, "base", segment.base, u64::from(selector) << 4);
            b.same(&case, "limit", segment.limit.into(), 0xffff);
        } else {
            b.same(&case, "usable", segment.usable().into(), (selector > 3).into());
        }
    }
}

fn move_to_segment(b: &mut Bench) {
    each_load(b, "DS", &[0x8e, 0xd8], 3, 0);
    each_load(b, "GS", &[0x8e, 0xe8], 5, 0);
    each_load(b, "SS", &[0x8e, 0xd0], 2, 0);
    b.check("CS", &[0x8e, 0xc8], nothing, UD);
}

fn pop_segment(b: &mut Bench) {
    let slot = b.env.slot();
    each_load(b, "FS", &[0x0f, 0xa1], 4, slot);
    if b.env.mode == Mode::Long {
        b.check("DS", &[0x1f], nothing, UD);
        b.check("SS", &[0x17], nothing, UD);
    } else {
        each_load(b, "ES", &[0x07], 0, slot);
        each_load(b, "SS", &[0x17], 2, slot);
    }
}

fn push_segment(b: &mut Bench) {
    let slot = b.env.slot();
    let legacy = if b.env.mode == Mode::Long { UD } else { Ok(()) };
    for (code, n, expected) in [(&[0x0f, 0xa0][..], 4, Ok(())), (&[0x1e], 3, legacy), (&[0x0e], 1, legacy)] {
        let mut selector = 0;
        let set = |m: &Machine, s: &mut CpuState| {
            m.poke(STACK - 8, &[0xcc; 8]);
            if n != 1 {
                s.segments[n].selector = 0x4321;
            }
            selector = s.segments[n].selector.into();
        };
        if let Some(s) = b.check("", code, set, expected) {
            b.same("", "RSP", s.gpr[reg::RSP], STACK - slot);
            b.same("", "memory", b.machine.peek(STACK - slot, 2), selector);
        }
    }
}

/// A code segment of the mode at a privilege level.
fn code_of(env: &Env, level: u8) -> u16 {
    match env.mode {
        Mode::Long => gdt::code64(level),
        Mode::Protected16 => gdt::code16(level),
        _ => gdt::code32(level),
    }
}

/// A far JMP or CALL: the pointer is in memory at BX, offset of the operand size.
fn far_indirect(
    b: &mut Bench,
    call: bool,
    selector: u16,
    expected: Result<(), (u8, u32)>,
) -> Option<CpuState> {
    let size = b.env.operand();
    let set = |m: &Machine, _: &mut CpuState| {
        m.poke(DATA, &TARGET.to_le_bytes());
        m.poke(DATA + size, &selector.to_le_bytes());
    };
    let code = [0xff, b.env.at_bx(if call { 3 } else { 5 })];
    let case = format!("selector {selector:#x}");
    b.check(&case, &code, set, expected)
}

/// What a far transfer straight to a code segment does.
fn direct_transfer(env: &Env, selector: u16) -> Result<(), (u8, u32)> {
    let (index, rpl) = (selector & !3, (selector & 3) as u8);
    let named = u32::from(index);
    if env.real_segments() {
        return Ok(());
    }
    if index == 0 {
        return GP0;
    }
    let conforming = [gdt::CONFORMING32, gdt::CONFORMING64].contains(&index);
    if conforming || code_of(env, env.cpl) == index && rpl <= env.cpl {
        return Ok(());
    }
    if index == gdt::ABSENT_CODE { Err((vector::NP, named)) } else { Err((vector::GP, named)) }
}

fn code_selectors(env: &Env) -> Vec<u16> {
    let mut all = vec![0, gdt::ABSENT_CODE, gdt::BEYOND, gdt::data(env.cpl), gdt::LDT, gdt::INTERRUPT_GATE];
    all.push(if env.mode == Mode::Long { gdt::CONFORMING64 } else { gdt::CONFORMING32 });
    all.extend((0..4).map(|level| code_of(env, level)));
    all.iter().flat_map(|s| (0..4).map(move |rpl| s | rpl)).collect()
}

/// Far transfers to code: selector rules shared by JMP and CALL.
fn direct_transfers(b: &mut Bench, call: bool) {
    for selector in code_selectors(&b.env) {
        let expected = direct_transfer(&b.env, selector);
        let Some(s) = far_indirect(b, call, selector, expected) else { continue };
        b.same("", "RIP", s.rip, TARGET);
        let cs = if b.env.real_segments() { selector } else { selector & !3 | u16::from(b.env.cpl) };
        b.same("", "CS", s.segments[1].selector.into(), cs.into());
        if call {
            let size = b.env.operand();
            b.same("", "RSP", s.gpr[reg::RSP], STACK - 2 * size);
            b.same("", "return address", b.machine.peek(STACK - 2 * size, size), CODE + 2);
        }
    }
    if b.env.mode == Mode::Long {
        b.check("direct", &[if call { 0x9a } else { 0xea }, 0, 0, 0, 0, 0, 0], nothing, UD);
    }
}

/// Task gates and TSSs: DPL 3, so any level may use them with its own RPL.
fn task_transfers(b: &mut Bench, call: bool) {
    if b.env.real_segments() {
        return;
    }
    for selector in [gdt::OTHER_TSS, gdt::TASK_GATE] {
        let expected = if b.env.ia32e() { Err((vector::GP, selector.into())) } else { Ok(()) };
        let Some(s) = far_indirect(b, call, selector, expected) else { continue };
        b.same("task", "TR", s.tr.selector.into(), gdt::OTHER_TSS.into());
        b.same("task", "RIP", s.rip, TARGET);
        b.same("task", "NT", s.rflags & rflags::NT, if call { rflags::NT } else { 0 });
        let busy = |selector: u16| b.machine.peek(GDT + u64::from(selector) + 5, 1) & 2;
        b.same("task", "new TSS's busy bit", busy(gdt::OTHER_TSS), 2);
        b.same("task", "old TSS's busy bit", busy(gdt::TSS), if call { 2 } else { 0 });
    }
    let busy = Err((vector::GP, gdt::TSS.into()));
    far_indirect(b, call, gdt::TSS, busy);
}

fn jump_far(b: &mut Bench) {
    direct_transfers(b, false);
    task_transfers(b, false);
    if !b.env.real_segments() {
        // The gate leads to nonconforming level 0, which JMP may not enter from outside.
        let inner = if b.env.ia32e() { gdt::code64(0) } else { gdt::code32(0) };
        let expected = if b.env.cpl == 0 { Ok(()) } else { Err((vector::GP, inner.into())) };
        if let Some(s) = far_indirect(b, false, gdt::CALL_GATE, expected) {
            b.same("gate", "CS", s.segments[1].selector.into(), inner.into());
        }
    }
}

fn call_far(b: &mut Bench) {
    direct_transfers(b, true);
    task_transfers(b, true);
    if b.env.real_segments() {
        return;
    }
    let Some(s) = far_indirect(b, true, gdt::CALL_GATE, Ok(())) else { return };
    let size = if b.env.ia32e() { 8 } else { 4 };
    let inner = b.env.cpl > 0;
    let (top, words) = if inner { (INNER_STACK, 4) } else { (STACK, 2) };
    let sp = top - words * size;
    b.same("gate", "RSP", s.gpr[reg::RSP], sp);
    b.same("gate", "CPL", s.cpl().into(), 0);
    b.same("gate", "RIP", s.rip, TARGET);
    b.same("gate", "pushed RIP", b.machine.peek(sp, size), CODE + 2);
    b.same("gate", "pushed CPL", b.machine.peek(sp + size, 2) & 3, b.env.cpl.into());
    if inner {
        b.same("gate", "pushed RSP", b.machine.peek(sp + 2 * size, size), STACK);
        let ss = if b.env.ia32e() { 0 } else { gdt::data(0) };
        b.same("gate", "SS", s.segments[2].selector.into(), ss.into());
    }
}

/// Put a stack frame of `slot`-byte values at the top of the stack.
fn frame(m: &Machine, slot: u64, values: &[u64]) {
    for (n, v) in values.iter().enumerate() {
        m.poke(STACK + slot * n as u64, &v.to_le_bytes()[..slot as usize]);
    }
}

fn return_far(b: &mut Bench) {
    let slot = b.env.operand();
    if b.env.real_segments() {
        let set = |m: &Machine, _: &mut CpuState| frame(m, slot, &[TARGET, 0x123]);
        let s = b.check("", &[0xcb], set, Ok(())).unwrap();
        b.same("", "RIP", s.rip, TARGET);
        b.same("", "CS base", s.segments[1].base, 0x1230);
        return;
    }
    for level in 0..4u8 {
        let rpl = u16::from(level);
        let (cs, ss) = (code_of(&b.env, level) | rpl, gdt::data(level) | rpl);
        let named = u32::from(cs & !3);
        let expected = if level < b.env.cpl { Err((vector::GP, named)) } else { Ok(()) };
        let set = |m: &Machine, _: &mut CpuState| {
            frame(m, slot, &[TARGET, cs.into(), 0x5000, ss.into()]);
        };
        let case = format!("to level {level}");
        let Some(s) = b.check(&case, &[0xcb], set, expected) else { continue };
        b.same(&case, "RIP", s.rip, TARGET);
        b.same(&case, "CPL", s.cpl().into(), level.into());
        let outer = level > b.env.cpl;
        b.same(&case, "RSP", s.gpr[reg::RSP], if outer { 0x5000 } else { STACK + 2 * slot });
        // Data segments of the inner level are dropped.
        b.same(&case, "DS usable", s.segments[3].usable().into(), (!outer).into());
    }
    for (case, cs, expected) in [
        ("null", 0, GP0),
        ("data", gdt::data(3) | 3, Err((vector::GP, gdt::data(3).into()))),
        ("beyond", gdt::BEYOND | 3, Err((vector::GP, gdt::BEYOND.into()))),
        ("absent", gdt::ABSENT_CODE | 3, Err((vector::NP, gdt::ABSENT_CODE.into()))),
        ("DPL above RPL", code_of(&b.env, 2) | 3, Err((vector::GP, code_of(&b.env, 2).into()))),
    ] {
        let set = |m: &Machine, _: &mut CpuState| {
            frame(m, slot, &[TARGET, cs.into(), 0x5000, (gdt::data(3) | 3).into()]);
        };
        b.check(case, &[0xcb], set, expected);
    }
}

fn interrupt(b: &mut Bench) {
    let real = b.env.mode == Mode::Real;
    for (n, dpl) in [(0x40, 3), (0x41, 0)] {
        let expected = if flags_trapped(&b.env) {
            GP0
        } else if !real && dpl < b.env.cpl {
            Err((vector::GP, u32::from(n) << 3 | 2))
        } else {
            Ok(())
        };
        let set = |_: &Machine, s: &mut CpuState| s.rflags |= rflags::IF;
        let case = format!("n = {n:#x}");
        let Some(s) = b.check(&case, &[0xcd, n], set, expected) else { continue };
        b.same(&case, "RIP", s.rip, machine::HANDLERS + 16 * u64::from(n));
        b.same(&case, "CPL", s.cpl().into(), 0);
        b.same(&case, "IF", s.rflags & rflags::IF, 0);
        let size = match b.env.mode {
            Mode::Real => 2,
            _ if b.env.ia32e() => 8,
            _ => 4,
        };
        let sp = s.gpr[reg::RSP];
        b.same(&case, "pushed RIP", b.machine.peek(sp, size), CODE + 2);
        b.same(&case, "pushed IF", b.machine.peek(sp + 2 * size, 2) & rflags::IF, rflags::IF);
        if b.env.cpl > 0 {
            b.same(&case, "pushed RSP", b.machine.peek(sp + 3 * size, size), STACK);
        }
    }
}

fn interrupt_return(b: &mut Bench) {
    let slot = b.env.operand();
    let image = rflags::FIXED | rflags::CF | rflags::IF | rflags::IOPL;
    let level = if b.env.mode == Mode::Real { 0 } else { b.env.cpl };
    let flags_after = |vm: u64| {
        let mut f = rflags::FIXED | rflags::CF | vm | u64::from(b.env.iopl) << 12;
        if level == 0 {
            f |= rflags::IOPL;
        }
        if level <= b.env.iopl {
            f |= rflags::IF;
        }
        f
    };
    if b.env.real_segments() {
        let expected = if flags_trapped(&b.env) && !b.env.vme { GP0 } else { Ok(()) };
        let set = |m: &Machine, _: &mut CpuState| frame(m, slot, &[TARGET, 0x123, image]);
        let v86 = b.env.mode == Mode::V86;
        let expected_flags = flags_after(if v86 { rflags::VM } else { 0 })
            | if flags_trapped(&b.env) { rflags::VIF } else { 0 };
        if let Some(s) = b.check("", &[0xcf], set, expected) {
            b.same("", "RIP", s.rip, TARGET);
            b.same("", "CS base", s.segments[1].base, 0x1230);
            b.same("", "RFLAGS", s.rflags, expected_flags);
        }
        return;
    }
    let expected_flags = flags_after(0);
    for to in 0..4u8 {
        let rpl = u16::from(to);
        let (cs, ss) = (code_of(&b.env, to) | rpl, gdt::data(to) | rpl);
        let expected = if to < b.env.cpl { Err((vector::GP, u32::from(cs & !3))) } else { Ok(()) };
        let set = |m: &Machine, _: &mut CpuState| {
            frame(m, slot, &[TARGET, cs.into(), image, 0x5000, ss.into()]);
        };
        let case = format!("to level {to}");
        let Some(s) = b.check(&case, &[0xcf], set, expected) else { continue };
        b.same(&case, "RIP", s.rip, TARGET);
        b.same(&case, "CPL", s.cpl().into(), to.into());
        b.same(&case, "RFLAGS", s.rflags, expected_flags);
        // 64-bit mode always pops SS:RSP.
        let pops_stack = to > b.env.cpl || b.env.mode == Mode::Long;
        b.same(&case, "RSP", s.gpr[reg::RSP], if pops_stack { 0x5000 } else { STACK + 3 * slot });
    }
    let nested = |_: &Machine, s: &mut CpuState| s.rflags |= rflags::NT;
    if b.env.ia32e() {
        b.check("NT", &[0xcf], nested, GP0);
    } else {
        // The back link is null.
        b.check("NT", &[0xcf], nested, Err((vector::TS, 0)));
        let link = |m: &Machine, s: &mut CpuState| {
            m.poke(machine::TSS, &gdt::OTHER_TSS.to_le_bytes());
            m.poke(GDT + u64::from(gdt::OTHER_TSS) + 5, &[0xeb]);
            s.rflags |= rflags::NT;
        };
        let s = b.check("NT with link", &[0xcf], link, Ok(())).unwrap();
        b.same("NT", "TR", s.tr.selector.into(), gdt::OTHER_TSS.into());
    }
    if b.env.mode == Mode::Protected32 && b.env.cpl == 0 {
        let set = |m: &Machine, _: &mut CpuState| {
            let flags = rflags::FIXED | rflags::VM | rflags::IOPL;
            frame(m, 4, &[TARGET, 0x123, flags, 0x5000, 0x10, 0x20, 0x30, 0x40, 0x50]);
        };
        let s = b.check("to virtual-8086 mode", &[0xcf], set, Ok(())).unwrap();
        b.same("V86", "CPL", s.cpl().into(), 3);
        let selectors: Vec<u16> = s.segments.iter().map(|s| s.selector).collect();
        assert_eq!(selectors, [0x20, 0x123, 0x10, 0x30, 0x40, 0x50]);
    }
}
