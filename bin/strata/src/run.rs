//! `strata run`: from arguments to an exit status.

use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use board::{Board, BoardIo, BootSpec, MachineSpec, MachineType, SerialSpec, TimeSource};
use host_sys::{RawTerminal, TerminationSignals};
use lifecycle::{EnginePlan, Outcome, Policy, Vm};
use serde_json::json;

use crate::cli::{Format, Machine, MachineArgs, RunArgs, Time};
use crate::output::{Markers, Output, Terminal, Watch};
use crate::phases::{Phase, Phases};
use crate::{console, guest};

/// Run a machine to its end; answers the exit status.
pub fn command(args: RunArgs, start: Instant) -> anyhow::Result<u8> {
    let phases = Arc::new(Phases::new(start));
    let signals = TerminationSignals::block().context("cannot block termination signals")?;
    let mut spec = specification(&args)?;
    // A wrong specification is told before anything is fetched or probed.
    spec.validate().map_err(board::BoardError::from)?;
    let built_in = spec.boot.kernel.is_none() && spec.boot.firmware.is_none();
    if built_in {
        let shown = args.format == Format::Text;
        let found = guest::built_in(&args.command, args.machine.append.as_deref(), shown)?;
        spec.boot = BootSpec { protocol: spec.boot.protocol, ..found };
    }
    phases.mark(Phase::Images);
    let virtual_time = spec.time == TimeSource::Virtual;
    let mut plan = lifecycle::plan(args.engine, virtual_time);
    let mut switches = switches(&args, virtual_time);
    // The one clock must suit every engine the machine will meet.
    if let Some(clock) = switches.iter().find_map(|s| s.1.clock.clone()) {
        plan.clock.get_or_insert(clock);
    }
    spec.tsc_khz = plan.clock.as_ref().map(|c| c.tsc_khz());
    phases.mark(Phase::Engine);
    let guest_status = Arc::new(OnceLock::new());
    let terminal = Terminal::start()?;
    let io = BoardIo { clock: plan.clock.clone(), ..BoardIo::new() };
    let board = build(spec, io, &args, &phases, &terminal, built_in.then(|| guest_status.clone()))?;
    phases.mark(Phase::Machine);
    let engine = plan.make(&board).context("the engine refuses this machine")?;
    if args.timings && args.format == Format::Text {
        eprintln!("strata: engine {} ({}, {:.0?})", plan.name(), plan.reason, plan.took);
    }
    let mut vm = Vm::new(board.clone(), engine, Policy { reboot: !args.no_reboot })?;
    phases.mark(Phase::Loaded);
    let raw = start_console(&board)?;
    watch_signals(signals, &board)?;
    phases.mark(Phase::FirstInstruction);
    vm.start()?;
    let outcome = follow(&mut vm, &mut switches, args.timeout);
    vm.stop();
    terminal.finish();
    drop(raw);
    let outcome = outcome?;
    report(&args, &plan, &phases, &vm, &outcome, built_in)?;
    // A command's own status speaks for a run that ended as it should.
    let command = guest_status.get().copied().filter(|_| matches!(outcome, Outcome::PowerOff));
    Ok(command.unwrap_or(outcome.status()))
}

/// The engine switches asked for, in order of time.
fn switches(args: &RunArgs, virtual_time: bool) -> Vec<(Duration, EnginePlan)> {
    let mut list: Vec<_> =
        args.switch.iter().map(|(t, choice)| (*t, lifecycle::plan(*choice, virtual_time))).collect();
    list.sort_by_key(|s| s.0);
    list
}

/// Watch the machine to its end, switching engines on the way.
fn follow(
    vm: &mut Vm,
    switches: &mut [(Duration, EnginePlan)],
    timeout: Option<Duration>,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    for (after, plan) in switches.iter_mut().filter(|s| timeout.is_none_or(|t| s.0 < t)) {
        if let Some(outcome) = vm.watch(Some(start + *after))? {
            return Ok(outcome);
        }
        let engine = plan.make(vm.board()).context("the engine refuses this machine")?;
        let began = Instant::now();
        vm.switch_engine(engine).with_context(|| format!("cannot continue on engine {}", plan.name()))?;
        eprintln!("strata: continued on engine {} ({:.1?})", plan.name(), began.elapsed());
    }
    Ok(vm.watch(timeout.map(|t| start + t))?.unwrap_or(Outcome::Timeout))
}

/// The machine part of a command line.
pub fn machine_specification(args: &MachineArgs) -> MachineSpec {
    let default_append = if args.kernel.is_some() { "console=ttyS0" } else { "" };
    MachineSpec {
        machine: match args.machine {
            Machine::Micro => MachineType::Micro,
            Machine::Q35 => MachineType::Q35,
        },
        memory: args.memory,
        cpus: args.cpus,
        cpu: args.cpu.clone(),
        boot: BootSpec {
            kernel: args.kernel.clone(),
            initrd: args.initrd.clone(),
            cmdline: args.append.clone().unwrap_or_else(|| default_append.to_string()),
            firmware: args.firmware.clone(),
            protocol: args.boot_protocol,
        },
        ..MachineSpec::default()
    }
}

