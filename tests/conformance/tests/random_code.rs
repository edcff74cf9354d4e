//! Random instructions on random states: all software engines end in the same
//! state with the same memory, and none panics. In 64-bit and in 32-bit code; with
//! jumps and a limit of instructions, without either, so that whole blocks run, and with
//! branches among them and no limit.
//!
//! The first engine is the reference. `STRATA_RANDOM_CASES` says how many cases
//! (of up to eight instructions each, 15 with branches) are run, `STRATA_RANDOM_SEED` where they begin;
//! `STRATA_RANDOM_VERBOSE` lists each before it runs; `STRATA_RANDOM_MODEL` is another vCPU model.

use conformance::random::{Random, candidate, differences, fpu, has_own_result, left_out};
use conformance::{Rig, comparable_engines, random_model};
use engine::{Engine, Halt};
use guest_memory::{GuestMemory, MemoryMap, Region};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Register};
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
/// Pages here alias those of data or the code's; some are read-only, some not present.
const ALIASES: u64 = 0x2_0000;
const ALIASES_END: u64 = 0x4_0000;
/// Addresses that registers are likely to hold.
const WORDS: std::ops::Range<u64> = DATA + 0x4000..DATA + 0xc000;
/// 64-bit and 32-bit code segments of CPL 0.
const CODE_64: u16 = 0x10;
const CODE_32: u16 = 0x38;
const LIMIT: u64 = 40;
const CODE_MAX: usize = 256;
/// After so many instructions a case without jumps counts as one without an end.
const ENDLESS: u64 = 20_000;

/// Cases in which the end of a limited run depended on the engine: a single step within
/// a repeated instruction counted twice. Opcode 90 with REX.B behind F3: one took it for PAUSE.
const ONCE_WRONG: [u64; 2] = [30_505_760, 90_040_424];

/// What kind of cases.
#[derive(Clone, Copy)]
struct Flavour {
    bits: u32,
    how: How,
}

/// How cases run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// At most [`LIMIT`] instructions, each a translated block.
    Stepped,
    /// Whole blocks. No jumps and no repetition: a case ends without a limit.
    Straight,
    /// Whole blocks with branches and calls among them. What ends on the reference ends.
    Freely,
}

/// Four-level, PAE or 32-bit paging, or none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Paging {
    Level4,
    Pae,
    Bits32,
    None,
}

impl Flavour {
    fn paging(self, seed: u64) -> Paging {
        match (self.bits, seed % 4) {
            (64, _) | (_, 0) => Paging::Level4,
            (_, 1) => Paging::Pae,
            (_, 2) => Paging::Bits32,
            // A repetition that someone jumps to would have no end soon.
            _ if self.how == How::Freely => Paging::Bits32,
            _ => Paging::None,
        }
    }

    fn limit(self) -> u64 {
        if self.how == How::Stepped { LIMIT } else { u64::MAX }
    }

    fn rig(self, e: &dyn Engine, model: CpuModel) -> Rig {
        match self.how {
            How::Stepped => Rig::repeatable(e, model, memory()),
            How::Straight | How::Freely => Rig::new(e, model, memory()),
        }
    }

    fn leaves_out(self, i: &Instruction, paging: Paging) -> bool {
        use FlowControl as F;
        // Without paging nothing ends a repetition but its count.
        let lasting = self.how == How::Straight && (i.flow_control() != F::Next || i.is_string_instruction())
            || paging == Paging::None && i.is_string_instruction();
        lasting || left_out(i)
    }

    fn candidate(self, r: &mut Random) -> Vec<u8> {
        let mut bytes = candidate(r);
        if self.bits == 32 && r.below(16) == 0 {
            bytes.insert(0, [0x65, 0x65, 0x65, 0x2e, 0x36, 0x3e, 0x26, 0x67][r.below(8) as usize]);
        }
        bytes
    }
}

