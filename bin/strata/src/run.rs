//! `strata run`: from arguments to an exit status.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use board::{
    Board, BoardIo, BootSpec, MachineSpec, MachineType, NetBackend, SerialSpec, TimeSource, VirtioTransport,
    VsockSpec,
};
use host_sys::{RawTerminal, SessionSignals};
use lifecycle::{EnginePlan, Outcome, Policy, Recorder, Symbols, Vm};
use machine_store::{Held, MachineStore, Restart};
use serde_json::json;
use vm_api::{Registration, Registry, RuntimeDir, Server};
use vm_process::{Console, ConsoleHub, Identity, Owner, Switch};

use crate::cli::{ConsoleKind, Format, Machine, MachineArgs, RunArgs, Time, Transport};
use crate::confine::Sandbox;
use crate::console::Keyboard;
use crate::failure::InputError;
use crate::kept::{self, Keeping, Trial};
use crate::output::{Destination, GuestStatus, Listeners, Markers, Output, Terminal, Watch};
use crate::phases::{Phase, Phases};
use crate::ports::Ports;
use crate::{console, definition, guest, shares};

/// `strata run`: a machine of this process, or one that outlasts it.
pub fn command(args: RunArgs, start: Instant) -> anyhow::Result<u8> {
    if let Some(id) = &args.keep.kept {
        // Nobody types at it from here, and the terminal's hang-up is not its end.
        rustix::process::setsid().context("cannot leave the terminal")?;
        let turn = args.keep.turn.as_deref().unwrap_or_default();
        return if args.keep.supervise { kept::supervise(id, turn) } else { run_kept(id, turn, start) };
    }
    let (args, words) = definition::complete(args)?;
    if args.keep.restart != Restart::No && !args.keep.detach {
        return Err(InputError("--restart needs a process that waits; add --detach".to_string()).into());
    }
    if !kept::wanted(&args) {
        return run(args, None, &Trial::default(), start);
    }
    // A wrong specification is told before anything is made.
    specification(&args)?.validate().map_err(board::BoardError::from)?;
    let held = kept::make(&args, words)?;
    if !args.keep.detach {
        let trial = Trial::of(&held);
        return run(args, Some(held), &trial, start);
    }
    let (store, made) = (MachineStore::open()?, held.kept.clone());
    match kept::start(held)? {
        Ok(id) => writeln!(std::io::stdout(), "{id}").map(|()| 0).map_err(Into::into),
        Err(status) => {
            // One that never ran is nobody's; it may have gone by itself.
            let _ = store.remove(&made);
            Ok(status)
        }
    }
}

/// Run a machine that is kept, as a process of its own.
fn run_kept(id: &str, turn: &str, start: Instant) -> anyhow::Result<u8> {
    let held = kept::take(id, turn)?;
    definition::enter(&held.kept.record.directory)?;
    let args = definition::parse(&held.kept.record.arguments)
        .map_err(|e| InputError(format!("the machine's arguments are not understood: {e}; make it again")))?;
    let directory = held.kept.directory().to_path_buf();
    let args = RunArgs { keep: crate::cli::KeepArgs { detach: true, ..args.keep }, ..args };
    // Whoever made it removes it.
    run(args, Some(held), &Trial::default(), start).inspect_err(|error| kept::note(&directory, error))
}

