//! Random programs, run freely: the translator's blocks, links, call prediction
//! and address tables end where the interpreter ends.
//!
//! `STRATA_RANDOM_CASES` says how many programs are run, `STRATA_RANDOM_SEED` where
//! they begin; `STRATA_RANDOM_VERBOSE` lists each before it runs, `STRATA_RANDOM_MODEL` is
//! another vCPU model.

use std::time::{Duration, Instant};

use conformance::program::emit::{Emitted, emit};
use conformance::program::{Program, generate, image, layout, shrink};
use conformance::random::{Random, differences, has_own_result};
use conformance::{Rig, comparable_engines, random_model};
use engine::{Engine, Halt};
use guest_memory::GuestMemory;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use x86_state::CpuState;

/// Instructions after which a program counts as one without an end.
const LIMIT: u64 = 400_000;
/// Longer than any program that ends takes on any engine: one that changes its own
/// page with most of its instructions takes long in translated code.
const PATIENCE: Duration = Duration::from_secs(30);
/// Programs that translated code never came to the end of (a window straddled pages
/// before an instruction that only a window makes translatable), or ran past #NM
/// (CVTSS2SI from memory names no vector register), or past a RET to an address that
/// is not canonical. A FUCOMI in patched code, which translated code executes where it runs
/// freely and the interpreter where both are stepped. An entry of the upper half changed under
/// one PCID and used under another that still knew it: whether that sets A is the processor's choice.
const ONCE_WRONG: [u64; 5] = [7_303_851, 30_101_537, 30_003_627, 620_001_412, 806_604_509];

/// A program with a REP MOVSB that copies over itself up to the end of the code: where
/// its turn ends meanwhile, other code runs.
const REPETITION_OVERWRITES_ITSELF: u64 = 501_000_686;

/// Time to make a difference small.
const SHRINKING: Duration = Duration::from_secs(40);

/// How a run ended.
#[derive(Clone, PartialEq)]
struct End {
    halted: bool,
    state: CpuState,
    memory: Vec<u8>,
}

fn rig(engine: &dyn Engine) -> Rig {
    let memory = GuestMemory::flat(layout::RAM as u64).expect("memory");
    Rig::new(engine, random_model(), memory)
}

/// Put a program into a machine's memory.
fn place(rig: &Rig, program: &Program, code: &Emitted) -> CpuState {
    rig.memory.store(0, &image::memory(&program.setup, code)).expect("memory");
    image::state(&program.setup, code.start, rig.reset_state())
}

/// What of a machine is a result.
fn end(rig: &Rig, halt: &Halt, state: CpuState) -> End {
    let mut memory = vec![0; layout::RAM];
    rig.memory.load(0, &mut memory).expect("memory");
    let stack = layout::NMI_STACK as usize..layout::NMI_STACK_TOP as usize;
    memory[stack].fill(0);
    End { halted: matches!(halt, Halt::Idle), state, memory }
}

/// Run on the reference; `None` when the program has no end.
fn reference(rig: &mut Rig, program: &Program, code: &Emitted) -> Option<End> {
    let start = place(rig, program, code);
    let (halt, state) = rig.run(&start, LIMIT);
    assert!(!matches!(halt, Halt::Failed(_)), "seed {}: {halt:?}", program.setup.seed);
    matches!(halt, Halt::Idle).then(|| end(rig, &halt, state))
}

fn freely(rig: &mut Rig, program: &Program, code: &Emitted) -> End {
    let start = place(rig, program, code);
    let (halt, state) = rig.run_freely(&start, PATIENCE);
    assert!(!matches!(halt, Halt::Failed(_)), "seed {}: {halt:?}", program.setup.seed);
    end(rig, &halt, state)
}

/// The log of exceptions, oldest first.
fn log(memory: &[u8]) -> Vec<[u64; 4]> {
    let word = |at: u64| u64::from_le_bytes(memory[at as usize..at as usize + 8].try_into().expect("eight"));
    let n = word(layout::SYSTEM);
    (n.saturating_sub(layout::LOG_ENTRIES)..n)
        .map(|i| layout::LOG + i % layout::LOG_ENTRIES * 32)
        .map(|at| [word(at), word(at + 8), word(at + 16), word(at + 24)])
        .collect()
}

