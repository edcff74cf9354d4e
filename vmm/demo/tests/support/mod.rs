//! Runs a guest program on every engine and compares what it reports.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::Arc;
use std::time::Duration;

use demo::DemoEngine;
use demo::layout::{self, address};
use demo::machine::{Machine, MachineError, port};
use device_model::Clock;
use engine::{Engine, EngineError};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use interpreter::Interpreter;
use kvm::{Assistance, KvmEngine, MissingFeatures, Options};
use translator::Translator;
use x86_state::{CpuModel, reg, rflags};

pub const PATIENCE: Duration = Duration::from_secs(20);
/// What a program that got to its end writes to the exit port.
pub const EXIT_OK: u32 = 1;
/// What an unexpected exception writes, plus its vector.
const EXIT_EXCEPTION: u32 = 0xe00;
/// Where handlers lie, and how far apart.
const HANDLERS: u64 = address::CODE + 0x8000;
const HANDLER_SPACE: u64 = 0x80;

/// What a program starts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected,
    Long,
    User,
}

type Source = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A guest program and what it must report.
pub struct Program<'a> {
    pub name: &'a str,
    pub mode: Mode,
    pub code: Source,
    /// Handlers of vectors, long mode only; others end the program.
    pub handlers: &'a [(u8, Source)],
    pub values: &'a [u32],
    pub said: &'a str,
    /// Engines that cannot give what it asks for where KVM interprets supervisor code.
    pub not_interpreted: &'a [&'a str],
}

impl Program<'_> {
    /// For `..Program::EMPTY`.
    pub const EMPTY: Program<'static> = Program {
        name: "",
        mode: Mode::Long,
        code: exit,
        handlers: &[],
        values: &[],
        said: "",
        not_interpreted: &[],
    };
}

/// Wait until the counter at `address` is `count`, for a bounded time: a host
/// whose KVM interprets delivers an interrupt some instructions late.
pub fn wait_for_count(a: &mut CodeAssembler, address: u64, count: u32) -> Result<(), IcedError> {
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.mov(ecx, 1_000_000)?;
    a.set_label(&mut again)?;
    a.cmp(dword_ptr(address), count)?;
    a.jae(done)?;
    a.dec(ecx)?;
    a.jnz(again)?;
    a.set_label(&mut done)?;
    a.cli()
}

/// Report a register. Changes EAX and EDX.
pub fn value(a: &mut CodeAssembler, r: AsmRegister32) -> Result<(), IcedError> {
    if r != eax {
        a.mov(eax, r)?;
    }
    a.mov(edx, u32::from(port::VALUE))?;
    a.out(dx, eax)
}

/// End the program.
pub fn exit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, EXIT_OK)?;
    a.mov(edx, u32::from(port::EXIT))?;
    a.out(dx, eax)?;
    let mut stop = a.create_label();
    a.set_label(&mut stop)?;
    a.jmp(stop)
}

/// The demo's loop, ECX times, and its result.
pub fn compute_program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r9, 6_364_136_223_846_793_005u64)?;
    a.mov(r10, 1_442_695_040_888_963_407u64)?;
    a.mov(r8d, 1)?;
    a.xor(ebx, ebx)?;
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.imul_2(r8, r9)?;
    a.add(r8, r10)?;
    a.xor(rbx, r8)?;
    a.dec(ecx)?;
    a.jnz(again)?;
    a.shr(rbx, 32)?;
    value(a, ebx)?;
    exit(a)
}

/// A model as [`machine`] uses it: with the TSC of the host's KVM, if there is one.
pub fn host_model(model: CpuModel) -> CpuModel {
    match kvm::host_tsc() {
        Some(tsc) => model.with_tsc_khz(tsc.khz),
        None => model,
    }
}

fn host_clock() -> Clock {
    kvm::host_tsc().map_or_else(|| Clock::host(CpuModel::DEFAULT_TSC_KHZ), |tsc| tsc.clock())
}

fn kvm_with(assistant: bool, assistance: Assistance) -> DemoEngine {
    let name = match (assistant, assistance) {
        (false, _) => "kvm alone",
        (true, Assistance::OnFailure) => "kvm",
        (true, Assistance::Supervisor) => "kvm for user code",
    };
    DemoEngine {
        name,
        note: String::new(),
        clock: host_clock(),
        make: Box::new(move |memory, model, clock| {
            let assistant = assistant.then(|| Arc::new(Interpreter) as Arc<dyn Engine>);
            let restricted = !kvm::probe().ring0_native;
            let options = Options {
                missing: MissingFeatures::Continue,
                assistant,
                assistance,
                confine_user: restricted,
                shadow_paging: restricted,
                accept_other_cpuid: true,
            };
            Ok(Arc::new(KvmEngine::new(memory, model, clock, options)?))
        }),
    }
}