/// Run a machine to its end; answers the exit status.
fn run(args: RunArgs, held: Option<Held>, trial: &Trial, start: Instant) -> anyhow::Result<u8> {
    let phases = Arc::new(Phases::new(start));
    let mut spec = specification(&args)?;
    if let Some(held) = &held {
        kept::apply(held, &args, &mut spec)?;
    }
    // A wrong specification is told before anything is fetched or probed.
    spec.validate().map_err(board::BoardError::from)?;
    let recorder = recorder(&args)?;
    let socket = register(&args, held.as_ref())?;
    let built_in = spec.boot.kernel.is_none() && spec.boot.firmware.is_none();
    if built_in {
        let shown = args.format == Format::Text && !args.keep.detach;
        let found = guest::built_in(&args.command, args.machine.append.as_deref(), shown)?;
        spec.boot = BootSpec { protocol: spec.boot.protocol, ..found };
    }
    // Until here, where others may be long waited for, they end the process; threads come behind it.
    let signals = SessionSignals::block().context("cannot block signals")?;
    shares::add(&args.volumes, &mut spec)?;
    if spec.console && args.machine.append.is_none() {
        // Beside what is there: messages before the console's driver comes are COM1's.
        spec.boot.cmdline.push_str(" console=hvc0");
    }
    let ports = Ports::bind(&spec)?;
    phases.mark(Phase::Images);
    let virtual_time = spec.time == TimeSource::Virtual;
    let mut plan = lifecycle::plan(args.engine, virtual_time);
    plan.recorder = recorder;
    let switches = switches(&args, virtual_time);
    spec.tsc_khz = plan.clock.as_ref().map(|c| c.tsc_khz());
    phases.mark(Phase::Engine);
    let keeping = held.map(Keeping::open).transpose()?;
    let mut ready = keeping.as_ref().filter(|_| args.keep.detach).map(Keeping::redirect).transpose()?;
    let log = keeping.as_ref().map(Keeping::log).transpose()?;
    let leaving = keeping.as_ref().and_then(Keeping::leaves);
    let networks = board::open_networks(&spec).context("cannot open the network")?;
    let shares = board::open_shares(&spec).context("cannot share a folder")?;
    let vsock = vsock(&args, &mut spec, socket.as_ref().map(|s| &s.0))?;
    let serial = spec.serial.iter().map(Destination::open).collect::<anyhow::Result<_>>()?;
    let sandbox = if args.no_sandbox {
        None
    } else {
        Some(Sandbox::begin(&spec, socket.as_ref().map(|s| &s.0), leaving, trial.directory())?)
    };
    let guest_status = Arc::new(GuestStatus::default());
    let terminal = Terminal::start()?;
    let hub = Arc::new(ConsoleHub::default());
    let clock = plan.clock.clone();
    let io = BoardIo { networks, shares, vsock, ports: ports.outputs(), clock, ..BoardIo::new() };
    // Guests of images say what the built-in one says.
    let told = (built_in || args.image.is_some()).then(|| guest_status.clone());
    let console = Listeners { hub: hub.clone(), log };
    let board = build(spec, io, &args, &phases, Outputs { terminal: &terminal, serial, told, console })?;
    phases.mark(Phase::Machine);
    let vm = plan.launch(&board, Policy { reboot: !args.no_reboot }).context("cannot make the machine")?;
    announce(&args, &plan, socket.as_ref().map(|s| &s.0));
    phases.mark(Phase::Loaded);
    let mut owner = Owner::new(vm, &plan, start);
    if args.format == Format::Text {
        owner.on_switch(|name, took| eprintln!("strata: continued on engine {name} ({took:.1?})"));
        owner.on_wait(|what| eprintln!("strata: paused: the machine waits for {what}"));
    }
    admit(&args, &mut owner, ports)?;
    let id = socket.as_ref().map(|s| s.0.id().to_string()).unwrap_or_default();
    let _door = socket.map(|s| open_door(s, &mut owner, hub)).transpose()?;
    let raw = if args.keep.detach { None } else { start_console(&board)? };
    watch_signals(signals, &board)?;
    if let Some(sandbox) = sandbox {
        sandbox.seal(!switches.is_empty())?;
    }
    if let Some(ready) = &mut ready {
        ready.tell(&id);
    }
    phases.mark(Phase::FirstInstruction);
    trial.pass();
    let outcome = owner.run(switches, args.timeout);
    terminal.finish();
    drop(raw);
    let outcome = outcome?;
    report(&args, &plan, &phases, owner.vm(), &outcome, built_in)?;
    // A command's own status speaks for a run that ended as it should.
    let command = guest_status.last().filter(|_| matches!(outcome, Outcome::PowerOff));
    let status = command.unwrap_or(outcome.status());
    if let Some(keeping) = keeping {
        // Its disks are closed first.
        drop((owner, board));
        keeping.close(outcome.word(), status);
    }
    Ok(status)
}

/// Serve the guest's named ports, and let networks come where the process may make
/// sockets.
fn admit(args: &RunArgs, owner: &mut Owner, ports: Ports) -> anyhow::Result<()> {
    let board = owner.vm().board().clone();
    if args.no_sandbox || board.spec().nets.iter().any(|n| matches!(n.backend, NetBackend::Nat(_))) {
        owner.allow_networks();
    }
    board.ports().map_or(Ok(()), |handle| ports.serve(handle))
}

