//! Code and data that move while other code has links to them: between contexts, between
//! privileges, and where the numbers by which translated code knows its mapping come to
//! their end. Every engine leaves the same registers and memory.

use std::time::Duration;

use conformance::{Rig, long_mode, several};
use engine::{Engine, Halt};
use guest_memory::GuestMemory;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use interpreter::Interpreter;
use translator::{Translator, WithNumbers};
use x86_state::{CpuModel, CpuState, Segment, TableRegister, cr4, efer};

type Done = Result<(), IcedError>;

const RAM: u64 = 6 << 20;
/// Two address spaces, which differ in where their first 2 MiB are.
const ROOTS: [u64; 2] = [0x1000, 0x2000];
const POINTERS: [u64; 2] = [0x3000, 0x4000];
const DIRECTORIES: [u64; 2] = [0x5000, 0x6000];
/// Page tables: all is mapped as it is, for the user too.
const PAGES: [u64; 2] = [0x7000, 0x8000];
const GDT: u64 = 0x9000;
const IDT: u64 = 0xa000;
const TSS: u64 = 0xb000;
/// Every exception ends the run.
const HANDLER: u64 = 0xc000;
const KERNEL_STACK: u64 = 0xe000;
const STACK: u64 = 0x1_0000;
/// Where SYSCALL goes: on to R15.
const ENTRY: u64 = 0x1_0000;
const KERNEL: u64 = 0x1_1000;
/// Calls [`MOVED`].
const CALLER: u64 = 0x1_4000;
const OTHER_CALLER: u64 = 0x1_5000;
/// Calls [`SECOND_MOVED`].
const SECOND_CALLER: u64 = 0x1_6000;
/// The user's code: jumps to [`MOVED`], reads there.
const USER_JUMPS: u64 = 0x1_7000;
const USER_READS: u64 = 0x1_8000;
/// Linear pages that move.
const MOVED: u64 = 0x2_0000;
const SECOND_MOVED: u64 = 0x2_1000;
/// What moves there: functions that return one number or another, and end in SYSCALL.
const FRAMES: [u64; 2] = [0x3_0000, 0x3_1000];
const NUMBERS: [u32; 2] = [0x11, 0x22];
/// Behind the functions, code of the user's that answers.
const ANSWER: u64 = 0x100;
const RESULTS: u64 = 0x4_0000;
/// A large page of the supervisor's, which moves by as much as it has, and a function in it.
const LARGE: u64 = 2 << 20;
const LARGE_PAGE: u64 = 0x1e3;
const IN_LARGE: u64 = LARGE + 0x3000;
const LARGE_CALLER: u64 = 0x1_9000;

const PRESENT: u64 = 0x63;
const USER: u64 = 4;
const GLOBAL: u64 = 1 << 8;
const NO_FLUSH: u64 = 1 << 63;

fn memory() -> GuestMemory {
    let memory = GuestMemory::flat(RAM).expect("memory");
    let put = |at: u64, v: u64| memory.store(at, &v.to_le_bytes()).expect("inside");
    for n in 0..2 {
        put(ROOTS[n], POINTERS[n] | PRESENT | USER);
        put(POINTERS[n], DIRECTORIES[n] | PRESENT | USER);
        put(DIRECTORIES[n], PAGES[n] | PRESENT | USER);
        for page in 0..512 {
            put(PAGES[n] + page * 8, page << 12 | PRESENT | USER);
        }
        put(entry(n, MOVED), FRAMES[n] | PRESENT | USER);
        put(entry(n, SECOND_MOVED), FRAMES[n] | PRESENT | USER);
    }
    let descriptors = [
        (0x10, 0x00af_9b00_0000_ffff),
        (0x18, 0x00cf_9300_0000_ffff),
        (0x28, 0x00cf_f300_0000_ffff),
        (0x30, 0x00af_fb00_0000_ffff),
    ];
    descriptors.iter().for_each(|(at, d)| put(GDT + at, *d));
    for vector in 0..32 {
        put(IDT + vector * 16, HANDLER | 0x10 << 16 | 0x8e00 << 32);
    }
    put(TSS + 4, KERNEL_STACK);
    let code = |at: u64, source: several::Source<'_>| {
        memory.store(at, &several::assemble(at, source)).expect("inside");
    };
    code(HANDLER, &|a| a.hlt());
    code(ENTRY, &|a| a.jmp(r15));
    for (caller, callee) in
        [(CALLER, MOVED), (OTHER_CALLER, MOVED), (SECOND_CALLER, SECOND_MOVED), (LARGE_CALLER, IN_LARGE)]
    {
        code(caller, &|a| {
            a.call(callee)?;
            a.ret()
        });
    }
    code(USER_JUMPS, &|a| a.jmp(MOVED + ANSWER));
    code(USER_READS, &|a| {
        a.mov(rsi, MOVED)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.syscall()
    });
    put(DIRECTORIES[0] + 8, LARGE | LARGE_PAGE);
    let larger = [IN_LARGE, IN_LARGE + LARGE];
    for (frame, number) in FRAMES.into_iter().chain(larger).zip(NUMBERS.into_iter().cycle()) {
        code(frame, &|a| {
            a.mov(eax, number)?;
            a.ret()
        });
        code(frame + ANSWER, &|a| {
            a.mov(eax, number)?;
            a.syscall()
        });
    }
    memory
}

