//! What a guest cannot make the host give: memory for every address that it can name. This
//! is measured of the whole process, so no other test may run beside it.

use std::time::Duration;

use conformance::{Rig, long_mode, several, software_engines};
use engine::{Engine, Halt};
use guest_memory::GuestMemory;
use x86_state::CpuModel;

const RAM: u64 = 1 << 20;
const ROOT: u64 = 0x1000;
const POINTERS: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const PAGES: u64 = 0x4000;
/// The pages that every address leads to: code where its page number is even, data where
/// it is odd.
const CODE: u64 = 0x5000;
const DATA: u64 = 0x6000;

/// More than the tables of one view may take, 32 MiB and as much of the host's page tables,
/// and a fifth of what they would take here without an end.
const MOST_KIB: u64 = 96 << 10;

/// A machine in which four pages of page tables, whose entries are all the same, map 2^36
/// pages.
fn run(engine: &dyn Engine, program: several::Source<'_>) -> u64 {
    let memory = GuestMemory::flat(RAM).expect("memory");
    let put = |at: u64, v: u64| memory.store(at, &v.to_le_bytes()).expect("inside");
    for n in 0..512 {
        put(ROOT + n * 8, POINTERS | 0x63);
        put(POINTERS + n * 8, DIRECTORY | 0x63);
        put(DIRECTORY + n * 8, PAGES | 0x63);
        put(PAGES + n * 8, if n % 2 == 0 { CODE } else { DATA } | 0x63);
    }
    memory.store(CODE, &several::assemble(0, program)).expect("inside");
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    let mut rig = Rig::new(engine, model, memory);
    let mut start = long_mode(rig.reset_state(), ROOT, false);
    start.rip = 0;
    start.gpr[4] = 0x1800;
    let (halt, end) = rig.run_freely(&start, Duration::from_secs(60));
    assert!(matches!(halt, Halt::Idle), "{}: {halt:?} at {:#x}", engine.name(), end.rip);
    end.gpr[3]
}

/// KiB that the process has: resident, and page tables.
fn memory_of_process() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|l| l.starts_with(name)).expect("the kernel tells it");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB")
    };
    field("VmHWM:") + field("VmPTE:")
}

#[test]
fn tables_of_addresses_have_an_end() {
    let before = memory_of_process();
    for engine in software_engines() {
        // A byte of each 2 MiB, read and written; of each GiB, which costs the host's page
        // tables as much again.
        for (distance, count) in [(21, 1 << 16), (30, 1 << 16)] {
            let sum = run(&*engine, &|a| {
                use iced_x86::code_asm::*;
                let mut again = a.create_label();
                a.mov(rsi, 0x1000u64)?;
                a.mov(rdx, 1u64 << distance)?;
                a.xor(ebx, ebx)?;
                a.mov(ecx, count)?;
                a.set_label(&mut again)?;
                a.inc(qword_ptr(rsi))?;
                a.add(rbx, qword_ptr(rsi))?;
                a.add(rsi, rdx)?;
                a.dec(ecx)?;
                a.jne(again)?;
                a.hlt()
            });
            let count = u64::from(count as u32);
            assert_eq!(sum, count * (count + 1) / 2, "{}: every address leads there", engine.name());
            let taken = memory_of_process() - before;
            assert!(taken < MOST_KIB, "{}, distance 2^{distance}: {taken} KiB", engine.name());
        }
        // The page of code run at every second address of many.
        let count = 50_000;
        let rounds = run(&*engine, &|a| {
            use iced_x86::code_asm::*;
            let (mut here, mut end) = (a.create_label(), a.create_label());
            a.lea(rax, qword_ptr(here))?;
            a.xor(ebx, ebx)?;
            a.mov(ecx, count)?;
            a.set_label(&mut here)?;
            a.inc(ebx)?;
            a.add(rax, 0x2000)?;
            a.dec(ecx)?;
            a.je(end)?;
            a.jmp(rax)?;
            a.set_label(&mut end)?;
            a.hlt()
        });
        assert_eq!(rounds, u64::from(count as u32), "{}", engine.name());
        let taken = memory_of_process() - before;
        assert!(taken < MOST_KIB, "{}, code: {taken} KiB", engine.name());
    }
}
