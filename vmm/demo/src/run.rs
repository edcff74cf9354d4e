//! Running the demo guest on engines.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use device_model::Clock;
use engine::{Engine, EngineError};
use guest_memory::GuestMemory;
use interpreter::Interpreter;
use kvm::{KvmEngine, Options};
use translator::Translator;
use x86_state::CpuModel;

use crate::guest::{self, phase};
use crate::layout::{self, address};
use crate::machine::{Machine, MachineError, Notes, Plan};
use crate::report::{Format, Report, print};

/// How long one engine may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Iterations of a measured loop's first pass.
const FIRST_PASS: u32 = 2_000;
/// What a measured pass should take.
const AIM: Duration = Duration::from_millis(150);
/// Most iterations of a pass: what the fastest hosts do in a few seconds.
const MOST: f64 = 400e6;

/// Makes an engine for a machine.
type Make = Box<dyn Fn(&GuestMemory, &CpuModel, &Clock) -> Result<Arc<dyn Engine>, EngineError>>;

/// An engine to show.
pub struct DemoEngine {
    /// Its name.
    pub name: &'static str,
    /// What is known of it on this host.
    pub note: String,
    /// A clock for a machine on it.
    pub clock: Clock,
    /// Makes it.
    pub make: Make,
}

/// Every engine this host can run guests on.
pub fn available_engines() -> Vec<DemoEngine> {
    let mut list = vec![DemoEngine {
        name: "interp",
        note: "the interpreter, on any host".into(),
        clock: Clock::host(CpuModel::DEFAULT_TSC_KHZ),
        make: Box::new(|_, _, _| Ok(Arc::new(Interpreter))),
    }];
    if Translator::check_host().and_then(|()| Translator::check_reservation(1)).is_ok() {
        list.push(DemoEngine {
            name: "jit",
            note: "the translator, on x86-64 hosts".into(),
            clock: Clock::host(CpuModel::DEFAULT_TSC_KHZ),
            make: Box::new(|_, _, _| Ok(Arc::new(Translator))),
        });
    }
    let probe = kvm::probe();
    if let (true, Some(tsc)) = (probe.present, probe.tsc) {
        let (note, clock) = (probe.reason.clone(), tsc.clock());
        list.push(DemoEngine {
            name: kvm::NAME,
            note,
            clock,
            make: Box::new(move |memory, model, clock| {
                // The guest asks nothing of CPUID.
                let options =
                    Options { accept_other_cpuid: true, ..Options::for_host(&probe, Arc::new(Interpreter)) };
                Ok(Arc::new(KvmEngine::new(memory, model, clock, options)?))
            }),
        });
    }
    list
}

/// Run the demo on each engine and print the results. True if all went right.
///
/// # Errors
/// When `out` cannot be written.
pub fn run(engines: &[DemoEngine], format: Format, out: &mut dyn Write) -> io::Result<bool> {
    let reports: Vec<Report> = engines.iter().map(run_one).collect();
    print(&reports, format, out)?;
    Ok(reports.iter().all(|r| r.ok))
}

/// Run the demo on one engine.
pub fn run_one(engine: &DemoEngine) -> Report {
    let mut report = Report {
        engine: engine.name.into(),
        note: engine.note.clone(),
        ok: false,
        error: None,
        said: String::new(),
        start_us: 0.0,
        ring0_mips: 0.0,
        ring3_mips: 0.0,
        memory_mwords: 0.0,
        ticks: 0,
        tick_us: 0.0,
        syscall_ns: 0.0,
        counters: Vec::new(),
    };
    match execute(engine, &mut report) {
        Ok(None) => report.ok = true,
        Ok(wrong) => report.error = wrong,
        Err(e) => report.error = Some(e.to_string()),
    }
    report
}

/// Put the guest into a machine's memory.
fn load(memory: &GuestMemory) -> Result<(), MachineError> {
    let guest = guest::assemble().expect("the guest's source is constant and assembles");
    layout::write_tables(memory)?;
    for (vector, handler) in guest.handlers {
        layout::write_gate(memory, vector, handler, false)?;
    }
    for piece in &guest.pieces {
        memory.store(piece.address, &piece.bytes)?;
    }
    Ok(())
}