/// Where the page-table entry of a page is.
fn entry(space: usize, linear: u64) -> u64 {
    PAGES[space] + (linear >> 12) * 8
}

/// The supervisor at [`KERNEL`], in the lower half.
fn start(reset: CpuState) -> CpuState {
    let mut s = long_mode(reset, ROOTS[0], false);
    s.gdtr = TableRegister { base: GDT, limit: 0x47 };
    s.idtr = TableRegister { base: IDT, limit: 0x1ff };
    s.tr = Segment { selector: 0x40, base: TSS, limit: 0x67, access: 0x8b };
    s.cr4 |= cr4::PGE | cr4::PCIDE;
    s.efer |= efer::SCE;
    s.msrs.lstar = ENTRY;
    s.msrs.star = 0x10 << 32 | 0x23 << 48;
    s.msrs.sfmask = 0x25_7fd5;
    s.rip = KERNEL;
    s.gpr[4] = STACK;
    s
}

fn run(engine: &dyn Engine, program: several::Source<'_>) -> (CpuState, Vec<u8>) {
    let model: CpuModel = "x86-64-v3,+pcid,+smep".parse().expect("the model exists");
    let memory = memory();
    memory.store(KERNEL, &several::assemble(KERNEL, program)).expect("inside");
    let mut rig = Rig::new(engine, model, memory);
    let start = start(rig.reset_state());
    let (halt, end) = rig.run_freely(&start, Duration::from_secs(20));
    assert!(matches!(halt, Halt::Idle), "{}: {halt:?} at {:#x}", engine.name(), end.rip);
    let mut results = vec![0; 0x1000];
    rig.memory.load(RESULTS, &mut results).expect("inside");
    (end, results)
}

/// A program leaves the same on `engine` as on the interpreter, and something.
fn check(name: &str, engine: &dyn Engine, program: several::Source<'_>) {
    let expected = run(&Interpreter, program);
    assert!(expected.1.iter().any(|b| *b != 0), "{name} leaves nothing");
    let got = run(engine, program);
    let first = got.1.iter().zip(&expected.1).position(|(a, b)| a != b);
    assert_eq!(first, None, "{name}: results");
    assert!(got.0 == expected.0, "{name}: {:#x?}\ninstead of {:#x?}", got.0, expected.0);
}

/// Note RAX as the next result: RBX says where.
fn note(a: &mut CodeAssembler) -> Done {
    a.mov(qword_ptr(rbx), rax)?;
    a.add(rbx, 8)
}

fn call(a: &mut CodeAssembler, function: u64) -> Done {
    a.call(function)?;
    note(a)
}

/// The user runs from `rip` on until SYSCALL.
fn user(a: &mut CodeAssembler, rip: u64) -> Done {
    let mut next = a.create_label();
    a.lea(r15, qword_ptr(next))?;
    a.mov(rcx, rip)?;
    a.mov(r11d, 2)?;
    a.sysretq()?;
    a.set_label(&mut next)?;
    note(a)
}

fn set_entry(a: &mut CodeAssembler, space: usize, linear: u64, value: u64) -> Done {
    a.mov(rax, value)?;
    a.mov(qword_ptr(entry(space, linear)), rax)
}

fn invalidate(a: &mut CodeAssembler, linear: u64) -> Done {
    a.mov(rax, linear)?;
    a.invlpg(ptr(rax))
}

fn enter(a: &mut CodeAssembler, context: u64) -> Done {
    a.mov(rax, context)?;
    a.mov(cr3, rax)
}

#[test]
fn a_link_that_is_not_made_leads_nowhere_under_any_number() {
    let program = |a: &mut CodeAssembler| {
        a.mov(rbx, RESULTS)?;
        call(a, CALLER)?;
        call(a, OTHER_CALLER)?;
        a.hlt()
    };
    // Around numbers that are special as they are compared, and the last ones.
    for special in [1, 0x1000_0000, 0x2000_0000, 0x3000_0000, WithNumbers::LAST] {
        for first in special.saturating_sub(12).max(1)..=special {
            check(&format!("{first:#x}"), &WithNumbers { first, last: WithNumbers::LAST }, &program);
        }
    }
}