/// Every engine of this host, and KVM with and without its assistant.
pub fn engines() -> Vec<DemoEngine> {
    let mut list = vec![DemoEngine {
        name: "interp",
        note: String::new(),
        clock: host_clock(),
        make: Box::new(|_, _, _| Ok(Arc::new(Interpreter))),
    }];
    match Translator::check_host() {
        Ok(()) => list.push(DemoEngine {
            name: "jit",
            note: String::new(),
            clock: host_clock(),
            make: Box::new(|_, _, _| Ok(Arc::new(Translator))),
        }),
        Err(e) => eprintln!("the translator is not tested: {e}"),
    }
    if kvm::host_tsc().is_some() {
        list.push(kvm_with(false, Assistance::OnFailure));
        list.push(kvm_with(true, Assistance::OnFailure));
        list.push(kvm_with(true, Assistance::Supervisor));
    } else {
        eprintln!("KVM is not tested: no usable /dev/kvm");
    }
    list
}

pub fn machine(engine: &DemoEngine, model: CpuModel) -> Machine {
    Machine::new(address::END, host_model(model), engine.clock.clone(), Box::new(|_| 0)).unwrap()
}

/// A machine that any of `engines` may run.
pub fn machine_for(engines: &[DemoEngine], model: CpuModel) -> Machine {
    machine(&engines[0], model)
}

/// Run a program on every engine and compare.
pub fn check(program: &Program<'_>) {
    let interprets = !kvm::probe().ring0_native;
    for engine in engines() {
        if interprets && program.not_interpreted.contains(&engine.name) {
            eprintln!("{}: skipped on {}: this host's KVM interprets", program.name, engine.name);
            continue;
        }
        match run(program, &engine) {
            Ok(()) => {}
            // On a host whose KVM interprets supervisor code, KVM alone does not get everywhere.
            Err(MachineError::Engine(e @ EngineError::Unsupported { .. })) if engine.name == "kvm alone" => {
                eprintln!("{}: skipped on {}: {e}", program.name, engine.name);
            }
            Err(e) => panic!("{} on {}: {e}", program.name, engine.name),
        }
    }
}

fn run(program: &Program<'_>, engine: &DemoEngine) -> Result<(), MachineError> {
    let (bits, at, state) = match program.mode {
        Mode::Real => (16, address::REAL_CODE, layout::real_mode()),
        Mode::Protected => (32, address::PROTECTED_CODE, layout::protected_mode()),
        Mode::Long => (64, address::CODE, layout::long_mode(0)),
        Mode::User => {
            let mut state = layout::long_mode(3);
            state.rflags |= rflags::IF;
            (64, address::USER_CODE, state)
        }
    };
    let machine = machine(engine, CpuModel::default_model());
    let memory = machine.memory();
    layout::write_tables(memory)?;
    let assemble = |bits, at, source: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let mut a = CodeAssembler::new(bits).expect("16, 32 or 64");
        source(&mut a).expect("the program assembles");
        a.assemble(at).expect("the program can be encoded")
    };
    memory.store(at, &assemble(bits, at, &program.code))?;
    if bits == 64 {
        for vector in 0..=255u8 {
            let place = HANDLERS + u64::from(vector) * HANDLER_SPACE;
            let code = match program.handlers.iter().find(|(v, _)| *v == vector) {
                Some((_, source)) => assemble(64, place, source),
                None => assemble(64, place, &|a| {
                    a.mov(eax, EXIT_EXCEPTION + u32::from(vector))?;
                    a.mov(edx, u32::from(port::EXIT))?;
                    a.out(dx, eax)?;
                    a.hlt()
                }),
            };
            assert!(code.len() as u64 <= HANDLER_SPACE, "handler {vector} is too long");
            memory.store(place, &code)?;
            layout::write_gate(memory, vector, place, true)?;
        }
    }
    let made = (engine.make)(memory, machine.model(), machine.clock())?;
    let mut vcpu = machine.vcpu(&*made)?;
    vcpu.set_state(&state)?;
    let status = machine.run(&mut *vcpu, PATIENCE)?;
    let (name, on) = (program.name, engine.name);
    let notes = machine.notes();
    let told = &notes.values;
    assert_eq!(
        status, EXIT_OK,
        "{name} on {on}: exit status (0xe00 + vector is an exception), after {told:#x?}"
    );
    assert_eq!(notes.values, program.values, "{name} on {on}: {:#x?}", notes.values);
    assert_eq!(String::from_utf8_lossy(&notes.serial), program.said, "{name} on {on}");
    drop(notes);
    let end = vcpu.state()?;
    assert_eq!(end.gpr[reg::RAX] as u32, EXIT_OK, "{name} on {on}: RAX after the run");
    Ok(())
}