/// An address near a page's end or beginning, in data or among its aliases.
fn near_page_boundary(r: &mut Random) -> u64 {
    let page = DATA + (r.below((ALIASES_END - DATA) >> 12) << 12);
    page.wrapping_add(r.below(64)).wrapping_sub(r.below(64))
}

/// A branch or call whose displacement is its last byte, or its last four bytes.
fn branch(r: &mut Random) -> (Vec<u8>, usize) {
    let n = r.below(16) as u8;
    match r.below(8) {
        0 => (vec![0xeb, 0], 1),
        1 => (vec![0xe0 | n & 3, 0], 1),
        2 => (vec![0xe8, 0, 0, 0, 0], 4),
        3 => (vec![0x0f, 0x80 | n, 0, 0, 0, 0], 4),
        _ => (vec![0x70 | n, 0], 1),
    }
}

/// Opcodes with a register and memory as compilers use them.
const USUAL: [&[u8]; 30] = [
    &[0x8b],
    &[0x8b],
    &[0x89],
    &[0x89],
    &[0x03],
    &[0x01],
    &[0x2b],
    &[0x29],
    &[0x3b],
    &[0x33],
    &[0x85],
    &[0x88],
    &[0x8a],
    &[0x8d],
    &[0x87],
    &[0x0f, 0xb6],
    &[0x0f, 0xb7],
    &[0x0f, 0xbf],
    &[0x0f, 0xaf],
    &[0x0f, 0xb1],
    &[0x0f, 0xc1],
    &[0x0f, 0x44],
    &[0x0f, 0xab],
    &[0x0f, 0x28],
    &[0x0f, 0x29],
    &[0x0f, 0x10],
    &[0x0f, 0x11],
    &[0x0f, 0x6f],
    &[0x0f, 0x7f],
    &[0x0f, 0x94],
];

/// An instruction as compilers use it, at an address made of one of these registers.
fn usual(r: &mut Random, bits: u32, bases: [u8; 2]) -> Vec<u8> {
    let registers = if bits == 64 { 16 } else { 8 };
    let base = bases[r.below(2) as usize];
    let mut reg = r.below(registers) as u8;
    if bases.contains(&reg) && r.below(8) != 0 {
        // Elsewhere bases stay what they are.
        reg = reg.wrapping_add(3) & (registers - 1) as u8;
    }
    let mut bytes = Vec::new();
    bytes.extend((r.below(8) == 0).then_some(0x66));
    let mut rex = |wide: u64, reg: u8, rm: u8| {
        if bits == 64 {
            bytes.push(0x40 | (wide as u8) << 3 | (reg >> 3) << 2 | rm >> 3);
        }
    };
    let wide = u64::from(r.below(4) != 0);
    match r.below(8) {
        // INC, DEC, ADD, SUB and others of a base, by little.
        0 => {
            rex(wide, 0, base);
            match r.below(3) {
                0 => bytes.extend([0xff, 0xc0 | (r.below(2) as u8) << 3 | base & 7]),
                1 => bytes.extend([0x83, 0xc0 | (r.below(2) as u8 * 5) << 3 | base & 7, 1 << r.below(5)]),
                _ => bytes.extend([0x8d, 0x40 | (base & 7) << 3 | base & 7]),
            }
            if bytes.len() >= 2 && bytes[bytes.len() - 2] == 0x8d {
                bytes.extend((base & 7 == 4).then_some(0x24));
                bytes.push(8);
            }
        }
        1 => {
            rex(0, 0, reg);
            bytes.push([0x50, 0x58][r.below(2) as usize] | reg & 7);
        }
        2 => {
            rex(wide, reg, base);
            bytes.extend([[0x8b, 0x03, 0x3b, 0x31][r.below(4) as usize], 0xc0 | (reg & 7) << 3 | base & 7]);
        }
        _ => {
            rex(wide, reg, base);
            bytes.extend(USUAL[r.below(USUAL.len() as u64) as usize]);
            let index = r.below(8) as u8;
            match r.below(4) {
                0 if index != 4 => {
                    bytes.extend([0x44 | (reg & 7) << 3, (r.below(4) as u8) << 6 | index << 3 | base & 7]);
                }
                _ => {
                    bytes.push(0x40 | (reg & 7) << 3 | base & 7);
                    bytes.extend((base & 7 == 4).then_some(0x24));
                }
            }
            bytes.push([0, 4, 8, 8, 16, 0xf8, 1, r.next() as u8][r.below(8) as usize]);
        }
    }
    bytes
}

