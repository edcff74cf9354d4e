//! Near branches to addresses that are not canonical: every engine raises #GP(0) at the
//! branch, of which nothing has happened (SDM volume 2, CALL, JMP, Jcc, RET). Each branch
//! goes to a right address first, so that translated code knows where it leads.

use std::time::Duration;

use conformance::{Rig, long_mode, software_engines};
use engine::Halt;
use guest_memory::{GuestMemory, MemoryMap, Region};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_state::{CpuModel, CpuState, Segment, TableRegister, rflags};

const MEMORY: u64 = 0x2_0000;
const TABLES: u64 = 0x1_0000;
const IDT: u64 = 0x2000;
const GDT: u64 = 0x3000;
const TSS: u64 = 0x3800;
/// HLT for each vector, on a stack of their own.
const HANDLERS: u64 = 0x4000;
const HANDLER_STACK: u64 = 0x5000;
const STACK: u64 = 0x6800;
/// Holds the target.
const POINTER: u64 = 0x7000;
const CODE: u64 = 0x8000;
/// Where branches go first: HLT.
const RIGHT: u64 = 0x9000;
/// The last page of the lower half: the same memory as [`CODE`].
const TOP: u64 = 0x7fff_ffff_f000;
/// The first page of the upper half: the same memory as 0.
const UPPER: u64 = 0xffff_8000_0000_0000;
const GP: u64 = 13;

const WRONG: [u64; 7] = [
    1 << 47,
    1 << 48 | RIGHT,
    0x7fff << 48 | RIGHT,
    1 << 63 | RIGHT,
    0xffff << 48 | RIGHT,
    0xffff_7fff_ffff_ffff,
    0xfffe_8000_0000_0000,
];

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn memory() -> GuestMemory {
    let memory =
        GuestMemory::new(MemoryMap::new([Region::ram(0, MEMORY)]).expect("a region")).expect("memory");
    let put = |at: u64, v: u64| memory.store(at, &v.to_le_bytes()).expect("inside");
    let (top_pointers, top_directory, top_table) = (TABLES + 0x4000, TABLES + 0x5000, TABLES + 0x6000);
    for (at, to) in [
        (TABLES, TABLES + 0x1000),
        (TABLES + 0x1000, TABLES + 0x2000),
        (TABLES + 0x2000, TABLES + 0x3000),
        // The upper half begins with what the lower half begins with.
        (TABLES + 256 * 8, TABLES + 0x1000),
        (TABLES + 255 * 8, top_pointers),
        (top_pointers + 511 * 8, top_directory),
        (top_directory + 511 * 8, top_table),
        (top_table + 511 * 8, CODE),
    ] {
        put(at, to | 0x67);
    }
    for page in 0..MEMORY >> 12 {
        put(TABLES + 0x3000 + page * 8, page << 12 | 0x67);
    }
    put(GDT + 0x10, 0x00af_9b00_0000_ffff);
    put(TSS + 0x24, HANDLER_STACK);
    for v in 0..32 {
        put(IDT + v * 16, (HANDLERS + v) | 0x10 << 16 | 0x8e01 << 32);
    }
    memory.store(HANDLERS, &[0xf4; 32]).expect("inside");
    memory.store(RIGHT, &[0xf4]).expect("inside");
    memory
}

fn state(reset: CpuState, rip: u64, target: u64) -> CpuState {
    let mut s = long_mode(reset, TABLES, false);
    s.gdtr = TableRegister { base: GDT, limit: 0x1f };
    s.idtr = TableRegister { base: IDT, limit: 0x1ff };
    s.tr = Segment { selector: 0x20, base: TSS, limit: 0x67, access: 0x8b };
    s.rflags = rflags::FIXED | rflags::STATUS;
    s.rip = rip;
    for (n, r) in s.gpr.iter_mut().enumerate() {
        *r = 0x1111_0000_0000_0000 + n as u64;
    }
    (s.gpr[0], s.gpr[10], s.gpr[6]) = (target, target, POINTER);
    s.gpr[4] = STACK;
    s
}