/// Whether a program that ran wild has overwritten its page tables or the code that
/// flushes what it knows of them, or has loaded others: when that shows is the
/// processor's choice. `end` is the reference's, `other` the other engine's.
fn runs_wild(program: &Program, code: &Emitted, end: &End, other: &End) -> bool {
    let lost = |end: &End| !layout::ROOTS.contains(&(end.state.cr3 & !0xfff));
    if lost(end) || lost(other) {
        return true;
    }
    let before = image::memory(&program.setup, code);
    let is_window =
        |at: u64| layout::WINDOW_TABLES.iter().any(|t| (*t..*t + 8 * layout::WINDOW_COUNT).contains(&at));
    // But for rights, which are changed on purpose.
    let entry = |memory: &[u8], at: u64| {
        memory[at as usize..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes) >> 10)
    };
    let mut tables = (layout::TABLES..layout::RAM as u64).step_by(8).filter(|at| !is_window(*at));
    let ran = &end.memory[layout::CODE as usize..];
    tables.any(|at| entry(&before, at) != entry(&end.memory, at))
        || code.flushes().into_iter().any(|flush| code.bytes[flush.clone()] != ran[flush])
}

fn describe(a: &End, b: &End) -> String {
    let mut text = String::new();
    if a.halted != b.halted {
        text += &format!("    halted: {} | {}\n", a.halted, b.halted);
    }
    text += &format!("    {}\n", differences(&a.state, &b.state));
    let words = a.memory.chunks_exact(8).zip(b.memory.chunks_exact(8)).enumerate();
    for (n, (x, y)) in words.filter(|(_, (x, y))| x != y).take(12) {
        text += &format!("    memory at {:#x}: {x:02x?} | {y:02x?}\n", n * 8);
    }
    let (x, y) = (log(&a.memory), log(&b.memory));
    if let Some(n) = (0..x.len().max(y.len())).find(|n| x.get(*n) != y.get(*n)) {
        let from = n.saturating_sub(2);
        for i in from..(n + 2).min(x.len().max(y.len())) {
            text += &format!("    exception {i}: {:x?} | {:x?}\n", x.get(i), y.get(i));
        }
    }
    text
}

/// Whether a program ends differently on two fresh machines.
fn differs(engines: [&dyn Engine; 2], program: &Program) -> Option<(End, End)> {
    let code = emit(program)?;
    let a = reference(&mut rig(engines[0]), program, &code)?;
    let b = freely(&mut rig(engines[1]), program, &code);
    (a != b && !runs_wild(program, &code, &a, &b)).then_some((a, b))
}

/// Whether a program that ran wild has met an instruction whose result is each engine's own.
fn meets_own_result(engines: [&dyn Engine; 2], program: &Program, code: &Emitted) -> bool {
    let found = step_both(engines, program, code);
    found.parting.map_or(found.own_result, |(i, _)| has_own_result(&i))
}

/// What two engines do that execute one instruction at a time.
struct Stepped {
    /// The instruction at which they part, and how; `None` where only whole blocks differ.
    parting: Option<(Instruction, String)>,
    /// They met an instruction whose result is each engine's own: who executes it may be
    /// another when they run freely.
    own_result: bool,
}

fn step_both(engines: [&dyn Engine; 2], program: &Program, code: &Emitted) -> Stepped {
    let mut own_result = false;
    let mut rigs = engines.map(rig);
    let mut states = [place(&rigs[0], program, code), place(&rigs[1], program, code)];
    let start = Instant::now();
    for n in 0..LIMIT {
        let (rip, mut bytes) = (states[0].rip, [0; 16]);
        // Who has gone wild may fetch from where nothing is, and fault, and go on.
        let _ = rigs[0].memory.load(place_of_code(&rigs[0].memory, &states[0]), &mut bytes);
        let mut halted = false;
        let ends = [0, 1].map(|e| {
            let (halt, state) = rigs[e].run(&states[e], 1);
            halted |= matches!(halt, Halt::Idle);
            states[e] = state.clone();
            end(&rigs[e], &halt, state)
        });
        let i = Decoder::with_ip(64, &bytes, rip, DecoderOptions::NONE).decode();
        own_result |= has_own_result(&i);
        if ends[0] != ends[1] {
            let text = describe(&ends[0], &ends[1]);
            let text = format!("    at instruction {n}, {rip:x}: {i} {bytes:02x?}\n{text}");
            return Stepped { parting: Some((i, text)), own_result };
        }
        if halted || start.elapsed() > SHRINKING {
            break;
        }
    }
    Stepped { parting: None, own_result }
}