fn specification(args: &RunArgs) -> anyhow::Result<MachineSpec> {
    let mut spec = machine_specification(&args.machine);
    spec.time = match args.time {
        Time::Host => TimeSource::Host,
        Time::Virtual => TimeSource::Virtual,
    };
    spec.debug_exit = args.debug_exit;
    if !args.serial.is_empty() {
        spec.serial = args.serial.clone();
    }
    Ok(spec)
}

fn build(
    spec: MachineSpec,
    mut io: BoardIo,
    args: &RunArgs,
    phases: &Arc<Phases>,
    terminal: &Terminal,
    guest_status: Option<Arc<OnceLock<u8>>>,
) -> anyhow::Result<Arc<Board>> {
    let mut markers =
        guest_status.map(|receiver| Markers { ready: guest::READY, status: guest::STATUS, receiver });
    for (i, serial) in spec.serial.iter().enumerate() {
        // COM1 is the console.
        let watch = (i == 0)
            .then(|| Watch::new(phases.clone(), io.events.clone(), !args.ignore_panic, markers.take()));
        io.serial.push(Box::new(Output::open(serial, terminal, watch)?));
    }
    Ok(Board::build(spec, io)?)
}

/// Connect standard input to the port that wants it.
fn start_console(board: &Arc<Board>) -> anyhow::Result<Option<RawTerminal>> {
    let Some(port) = board.spec().serial.iter().position(|s| *s == SerialSpec::Stdio) else {
        return Ok(None);
    };
    let terminal = RawTerminal::enter().context("cannot set the terminal to raw mode")?;
    let (board, raw) = (board.clone(), terminal.is_some());
    // Ends with the process: a read of standard input cannot be called back.
    std::thread::Builder::new()
        .name("console".to_string())
        .spawn(move || console::carry_input(&board, port, raw))
        .context("cannot start the console thread")?;
    Ok(terminal)
}

fn watch_signals(signals: TerminationSignals, board: &Arc<Board>) -> anyhow::Result<()> {
    let events = board.events().clone();
    std::thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            signals.wait();
            events.post(board::MachineEvent::Stop);
        })
        .context("cannot start the signal thread")?;
    Ok(())
}

fn report(
    args: &RunArgs,
    plan: &EnginePlan,
    phases: &Phases,
    vm: &Vm,
    outcome: &Outcome,
    built_in: bool,
) -> anyhow::Result<()> {
    let counters: Vec<_> = vm.counters().into_iter().chain(vm.board().counters()).collect();
    let mut err = std::io::stderr().lock();
    if args.format == Format::Json {
        let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        let value = json!({
            "outcome": outcome.word(),
            "message": outcome.to_string(),
            "status": outcome.status(),
            "engine": vm.engine().name(),
            "engine_reason": plan.reason,
            "resets": vm.resets(),
            "instructions": vm.retired(),
            "phases_ms": phases.list().iter().map(|p| (p.0.to_string(), json!(ms(p.2)))).collect::<serde_json::Map<_, _>>(),
            "elapsed_ms": ms(phases.elapsed()),
            "counters": counters.iter().map(|c| (c.0.to_string(), json!(c.1))).collect::<serde_json::Map<_, _>>(),
        });
        writeln!(err, "{value}")?;
        return Ok(());
    }
    if args.timings || built_in {
        for (_, text, total, since) in phases.list() {
            writeln!(
                err,
                "strata: {:>9.1} ms  {text} (+{:.1} ms)",
                total.as_secs_f64() * 1e3,
                since.as_secs_f64() * 1e3
            )?;
        }
    }
    if args.timings {
        if let Some(retired) = vm.retired() {
            writeln!(err, "strata: {retired} instructions")?;
        }
        for (name, value) in &counters {
            writeln!(err, "strata: {value} {name}")?;
        }
    }
    if matches!(outcome, Outcome::Timeout | Outcome::TripleFault { .. } | Outcome::Error { .. }) {
        for (i, state) in vm.last_states().iter().enumerate() {
            let next = compare::Instruction::at(vm.board().memory(), state);
            writeln!(err, "strata: vCPU {i} {:?} at {next}", state.activity)?;
        }
    }
    match outcome {
        Outcome::PowerOff | Outcome::DebugExit(_) if !args.timings => Ok(()),
        other => {
            Ok(writeln!(err, "strata: {other} after {:.1?} (engine {})", phases.elapsed(), plan.name())?)
        }
    }
}