/// A loop of a few usual instructions, often with an exit within, that a counter ends.
fn counted_loop(r: &mut Random, bits: u32, bases: [u8; 2]) -> Vec<u8> {
    // MOV ECX, times: ECX is a base seldom enough.
    let times = [1 + r.below(5), 1 + r.below(300)][r.below(2) as usize] as u32;
    let mut code = [&[0xb9][..], &times.to_le_bytes()].concat();
    let start = code.len();
    let mut exit = None;
    for _ in 0..1 + r.below(7) {
        code.extend(usual(r, bits, bases));
        if exit.is_none() && r.below(8) == 0 {
            code.extend([0x70 | r.below(16) as u8, 0]);
            exit = Some(code.len());
        }
    }
    match r.below(3) {
        0 => code.extend([0x83, 0xe9, 1]),
        _ => code.extend([0xff, 0xc9]),
    }
    let back = start as i32 - (code.len() + 2) as i32;
    code.extend([[0x75, 0x7f, 0x77][r.below(3) as usize], back as u8]);
    if let Some(at) = exit {
        code[at - 1] = (code.len() - at) as u8;
    }
    code.extend(usual(r, bits, bases));
    code.push(0xf4);
    code
}

/// Instructions with branches among them and to them.
fn branching_code(r: &mut Random, f: Flavour, paging: Paging) -> Vec<u8> {
    let (mut code, mut starts, mut fields, mut absolute) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let bases = [r.below(f.bits as u64 / 4) as u8 & 15, r.below(8) as u8];
    let bases = if f.bits == 64 { bases } else { bases.map(|b| b & 7) };
    if r.below(4) == 0 {
        return counted_loop(r, f.bits, bases);
    }
    // Most of it usual, or anything.
    let share = [1, 6, 8][r.below(3) as usize];
    for _ in 0..4 + r.below(12) {
        starts.push(code.len());
        match r.below(8) {
            0..3 => {
                let (bytes, size) = branch(r);
                code.extend(bytes);
                fields.push((code.len(), size));
            }
            // RET to where a call came from, or anywhere.
            3 if r.below(3) == 0 => code.push(0xc3),
            // JMP or CALL to where a register says.
            4 if r.below(4) == 0 => {
                code.push(0xb8 | bases[1]);
                code.extend([0; 4]);
                absolute.push(code.len());
                let mode = [0xe0, 0xd0][r.below(2) as usize];
                code.extend([0xff, mode | bases[1]]);
            }
            _ if r.below(8) < share => code.extend(usual(r, f.bits, bases)),
            _ => {
                let bytes = instruction(r, f, paging);
                code.extend(near_data(r, f, bytes));
            }
        }
    }
    starts.push(code.len());
    code.push(0xf4);
    for (end, size) in fields {
        // Backwards less often: there may be no end to that.
        let behind = starts.iter().filter(|at| **at >= end).count();
        let from = if r.below(4) == 0 { 0 } else { starts.len() - behind };
        let to = starts[from + r.below((starts.len() - from) as u64) as usize];
        let displacement = (to as i32 - end as i32).to_le_bytes();
        code[end - size..end].copy_from_slice(&displacement[..size]);
    }
    for end in absolute {
        let to = CODE as u32 + starts[r.below(starts.len() as u64) as usize] as u32;
        code[end - 4..end].copy_from_slice(&to.to_le_bytes());
    }
    code
}

