//! Loops of a few instructions, of user and supervisor. Chains of loads, each at the address that the one before it
//! gave: every engine follows them as the interpreter does, over pages that lie in order and pages that do not, to
//! wherever they end. Others that go through memory in steps.

use std::time::Duration;

use conformance::{Rig, long_mode, software_engines};
use engine::Halt;
use guest_memory::{GuestMemory, MemoryMap, Region};
use x86_state::{CpuModel, CpuState, Segment, TableRegister, rflags};

const MEMORY: u64 = 0x8_0000;
const TABLES: u64 = 0x7_0000;
const CODE: u64 = 0x2_0000;
const IDT: u64 = 0x2000;
const GDT: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
const STACK: u64 = 0x6000;
const TSS: u64 = 0x5000;
/// The links' pages, and where they are seen in order and out of order. A page behind them is not present.
const LINKS: u64 = 0x4_0000;
const PAGES: u64 = 16;
const IN_ORDER: u64 = 0x10_0000;
const OUT_OF_ORDER: u64 = 0x12_0000;
const ABSENT: u64 = IN_ORDER + PAGES * 0x1000;
/// Links before the chain goes wherever it ends, and steps taken.
const LENGTH: u64 = 300;
const STEPS: u64 = 1000;

/// What the links are and the instruction that follows one.
struct Form {
    name: &'static str,
    load: &'static [u8],
    /// The register that holds the link.
    register: usize,
    /// How far behind its address a link lies, and what RDX holds.
    at: u64,
    rdx: fn(u64) -> u64,
    /// The link to an address, in a chain over pages from `base` on, and its size.
    link: fn(base: u64, to: u64) -> u64,
    size: usize,
}

const FORMS: [Form; 5] = [
    Form {
        name: "mov rax, [rax]",
        load: &[0x48, 0x8b, 0],
        register: 0,
        at: 0,
        rdx: |_| 0,
        link: |_, to| to,
        size: 8,
    },
    Form {
        name: "mov rdi, [rdi + 8]",
        load: &[0x48, 0x8b, 0x7f, 8],
        register: 7,
        at: 8,
        rdx: |_| 0,
        link: |_, to| to,
        size: 8,
    },
    Form {
        name: "mov rbx, [rbx + rdx * 2 - 8]",
        load: &[0x48, 0x8b, 0x5c, 0x53, 0xf8],
        register: 3,
        at: 24,
        rdx: |_| 16,
        link: |_, to| to,
        size: 8,
    },
    Form {
        name: "mov eax, [rdx + rax * 4]",
        load: &[0x8b, 0x04, 0x82],
        register: 0,
        at: 0,
        rdx: |base| base,
        link: |base, to| to.wrapping_sub(base) / 4,
        size: 4,
    },
    Form {
        name: "movzx eax, word [rax + rdx]",
        load: &[0x0f, 0xb7, 0x04, 0x10],
        register: 0,
        at: 0,
        rdx: |base| base,
        link: |base, to| to.wrapping_sub(base),
        size: 2,
    },
];

fn memory() -> GuestMemory {
    let memory =
        GuestMemory::new(MemoryMap::new([Region::ram(0, MEMORY)]).expect("a region")).expect("memory");
    let put = |at: u64, v: u64| memory.store(at, &v.to_le_bytes()).expect("inside");
    for (n, level) in [0x1027, 0x2027, 0x3027].into_iter().enumerate() {
        put(TABLES + n as u64 * 0x1000, TABLES + level);
    }
    let map = |linear: u64, physical: u64| put(TABLES + 0x3000 + (linear >> 12) * 8, physical | 0x67);
    (0..MEMORY >> 12).for_each(|n| map(n << 12, n << 12));
    for n in 0..PAGES {
        map(IN_ORDER + n * 0x1000, LINKS + n * 0x1000);
        map(OUT_OF_ORDER + n * 0x1000, LINKS + n * 7 % PAGES * 0x1000);
    }
    put(GDT + 0x10, 0x00af_9b00_0000_ffff);
    put(TSS + 4, STACK);
    for v in 0..32 {
        put(IDT + v * 16, (HANDLERS + v) | 0x10 << 16 | 0x8e00 << 32);
    }
    memory.store(HANDLERS, &[0xf4; 32]).expect("inside");
    memory
}

fn state(reset: CpuState, user: bool) -> CpuState {
    let mut s = long_mode(reset, TABLES, user);
    s.gdtr = TableRegister { base: GDT, limit: 0x1f };
    s.idtr = TableRegister { base: IDT, limit: 0x1ff };
    s.tr = Segment { selector: 0x50, base: TSS, limit: 0x67, access: 0x8b };
    s.rflags = rflags::FIXED | rflags::STATUS;
    s.gpr[4] = STACK;
    s
}

/// Where link `n` of a chain over the pages from `base` on is: pages change at each.
fn place(base: u64, n: u64) -> u64 {
    base + n * 5 % PAGES * 0x1000 + n / PAGES * 64 + 0x100
}

/// Follow the chain that ends at `tail`.
fn run(rig: &mut Rig, f: &Form, code: u64, base: u64, tail: u64, user: bool) -> CpuState {
    let physical = |linear: u64| {
        let page = (linear - base) >> 12;
        LINKS + if base == IN_ORDER { page } else { page * 7 % PAGES } * 0x1000 + (linear & 0xfff)
    };
    for n in 0..LENGTH {
        let to = if n + 1 < LENGTH { place(base, n + 1) } else { tail };
        let link = (f.link)(base, to).to_le_bytes();
        rig.memory.store(physical(place(base, n) + f.at), &link[..f.size]).expect("inside");
    }
    // load; DEC RCX; JNE; HLT, which the user may not.
    let back = 0u8.wrapping_sub(f.load.len() as u8 + 5);
    let bytes = [f.load, &[0x48, 0xff, 0xc9, 0x75, back, 0xf4]].concat();
    rig.memory.store(code, &bytes).expect("inside");
    let mut start = state(rig.reset_state(), user);
    start.rip = code;
    start.gpr[1] = STEPS;
    start.gpr[2] = (f.rdx)(base);
    start.gpr[f.register] = (f.link)(base, place(base, 0));
    let (halt, end) = rig.run_freely(&start, Duration::from_secs(10));
    assert!(matches!(halt, Halt::Idle), "{halt:?}");
    end
}

