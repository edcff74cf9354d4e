//! Events reach code that is linked: whatever translated code does for long, it looks
//! whether one waits, and takes it where the interpreter does.

use std::time::Duration;

use conformance::several::{self, INTERRUPT_PORT};
use conformance::{Rig, long_mode, software_engines};
use engine::Halt;
use guest_memory::GuestMemory;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_state::{CpuModel, TableRegister, rflags};

/// Functions that each call the next one twice: 2^31 calls.
const FUNCTIONS: usize = 31;
const CODE: u64 = 0x8000;
const TABLES: u64 = 0x1000;
const STACK: u64 = 0x7000;
/// Where the interrupt's handler counts, and where it notes what it interrupted.
const NOTES: u64 = several::FREE;

/// Page tables for the user: 2 MiB as they are.
fn memory() -> GuestMemory {
    let memory = GuestMemory::flat(0x40_0000).expect("memory");
    for (at, entry) in [(0, TABLES + 0x1000), (0x1000, TABLES + 0x2000), (0x2000, 0x80)] {
        memory.store(TABLES + at, &u64::to_le_bytes(entry | 0x67)).expect("tables");
    }
    memory
}

/// RDI bounds how many functions call: few at first, which links every call, then all.
fn forward_calls(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut functions: Vec<_> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
    for most in [FUNCTIONS as u64, u64::MAX >> 1] {
        a.mov(rdi, most)?;
        a.call(functions[0])?;
    }
    a.hlt()?;
    for n in 1..FUNCTIONS {
        let mut done = a.create_label();
        a.set_label(&mut functions[n - 1])?;
        a.dec(rdi)?;
        a.js(done)?;
        a.call(functions[n])?;
        a.call(functions[n])?;
        a.set_label(&mut done)?;
        a.ret()?;
    }
    a.set_label(&mut functions[FUNCTIONS - 1])?;
    a.ret()
}

/// A program with billions of calls, all of them forward, is stopped when that is asked for.
#[test]
fn calls_forward_are_stopped() {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    for engine in software_engines() {
        for user in [false, true] {
            let mut rig = Rig::new(&*engine, model.clone(), memory());
            rig.memory.store(CODE, &several::assemble(CODE, &forward_calls)).expect("the program");
            let mut state = long_mode(rig.reset_state(), TABLES, user);
            state.rip = CODE;
            state.rflags = rflags::FIXED;
            state.gpr[4] = STACK;
            let (halt, end) = rig.run_freely(&state, Duration::from_millis(300));
            assert!(matches!(halt, Halt::Attention), "{}, user {user}: {halt:?}", engine.name());
            assert!(end.gpr[4] < STACK, "{}, user {user}: stopped when all had returned", engine.name());
        }
    }
}

fn note_interrupt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rax)?;
    a.inc(qword_ptr(NOTES))?;
    a.mov(rax, qword_ptr(rsp + 8))?;
    a.mov(qword_ptr(NOTES + 8), rax)?;
    a.pop(rax)?;
    a.iretq()
}

/// 512 GiB of linear addresses, all of them the same 2 MiB of memory.
const FAR: u64 = 1 << 39;
const BUFFER: u64 = 0x20_0000;
const IDT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const HANDLER: u64 = 0x9000;