/// What the user should know of the engine and the machine's name.
fn announce(args: &RunArgs, plan: &EnginePlan, registration: Option<&Registration>) {
    if args.format != Format::Text {
        return;
    }
    if let Some(note) = &plan.note {
        eprintln!("strata: {note}");
    }
    if args.timings {
        eprintln!("strata: engine {} ({}, {:.0?})", plan.name(), plan.reason, plan.took);
        if let Some(registration) = registration {
            eprintln!("strata: machine {}", registration.id());
        }
    }
}

/// Take the machine up in the runtime directory. A host where that is not
/// possible still runs it, unless it was given a name to be found by.
fn register(args: &RunArgs, held: Option<&Held>) -> anyhow::Result<Option<(Registration, UnixListener)>> {
    let id = held.map(|held| &held.kept.record.id);
    // A detached machine outlasts the user's session.
    let places = RuntimeDir::make_each(args.keep.detach);
    match Registry::register_first(places, RuntimeDir::existing, id, args.name.as_ref()) {
        Ok(socket) => {
            if let (Some(held), Some(place)) = (held, socket.0.directory().parent()) {
                // Without it only commands of this environment find the machine.
                let _ = held.is_found_in(place);
            }
            Ok(Some(socket))
        }
        Err(e) if args.name.is_some() || args.keep.detach => Err(e.into()),
        Err(e) => {
            if args.format == Format::Text {
                eprintln!("strata: `strata ps` will not find this machine: {e}");
            }
            Ok(None)
        }
    }
}

/// The socket device and where it listens: in the machine's own directory. In virtual
/// time there is none, for the host's programs would make runs differ.
fn vsock(
    args: &RunArgs,
    spec: &mut MachineSpec,
    registration: Option<&Registration>,
) -> anyhow::Result<Option<UnixListener>> {
    let Some(registration) = registration.filter(|_| !args.no_vsock && spec.time == TimeSource::Host) else {
        return Ok(None);
    };
    let path = registration.vsock_path();
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}; start it with --no-vsock", path.display()))?;
    spec.vsock = Some(VsockSpec { to_host: args.vsock_to_host.clone(), ..VsockSpec::default() });
    Ok(Some(listener))
}

/// The machine's control socket and its place in the runtime directory.
struct Door {
    server: Server,
    /// Dropped last: as long as it is held, others find the machine.
    _registration: Registration,
}

impl Drop for Door {
    fn drop(&mut self) {
        /// For the answer to the request that ended the machine.
        const LAST_WORDS: Duration = Duration::from_millis(500);
        self.server.finish(LAST_WORDS);
    }
}

/// Serve the machine's control socket.
fn open_door(
    socket: (Registration, UnixListener),
    owner: &mut Owner,
    hub: Arc<ConsoleHub>,
) -> anyhow::Result<Door> {
    let (registration, listener) = socket;
    let board = owner.vm().board();
    let (mut desk, requests) = vm_process::desk(board.events().clone());
    if let Some(to) = Keyboard::of(board) {
        // What outlasts the machine does not hold it: its disks are closed at its end.
        let board = Arc::downgrade(board);
        desk = desk
            .with_console(Console::new(hub, move |bytes, goes_on| console::send(&board, to, bytes, goes_on)));
    }
    owner.serve(Identity { id: registration.id().clone(), name: registration.name().cloned() }, requests);
    let server = vm_api::serve(listener, Arc::new(desk)).context("cannot start the control thread")?;
    Ok(Door { server, _registration: registration })
}

/// Who is told of translated blocks, if anyone is to be.
fn recorder(args: &RunArgs) -> anyhow::Result<Option<Arc<Recorder>>> {
    let symbols = match &args.guest_symbols {
        Some(path) => Symbols::parse(&std::fs::read_to_string(path).with_context(|| {
            InputError(format!(
                "cannot read guest symbols {}; give the guest kernel's System.map",
                path.display()
            ))
        })?),
        None => Symbols::default(),
    };
    let made = if args.perf_map {
        Recorder::perf_map(symbols)
    } else if args.jitdump {
        Recorder::jitdump(Path::new("."), symbols)
    } else {
        return Ok(None);
    };
    Ok(Some(Arc::new(made.context("cannot make the file for perf")?)))
}