/// The same instruction with an operand where memory is, more often than not: a fault ends a
/// case before its blocks show anything.
fn near_data(r: &mut Random, f: Flavour, mut bytes: Vec<u8>) -> Vec<u8> {
    let mut decoder = Decoder::with_ip(f.bits, &bytes, CODE, DecoderOptions::NONE);
    let i = decoder.decode();
    let offsets = decoder.get_constant_offsets(&i);
    if offsets.displacement_size() != 4 || r.below(8) == 0 {
        return bytes;
    }
    let displacement = match (i.memory_base(), i.memory_index()) {
        (Register::None, Register::None) => (WORDS.start + r.below(WORDS.end - WORDS.start)) as i32,
        (Register::RIP, _) => (WORDS.start - CODE + r.below(0x4000)) as i32,
        _ => r.below(0x400) as i32 - 0x200,
    };
    let at = offsets.displacement_offset();
    bytes[at..at + 4].copy_from_slice(&displacement.to_le_bytes());
    bytes
}

fn instruction(r: &mut Random, f: Flavour, paging: Paging) -> Vec<u8> {
    loop {
        let bytes = f.candidate(r);
        let i = Decoder::with_ip(f.bits, &bytes, CODE, DecoderOptions::NONE).decode();
        if !i.is_invalid() && !f.leaves_out(&i, paging) {
            return bytes[..i.len()].to_vec();
        }
    }
}

/// Up to eight instructions, or more with branches, and a HLT.
fn code(r: &mut Random, f: Flavour, paging: Paging) -> Vec<u8> {
    if f.how == How::Freely {
        return branching_code(r, f, paging);
    }
    let mut code = Vec::new();
    for _ in 0..1 + r.below(8) {
        code.extend(instruction(r, f, paging));
    }
    code.push(0xf4);
    code
}

fn memory() -> GuestMemory {
    let regions = [Region::ram(0, MEMORY as u64), Region::ram(TABLES, 0x4000)];
    GuestMemory::new(MemoryMap::new(regions).expect("regions")).expect("memory")
}

/// Where a page is that its number names: data pages and the code's have aliases.
fn frame(page: u64) -> u64 {
    match page << 12 {
        ALIASES..ALIASES_END if page % 7 == 1 => CODE & !0xfff,
        ALIASES..ALIASES_END => DATA + ((page * 5 % 16) << 12),
        linear => linear,
    }
}

/// The first 2 MiB. Accessed and dirty: who sets those bits when is not compared.
fn store_page_tables(memory: &GuestMemory, paging: Paging) {
    let tables = TABLES + 0x3000;
    let upper = match paging {
        Paging::Level4 => [TABLES + 0x1027, TABLES + 0x2027, tables | 0x27],
        Paging::Pae => [TABLES + 0x1001, tables | 0x27, 0],
        Paging::Bits32 | Paging::None => [tables | 0x27, 0, 0],
    };
    for (n, entry) in upper.into_iter().enumerate() {
        memory.store(TABLES + n as u64 * 0x1000, &entry.to_le_bytes()).expect("page tables");
    }
    let size = if paging == Paging::Bits32 { 4 } else { 8 };
    for n in 0..512 {
        let entry = match (n << 12, n % 7) {
            (ALIASES..ALIASES_END, 3) => 0,
            (ALIASES..ALIASES_END, 5) => frame(n) | 0x65,
            _ => frame(n) | 0x67,
        };
        memory.store(tables + n * size as u64, &entry.to_le_bytes()[..size]).expect("page tables");
    }
}

