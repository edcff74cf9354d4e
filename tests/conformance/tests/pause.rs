//! Opcode 90 behind prefixes: NOP, PAUSE, or with REX.B an exchange of RAX and R8, whatever
//! stands in front. What is expected is what a processor did (AMD EPYC); the random tests of
//! `cpu/interpreter/tests/native.rs` compare with the host.

use std::time::Duration;

use conformance::{Rig, long_mode, software_engines};
use engine::Halt;
use guest_memory::{GuestMemory, MemoryMap, Region};
use x86_state::{CpuModel, CpuState};

const TABLES: u64 = 0x1000;
const CODE: u64 = 0x8000;
const RAX: u64 = 0x1111_2222_3333_4444;
const R8: u64 = 0x5555_6666_7777_8888;

const NOTHING: [u64; 2] = [RAX, R8];
const WORDS: [u64; 2] = [0x1111_2222_3333_8888, 0x5555_6666_7777_4444];
const DWORDS: [u64; 2] = [0x7777_8888, 0x3333_4444];
const QWORDS: [u64; 2] = [R8, RAX];

/// The instruction, and RAX and R8 behind it.
const CASES: [(&[u8], [u64; 2]); 18] = [
    (&[0x90], NOTHING),
    (&[0x66, 0x90], NOTHING),
    (&[0xf2, 0x90], NOTHING),
    (&[0x48, 0x90], NOTHING),
    (&[0xf3, 0x90], NOTHING),
    (&[0xf3, 0x40, 0x90], NOTHING),
    (&[0xf3, 0x42, 0x90], NOTHING),
    (&[0xf3, 0x44, 0x90], NOTHING),
    (&[0xf3, 0x48, 0x90], NOTHING),
    // A REX prefix that another prefix follows is none.
    (&[0x41, 0xf3, 0x90], NOTHING),
    (&[0x41, 0x90], DWORDS),
    (&[0x66, 0x41, 0x90], WORDS),
    (&[0xf2, 0x41, 0x90], DWORDS),
    (&[0xf3, 0x41, 0x90], DWORDS),
    (&[0xf3, 0xf2, 0x41, 0x90], DWORDS),
    (&[0xf2, 0xf3, 0x41, 0x90], DWORDS),
    (&[0x66, 0xf3, 0x41, 0x90], WORDS),
    (&[0xf3, 0x49, 0x90], QWORDS),
];

/// The first 2 MiB, mapped where they are.
fn memory() -> GuestMemory {
    let memory =
        GuestMemory::new(MemoryMap::new([Region::ram(0, 0x1_0000)]).expect("a region")).expect("memory");
    for (at, entry) in [(0, TABLES + 0x1003), (0x1000, TABLES + 0x2003), (0x2000, 0x83_u64)] {
        memory.store(TABLES + at, &entry.to_le_bytes()).expect("inside");
    }
    memory
}

fn state(reset: CpuState) -> CpuState {
    let mut s = long_mode(reset, TABLES, false);
    (s.gpr[0], s.gpr[8]) = (RAX, R8);
    s
}

/// The instruction and HLT, as a block and one instruction at a time.
fn check(rig: &mut Rig, name: &str, at: u64, code: &[u8], expected: [u64; 2]) {
    rig.memory.store(at, &[code, &[0xf4]].concat()).expect("inside");
    let mut start = state(rig.reset_state());
    start.rip = at;
    let (halt, whole) = rig.run_freely(&start, Duration::from_secs(10));
    assert!(matches!(halt, Halt::Idle), "{name}, {code:02x?}: {halt:?}");
    let (_, single) = rig.run(&start, 1);
    assert_eq!(single.rip, at + code.len() as u64, "{name}, {code:02x?}");
    for end in [whole, single] {
        assert_eq!([end.gpr[0], end.gpr[8]], expected, "{name}, {code:02x?}: {:x?}", end.gpr);
        let others = |s: &CpuState| {
            s.gpr.iter().enumerate().filter(|(n, _)| ![0, 8].contains(n)).map(|(_, g)| *g).collect::<Vec<_>>()
        };
        assert_eq!(others(&end), others(&start), "{name}, {code:02x?}");
    }
}

#[test]
fn only_without_rex_b_is_it_a_pause() {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    for engine in software_engines() {
        let mut rig = Rig::new(&*engine, model.clone(), memory());
        for (n, (code, expected)) in CASES.into_iter().enumerate() {
            check(&mut rig, engine.name(), CODE + n as u64 * 16, code, expected);
        }
    }
}