/// The state and the memory in which code at `rip` ends.
fn run(rig: &mut Rig, rip: u64, code: &[u8], target: u64, limit: Option<u64>) -> (CpuState, Vec<u8>) {
    rig.memory.store(CODE + (rip & 0xfff), code).expect("inside");
    rig.memory.store(HANDLER_STACK - 0x100, &[0; 0x100]).expect("inside");
    rig.memory.store(STACK - 0x40, &[0xcc; 0x80]).expect("inside");
    for at in [STACK, POINTER] {
        rig.memory.store(at, &target.to_le_bytes()).expect("inside");
    }
    let start = state(rig.reset_state(), rip, target);
    let (halt, end) = match limit {
        Some(limit) => rig.run(&start, limit),
        None => rig.run_freely(&start, Duration::from_secs(10)),
    };
    assert!(matches!(halt, Halt::Idle), "{halt:?} at {:#x}", end.rip);
    let mut bytes = vec![0; 0x80];
    rig.memory.load(STACK - 0x40, &mut bytes).expect("inside");
    (end, bytes)
}

/// What #GP pushed: error code, RIP, CS, RFLAGS, RSP, SS.
fn frame(rig: &Rig) -> [u64; 6] {
    let word = |n: u64| {
        let mut bytes = [0; 8];
        rig.memory.load(HANDLER_STACK - 48 + n * 8, &mut bytes).expect("inside");
        u64::from_le_bytes(bytes)
    };
    std::array::from_fn(|n| word(n as u64))
}

/// The branch at `offset` of the code at `rip` faults with nothing changed.
fn faults(rig: &mut Rig, name: &str, rip: u64, code: &[u8], offset: u64, target: u64, limit: Option<u64>) {
    let engine_state = |s: &CpuState| (s.gpr, s.rip);
    let (end, stack) = run(rig, rip, code, target, limit);
    let what = format!("{name} to {target:#x}, limit {limit:?}");
    assert_eq!(end.rip, HANDLERS + GP + 1, "{what}: {:x?}", frame(rig));
    let [error, at, _, flags, pointer, _] = frame(rig);
    assert_eq!((error, at), (0, rip + offset), "{what}: error code and RIP");
    assert_eq!(flags & rflags::STATUS, rflags::STATUS, "{what}: flags");
    assert_eq!(pointer, STACK, "{what}: RSP");
    let mut expected = state(rig.reset_state(), HANDLERS + GP + 1, target);
    expected.gpr[4] = HANDLER_STACK - 48;
    assert_eq!(engine_state(&end), engine_state(&expected), "{what}");
    let mut untouched = vec![0xcc; 0x80];
    untouched[0x40..0x48].copy_from_slice(&target.to_le_bytes());
    assert_eq!(stack, untouched, "{what}: stack");
}

fn rigs() -> Vec<Rig> {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    software_engines().iter().map(|e| Rig::new(&**e, model.clone(), memory())).collect()
}

fn assemble(build: Build, at: u64) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    build(&mut a).expect("the program is right");
    a.assemble(at).expect("the program fits")
}

#[test]
fn indirect_branches_fault_where_they_are() {
    let cases: [(&str, Build); 9] = [
        ("JMP RAX", |a| a.jmp(rax)),
        ("JMP R10", |a| a.jmp(r10)),
        ("JMP [RSI]", |a| a.jmp(qword_ptr(rsi))),
        ("CALL RAX", |a| a.call(rax)),
        ("CALL R10", |a| a.call(r10)),
        ("CALL [RSI]", |a| a.call(qword_ptr(rsi))),
        ("CALL [RSP]", |a| a.call(qword_ptr(rsp))),
        ("RET", |a| a.ret()),
        ("RET 24", |a| a.ret_1(24)),
    ];
    let halves = [(0, RIGHT), (UPPER, UPPER + RIGHT), (0, UPPER + RIGHT), (UPPER, RIGHT)];
    for mut rig in rigs() {
        for ((n, (name, build)), (base, right)) in
            cases.into_iter().enumerate().flat_map(|case| halves.map(|half| (case, half)))
        {
            // Behind another instruction, so that the branch is not where its block begins.
            let rip = base + CODE + n as u64 * 64;
            let mut code = vec![0x90];
            code.extend(assemble(build, rip + 1));
            for target in WRONG {
                for limit in [None, Some(100)] {
                    let (end, _) = run(&mut rig, rip, &code, right, limit);
                    assert_eq!(end.rip, right + 1, "{name}");
                    faults(&mut rig, name, rip, &code, 1, target, limit);
                }
            }
        }
    }
}