/// Descriptors and handlers; data pages are filled from `r`.
fn memory_image(r: &mut Random, code: &[u8], paging: Paging) -> Vec<u8> {
    let mut m = vec![0; MEMORY];
    let mut put = |at: u64, v: u64| m[at as usize..at as usize + 8].copy_from_slice(&v.to_le_bytes());
    let descriptors = [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00cf_fb00_0000_ffff,
    ];
    for (i, d) in descriptors.into_iter().enumerate() {
        put(GDT + i as u64 * 8, d);
    }
    for v in 0..256 {
        if paging == Paging::Level4 {
            put(IDT + v * 16, (HANDLERS + v) | u64::from(CODE_64) << 16 | (0x8e00 << 32));
        } else {
            put(IDT + v * 8, (HANDLERS + v) | u64::from(CODE_32) << 16 | (0x8e00 << 32));
        }
    }
    // In a 32-bit TSS the stack segment follows.
    put(TSS + 4, KERNEL_STACK | if paging == Paging::Level4 { 0 } else { 0x18 << 32 });
    m[HANDLERS as usize..HANDLERS as usize + 256].fill(0xf4);
    for word in m[DATA as usize..].chunks_exact_mut(8) {
        word.copy_from_slice(&r.next().to_le_bytes());
    }
    m[CODE as usize..CODE as usize + code.len()].copy_from_slice(code);
    m
}

/// A program's state at CPL 0 or 3.
fn state(r: &mut Random, reset: CpuState, f: Flavour, paging: Paging) -> CpuState {
    let Flavour { bits, how } = f;
    let mut s = reset;
    let user = r.below(2) == 0;
    let dpl = if user { 0x60 } else { 0 };
    let data =
        Segment { selector: if user { 0x2b } else { 0x18 }, base: 0, limit: u32::MAX, access: 0xc093 | dpl };
    s.segments = [data; 6];
    s.segments[1] = match (bits, user) {
        (64, false) => Segment { selector: CODE_64, base: 0, limit: u32::MAX, access: 0xa09b },
        (64, true) => Segment { selector: 0x33, base: 0, limit: u32::MAX, access: 0xa0fb },
        (_, false) => Segment { selector: CODE_32, base: 0, limit: u32::MAX, access: 0xc09b },
        (_, true) => Segment { selector: 0x43, base: 0, limit: u32::MAX, access: 0xc0fb },
    };
    s.segments[4].base = DATA + 0x100;
    s.gdtr = TableRegister { base: GDT, limit: 0x47 };
    s.idtr = TableRegister { base: IDT, limit: 0xfff };
    s.tr = Segment { selector: 0x50, base: TSS, limit: 0x67, access: 0x8b };
    s.cr0 = cr0::PG | cr0::WP | cr0::PE | cr0::ET | cr0::NE | cr0::MP | cr0::AM;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::FSGSBASE | cr4::PAE;
    s.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    s.cr3 = TABLES;
    s.efer = efer::NXE;
    match paging {
        Paging::Level4 => s.efer |= efer::LME | efer::LMA,
        Paging::Pae => s.pdpte[0] = TABLES + 0x1001,
        Paging::Bits32 => s.cr4 ^= cr4::PAE | cr4::PSE,
        Paging::None => s.cr0 &= !cr0::PG,
    }
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
    if how == How::Freely {
        for g in &mut s.gpr {
            *g = if r.below(4) == 0 { r.below(16) } else { WORDS.start + r.below(WORDS.end - WORDS.start) };
        }
    }
    s.gpr[4] = DATA + 0xc000 + r.below(64);
    if bits == 32 {
        narrow_state(r, &mut s, how, paging);
    }
    fpu(r, &WORDS, &mut s);
    s
}

/// What 32-bit code finds: upper halves that 64-bit code has left behind, a base
/// of GS with a thread's data around it, now and then segments that are not flat.
fn narrow_state(r: &mut Random, s: &mut CpuState, how: How, paging: Paging) {
    if paging != Paging::Level4 || r.below(2) == 0 {
        s.gpr.iter_mut().for_each(|g| *g &= 0xffff_ffff);
    }
    if how == How::Freely && paging == Paging::Level4 && r.below(2) == 0 {
        // Not in RSP's: whether a push clears it is undefined (SDM volume 1, 3.4.1.1), and an
        // exception's frame in 64-bit code shows it.
        s.gpr.iter_mut().enumerate().filter(|(n, _)| *n != 4).for_each(|(_, g)| *g |= r.next() << 32);
    }
    s.segments[5].base = DATA + 0x4000 + r.below(0x4000);
    match r.below(16) {
        0 => s.segments[[0, 2, 3, 4, 5][r.below(5) as usize]].base = 0x10,
        1 => s.segments[2 + r.below(4) as usize].limit = 0x1_8000,
        2 => s.segments[[0, 3, 4, 5][r.below(4) as usize]] = Segment::default(),
        _ => {}
    }
}

