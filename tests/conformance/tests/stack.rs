//! Runs of pushes, pops, calls and returns, wherever the stack is: every engine leaves the same registers and the
//! same stack as the interpreter.

use conformance::random::Random;
use conformance::several::{self, FREE};
use conformance::software_engines;
use engine::Engine;
use guest_memory::GuestMemory;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

type Result = std::result::Result<(), IcedError>;

/// Two pages that hold the stack; what sequences leave is behind them.
const STACK: u64 = FREE + 0x1_0000;
const RESULTS: u64 = FREE + 0x2_0000;
const REGISTERS: [AsmRegister64; 8] = [rax, rcx, rdx, rbx, rbp, rdi, r10, r15];
/// Bytes of results of one sequence: RSP, flags and the registers.
const RESULT: u64 = 8 * 10;
/// A program's sequences, and programs.
const SEQUENCES: u64 = 20;
const PROGRAMS: u64 = 200;

fn register(r: &mut Random) -> AsmRegister64 {
    REGISTERS[r.below(8) as usize]
}

/// One step of a sequence, which leaves the stack within some hundred bytes.
fn step(r: &mut Random, a: &mut CodeAssembler) -> Result {
    let near = 8 * r.below(5) as i32 - 16;
    match r.below(16) {
        0..4 => a.push(register(r)),
        4..7 => a.pop(register(r)),
        7 => a.push(r.next() as i32 >> r.below(31)),
        8 => a.push(rsp),
        9 => {
            a.lea(rax, rsp + near)?;
            a.push(rax)?;
            a.pop(rsp)
        }
        10 => {
            let (mut next, from) = (a.create_label(), register(r));
            a.call(next)?;
            a.inc(from)?;
            a.set_label(&mut next)?;
            a.dec(register(r))
        }
        11 => {
            // A function called twice, the second time by falling into it: it returns behind what was pushed.
            let (mut function, mut over) = (a.create_label(), a.create_label());
            let (saved, dropped) = (register(r), 8 * r.below(3) as i32);
            a.call(function)?;
            a.lea(rdx, qword_ptr(over))?;
            a.push(rdx)?;
            a.set_label(&mut function)?;
            a.push(saved)?;
            a.push(rbx)?;
            a.pop(rdi)?;
            a.pop(saved)?;
            if dropped == 0 {
                a.ret()?
            } else {
                a.ret_1(dropped as u32)?
            }
            a.set_label(&mut over)
        }
        12 => a.mov(qword_ptr(rsp + near), register(r)),
        13 => a.mov(register(r), qword_ptr(rsp + near)),
        14 => {
            if r.below(2) == 0 {
                a.add(rsp, near)
            } else {
                a.lea(rsp, rsp + near)
            }
        }
        _ => {
            let mut over = a.create_label();
            a.test(register(r), 1 << r.below(4) as i32)?;
            a.jne(over)?;
            a.push(register(r))?;
            a.pop(register(r))?;
            a.set_label(&mut over)?;
            a.push(register(r))
        }
    }
}

/// Sequences, each from a stack pointer somewhere: in a page, around its end, aligned or not.
fn program(seed: u64, a: &mut CodeAssembler) -> Result {
    let r = &mut Random(seed);
    for n in 0..SEQUENCES {
        let word = [STACK + 0x800, STACK + 0x1000, STACK + 0x1000 + 8 * r.below(8)][r.below(3) as usize];
        a.mov(rsp, word + if r.below(4) == 0 { r.below(8) } else { 0 })?;
        for _ in 0..1 + r.below(12) {
            step(r, a)?;
        }
        let result = RESULTS + n * RESULT;
        a.mov(qword_ptr(result), rsp)?;
        for (k, register) in REGISTERS.into_iter().enumerate() {
            a.mov(qword_ptr(result + 8 + 8 * k as u64), register)?;
        }
        a.mov(rsp, STACK + 0x800)?;
        a.pushfq()?;
        a.pop(qword_ptr(result + RESULT - 8))?;
    }
    a.cli()?;
    a.hlt()
}

/// The stack and the results a program leaves.
fn run(engine: &dyn Engine, seed: u64) -> Vec<u8> {
    let memory: GuestMemory =
        several::run(engine, &|a| a.iretq(), &[&|a: &mut CodeAssembler| program(seed, a)]);
    let mut left = vec![0; 0x2000 + (SEQUENCES * RESULT) as usize];
    let (stack, results) = left.split_at_mut(0x2000);
    memory.load(STACK, stack).expect("inside");
    memory.load(RESULTS, results).expect("inside");
    left
}

#[test]
fn engines_leave_the_same_stack() {
    for seed in 0..PROGRAMS {
        let expected = run(&interpreter::Interpreter, seed);
        assert!(expected[0x2000..].iter().any(|b| *b != 0), "program {seed} leaves nothing");
        for engine in software_engines() {
            let got = run(&*engine, seed);
            let first = got.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(first, None, "program {seed} on {}", engine.name());
        }
    }
}

/// Calls in a row of a function that counts up the constant which the instruction behind its call loads.
fn rewriting_callers(indirect: bool, a: &mut CodeAssembler) -> Result {
    let (mut function, mut over, mut again) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rsp, STACK + 0x800)?;
    a.jmp(over)?;
    a.set_label(&mut function)?;
    a.inc(dword_ptr(rdi + 1))?;
    a.ret()?;
    a.set_label(&mut over)?;
    a.xor(ebx, ebx)?;
    a.mov(r15d, ROUNDS as u32)?;
    a.lea(rsi, qword_ptr(function))?;
    a.set_label(&mut again)?;
    for n in 0..SITES {
        let mut site = a.create_label();
        a.lea(rdi, qword_ptr(site))?;
        if indirect {
            a.call(rsi)?
        } else {
            a.call(function)?
        }
        a.set_label(&mut site)?;
        a.mov(eax, n as u32)?;
        a.add(rbx, rax)?;
    }
    a.dec(r15)?;
    a.jne(again)?;
    a.mov(qword_ptr(RESULTS), rbx)?;
    a.cli()?;
    a.hlt()
}

const ROUNDS: u64 = 9;
const SITES: u64 = 50;

#[test]
fn what_a_function_rewrites_behind_its_call_is_run() {
    let expected: u64 = (1..=ROUNDS).flat_map(|round| (0..SITES).map(move |n| n + round)).sum();
    for engine in software_engines() {
        for indirect in [false, true] {
            let program = |a: &mut CodeAssembler| rewriting_callers(indirect, a);
            let memory = several::run(&*engine, &|a| a.iretq(), &[&program]);
            let mut sum = [0; 8];
            memory.load(RESULTS, &mut sum).expect("inside");
            assert_eq!(u64::from_le_bytes(sum), expected, "{}, indirect: {indirect}", engine.name());
        }
    }
}
