//! Random instructions on random states: all software engines end in the same
//! state with the same memory, and none panics.
//!
//! The first engine is the reference. `STRATA_RANDOM_CASES` says how many cases
//! (of up to eight instructions each) are run, `STRATA_RANDOM_SEED` where they begin;
//! `STRATA_RANDOM_VERBOSE` lists each before it runs.

use conformance::random::{Random, candidate, differences, fpu, left_out};
use conformance::{Rig, software_engines};
use engine::Halt;
use guest_memory::{GuestMemory, MemoryMap, Region};
use iced_x86::{Decoder, DecoderOptions};
use x86_state::{CpuModel, CpuState, Segment, TableRegister, cr0, cr4, efer, rflags, xcr0};

const MEMORY: usize = 0x2_0000;
/// Outside what they map, so that no case changes them.
const TABLES: u64 = 0x20_0000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const TSS: u64 = 0x6000;
/// A HLT for each vector.
const HANDLERS: u64 = 0x7000;
const KERNEL_STACK: u64 = 0xa000;
const CODE: u64 = 0xb000;
const DATA: u64 = 0x1_0000;
/// Pages here alias those of data; some are read-only, some not present.
const ALIASES: u64 = 0x2_0000;
const ALIASES_END: u64 = 0x4_0000;
/// Addresses that registers are likely to hold.
const WORDS: std::ops::Range<u64> = DATA + 0x4000..DATA + 0xc000;
const LIMIT: u64 = 40;
const CODE_MAX: usize = 200;

/// An address near a page's end or beginning, in data or among its aliases.
fn near_page_boundary(r: &mut Random) -> u64 {
    let page = DATA + (r.below((ALIASES_END - DATA) >> 12) << 12);
    page.wrapping_add(r.below(64)).wrapping_sub(r.below(64))
}

/// Up to eight instructions and a HLT.
fn code(r: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..1 + r.below(8) {
        let bytes = loop {
            let bytes = candidate(r);
            let i = Decoder::with_ip(64, &bytes, CODE, DecoderOptions::NONE).decode();
            if !i.is_invalid() && !left_out(&i) {
                break bytes[..i.len()].to_vec();
            }
        };
        code.extend(bytes);
    }
    code.push(0xf4);
    code
}

fn memory() -> GuestMemory {
    let regions = [Region::ram(0, MEMORY as u64), Region::ram(TABLES, 0x4000)];
    GuestMemory::new(MemoryMap::new(regions).expect("regions")).expect("memory")
}

/// The first 2 MiB. Accessed and dirty: who sets those bits when is not compared.
fn store_page_tables(memory: &GuestMemory) {
    let tables =
        [(TABLES, TABLES + 0x1027), (TABLES + 0x1000, TABLES + 0x2027), (TABLES + 0x2000, TABLES + 0x3027)];
    let pages = (0..512).map(|n| {
        let linear = n << 12;
        let data = DATA + ((n * 5 % 16) << 12);
        let entry = match linear {
            ALIASES..ALIASES_END => match n % 7 {
                3 => 0,
                5 => data | 0x65,
                _ => data | 0x67,
            },
            _ => linear | 0x67,
        };
        (TABLES + 0x3000 + n * 8, entry)
    });
    for (at, entry) in tables.into_iter().chain(pages) {
        memory.store(at, &entry.to_le_bytes()).expect("page tables");
    }
}