/// Run a case on one engine.
fn run(rig: &mut Rig, f: Flavour, seed: u64, limit: u64) -> (CpuState, Vec<u8>) {
    run_to(rig, f, seed, limit).1
}

fn run_to(rig: &mut Rig, f: Flavour, seed: u64, limit: u64) -> (Halt, (CpuState, Vec<u8>)) {
    let start = place(rig, f, seed);
    // Whether it ends by its limit or by HLT does not matter where both are due.
    let (halt, end) = rig.run(&start, limit);
    assert!(!matches!(halt, Halt::Failed(_)), "seed {seed}: {halt:?}");
    (halt, (end, contents(rig)))
}

/// Put a case into a machine's memory.
fn place(rig: &Rig, f: Flavour, seed: u64) -> CpuState {
    let mut r = Random(seed);
    let paging = f.paging(seed);
    let code = code(&mut r, f, paging);
    assert!(code.len() < CODE_MAX, "{} bytes of code", code.len());
    rig.memory.store(0, &memory_image(&mut r, &code, paging)).expect("memory");
    store_page_tables(&rig.memory, paging);
    state(&mut r, rig.reset_state(), f, paging)
}

fn contents(rig: &Rig) -> Vec<u8> {
    let mut memory = vec![0; MEMORY];
    rig.memory.load(0, &mut memory).expect("memory");
    memory
}

/// The instructions of a case.
fn listing(f: Flavour, seed: u64) -> String {
    let code = code(&mut Random(seed), f, f.paging(seed));
    let mut text = String::new();
    for i in &mut Decoder::with_ip(f.bits, &code, CODE, DecoderOptions::NONE) {
        let at = (i.ip() - CODE) as usize;
        text += &format!("    {:x}: {i} {:02x?}\n", i.ip(), &code[at..at + i.len()]);
    }
    text
}

/// The difference after as few instructions as show one; `None` where the last of them
/// has a result of each engine's own: a jump into the middle of an instruction may find one.
fn explain(a: &mut Rig, b: &mut Rig, f: Flavour, seed: u64) -> Option<String> {
    let listing = listing(f, seed);
    let mut last = run(a, f, seed, 0);
    for limit in 1..=LIMIT {
        let ((x, mx), (y, my)) = (run(a, f, seed, limit), run(b, f, seed, limit));
        if x != y || mx != my {
            if has_own_result(&instruction_at(&last.1, f, last.0.rip)) {
                return None;
            }
            let at = mx.iter().zip(&my).position(|(p, q)| p != q);
            let bytes =
                at.map(|p| format!("memory at {p:#x}: {:02x} | {:02x}", mx[p], my[p])).unwrap_or_default();
            let text = format!("step {limit}\n{listing}    {}\n    {bytes}", differences(&x, &y));
            return Some(format!("seed {seed}, {text}"));
        }
        last = (x, mx);
    }
    let parting = if f.how == How::Freely { parting(a, b, f, seed)? } else { String::new() };
    let ((x, _), (y, _)) = (run(a, f, seed, f.limit()), run(b, f, seed, f.limit()));
    let listing = listing + &parting;
    Some(format!("seed {seed}: only at the end\n{listing}    {}", differences(&x, &y)))
}

