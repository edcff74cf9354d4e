//! A stock kernel whose supervisor code KVM executes, also where the host's KVM
//! interprets that: what KVM cannot emulate, the assistant completes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use board::{Board, BoardIo, BootSpec, MachineSpec, SerialSpec};
use kvm::{Assistance, Options};
use lifecycle::{Outcome, Policy, Vm};

/// How long KVM executes the start of the kernel: some hosts' needs microseconds
/// for an instruction.
const FIRST_TURN: Duration = Duration::from_secs(5);
/// How long it may take to meet what it cannot emulate.
const SECOND_TURN: Duration = Duration::from_secs(60);
/// Short: the kernel shall not get far between a line and the change of engine.
const POLL: Duration = Duration::from_millis(2);
/// Failures of KVM that the kernel must get past.
const ASSISTS: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(170);

/// Kernel and initramfs, or None with the reason printed.
fn files() -> Option<(PathBuf, PathBuf)> {
    let file = |name| std::env::var_os(name).map(PathBuf::from);
    let found = file("STRATA_TEST_KERNEL").zip(file("STRATA_TEST_INITRD"));
    if found.is_none() {
        eprintln!(
            "skipped: STRATA_TEST_KERNEL and STRATA_TEST_INITRD name no guest; cargo xtask test sets them"
        );
    }
    found
}

/// What the guest has said.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn sink(&self) -> impl FnMut(&[u8]) + Send + 'static {
        let said = self.0.clone();
        move |bytes: &[u8]| said.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

/// Run until `done`, the time is over, or the machine ends.
fn run_until(vm: &mut Vm, limit: Duration, mut done: impl FnMut(&mut Vm) -> bool) -> Option<Outcome> {
    let end = Instant::now() + limit;
    while Instant::now() < end && !done(vm) {
        let outcome = vm.watch(Some(Instant::now() + POLL)).expect("it runs");
        if outcome.is_some() {
            return outcome;
        }
    }
    None
}

type Counters = Vec<(&'static str, u64)>;

/// The only vCPU's counters.
fn counters(vm: &mut Vm) -> Counters {
    vm.stats().expect("it runs").vcpus.swap_remove(0).counters
}

fn count(counters: &Counters, name: &str) -> u64 {
    counters.iter().filter(|c| c.0 == name).map(|c| c.1).sum()
}

/// KVM executes the kernel from its first instruction, then the interpreter, then
/// KVM again where the kernel has just chosen instructions for its processor: there
/// a KVM that interprets meets many it does not know. The guest must not notice,
/// and end by itself.
#[test]
#[ignore = "boots a stock kernel; cargo xtask test names it"]
fn a_stock_kernel_gets_past_what_kvm_cannot_emulate() {
    let Some((kernel, initrd)) = files() else { return };
    let Some(tsc) = kvm::host_tsc() else {
        eprintln!("skipped: no usable /dev/kvm");
        return;
    };
    let probe = kvm::probe();
    // Where KVM shows the host's CPUID, the kernel finds PCID, which that KVM lacks.
    let cmdline = "console=ttyS0 earlyprintk=ttyS0 panic=-1 mitigations=off cryptomgr.notests nopcid strata.cmd=dHJ1ZQ==";
    let spec = MachineSpec {
        cpu: "x86-64-v2,-pcid,-invpcid".into(),
        memory: 128 << 20,
        tsc_khz: Some(tsc.khz),
        boot: BootSpec {
            kernel: Some(kernel),
            initrd: Some(initrd),
            cmdline: cmdline.into(),
            ..BootSpec::default()
        },
        serial: vec![SerialSpec::Stdio],
        ..MachineSpec::default()
    };
    let console = Console::default();
    let io = BoardIo { serial: vec![Box::new(console.sink())], clock: Some(tsc.clock()), ..BoardIo::new() };
    let board = Board::build(spec, io).expect("a board");
    let on_kvm = || {
        let options = Options {
            assistance: Assistance::OnFailure,
            accept_other_cpuid: true,
            ..Options::for_host(&probe, lifecycle::interpreter())
        };
        lifecycle::kvm(&board, options).expect("KVM opens")
    };
    let mut vm = Vm::new(Arc::clone(&board), on_kvm(), Policy { reboot: false }).expect("a machine");
    vm.start().expect("it starts");
    let said = |text: &'static str| {
        let console = console.clone();
        move |_: &mut Vm| console.text().contains(text)
    };
    let start = Instant::now();
    let tell = |what: &str, counters: &Counters| {
        let text = console.text();
        let [exits, assists, bursts, refused] =
            ["kvm_exits", "kvm_assists", "kvm_assistant_bursts", "kvm_state_refused"]
                .map(|n| count(counters, n));
        let instructions = count(counters, "instructions");
        eprintln!(
            "{:6.1} s {what}: {exits} exits, {assists} assists, {bursts} bursts of {instructions} instructions, {refused} refused; last line: {}",
            start.elapsed().as_secs_f64(),
            text.lines().last().unwrap_or("")
        );
    };
    assert!(run_until(&mut vm, FIRST_TURN, said("NX (Execute")).is_none(), "{}", console.text());
    let first = counters(&mut vm);
    tell("kvm", &first);
    vm.switch_engine(lifecycle::interpreter()).expect("the interpreter takes over");
    assert!(run_until(&mut vm, PATIENCE, said("Freeing SMP alternatives")).is_none(), "{}", console.text());
    tell("interp", &counters(&mut vm));
    vm.switch_engine(on_kvm()).expect("KVM takes over");
    // Looking parks the vCPU: not too often.
    let mut looked = Instant::now();
    let reason = run_until(&mut vm, SECOND_TURN, |vm| {
        let look = looked.elapsed() > Duration::from_millis(500);
        if look {
            looked = Instant::now();
        }
        probe.ring0_native || look && count(&counters(vm), "kvm_assists") >= ASSISTS
    });
    assert!(reason.is_none(), "{reason:?}: {}", console.text());
    let second = counters(&mut vm);
    tell("kvm", &second);
    vm.switch_engine(lifecycle::interpreter()).expect("the interpreter takes over");
    let outcome = run_until(&mut vm, PATIENCE, |_| false);
    vm.stop();
    tell("interp", &vm.counters());
    let text = console.text();
    assert!(matches!(outcome, Some(Outcome::PowerOff)), "{outcome:?}: {text}");
    assert!(text.contains("strata: exit status 0"), "{text}");
    assert!(count(&first, "kvm_exits") > 0 || !probe.ring0_native, "KVM executed nothing: {first:?}");
    if !probe.ring0_native {
        assert!(count(&second, "kvm_assists") > 0, "nothing was beyond KVM: {second:?}");
    }
}