/// Descriptors and handlers; data pages are filled from `r`.
fn memory_image(r: &mut Random, code: &[u8]) -> Vec<u8> {
    let mut m = vec![0; MEMORY];
    let mut put = |at: u64, v: u64| m[at as usize..at as usize + 8].copy_from_slice(&v.to_le_bytes());
    let descriptors =
        [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    for (i, d) in descriptors.into_iter().enumerate() {
        put(GDT + i as u64 * 8, d);
    }
    for v in 0..256 {
        put(IDT + v * 16, (HANDLERS + v) | (0x10 << 16) | (0x8e00 << 32));
    }
    put(TSS + 4, KERNEL_STACK);
    m[HANDLERS as usize..HANDLERS as usize + 256].fill(0xf4);
    for word in m[DATA as usize..].chunks_exact_mut(8) {
        word.copy_from_slice(&r.next().to_le_bytes());
    }
    m[CODE as usize..CODE as usize + code.len()].copy_from_slice(code);
    m
}

/// A 64-bit program's state at CPL 0 or 3.
fn state(r: &mut Random, reset: CpuState) -> CpuState {
    let mut s = reset;
    let user = r.below(2) == 0;
    let dpl = if user { 0x60 } else { 0 };
    let data =
        Segment { selector: if user { 0x2b } else { 0x18 }, base: 0, limit: u32::MAX, access: 0xc093 | dpl };
    s.segments = [data; 6];
    s.segments[1] =
        Segment { selector: if user { 0x33 } else { 0x10 }, base: 0, limit: u32::MAX, access: 0xa09b | dpl };
    s.segments[4].base = DATA + 0x100;
    s.gdtr = TableRegister { base: GDT, limit: 0x37 };
    s.idtr = TableRegister { base: IDT, limit: 0xfff };
    s.tr = Segment { selector: 0x40, base: TSS, limit: 0x67, access: 0x8b };
    s.cr0 = cr0::PG | cr0::WP | cr0::PE | cr0::ET | cr0::NE | cr0::MP | cr0::AM;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE | cr4::PAE;
    s.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    s.cr3 = TABLES;
    s.efer = efer::LME | efer::LMA | efer::NXE;
    s.rip = CODE;
    s.rflags = rflags::FIXED | r.next() & rflags::STATUS;
    s.rflags |= if r.below(16) == 0 { r.next() & (rflags::DF | rflags::AC | rflags::TF) } else { 0 };
    for g in &mut s.gpr {
        *g = r.number(&WORDS);
    }
    if r.below(2) == 0 {
        s.gpr[1] = [r.below(20), r.below(0x3000)][r.below(2) as usize];
        s.gpr[6] = near_page_boundary(r);
        // Often a short way above or below the source, by any mapping.
        s.gpr[7] = match r.below(3) {
            0 => s.gpr[6].wrapping_add(r.below(32)).wrapping_sub(16),
            _ => near_page_boundary(r),
        };
    }
    s.gpr[4] = DATA + 0xc000 + r.below(64);
    fpu(r, &WORDS, &mut s);
    s
}

/// Run a case on one engine.
fn run(rig: &mut Rig, seed: u64, limit: u64) -> (CpuState, Vec<u8>) {
    let mut r = Random(seed);
    let code = code(&mut r);
    assert!(code.len() < CODE_MAX, "{} bytes of code", code.len());
    rig.memory.store(0, &memory_image(&mut r, &code)).expect("memory");
    store_page_tables(&rig.memory);
    let start = state(&mut r, rig.reset_state());
    // Whether it ends by its limit or by HLT does not matter where both are due.
    let (halt, mut end) = rig.run(&start, limit);
    assert!(!matches!(halt, Halt::Failed(_)), "seed {seed}: {halt:?}");
    // Of the last x87 instruction only what FNSTENV shows is architectural, and
    // processors differ in when they record it.
    (end.fpu.fop, end.fpu.fip, end.fpu.fdp, end.fpu.fcs, end.fpu.fds) = (0, 0, 0, 0, 0);
    let mut memory = vec![0; MEMORY];
    rig.memory.load(0, &mut memory).expect("memory");
    (end, memory)
}

/// The instructions of a case.
fn listing(seed: u64) -> String {
    let code = code(&mut Random(seed));
    let mut text = String::new();
    for i in &mut Decoder::with_ip(64, &code, CODE, DecoderOptions::NONE) {
        let at = (i.ip() - CODE) as usize;
        text += &format!("    {:x}: {i} {:02x?}\n", i.ip(), &code[at..at + i.len()]);
    }
    text
}

/// The difference after as few instructions as show one.
fn explain(a: &mut Rig, b: &mut Rig, seed: u64) -> String {
    let listing = listing(seed);
    for limit in 1..=LIMIT {
        let ((x, mx), (y, my)) = (run(a, seed, limit), run(b, seed, limit));
        if x != y || mx != my {
            let at = mx.iter().zip(&my).position(|(p, q)| p != q);
            let bytes =
                at.map(|p| format!("memory at {p:#x}: {:02x} | {:02x}", mx[p], my[p])).unwrap_or_default();
            return format!("seed {seed}, step {limit}\n{listing}    {}\n    {bytes}", differences(&x, &y));
        }
    }
    format!("seed {seed}: only at the end\n{listing}")
}

#[test]
fn engines_agree_on_random_instructions() {
    let number =
        |name, default| std::env::var(name).map_or(default, |s: String| s.parse().expect("a number"));
    let (cases, first) = (number("STRATA_RANDOM_CASES", 3000), number("STRATA_RANDOM_SEED", 1));
    let verbose = std::env::var_os("STRATA_RANDOM_VERBOSE").is_some();
    let engines = software_engines();
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    let mut rigs: Vec<Rig> = engines.iter().map(|e| Rig::repeatable(&**e, model.clone(), memory())).collect();
    let (reference, others) = rigs.split_first_mut().expect("an engine");
    let mut wrong = Vec::new();
    for seed in first..first + cases {
        if verbose {
            println!("seed {seed}\n{}", listing(seed));
        }
        let (end, memory) = run(reference, seed, LIMIT);
        for (n, other) in others.iter_mut().enumerate() {
            let (e, m) = run(other, seed, LIMIT);
            let same = e == end && m == memory;
            if !same && wrong.len() < 20 {
                wrong.push(format!("{}: {}", engines[n + 1].name(), explain(reference, other, seed)));
            }
        }
    }
    println!("{cases} cases from seed {first} on {} engines", engines.len());
    assert!(wrong.is_empty(), "{} cases differ\n{}", wrong.len(), wrong.join("\n"));
}
