//! Code that is rewritten before most of its calls: constants, parts of constants,
//! opcodes; and code that comes to rest again. Every engine ends where the interpreter
//! ends.

use std::time::Duration;

use conformance::{Rig, long_mode, software_engines};
use engine::Halt;
use guest_memory::{GuestMemory, MemoryMap, Region};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_state::{CpuModel, CpuState, rflags};

type Result = std::result::Result<(), IcedError>;

const MEMORY: u64 = 0x8_0000;
const TABLES: u64 = 0x7_0000;
const CODE: u64 = 0x2_0000;
const FUNCTION: u64 = 0x2_4000;
const DATA: u64 = 0x3_0000;
const STACK: u64 = 0x6000;
/// Calls with a change before each; then calls without, more than a block that looks at
/// its own bytes is given; then calls with changes again.
const ROUNDS: [i32; 3] = [1500, 9000, 300];

fn memory() -> GuestMemory {
    let map = MemoryMap::new([Region::ram(0, MEMORY)]).expect("a region");
    let memory = GuestMemory::new(map).expect("memory");
    let put = |at: u64, v: u64| memory.store(at, &v.to_le_bytes()).expect("inside");
    for (n, level) in [0x1027, 0x2027, 0x3027].into_iter().enumerate() {
        put(TABLES + n as u64 * 0x1000, TABLES + level);
    }
    for n in 0..512 {
        put(TABLES + 0x3000 + n * 8, n << 12 | 0x67);
        put(DATA + n * 8, n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    }
    memory
}

fn state(reset: CpuState) -> CpuState {
    let mut s = long_mode(reset, TABLES, false);
    s.rflags = rflags::FIXED;
    // RBX and RCX: an operand at RBX + RCX is not aligned.
    (s.gpr[3], s.gpr[1], s.gpr[4]) = (DATA + 1, 0x103, STACK);
    s.rip = CODE;
    s
}

/// Bytes of `build` at the function's place.
fn function(build: fn(&mut CodeAssembler) -> Result) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    build(&mut a).expect("it assembles");
    a.assemble(FUNCTION).expect("it assembles")
}

/// One change: R13 is a pseudo-random number. Clobbers RSI.
type Change = fn(&mut CodeAssembler) -> Result;

/// Call the function again and again, `change` before each call in the first and last
/// rounds, and halt.
fn caller(change: Change) -> Vec<u8> {
    let build = |a: &mut CodeAssembler| -> Result {
        a.mov(r13, 0x1234_5678_9abc_def1_u64)?;
        for (n, rounds) in ROUNDS.into_iter().enumerate() {
            let mut again = a.create_label();
            a.mov(r12d, rounds)?;
            a.set_label(&mut again)?;
            if n != 1 {
                a.mov(rsi, 6_364_136_223_846_793_005_u64)?;
                a.imul_2(r13, rsi)?;
                a.add(r13, 0x3c6e_f35f)?;
                change(a)?;
            }
            a.mov(r14, FUNCTION)?;
            a.call(r14)?;
            // What is left in registers and flags.
            a.pushfq()?;
            a.pop(rsi)?;
            a.and(esi, (rflags::STATUS & !rflags::AF) as i32)?;
            a.add(r15, rsi)?;
            a.rol(r15, 5)?;
            a.add(r15, rax)?;
            a.dec(r12d)?;
            a.jnz(again)?;
        }
        a.cli()?;
        a.hlt()
    };
    let mut a = CodeAssembler::new(64).expect("64-bit code");
    build(&mut a).expect("it assembles");
    a.assemble(CODE).expect("it assembles")
}

/// Every engine ends alike.
fn check(name: &str, body: fn(&mut CodeAssembler) -> Result, change: Change) {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    let (body, caller) = (function(body), caller(change));
    let mut expected: Option<(CpuState, Vec<u8>)> = None;
    for engine in software_engines() {
        let mut rig = Rig::new(engine.as_ref(), model.clone(), memory());
        rig.memory.store(FUNCTION, &body).expect("inside");
        rig.memory.store(CODE, &caller).expect("inside");
        let (halt, end) = rig.run_freely(&state(rig.reset_state()), Duration::from_secs(60));
        assert!(matches!(halt, Halt::Idle), "{name} on {}: {halt:?}", engine.name());
        let mut bytes = vec![0; MEMORY as usize];
        rig.memory.load(0, &mut bytes).expect("memory");
        let found = (end, bytes);
        match &expected {
            None => expected = Some(found),
            Some(e) => {
                assert_eq!(e.0.gpr, found.0.gpr, "{name}: registers on {}", engine.name());
                assert!(e.1 == found.1, "{name}: memory on {}", engine.name());
            }
        }
    }
}

