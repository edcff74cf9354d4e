//! Whole machines with firmware of a few instructions.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use board::{Board, BoardIo, MachineEvent, MachineSpec, SerialSpec, TimeSource};
use engine::{Engine, EngineError, Halt, LocalInterrupts, Vcpu, VcpuConfig};
use guest_memory::GuestMemory;
use iced_x86::code_asm::*;
use lifecycle::{Outcome, Policy, Stage, Vm, interpreter};
use x86_state::CpuState;

/// Where a counter of the guest's is.
const COUNTER: u64 = 0x1000;
/// The size of the firmware, which ends at 4 GiB.
const SIZE: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(30);

/// A firmware image on disk, removed at the end.
struct Firmware(PathBuf);

impl Firmware {
    /// Code for real mode with CS at 0xf000 (base 0xffff0000), data segments at 0.
    fn new(body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let mut a = CodeAssembler::new(16).unwrap();
        body(&mut a).unwrap();
        let mut image = a.assemble(0xf000).unwrap();
        assert!(image.len() < SIZE - 16);
        image.resize(SIZE, 0xf4);
        // The reset vector, f000:fff0, jumps to f000:f000.
        image[SIZE - 16..SIZE - 13].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
        let name = format!("strata-fw-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, image).unwrap();
        Firmware(path)
    }

    fn machine(&self, reboot: bool, change: impl FnOnce(&mut MachineSpec)) -> Vm {
        let mut spec = MachineSpec { memory: 2 << 20, debug_exit: Some(0xf4), ..MachineSpec::default() };
        spec.boot.firmware = Some(self.0.clone());
        spec.serial = vec![SerialSpec::Null];
        change(&mut spec);
        let board = Board::build(spec, BoardIo::new()).unwrap();
        Vm::new(board, interpreter(), Policy { reboot }).unwrap()
    }
}

impl Drop for Firmware {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn run(vm: &mut Vm) -> Outcome {
    vm.start().unwrap();
    vm.wait(Some(Instant::now() + PATIENCE)).unwrap()
}

fn counter(board: &Board) -> u32 {
    let mut bytes = [0; 4];
    board.memory().load(COUNTER, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// Wait until the counter has grown by a few.
fn wait_for_count(board: &Arc<Board>) {
    let (before, start) = (counter(board), Instant::now());
    while counter(board).wrapping_sub(before) < 5 {
        assert!(start.elapsed() < PATIENCE, "the counter stands still");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn count_for_ever(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.inc(dword_ptr(COUNTER))?;
    a.jmp(again)
}

fn out(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(al, value)?;
    a.out(port, al)
}

#[test]
fn each_way_to_end_has_its_outcome() {
    fn check(
        body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
        time: TimeSource,
        expect: fn(&Outcome) -> bool,
    ) {
        let firmware = Firmware::new(body);
        let mut vm = firmware.machine(false, |s| s.time = time);
        let outcome = run(&mut vm);
        assert!(expect(&outcome), "{outcome:?}");
        assert_eq!(vm.stage(), Stage::Stopped);
    }
    for time in [TimeSource::Host, TimeSource::Virtual] {
        check(|a| out(a, 0xf4, 0x15), time, |o| matches!(o, Outcome::DebugExit(0x2b)));
        check(|a| out(a, 0x64, 0xfe), time, |o| matches!(o, Outcome::Reset));
        let reset_register = |a: &mut CodeAssembler| {
            a.mov(dx, 0xcf9)?;
            a.mov(al, 6)?;
            a.out(dx, al)
        };
        check(reset_register, time, |o| matches!(o, Outcome::Reset));
        let soft_off = |a: &mut CodeAssembler| {
            a.mov(dx, 0x604)?;
            a.mov(ax, 0x3c00)?;
            a.out(dx, ax)
        };
        check(soft_off, time, |o| matches!(o, Outcome::PowerOff));
        let panicked = |a: &mut CodeAssembler| {
            a.mov(dx, 0x505)?;
            a.mov(al, 1)?;
            a.out(dx, al)
        };
        check(panicked, time, |o| matches!(o, Outcome::Panic));
        let no_interrupt_table = |a: &mut CodeAssembler| {
            // Six zero bytes of RAM: a table with room for nothing.
            a.lidt(ptr(0x2000))?;
            a.int(3)
        };
        check(no_interrupt_table, time, |o| matches!(o, Outcome::TripleFault { vcpu: 0 }));
    }
}

#[test]
fn a_paused_machine_stands_still_and_goes_on() {
    for time in [TimeSource::Host, TimeSource::Virtual] {
        let firmware = Firmware::new(count_for_ever);
        let mut vm = firmware.machine(false, |s| s.time = time);
        let board = vm.board().clone();
        assert!(vm.pause().is_err());
        vm.start().unwrap();
        for _ in 0..3 {
            wait_for_count(&board);
            vm.pause().unwrap();
            let before = counter(&board);
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(counter(&board), before);
            vm.resume().unwrap();
        }
        vm.stop();
        assert!(vm.resume().is_err());
    }
}

/// Where the last time stamp and the largest step between two are.
const LAST: u64 = 0x1100;
const LARGEST: u64 = 0x1104;

fn watch_time_stamps(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut small) = (a.create_label(), a.create_label());
    a.rdtsc()?;
    a.mov(dword_ptr(LAST), eax)?;
    a.set_label(&mut again)?;
    a.rdtsc()?;
    a.mov(ebx, eax)?;
    a.sub(eax, dword_ptr(LAST))?;
    a.mov(dword_ptr(LAST), ebx)?;
    a.cmp(eax, dword_ptr(LARGEST))?;
    a.jbe(small)?;
    a.mov(dword_ptr(LARGEST), eax)?;
    a.set_label(&mut small)?;
    a.inc(dword_ptr(COUNTER))?;
    a.jmp(again)
}

#[test]
fn the_guests_time_stands_still_while_it_is_paused() {
    const PAUSE: Duration = Duration::from_millis(1000);
    let firmware = Firmware::new(watch_time_stamps);
    // 2^32 ticks are 4 s: the guest looks at the low half.
    let mut vm = firmware.machine(false, |s| s.tsc_khz = Some(1_000_000));
    let board = vm.board().clone();
    vm.start().unwrap();
    wait_for_count(&board);
    vm.pause().unwrap();
    let (at, before) = (board.clock().now(), counter(&board));
    std::thread::sleep(PAUSE);
    // Looking and moving leave the time where it stands, but for what they take themselves.
    vm.stats().unwrap();
    vm.switch_engine(interpreter()).unwrap();
    assert_eq!((vm.stage(), board.clock().is_stopped()), (Stage::Paused, true));
    let passed = Duration::from_nanos(board.clock().now() - at);
    assert!(passed < PAUSE / 2, "{passed:?} passed in a pause");
    assert_eq!(counter(&board), before);
    vm.resume().unwrap();
    wait_for_count(&board);
    vm.stop();
    let mut ticks = [0; 4];
    board.memory().load(LARGEST, &mut ticks).unwrap();
    let step = Duration::from_micros(u64::from(u32::from_le_bytes(ticks)) / 1000);
    // A busy host makes steps of its own; a pause would be one of its length.
    assert!(step < PAUSE / 2, "the guest saw its time jump by {step:?}");
}

#[test]
fn counters_can_be_read_while_the_guest_runs() {
    let firmware = Firmware::new(count_for_ever);
    let mut vm = firmware.machine(false, |_| {});
    let board = vm.board().clone();
    assert_eq!(vm.stats().unwrap().vcpus[0].retired, Some(0));
    vm.start().unwrap();
    let mut last = 0;
    for _ in 0..5 {
        wait_for_count(&board);
        let stats = vm.stats().unwrap();
        assert_eq!(vm.stage(), Stage::Running);
        let vcpu = &stats.vcpus[0];
        let retired = vcpu.retired.unwrap();
        assert!(retired > last, "{retired} after {last}");
        last = retired;
        let times = vcpu.times.unwrap();
        assert!(times.executing > Duration::ZERO && times.halts == 0, "{times:?}");
    }
    vm.stop();
    assert!(vm.stats().is_err());
}

#[test]
fn a_halted_processor_is_seen_to_be_halted() {
    let firmware = Firmware::new(|a| {
        a.cli()?;
        a.hlt()
    });
    let mut vm = firmware.machine(false, |_| {});
    vm.start().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let times = vm.stats().unwrap().vcpus[0].times.unwrap();
    assert!(times.halts >= 1 && times.halted_share() > 0.5, "{times:?}");
}

#[test]
fn what_others_want_of_the_owner_survives_a_reset() {
    let firmware = Firmware::new(count_for_ever);
    let mut vm = firmware.machine(true, |_| {});
    vm.start().unwrap();
    let soon = || Some(Instant::now() + PATIENCE);
    vm.board().events().post(MachineEvent::Attend);
    assert!(vm.watch(soon()).unwrap().is_none());
    for event in [MachineEvent::Reset, MachineEvent::Attend, MachineEvent::Stop] {
        vm.board().events().post(event);
    }
    let start = Instant::now();
    assert!(vm.watch(soon()).unwrap().is_none());
    assert!(start.elapsed() < PATIENCE && vm.resets() == 1);
    assert!(matches!(vm.watch(soon()).unwrap(), Some(Outcome::Stopped)));
}

#[test]
fn a_reset_starts_again_and_the_engine_can_change_at_any_time() {
    let firmware = Firmware::new(count_for_ever);
    let mut vm = firmware.machine(true, |_| {});
    let board = vm.board().clone();
    vm.start().unwrap();
    for _ in 0..10 {
        wait_for_count(&board);
        let before = counter(&board);
        vm.switch_engine(interpreter()).unwrap();
        wait_for_count(&board);
        assert!(counter(&board) > before);
    }
    vm.reset().unwrap();
    wait_for_count(&board);
    assert_eq!((vm.resets(), vm.stage()), (1, Stage::Running));
    assert!(vm.watch(Some(Instant::now() + Duration::from_millis(5))).unwrap().is_none());
}

#[test]
fn a_guest_that_resets_itself_starts_again_until_stopped() {
    let firmware = Firmware::new(|a| {
        a.inc(dword_ptr(COUNTER))?;
        out(a, 0x64, 0xfe)?;
        a.hlt()
    });
    let mut vm = firmware.machine(true, |_| {});
    let board = vm.board().clone();
    vm.start().unwrap();
    let start = Instant::now();
    while vm.resets() < 5 {
        assert!(vm.watch(Some(Instant::now() + Duration::from_millis(20))).unwrap().is_none());
        assert!(start.elapsed() < PATIENCE);
    }
    vm.stop();
    assert!(counter(&board) >= 5);
}

/// The bootstrap processor copies a program for the others to 0x8000, starts
/// them by INIT and startup IPIs, and waits until all have counted themselves.
fn start_others(a: &mut CodeAssembler, others: u32) -> Result<(), IcedError> {
    // lock inc word [0x1000]; cli; hlt; jmp $-1
    const PROGRAM: [u8; 9] = [0xf0, 0xff, 0x06, 0x00, 0x10, 0xfa, 0xf4, 0xeb, 0xfd];
    for (i, byte) in PROGRAM.iter().enumerate() {
        a.mov(byte_ptr(0x8000 + i as u64), u32::from(*byte))?;
    }
    // x2APIC mode, then ICR: INIT and STARTUP to all but self.
    a.mov(ecx, 0x1b)?;
    a.rdmsr()?;
    a.or(eax, 0xc00)?;
    a.wrmsr()?;
    a.mov(ecx, 0x830)?;
    a.xor(edx, edx)?;
    a.mov(eax, 0xc_4500)?;
    a.wrmsr()?;
    a.mov(eax, 0xc_4608)?;
    a.wrmsr()?;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(word_ptr(COUNTER), others)?;
    a.jne(wait)?;
    out(a, 0xf4, 1)
}

#[test]
fn all_processors_start_by_startup_ipis() {
    for (cpus, time) in [(2, TimeSource::Host), (4, TimeSource::Host), (4, TimeSource::Virtual)] {
        let firmware = Firmware::new(|a| start_others(a, cpus - 1));
        let mut vm = firmware.machine(false, |s| (s.cpus, s.time) = (cpus, time));
        let outcome = run(&mut vm);
        assert!(matches!(outcome, Outcome::DebugExit(3)), "{cpus} vCPUs: {outcome:?}");
    }
}

#[test]
fn a_timer_wakes_a_halted_processor() {
    // PIT channel 0 at 1 kHz through the PIC; the handler is at 0000:3000.
    let firmware = Firmware::new(|a| {
        // inc word [0x1000]; mov al, 0x20; out 0x20, al; iret
        for (i, byte) in [0xff, 0x06, 0x00, 0x10, 0xb0, 0x20, 0xe6, 0x20, 0xcf].iter().enumerate() {
            a.mov(byte_ptr(0x3000 + i as u64), *byte as u32)?;
        }
        a.mov(word_ptr(0x20 * 4), 0x3000)?;
        a.mov(word_ptr(0x20 * 4 + 2), 0)?;
        a.mov(esp, 0x7000)?;
        for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
            out(a, port, value)?;
        }
        for (port, value) in [(0x43, 0x34), (0x40, 0xa9), (0x40, 0x04)] {
            out(a, port, value)?;
        }
        let mut again = a.create_label();
        a.sti()?;
        a.set_label(&mut again)?;
        a.hlt()?;
        a.cmp(word_ptr(COUNTER), 20)?;
        a.jb(again)?;
        out(a, 0xf4, 1)
    });
    for time in [TimeSource::Host, TimeSource::Virtual] {
        let mut vm = firmware.machine(false, |s| s.time = time);
        let start = Instant::now();
        let outcome = run(&mut vm);
        assert!(matches!(outcome, Outcome::DebugExit(3)), "{time:?}: {outcome:?}");
        let virtual_ns = vm.board().clock().now();
        assert!(virtual_ns >= 19_000_000, "{time:?}: twenty ticks of a millisecond took {virtual_ns} ns");
        if time == TimeSource::Host {
            assert!(start.elapsed() >= Duration::from_millis(19));
        }
    }
}

/// The interpreter with vCPUs that this changes.
struct Changed(fn(&VcpuConfig, Box<dyn Vcpu>) -> Box<dyn Vcpu>);

impl Engine for Changed {
    fn name(&self) -> &'static str {
        "changed"
    }
    fn create_vcpu(&self, config: VcpuConfig) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok((self.0)(&config, interpreter().create_vcpu(config.clone())?))
    }
    fn local_interrupts(&self) -> Option<Arc<dyn LocalInterrupts>> {
        None
    }
}

impl Changed {
    fn machine(self, firmware: &Firmware, time: TimeSource) -> Vm {
        let mut spec = MachineSpec { memory: 2 << 20, time, ..MachineSpec::default() };
        spec.boot.firmware = Some(firmware.0.clone());
        spec.serial = vec![SerialSpec::Null];
        let board = Board::build(spec, BoardIo::new()).unwrap();
        Vm::new(board, Arc::new(self), Policy { reboot: true }).unwrap()
    }
}

/// A vCPU with a defect: it sets the counter and panics.
struct DefectiveVcpu(Box<dyn Vcpu>, GuestMemory);

const DEFECTIVE: Changed = Changed(|c, vcpu| Box::new(DefectiveVcpu(vcpu, c.memory.clone())));

impl Vcpu for DefectiveVcpu {
    fn run(&mut self, _limit: u64) -> Halt {
        self.1.store(COUNTER, &[1]).unwrap();
        panic!("a defect, for the test");
    }
    fn state(&mut self) -> Result<CpuState, EngineError> {
        self.0.state()
    }
    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.0.set_state(state)
    }
    fn retired(&self) -> Option<u64> {
        self.0.retired()
    }
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

#[test]
fn a_vcpu_thread_that_dies_ends_the_machine_with_an_error() {
    for time in [TimeSource::Host, TimeSource::Virtual] {
        let mut vm = DEFECTIVE.machine(&Firmware::new(count_for_ever), time);
        let outcome = run(&mut vm);
        assert!(matches!(outcome, Outcome::Error { vcpu: 0, .. }), "{outcome:?}");
        assert_eq!(outcome.status(), 1);
    }
}

#[test]
fn requests_do_not_wait_for_a_vcpu_thread_that_died() {
    fn check(time: TimeSource, request: fn(&mut Vm)) {
        let mut vm = DEFECTIVE.machine(&Firmware::new(count_for_ever), time);
        let (done, outcome) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            vm.start().unwrap();
            while counter(vm.board()) == 0 {
                std::thread::yield_now();
            }
            request(&mut vm);
            let _ = done.send(vm.wait(Some(Instant::now() + PATIENCE)).unwrap());
        });
        let outcome = outcome.recv_timeout(PATIENCE).expect("the owner waits for a thread that is gone");
        assert!(matches!(outcome, Outcome::Error { vcpu: 0, .. }), "{outcome:?}");
    }
    for time in [TimeSource::Host, TimeSource::Virtual] {
        check(time, |vm| vm.pause().unwrap());
        check(time, |vm| vm.reset().unwrap());
        check(time, |vm| drop(vm.stats().unwrap()));
    }
}

