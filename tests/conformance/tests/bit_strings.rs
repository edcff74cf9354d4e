//! BT, BTS, BTR and BTC on bit strings in memory: every engine reaches the element that the interpreter reaches,
//! whatever registers name it and wherever it lies.

use std::time::Duration;

use conformance::{Rig, long_mode, software_engines};
use engine::Halt;
use guest_memory::{GuestMemory, MemoryMap, Region};
use x86_state::{CpuModel, CpuState, TableRegister, rflags};

const MEMORY: u64 = 0x8_0000;
const TABLES: u64 = 0x7_0000;
/// Each case has a place of its own: what an engine knows of one does not serve the next.
const CODE: u64 = 0x2_0000;
const CODE_STEP: u64 = 32;
const IDT: u64 = 0x2000;
const GDT: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
const STACK: u64 = 0x6000;
/// Pages of the strings; the second is read-only, the fifth not present.
const DATA: u64 = 0x1_0000;
const READ_ONLY: u64 = DATA + 0x1000;
const ABSENT: u64 = DATA + 0x4000;

/// RAX RCX RDX RDI R10 R12 R15: in place, moved, scratch, in memory.
const REGISTERS: [u8; 7] = [0, 1, 2, 7, 10, 12, 15];

fn memory() -> GuestMemory {
    let memory =
        GuestMemory::new(MemoryMap::new([Region::ram(0, MEMORY)]).expect("a region")).expect("memory");
    let put = |at: u64, v: u64| memory.store(at, &v.to_le_bytes()).expect("inside");
    for (n, level) in [0x1027, 0x2027, 0x3027].into_iter().enumerate() {
        put(TABLES + n as u64 * 0x1000, TABLES + level);
    }
    for n in 0..512 {
        let flags = match n << 12 {
            READ_ONLY => 0x65,
            ABSENT => 0,
            _ => 0x67,
        };
        put(TABLES + 0x3000 + n * 8, n << 12 | flags);
    }
    put(GDT + 0x10, 0x00af_9b00_0000_ffff);
    for v in 0..32 {
        put(IDT + v * 16, (HANDLERS + v) | 0x10 << 16 | 0x8e00 << 32);
    }
    memory.store(HANDLERS, &[0xf4; 32]).expect("inside");
    memory
}

fn state(reset: CpuState) -> CpuState {
    let mut s = long_mode(reset, TABLES, false);
    s.segments[4].base = DATA + 0x18;
    s.gdtr = TableRegister { base: GDT, limit: 0x1f };
    s.idtr = TableRegister { base: IDT, limit: 0x1ff };
    s.rflags = rflags::FIXED | rflags::STATUS;
    s.gpr[4] = STACK;
    s
}

/// `[lock] [fs or a 32-bit address] op [base + disp8], number`; HLT.
fn code(opcode: u8, size: u8, lock: bool, prefix: Option<u8>, base: u8, number: u8) -> Vec<u8> {
    let mut code = Vec::new();
    code.extend(lock.then_some(0xf0));
    code.extend(prefix);
    code.extend((size == 2).then_some(0x66));
    code.push(0x40 | u8::from(size == 8) << 3 | (number >> 3) << 2 | base >> 3);
    code.extend([0x0f, opcode, 0x40 | (number & 7) << 3 | base & 7]);
    code.extend((base & 7 == 4).then_some(0x24));
    code.extend([8, 0xf4]);
    code
}

fn run(rig: &mut Rig, at: u64, code: &[u8], registers: [(u8, u64); 2]) -> (CpuState, Vec<u8>) {
    let pattern: Vec<u8> = (0..0x8000u32).map(|n| (n * 167 + n / 251) as u8).collect();
    rig.memory.store(DATA - 0x2000, &pattern).expect("inside");
    rig.memory.store(at, code).expect("inside");
    let mut start = state(rig.reset_state());
    start.rip = at;
    for (n, v) in registers {
        start.gpr[usize::from(n)] = v;
    }
    let (halt, end) = rig.run_freely(&start, Duration::from_secs(10));
    assert!(matches!(halt, Halt::Idle), "{halt:?}");
    let mut bytes = vec![0; 0x8000];
    rig.memory.load(DATA - 0x2000, &mut bytes).expect("inside");
    (end, bytes)
}

#[test]
fn engines_reach_the_same_bit() {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    let mut reference = Rig::new(&interpreter::Interpreter, model.clone(), memory());
    let mut others: Vec<Rig> =
        software_engines().iter().map(|e| Rig::new(&**e, model.clone(), memory())).collect();
    let numbers: [i64; 14] = [0, 5, 31, 32, 63, 64, 1000, 32767, -1, -32, -65, -20000, 1 << 33, i64::MIN + 7];
    let bases =
        [DATA + 0x100, DATA + 0x103, DATA + 0xff0, DATA + 0xff3, READ_ONLY + 0x40, ABSENT - 0x10, 1 << 62];
    let mut cases = 0_u64;
    for opcode in [0xa3, 0xab, 0xb3, 0xbb] {
        for size in [2, 4, 8] {
            for (at, number) in numbers.into_iter().enumerate() {
                for (turn, base) in bases.into_iter().enumerate() {
                    // Every pair of registers in turn, without multiplying the cases.
                    let b = REGISTERS[(at + turn) % REGISTERS.len()];
                    let n = REGISTERS[(at * 3 + turn + usize::from(size)) % REGISTERS.len()];
                    let code = code(
                        opcode,
                        size,
                        opcode != 0xa3 && at % 2 == 0,
                        [None, Some(0x67), Some(0x64)][turn % 3],
                        b,
                        n,
                    );
                    let place = CODE + cases * CODE_STEP;
                    let registers = [(n, number as u64), (b, base)];
                    let expected = run(&mut reference, place, &code, registers);
                    for other in &mut others {
                        let got = run(other, place, &code, registers);
                        assert!(
                            got == expected,
                            "{code:02x?} with {registers:x?}: {:#x?} {:#x?}",
                            got.0,
                            expected.0
                        );
                    }
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 4 * 3 * 14 * 7);
}