/// `48 05 imm32; 48 81 f1 imm32; 48 c1 c0 07; 81 ea imm32; 48 bb imm64; 48 01 d8; 3d imm32; 19 ff; c3`.
fn constants(a: &mut CodeAssembler) -> Result {
    a.db(&[0x48, 0x05, 1, 2, 3, 4])?;
    a.db(&[0x48, 0x81, 0xf1, 1, 2, 3, 4])?;
    a.rol(rax, 7)?;
    a.db(&[0x81, 0xea, 1, 2, 3, 4])?;
    a.db(&[0x48, 0xbb, 1, 2, 3, 4, 5, 6, 7, 8])?;
    a.add(rax, rbx)?;
    a.add(rax, rcx)?;
    a.add(rax, rdx)?;
    a.db(&[0x3d, 1, 2, 3, 4])?;
    a.sbb(edi, edi)?;
    a.ret()
}

#[test]
fn constants_change() {
    check("add rax", constants, |a| a.mov(dword_ptr(FUNCTION + 2), r13d));
    check("xor rcx", constants, |a| a.mov(dword_ptr(FUNCTION + 9), r13d));
    check("sub edx", constants, |a| a.mov(dword_ptr(FUNCTION + 19), r13d));
    check("mov rbx", constants, |a| a.mov(qword_ptr(FUNCTION + 25), r13));
    check("cmp eax", constants, |a| a.mov(dword_ptr(FUNCTION + 43), r13d));
}

#[test]
fn parts_of_constants_and_more_than_them_change() {
    check("a byte", constants, |a| a.mov(byte_ptr(FUNCTION + 4), r13b));
    // `48 c1 /0` and `/1` by turns: ROL and ROR.
    check("an opcode", constants, |a| {
        a.mov(esi, r13d)?;
        a.shr(esi, 20)?;
        a.and(esi, 8)?;
        a.or(esi, 0xc0)?;
        a.mov(byte_ptr(FUNCTION + 15), sil)?;
        a.mov(dword_ptr(FUNCTION + 2), r13d)
    });
    // The second constant's last byte and the opcode behind it, as they were.
    check("what it was", constants, |a| {
        a.mov(esi, dword_ptr(FUNCTION + 12))?;
        a.mov(dword_ptr(FUNCTION + 12), esi)
    });
}

/// Blocks that check their operands' alignment go on in others where that fails.
#[test]
fn constants_among_operands_that_are_not_aligned_change() {
    fn operands(a: &mut CodeAssembler) -> Result {
        a.db(&[0x05, 1, 2, 3, 4])?;
        a.add(eax, dword_ptr(rbx))?;
        a.xor(eax, dword_ptr(rbx + rcx))?;
        a.sub(eax, dword_ptr(rbx + rcx * 2))?;
        a.adc(eax, dword_ptr(rcx + DATA as i32))?;
        a.ret()
    }
    check("operands", operands, |a| a.mov(dword_ptr(FUNCTION + 1), r13d));
}

#[test]
fn code_that_stores_and_branches_changes() {
    // `05 imm32; 89 04 25 DATA; a8 01; 74 02; ff c1; 50; 59; 48 01 c8; c3`
    fn stores(a: &mut CodeAssembler) -> Result {
        a.db(&[0x05, 1, 2, 3, 4])?;
        a.mov(dword_ptr(DATA), eax)?;
        let mut even = a.create_label();
        a.test(al, 1)?;
        a.jz(even)?;
        a.inc(ecx)?;
        a.set_label(&mut even)?;
        a.push(rax)?;
        a.pop(rcx)?;
        a.add(rax, rcx)?;
        a.ret()
    }
    check("a store behind it", stores, |a| a.mov(dword_ptr(FUNCTION + 1), r13d));
    // A loop, whose count changes.
    fn counts(a: &mut CodeAssembler) -> Result {
        a.db(&[0xb9, 3, 0, 0, 0])?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.db(&[0x05, 1, 2, 3, 4])?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.ret()
    }
    check("a loop", counts, |a| {
        a.mov(esi, r13d)?;
        a.shr(esi, 28)?;
        a.inc(esi)?;
        a.mov(byte_ptr(FUNCTION + 1), sil)?;
        a.mov(dword_ptr(FUNCTION + 6), r13d)
    });
}