/// Returns what the guest got wrong, if anything.
fn execute(engine: &DemoEngine, report: &mut Report) -> Result<Option<String>, MachineError> {
    let model = CpuModel::default_model().with_tsc_khz(engine.clock.tsc_khz());
    let machine = Machine::new(address::END, model, engine.clock.clone(), plan())?;
    load(machine.memory())?;
    let made = (engine.make)(machine.memory(), machine.model(), machine.clock())?;
    let mut vcpu = machine.vcpu(&*made)?;
    vcpu.set_state(&layout::real_mode())?;
    let started = Instant::now();
    let status = machine.run(&mut *vcpu, PATIENCE);
    report.counters = vcpu.counters();
    let notes = machine.notes();
    report.said = String::from_utf8_lossy(&notes.serial).into_owned();
    measure(&notes, started, report);
    let status = status?;
    Ok(check(status, &notes.values, report))
}

/// What is wrong with the guest's results.
fn check(status: u32, values: &[u32], report: &Report) -> Option<String> {
    if status != guest::SUCCESS {
        let vector = status.wrapping_sub(guest::UNEXPECTED);
        return Some(format!("the guest took exception {vector}, which it did not expect"));
    }
    if report.said != guest::HELLO {
        return Some(format!("the guest said {:?} instead of {:?}", report.said, guest::HELLO));
    }
    if values.first() != Some(&guest::compute_result(FIRST_PASS)) {
        return Some(format!("the guest computed {:#x?}", values.first()));
    }
    match values.last() {
        Some(0) => None,
        errors => Some(format!("{errors:?} words of memory came back wrong")),
    }
}

/// Counts for measured loops: a short pass, then one long enough to time, then 0.
fn plan() -> Plan {
    let mut asked = 0u32;
    Box::new(move |marks| {
        asked += 1;
        match asked % 3 {
            1 => FIRST_PASS,
            2 => {
                let took = match marks {
                    [.., (_, begin), (_, end)] => end.duration_since(*begin),
                    _ => return 0,
                };
                let scale = AIM.as_secs_f64() / took.as_secs_f64().max(1e-6);
                (f64::from(FIRST_PASS) * scale).clamp(f64::from(FIRST_PASS), MOST) as u32
            }
            _ => 0,
        }
    })
}

/// Fill in the figures from what the guest told.
fn measure(notes: &Notes, started: Instant, report: &mut Report) {
    let marks = &notes.marks;
    // The last pass of a phase is the long one.
    let last = |number: u32| {
        let end = marks.iter().rposition(|(n, _)| *n == number + phase::END)?;
        let begin = marks[..end].iter().rposition(|(n, _)| *n == number)?;
        Some(marks[end].1.duration_since(marks[begin].1).as_secs_f64().max(1e-9))
    };
    // Counts come in threes, short, long and 0, for the measured loops in turn.
    let per_second = |number, turn: usize| {
        let count = notes.counts.get(3 * turn + 1).copied().unwrap_or(0);
        last(number).map_or(0.0, |t| f64::from(count) / t)
    };
    if let Some((_, first)) = marks.first() {
        report.start_us = first.duration_since(started).as_secs_f64() * 1e6;
    }
    let mips = f64::from(guest::COMPUTE_INSTRUCTIONS) / 1e6;
    report.ring0_mips = per_second(phase::COMPUTE, 0) * mips;
    report.ring3_mips = per_second(phase::USER, 1) * mips;
    report.syscall_ns = 1e9 / per_second(phase::SYSCALLS, 2).max(1.0);
    report.memory_mwords = last(phase::MEMORY).map_or(0.0, |t| f64::from(guest::WORDS) * 2.0 / t / 1e6);
    if let Some(t) = last(phase::TIMER) {
        report.ticks = guest::TICKS;
        report.tick_us = t * 1e6 / f64::from(guest::TICKS);
    }
}