/// Where in RAM the code at a state's RIP is.
fn place_of_code(memory: &GuestMemory, state: &CpuState) -> u64 {
    let (base, table) = match state.rip {
        rip if rip >> 63 != 0 => (layout::HIGH, 1),
        _ if state.cr3 & !0xfff == layout::ROOTS[1] => (layout::LOW, 2),
        _ => (layout::LOW, 0),
    };
    let page = state.rip.wrapping_sub(base + layout::WINDOWS) >> 12;
    if page >= layout::WINDOW_COUNT {
        return state.rip & (layout::RAM as u64 - 1);
    }
    let mut entry = [0; 8];
    memory.load(layout::WINDOW_TABLES[table] + 8 * page, &mut entry).expect("in RAM");
    u64::from_le_bytes(entry) & 0xf_f000 | state.rip & 0xfff
}

/// Whether a repeated string instruction of a program overwrites itself. It goes on until
/// it is interrupted, here as on a processor; what goes on then is what it has made of
/// itself. Where turns end by the clock, when that is is chance.
fn repetition_overwrites_itself(reference: &mut Rig, program: &Program, code: &Emitted) -> bool {
    let mut state = place(reference, program, code);
    let start = Instant::now();
    for _ in 0..LIMIT {
        let at = place_of_code(&reference.memory, &state);
        let load = |rig: &Rig| {
            let mut bytes = [0; 15];
            rig.memory.load(at, &mut bytes).ok().map(|()| bytes)
        };
        let before = load(reference);
        let i = before.map(|b| Decoder::with_ip(64, &b, state.rip, DecoderOptions::NONE).decode());
        // One step is all of a repetition.
        let (halt, next) = reference.run(&state, 1);
        let repeats =
            |i: &Instruction| i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix());
        if let (Some(i), Some(before), Some(after)) = (i.filter(repeats), before, load(reference))
            && before[..i.len()] != after[..i.len()]
        {
            return true;
        }
        if !matches!(halt, Halt::Limit) || start.elapsed() > SHRINKING {
            break;
        }
        state = next;
    }
    false
}

fn explain(engines: [&dyn Engine; 2], program: &Program, found: &(End, End)) -> String {
    let seed = program.setup.seed;
    let mut text = describe(&found.0, &found.1);
    println!("seed {seed} differs:\n{text}");
    let mut last = None;
    let start = Instant::now();
    let small = shrink(program, |p| {
        let found = if start.elapsed() < SHRINKING { differs(engines, p) } else { None };
        let any = found.is_some();
        last = found.or(last.take());
        any
    });
    let Some((a, b)) = last else {
        return format!("seed {seed}: only after the programs before it\n{text}");
    };
    text = describe(&a, &b);
    let code = emit(&small).expect("it is smaller");
    let (_, parting) = step_both(engines, &small, &code).parting.unwrap_or_default();
    format!("seed {seed}: {:x?}\n{}{text}{parting}", small.setup, code.listing())
}

/// Run in slices on engines that take turns, each with its own state handed over,
/// over the same memory; NMIs arrive at some boundaries, where they leave no trace.
fn in_turns(rigs: &mut [Rig], r: &mut Random, program: &Program, code: &Emitted) -> End {
    let mut state = place(&rigs[0], program, code);
    let start = Instant::now();
    loop {
        let at = r.below(rigs.len() as u64) as usize;
        let rig = &mut rigs[at];
        state.nmi_pending |= r.below(4) == 0 && image::has_null_data_segments(&program.setup);
        let halt;
        (halt, state) = match r.below(3) {
            0 => rig.run(&state, 1 + r.below(3000)),
            _ => rig.run_freely(&state, Duration::from_micros(r.below(400))),
        };
        assert!(!matches!(halt, Halt::Failed(_)), "seed {}: {halt:?}", program.setup.seed);
        // A program that has gone wild may never take its NMI.
        let waiting = start.elapsed() < PATIENCE && (state.nmi_pending || !matches!(halt, Halt::Idle));
        if !waiting {
            return end(rig, &halt, state);
        }
    }
}