/// The engine switches asked for.
fn switches(args: &RunArgs, virtual_time: bool) -> Vec<Switch> {
    let plan = |choice| lifecycle::plan(choice, virtual_time);
    args.switch.iter().map(|(after, choice)| Switch { after: *after, plan: plan(*choice) }).collect()
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
        memory_max: args.memory_max,
        cpus: args.cpus,
        cpus_max: args.cpus_max,
        cpu: args.cpu.clone().unwrap_or_else(|| lifecycle::default_model().name.to_string()),
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
    spec.disks = args.disk.clone();
    spec.watchdog = args.watchdog;
    spec.balloon = (!args.no_balloon).then(board::BalloonSpec::default);
    let usual = args.image.is_some() || !args.disk.is_empty();
    spec.rng = (args.rng || usual && !args.no_rng).then(board::RngSpec::default);
    spec.virtio = match args.virtio_transport {
        Transport::Pci => VirtioTransport::Pci,
        Transport::Mmio => VirtioTransport::Mmio,
    };
    spec.console = args.console == ConsoleKind::Virtio;
    spec.ports = args.port.clone();
    spec.pmems = args.pmem.clone();
    spec.nets = args.network.cards(args.name.as_ref().map(ToString::to_string), args.image.is_some())?;
    if !args.serial.is_empty() {
        spec.serial = args.serial.clone();
    } else if spec.console {
        spec.serial = vec![SerialSpec::Null];
    }
    Ok(spec)
}

/// What the machine's consoles write to.
struct Outputs<'a> {
    terminal: &'a Terminal,
    /// One a serial port.
    serial: Vec<Destination>,
    /// Receives the exit status that the guest tells.
    told: Option<Arc<GuestStatus>>,
    console: Listeners,
}

fn build(
    spec: MachineSpec,
    mut io: BoardIo,
    args: &RunArgs,
    phases: &Arc<Phases>,
    outputs: Outputs<'_>,
) -> anyhow::Result<Arc<Board>> {
    let Outputs { terminal, serial, told, console } = outputs;
    let mut listeners = Some(console);
    let mut markers = told.map(|receiver| Markers { ready: guest::READY, status: guest::STATUS, receiver });
    let watch = |markers| Watch::new(phases.clone(), io.events.clone(), !args.ignore_panic, markers);
    if let Some(listeners) = listeners.take_if(|_| spec.console) {
        io.console = Some(Box::new(Output::terminal(terminal, watch(markers.take()), listeners)));
    }
    for (i, to) in serial.into_iter().enumerate() {
        // COM1 is the console, or has what comes before its driver.
        let watch = (i == 0).then(|| watch(markers.take()));
        let listeners = listeners.take_if(|_| matches!(to, Destination::Terminal));
        io.serial.push(Box::new(Output::new(to, terminal, watch, listeners)));
    }
    Ok(Board::build(spec, io)?)
}

/// Connect standard input to the console that wants it.
fn start_console(board: &Arc<Board>) -> anyhow::Result<Option<RawTerminal>> {
    let Some(to) = Keyboard::of(board) else { return Ok(None) };
    console::tell_size(board);
    let terminal = RawTerminal::enter().context("cannot set the terminal to raw mode")?;
    let (board, raw) = (Arc::downgrade(board), terminal.is_some());
    // Ends with the process: a read of standard input cannot be called back.
    std::thread::Builder::new()
        .name("console".to_string())
        .spawn(move || console::carry_input(&board, to, raw))
        .context("cannot start the console thread")?;
    Ok(terminal)
}

fn watch_signals(signals: SessionSignals, board: &Arc<Board>) -> anyhow::Result<()> {
    let (events, board) = (board.events().clone(), Arc::downgrade(board));
    std::thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            while signals.wait().is_none() {
                if let Some(board) = board.upgrade() {
                    console::tell_size(&board);
                }
            }
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
            "end_faults": vm.end_faults().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "phases_ms": phases.list().iter().map(|p| (p.0.to_string(), json!(ms(p.2)))).collect::<serde_json::Map<_, _>>(),
            "elapsed_ms": ms(phases.elapsed()),
            "counters": counters.iter().map(|c| (c.0.to_string(), json!(c.1))).collect::<serde_json::Map<_, _>>(),
        });
        writeln!(err, "{value}")?;
        return Ok(());
    }
    for fault in vm.end_faults() {
        writeln!(err, "strata: {fault}")?;
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
        other => Ok(writeln!(
            err,
            "strata: {other} after {:.1?} (engine {})",
            phases.elapsed(),
            vm.engine().name()
        )?),
    }
}