#[test]
fn engines_follow_the_same_chain() {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    let mut reference = Rig::new(&interpreter::Interpreter, model.clone(), memory());
    let mut others: Vec<Rig> =
        software_engines().iter().map(|e| Rig::new(&**e, model.clone(), memory())).collect();
    for (n, f) in FORMS.iter().enumerate() {
        let code = CODE + 0x100 * n as u64;
        for user in [false, true] {
            // The same code meets pages in order, out of order, and in order again.
            for base in [IN_ORDER, OUT_OF_ORDER, IN_ORDER] {
                let crosses = base + 0x1ffe - f.at;
                let foreign = [1 << 46, 1 << 47, 1 << 48 | IN_ORDER, 1 << 62, u64::MAX << 47, u64::MAX - 7];
                let tails =
                    [place(base, 0), place(base, 7), crosses, ABSENT + 8, 0].into_iter().chain(foreign);
                for tail in tails {
                    let expected = run(&mut reference, f, code, base, tail, user);
                    for other in &mut others {
                        let got = run(other, f, code, base, tail, user);
                        let case = format!("{} from {base:#x} to {tail:#x}, user: {user}", f.name);
                        assert!(got == expected, "{case}: {got:#x?} {expected:#x?}");
                    }
                }
            }
        }
    }
}

/// A loop's instructions but for its branch, and whether it ends by RCX.
const LOOPS: [(&str, &[u8], bool); 4] = [
    // mov rax, [rsi]; mov [rdi], rax; add rsi, 8; add rdi, 8
    ("copy", &[0x48, 0x8b, 0x06, 0x48, 0x89, 0x07, 0x48, 0x83, 0xc6, 8, 0x48, 0x83, 0xc7, 8], true),
    // mov rax, [rsi]; adc [rdi], rax; lea rsi, [rsi + 8]; lea rdi, [rdi + 8]
    ("add with carry", &[0x48, 0x8b, 0x06, 0x48, 0x11, 0x07, 0x48, 0x8d, 0x76, 8, 0x48, 0x8d, 0x7f, 8], true),
    // push rsi; add dword [rsi + 4], eax; pop rax; add rsi, 3
    ("stack and steps of three", &[0x56, 0x01, 0x46, 0x04, 0x58, 0x48, 0x83, 0xc6, 3], true),
    // add rsi, 1; cmp byte [rsi - 1], dl
    ("scan", &[0x48, 0x83, 0xc6, 1, 0x38, 0x56, 0xff], false),
];

/// The end of a loop of so many rounds over memory from `from` on, and what it left there.
fn run_loop(rig: &mut Rig, of: usize, from: u64, rounds: u64, user: bool) -> (CpuState, Vec<u8>) {
    let (_, body, counted) = LOOPS[of];
    let mut left: Vec<u8> = (0..PAGES * 0x1000).map(|n| (n * n / 7) as u8 | 1).collect();
    let end = (from - IN_ORDER + rounds - 1) as usize;
    if let Some(b) = left.get_mut(end).filter(|_| !counted) {
        *b = 0;
    }
    rig.memory.store(LINKS, &left).expect("inside");
    let count: &[u8] = if counted { &[0x48, 0xff, 0xc9] } else { &[] };
    let back = 0u8.wrapping_sub((body.len() + count.len() + 2) as u8);
    let code = CODE + 0x1000 + 0x100 * of as u64;
    rig.memory.store(code, &[body, count, &[0x75, back, 0xf4]].concat()).expect("inside");
    let mut start = state(rig.reset_state(), user);
    start.rip = code;
    start.gpr[1] = rounds;
    start.gpr[2] = 0;
    start.gpr[6] = from;
    start.gpr[7] = from + 0x1230;
    let (halt, end) = rig.run_freely(&start, Duration::from_secs(10));
    assert!(matches!(halt, Halt::Idle), "{halt:?}");
    rig.memory.load(LINKS, &mut left).expect("inside");
    (end, left)
}

/// Each loop ends by itself behind an odd or an even round, or by a fault in either, wherever pages end.
#[test]
fn short_loops_end_in_any_round() {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    let mut reference = Rig::new(&interpreter::Interpreter, model.clone(), memory());
    let mut others: Vec<Rig> =
        software_engines().iter().map(|e| Rig::new(&**e, model.clone(), memory())).collect();
    for (of, (name, ..)) in LOOPS.iter().enumerate() {
        for from in [0, 8, 0xff0, 0xff3, 0xffc, 0x7ffd, 0xef00, 0xef08, 0xef0b].map(|n| IN_ORDER + n) {
            for rounds in [1, 2, 3, 4, 5, 300, 301, 2000, 2001] {
                for user in [false, true] {
                    let expected = run_loop(&mut reference, of, from, rounds, user);
                    for other in &mut others {
                        let got = run_loop(other, of, from, rounds, user);
                        let case = format!("{name}, {rounds} rounds from {from:#x}, user: {user}");
                        assert!(got.0 == expected.0, "{case}: {:#x?} {:#x?}", got.0, expected.0);
                        assert!(got.1 == expected.1, "{case}: memory");
                    }
                }
            }
        }
    }
}