/// A repeated string instruction that is interrupted between two elements pushes RF set
/// (SDM volume 3, 18.3.1.1).
#[test]
fn an_interrupted_string_instruction_pushes_rf() {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    for engine in software_engines() {
        let mut rig = Rig::new(&*engine, model.clone(), memory());
        let put = |at: u64, v: u64| rig.memory.store(at, &v.to_le_bytes()).expect("inside");
        let (pointers, directory) = (0xa000, 0xb000);
        put(TABLES + 8, pointers | 0x67);
        for n in 0..512 {
            put(pointers + n * 8, directory | 0x67);
            put(directory + n * 8, BUFFER | 0xe7);
        }
        put(GDT + 0x10, 0x00af_9b00_0000_ffff);
        put(IDT + u64::from(several::VECTOR) * 16, HANDLER | 0x10 << 16 | 0x8e00 << 32);
        rig.memory.store(HANDLER, &[0xf4]).expect("the handler");
        rig.memory.store(CODE, &[0xf3, 0xaa, 0xf4]).expect("REP STOSB; HLT");
        let mut state = long_mode(rig.reset_state(), TABLES, false);
        state.gdtr = TableRegister { base: GDT, limit: 0x1f };
        state.idtr = TableRegister { base: IDT, limit: 0xfff };
        state.rip = CODE;
        state.rflags = rflags::FIXED | rflags::IF;
        (state.gpr[0], state.gpr[1], state.gpr[4], state.gpr[7]) = (1, 1 << 36, STACK, FAR);
        let (memory, interrupt) = (rig.memory.clone(), rig.interrupter());
        let other = std::thread::spawn(move || {
            let mut first = [0];
            while first == [0] {
                memory.load(BUFFER, &mut first).expect("inside");
            }
            interrupt(several::VECTOR);
        });
        let (halt, end) = rig.run_freely(&state, Duration::from_secs(10));
        other.join().expect("it does not panic");
        assert!(matches!(halt, Halt::Idle), "{}: {halt:?}", engine.name());
        assert!((1..1 << 36).contains(&end.gpr[1]), "{}: {:#x} elements are left", engine.name(), end.gpr[1]);
        let mut frame = [0; 24];
        rig.memory.load(end.gpr[4], &mut frame).expect("inside");
        let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| frame[n * 8 + i]));
        assert_eq!(word(0), CODE, "{}: RIP", engine.name());
        assert_eq!(word(2) & rflags::RF, rflags::RF, "{}: RFLAGS {:#x}", engine.name(), word(2));
    }
}

/// Opens interrupts for a moment, and closes them.
type Window = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Pass a window until its blocks are linked; then an interrupt is requested, while they
/// are off, and the window is passed once more: how many were taken, and where.
fn taken(engine: &dyn engine::Engine, window: Window) -> [u64; 2] {
    let program = |a: &mut CodeAssembler| {
        let (mut again, mut asked, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 100)?;
        a.set_label(&mut again)?;
        window(a)?;
        a.dec(ecx)?;
        a.js(end)?;
        a.jne(again)?;
        a.set_label(&mut asked)?;
        a.mov(edx, u32::from(INTERRUPT_PORT))?;
        a.out(dx, al)?;
        a.jmp(again)?;
        a.set_label(&mut end)?;
        a.hlt()
    };
    let memory = several::run(engine, &note_interrupt, &[&program]);
    [0, 8].map(|at| {
        let mut bytes = [0; 8];
        memory.load(NOTES + at, &mut bytes).expect("inside");
        u64::from_le_bytes(bytes)
    })
}

#[test]
fn a_short_window_that_is_linked_lets_an_interrupt_in() {
    let windows: [(&str, Window); 5] = [
        ("STI", |a| {
            a.sti()?;
            a.nop()?;
            a.cli()
        }),
        ("STI, a load", |a| {
            a.sti()?;
            a.mov(rax, qword_ptr(NOTES))?;
            a.cli()
        }),
        ("STI, JMP", |a| {
            let mut to = a.create_label();
            a.sti()?;
            a.jmp(to)?;
            a.nops_with_size(9)?;
            a.set_label(&mut to)?;
            a.cli()
        }),
        ("POPFQ", |a| {
            a.push(0x202)?;
            a.popfq()?;
            a.cli()
        }),
        ("POPFQ, more of the block", |a| {
            a.push(0x202)?;
            a.popfq()?;
            a.nop()?;
            a.cli()
        }),
    ];
    let engines = software_engines();
    for (name, window) in windows {
        let all: Vec<_> = engines.iter().map(|e| taken(&**e, window)).collect();
        assert_eq!(all[0][0], 1, "{name}: taken once");
        for (e, found) in engines.iter().zip(&all) {
            assert_eq!(found, &all[0], "{name} on {}", e.name());
        }
    }
}