/// Where two engines part when each executes one instruction at a time, if they do; `None`
/// where the case meets an instruction whose result is each engine's own.
fn parting(a: &mut Rig, b: &mut Rig, f: Flavour, seed: u64) -> Option<String> {
    let (mut x, mut y) = (place(a, f, seed), place(b, f, seed));
    for n in 0..ENDLESS {
        let i = instruction_at(&contents(a), f, x.rip);
        if has_own_result(&i) {
            return None;
        }
        let rip = x.rip;
        let halt;
        (halt, x) = a.run(&x, 1);
        (_, y) = b.run(&y, 1);
        if x != y || contents(a) != contents(b) {
            return Some(format!("    at step {n}, {rip:x}: {i}\n    {}\n", differences(&x, &y)));
        }
        if !matches!(halt, Halt::Limit) {
            break;
        }
    }
    Some("    not when each executes one instruction at a time\n".into())
}

/// The instruction at a linear address, with page tables as a case starts with.
fn instruction_at(memory: &[u8], f: Flavour, rip: u64) -> Instruction {
    let at = usize::try_from(frame(rip >> 12) | rip & 0xfff).unwrap_or(usize::MAX);
    let bytes = memory.get(at..).unwrap_or_default();
    Decoder::with_ip(f.bits, bytes, rip, DecoderOptions::NONE).decode()
}

/// Run cases of one flavour on all engines.
fn check(f: Flavour) {
    let number =
        |name, default| std::env::var(name).map_or(default, |s: String| s.parse().expect("a number"));
    let (cases, first) = (number("STRATA_RANDOM_CASES", 3000), number("STRATA_RANDOM_SEED", 1));
    let verbose = std::env::var_os("STRATA_RANDOM_VERBOSE").is_some();
    let engines = comparable_engines();
    let model = random_model();
    let mut rigs: Vec<Rig> = engines.iter().map(|e| f.rig(&**e, model.clone())).collect();
    let (reference, others) = rigs.split_first_mut().expect("an engine");
    let (mut wrong, mut own, mut endless) = (Vec::new(), 0, 0);
    for seed in ONCE_WRONG.into_iter().chain(first..first + cases) {
        if verbose {
            println!("seed {seed}\n{}", listing(f, seed));
        }
        let (halt, (end, memory)) = run_to(reference, f, seed, f.limit().min(ENDLESS));
        // Whoever overwrites handlers may never come to an end.
        if f.how != How::Stepped && matches!(halt, Halt::Limit) {
            endless += 1;
            continue;
        }
        for (n, other) in others.iter_mut().enumerate() {
            let (e, m) = run(other, f, seed, f.limit());
            if e == end && m == memory {
                continue;
            }
            match explain(reference, other, f, seed) {
                Some(found) if wrong.len() < 20 => wrong.push(format!("{}: {found}", engines[n + 1].name())),
                Some(_) => {}
                None => own += 1,
            }
        }
    }
    println!(
        "{cases} cases from seed {first} on {} engines: {} instructions, {own} that met results of their own, \
         {endless} without an end",
        engines.len(),
        reference.retired()
    );
    let few = if f.how == How::Freely { cases / 5 } else { cases / 1000 };
    assert!(own + endless <= 2 + few, "few cases show anything");
    assert!(wrong.is_empty(), "{} cases differ\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn engines_agree_on_random_instructions() {
    check(Flavour { bits: 64, how: How::Stepped });
}

#[test]
fn engines_agree_on_random_blocks() {
    check(Flavour { bits: 64, how: How::Straight });
}

#[test]
fn engines_agree_on_random_32_bit_instructions() {
    check(Flavour { bits: 32, how: How::Stepped });
}

#[test]
fn engines_agree_on_random_32_bit_blocks() {
    check(Flavour { bits: 32, how: How::Straight });
}

#[test]
fn engines_agree_on_random_branches() {
    check(Flavour { bits: 64, how: How::Freely });
}

#[test]
fn engines_agree_on_random_32_bit_branches() {
    check(Flavour { bits: 32, how: How::Freely });
}