/// A vCPU that completes its last store when it is next asked for something, as
/// hardware assist does.
struct LateVcpu {
    vcpu: Box<dyn Vcpu>,
    memory: GuestMemory,
    late: bool,
}

/// Where the store goes: to the start of the firmware.
const LATE_STORE: u64 = (1 << 32) - SIZE as u64;

impl LateVcpu {
    fn finish(&mut self) {
        if std::mem::take(&mut self.late) {
            self.memory.store(LATE_STORE, &[0xcc]).unwrap();
        }
    }
}

impl Vcpu for LateVcpu {
    fn run(&mut self, limit: u64) -> Halt {
        self.finish();
        let halt = self.vcpu.run(limit);
        self.late = true;
        halt
    }
    fn state(&mut self) -> Result<CpuState, EngineError> {
        self.finish();
        self.vcpu.state()
    }
    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.finish();
        self.vcpu.set_state(state)
    }
    fn retired(&self) -> Option<u64> {
        None
    }
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

#[test]
fn what_a_vcpu_completes_late_is_complete_before_a_reset_loads_memory() {
    let late = Changed(|c, vcpu| Box::new(LateVcpu { vcpu, memory: c.memory.clone(), late: false }));
    let mut vm = late.machine(&Firmware::new(count_for_ever), TimeSource::Host);
    let board = vm.board().clone();
    let first = || {
        let mut byte = [0];
        board.memory().load(LATE_STORE, &mut byte).unwrap();
        byte[0]
    };
    let loaded = first();
    vm.start().unwrap();
    wait_for_count(&board);
    vm.pause().unwrap();
    assert_eq!(first(), loaded);
    vm.reset().unwrap();
    assert_eq!(first(), loaded, "a store of the old machine's in the new one's memory");
}