#[test]
fn a_return_faults_behind_calls_that_expect_another() {
    // The return address is replaced, by the right one the first two times.
    let build: Build = |a| {
        let (mut function, mut again, mut go) = (a.create_label(), a.create_label(), a.create_label());
        a.lea(rbx, ptr(again))?;
        a.mov(edx, 3)?;
        a.set_label(&mut again)?;
        a.lea(rdx, ptr(rdx - 1))?;
        a.lea(rsp, ptr(rsp + 8))?;
        a.call(function)?;
        a.hlt()?;
        a.set_label(&mut function)?;
        a.mov(rcx, rdx)?;
        a.jrcxz(go)?;
        a.mov(qword_ptr(rsp), rbx)?;
        a.ret()?;
        a.set_label(&mut go)?;
        a.mov(qword_ptr(rsp), rax)?;
        a.ret()
    };
    for mut rig in rigs() {
        let code = assemble(build, CODE);
        for target in WRONG {
            let _ = run(&mut rig, CODE, &code, RIGHT, None);
            let (end, _) = run(&mut rig, CODE, &code, target, None);
            let [error, at, _, _, pointer, _] = frame(&rig);
            assert_eq!(end.rip, HANDLERS + GP + 1, "{target:#x}");
            assert_eq!((error, at), (0, CODE + code.len() as u64 - 1), "{target:#x}");
            // Three calls, two returns, and three words dropped.
            assert_eq!(pointer, STACK + 16, "{target:#x}");
        }
    }
}

#[test]
fn relative_branches_fault_where_they_are() {
    // Eight bytes from the end: each leads over it.
    let cases: [(&str, &[u8]); 7] = [
        ("JMP", &[0xeb, 0x10]),
        ("JC", &[0x72, 0x10]),
        ("JMP rel32", &[0xe9, 0, 1, 0, 0]),
        ("JZ rel32", &[0x0f, 0x84, 0, 1, 0, 0]),
        ("CALL", &[0xe8, 0, 1, 0, 0]),
        ("LOOP", &[0xe2, 0x10]),
        ("JMP as far as can be", &[0xe9, 0xf0, 0xff, 0xff, 0x7f]),
    ];
    for mut rig in rigs() {
        for (name, code) in cases {
            let rip = TOP + 0x1000 - 8;
            for limit in [None, Some(100)] {
                faults(&mut rig, name, rip, code, 0, RIGHT, limit);
            }
        }
    }
}

#[test]
fn execution_that_runs_over_the_end_faults_behind_it() {
    for mut rig in rigs() {
        for limit in [None, Some(100)] {
            let (end, _) = run(&mut rig, TOP + 0xffe, &[0x90, 0x90], RIGHT, limit);
            let [error, at, ..] = frame(&rig);
            assert_eq!((end.rip, error, at), (HANDLERS + GP + 1, 0, TOP + 0x1000), "two NOPs");
            // CALL RAX goes to a HLT; the RET there would fault.
            let (end, stack) = run(&mut rig, TOP + 0xffe, &[0xff, 0xd0], RIGHT, limit);
            assert_eq!((end.rip, end.gpr[4]), (RIGHT + 1, STACK - 8), "CALL RAX");
            assert_eq!(stack[0x38..0x40], (TOP + 0x1000).to_le_bytes(), "what CALL pushed");
        }
        rig.memory.store(RIGHT, &[0xc3]).expect("inside");
        for limit in [None, Some(100)] {
            let (end, _) = run(&mut rig, TOP + 0xffe, &[0xff, 0xd0], RIGHT, limit);
            let [error, at, _, _, pointer, _] = frame(&rig);
            assert_eq!((end.rip, error, at, pointer), (HANDLERS + GP + 1, 0, RIGHT, STACK - 8), "RET");
        }
        rig.memory.store(RIGHT, &[0xf4]).expect("inside");
    }
}