#[test]
fn programs_end_the_same_when_engines_take_turns() {
    let (cases, first) = (number("STRATA_RANDOM_CASES", 2000) / 5, number("STRATA_RANDOM_SEED", 1));
    let engines = comparable_engines();
    let mut reference_rig = rig(&*engines[0]);
    let memory = GuestMemory::flat(layout::RAM as u64).expect("memory");
    let mut rigs: Vec<Rig> = engines.iter().map(|e| Rig::new(&**e, random_model(), memory.clone())).collect();
    let (mut wrong, mut chance, mut ran_wild) = (Vec::new(), 0, 0);
    for seed in [REPETITION_OVERWRITES_ITSELF].into_iter().chain(first..first + cases) {
        let program = generate(seed);
        let Some(code) = emit(&program) else { continue };
        let Some(a) = reference(&mut reference_rig, &program, &code) else { continue };
        let b = in_turns(&mut rigs, &mut Random(seed), &program, &code);
        let own = |e: &dyn Engine| meets_own_result([&*engines[0], e], &program, &code);
        let wild = || runs_wild(&program, &code, &a, &b) || engines.iter().skip(1).any(|e| own(&**e));
        if a == b || wrong.len() >= 5 {
            continue;
        }
        if wild() {
            ran_wild += 1;
            continue;
        }
        if repetition_overwrites_itself(&mut reference_rig, &program, &code) {
            chance += 1;
            continue;
        }
        let text = describe(&a, &b);
        let again = (0..100).filter(|n| in_turns(&mut rigs, &mut Random(seed + n), &program, &code) != a);
        wrong.push(format!("seed {seed}, {} of 100 times again\n{text}", again.count()));
    }
    println!(
        "{cases} programs in turns from seed {first}: {} instructions, {ran_wild} that run wild, \
         {chance} that overwrite what they repeat",
        reference_rig.retired()
    );
    assert!(chance + ran_wild <= 2 + cases / 100, "few programs show anything");
    assert!(wrong.is_empty(), "{} programs differ\n{}", wrong.len(), wrong.join("\n"));
}

/// Whose result depends on when a turn ends is told by what it does, not by trying.
#[test]
fn a_repetition_that_overwrites_itself_is_recognized() {
    let engines = comparable_engines();
    let mut rig = rig(&*engines[0]);
    for (seed, expected) in [(REPETITION_OVERWRITES_ITSELF, true), (1, false), (2, false), (3, false)] {
        let program = generate(seed);
        let code = emit(&program).expect("it fits");
        assert_eq!(repetition_overwrites_itself(&mut rig, &program, &code), expected, "seed {seed}");
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |s| s.parse().expect("a number"))
}

#[test]
fn engines_agree_on_random_programs() {
    let (cases, first) = (number("STRATA_RANDOM_CASES", 2000), number("STRATA_RANDOM_SEED", 1));
    let verbose = std::env::var_os("STRATA_RANDOM_VERBOSE").is_some();
    let engines = comparable_engines();
    let (first_engine, others) = engines.split_first().expect("an engine");
    let mut reference_rig = rig(&**first_engine);
    let mut rigs: Vec<Rig> = others.iter().map(|e| rig(&**e)).collect();
    let (mut wrong, mut endless, mut exceptions, mut wild) = (Vec::new(), 0, 0, 0);
    for seed in ONCE_WRONG.into_iter().chain(first..first + cases) {
        let program = generate(seed);
        let Some(code) = emit(&program) else { continue };
        if verbose {
            println!("seed {seed}: {:x?}\n{}", program.setup, code.listing());
        }
        let Some(a) = reference(&mut reference_rig, &program, &code) else {
            endless += 1;
            continue;
        };
        exceptions += log(&a.memory).len();
        for (engine, rig) in others.iter().zip(&mut rigs) {
            let b = freely(rig, &program, &code);
            if a == b {
                continue;
            }
            let engines = [&**first_engine, &**engine];
            if runs_wild(&program, &code, &a, &b) || meets_own_result(engines, &program, &code) {
                wild += 1;
            } else if wrong.len() < 10 {
                let found = explain(engines, &program, &(a.clone(), b));
                wrong.push(format!("{}: {found}", engine.name()));
            }
        }
    }
    println!(
        "{cases} programs from seed {first}: {} instructions, {exceptions} exceptions, \
         {endless} programs without an end, {wild} that run wild",
        reference_rig.retired()
    );
    // Programs that show nothing would pass as well.
    assert!(endless + wild <= 10 + cases / 10 && exceptions as u64 > cases, "few programs show anything");
    assert!(wrong.is_empty(), "{} programs differ\n{}", wrong.len(), wrong.join("\n"));
}