/// Calls of pages that move, `moves` times between two calls by the same code.
fn moving(moves: u64, a: &mut CodeAssembler) -> Done {
    a.mov(rbx, RESULTS)?;
    call(a, CALLER)?;
    for n in 1..=moves {
        let frame = FRAMES[(n % 2) as usize];
        set_entry(a, 0, MOVED, frame | PRESENT | USER)?;
        invalidate(a, MOVED)?;
        call(a, OTHER_CALLER)?;
    }
    call(a, CALLER)?;
    a.hlt()
}

/// The same function called in two contexts, in which it is elsewhere, with `moves` of
/// another page between.
fn moving_elsewhere(moves: u64, a: &mut CodeAssembler) -> Done {
    a.mov(rbx, RESULTS)?;
    enter(a, ROOTS[1] | 1)?;
    call(a, CALLER)?;
    enter(a, ROOTS[0])?;
    call(a, SECOND_CALLER)?;
    for n in 1..=moves {
        set_entry(a, 0, SECOND_MOVED, FRAMES[(n % 2) as usize] | PRESENT | USER)?;
        invalidate(a, SECOND_MOVED)?;
        call(a, SECOND_CALLER)?;
    }
    call(a, CALLER)?;
    enter(a, ROOTS[1] | 1 | NO_FLUSH)?;
    call(a, CALLER)?;
    a.hlt()
}

#[test]
fn numbers_that_are_used_again_mean_nothing_old() {
    for last in [WithNumbers::FEWEST, WithNumbers::FEWEST + 1] {
        // Not the first ones, which contexts get when numbers are used again.
        let few = WithNumbers { first: WithNumbers::FEWEST - 3, last };
        for moves in 0..20 {
            check(&format!("{moves} moves of {last}"), &few, &|a| moving(moves, a));
            check(&format!("{moves} moves elsewhere of {last}"), &few, &|a| moving_elsewhere(moves, a));
        }
    }
}

/// A global page of the user's, used in one context, moves in another.
fn global_page(rip: u64, a: &mut CodeAssembler) -> Done {
    a.mov(rbx, RESULTS)?;
    set_entry(a, 0, MOVED, FRAMES[0] | PRESENT | USER | GLOBAL)?;
    enter(a, ROOTS[0] | 2)?;
    user(a, rip)?;
    user(a, rip)?;
    enter(a, ROOTS[0] | 1)?;
    set_entry(a, 0, MOVED, FRAMES[1] | PRESENT | USER | GLOBAL)?;
    invalidate(a, MOVED)?;
    enter(a, ROOTS[0] | 2 | NO_FLUSH)?;
    user(a, rip)?;
    user(a, rip)?;
    a.hlt()
}

#[test]
fn invlpg_of_a_global_page_is_for_all_contexts() {
    check("code", &Translator, &|a| global_page(USER_JUMPS, a));
    check("data", &Translator, &|a| global_page(USER_READS, a));
}

/// The supervisor may not fetch from the user's pages.
fn prevent_supervisor(a: &mut CodeAssembler) -> Done {
    a.mov(rax, cr4)?;
    a.or(rax, cr4::SMEP as i32)?;
    a.mov(cr4, rax)
}

/// The user may not use [`MOVED`].
fn take_from_user(a: &mut CodeAssembler) -> Done {
    set_entry(a, 0, MOVED, FRAMES[0] | PRESENT)?;
    invalidate(a, MOVED)
}

#[test]
fn a_page_that_both_privileges_fetched_from_is_lost_to_each() {
    // The kernel's own pages are the supervisor's, for SMEP.
    let begin = |a: &mut CodeAssembler| {
        a.mov(rbx, RESULTS)?;
        for page in [KERNEL, ENTRY, CALLER, HANDLER] {
            set_entry(a, 0, page, page | PRESENT)?;
            invalidate(a, page)?;
        }
        Ok(())
    };
    check("the user's right", &Translator, &|a| {
        begin(a)?;
        user(a, USER_JUMPS)?;
        user(a, USER_JUMPS)?;
        call(a, CALLER)?;
        take_from_user(a)?;
        user(a, USER_JUMPS)?;
        a.hlt()
    });
    check("the supervisor's right", &Translator, &|a| {
        begin(a)?;
        call(a, CALLER)?;
        call(a, CALLER)?;
        user(a, USER_JUMPS)?;
        prevent_supervisor(a)?;
        call(a, CALLER)?;
        a.hlt()
    });
}

#[test]
fn invlpg_of_a_large_page_is_for_all_code_in_it() {
    check("a large page", &Translator, &|a| {
        a.mov(rbx, RESULTS)?;
        call(a, LARGE_CALLER)?;
        call(a, LARGE_CALLER)?;
        a.mov(rax, (2 * LARGE) | LARGE_PAGE)?;
        a.mov(qword_ptr(DIRECTORIES[0] + 8), rax)?;
        invalidate(a, LARGE)?;
        call(a, LARGE_CALLER)?;
        a.hlt()
    });
}
