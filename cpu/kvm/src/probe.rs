//! What is this host's /dev/kvm worth? A tiny guest finds out.
//!
//! That /dev/kvm opens does not mean that it executes guest code on the
//! processor: some cloud hosts offer one that interprets supervisor code.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::{Attention, Bus, Engine, EngineError, Halt, VcpuConfig, attention_bits};
use guest_memory::GuestMemory;
use x86_state::{CpuModel, CpuState, Segment, Topology, cr0, cr4, efer, reg, rflags};

use crate::cpuid;
use crate::vm::{self, HostTsc, KvmEngine, MissingFeatures, Options, host_tsc};

/// What [`probe()`] found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProbeResult {
    /// A VM can be made and executes code.
    pub present: bool,
    /// Worth choosing: supervisor code runs on the processor.
    pub usable: bool,
    /// Nanoseconds from a port access in the guest to the device and back; 0 if unknown.
    pub exit_cost_ns: u64,
    /// Supervisor code runs at the processor's speed.
    pub ring0_native: bool,
    /// User code runs at the processor's speed.
    pub ring3_native: bool,
    /// Guests see the CPUID they are given; else KVM adds features of the host's.
    pub cpuid_exact: bool,
    /// Nanoseconds for one instruction in ring 0 and in ring 3; 0 if unknown.
    pub instruction_ns: [f64; 2],
    /// TSC frequency of guests in kHz, if known.
    pub tsc_khz: Option<u32>,
    /// What guests see of the TSC.
    pub tsc: Option<HostTsc>,
    /// One sentence: what was found, and what follows.
    pub reason: String,
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Above this, an instruction was interpreted: the slowest host of today needs
/// about half a nanosecond for one of a two-instruction loop.
const NATIVE_NS: f64 = 15.0;
/// Port accesses timed.
const EXITS: u64 = 64;
/// Loop iterations, of two instructions each: a first look, and a closer one
/// where the first does not already show that instructions are interpreted.
const ITERATIONS: [u64; 2] = [1_000, 20_000];
/// Above this, in nanoseconds, nobody need look closer.
const PLAINLY_INTERPRETED_NS: f64 = 10.0 * NATIVE_NS;
/// A guest that takes longer than this is given up.
const PATIENCE: Duration = Duration::from_secs(2);

const MEMORY: u64 = 2 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x8000;
/// Present, writable, user.
const TABLE_BITS: u64 = 7;
/// As above, and a 2 MiB page.
const PAGE_BITS: u64 = 0x87;

/// `again: out 0x80, al; jmp again`
const EXIT_LOOP: &[u8] = &[0xe6, 0x80, 0xeb, 0xfc];
/// `again: dec rcx; jnz again; out 0x80, al; jmp $`
const COUNT_LOOP: &[u8] = &[0x48, 0xff, 0xc9, 0x75, 0xfb, 0xe6, 0x80, 0xeb, 0xfe];

/// Counts port writes and stops the vCPU at the last.
struct CountingBus {
    attention: Arc<Attention>,
    left: AtomicU64,
    first: Mutex<Option<Instant>>,
    took: Mutex<Option<Duration>>,
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus for CountingBus {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {
        let first = *lock(&self.first).get_or_insert_with(Instant::now);
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            *lock(&self.took) = Some(first.elapsed());
            self.attention.raise(attention_bits::STOP);
        }
    }
    fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn platform_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        None
    }
    fn platform_msr_write(&self, _: usize, _: u32, _: u64) -> Option<()> {
        None
    }
    fn acknowledge_interrupt(&self, _: usize) -> Option<u8> {
        None
    }
    fn read_cr8(&self, _: usize) -> u64 {
        0
    }
    fn write_cr8(&self, _: usize, _: u64) {}
}

/// Run `code` from `state` until it has written `writes` times to a port.
/// Returns the whole time and the time from the first write to the last.
fn time_guest(state: CpuState, code: &[u8], writes: u64) -> Result<(Duration, Duration), EngineError> {
    let fail = |reason: String| EngineError::BadState { engine: crate::NAME, reason };
    let memory = GuestMemory::flat(MEMORY).map_err(|e| fail(e.to_string()))?;
    for (at, value) in [(PML4, PDPT | TABLE_BITS), (PDPT, PD | TABLE_BITS), (PD, PAGE_BITS)] {
        memory.store(at, &value.to_le_bytes()).map_err(|e| fail(e.to_string()))?;
    }
    memory.store(CODE, code).map_err(|e| fail(e.to_string()))?;
    let tsc = host_tsc().ok_or_else(|| fail("no vCPU can be made".into()))?;
    let model = CpuModel::default_model().with_tsc_khz(tsc.khz);
    let clock = tsc.clock();
    let options =
        Options { missing: MissingFeatures::Continue, accept_other_cpuid: true, ..Options::default() };
    let engine = KvmEngine::new(&memory, &model, &clock, options)?;
    let attention = Arc::new(Attention::new());
    let bus = Arc::new(CountingBus {
        attention: attention.clone(),
        left: AtomicU64::new(writes),
        first: Mutex::new(None),
        took: Mutex::new(None),
    });
    let mut vcpu = engine.create_vcpu(VcpuConfig {
        index: 0,
        model: Arc::new(model),
        topology: Topology { apic_id: 0, cpus: 1 },
        memory,
        clock,
        attention: attention.clone(),
        bus: bus.clone(),
    })?;
    vcpu.set_state(&state)?;
    let halt = std::thread::scope(|scope| {
        let (done, timeout) = std::sync::mpsc::channel::<()>();
        let watched = attention.clone();
        scope.spawn(move || {
            if timeout.recv_timeout(PATIENCE).is_err() {
                watched.raise(attention_bits::STOP);
            }
        });
        let started = Instant::now();
        let halt = vcpu.run(u64::MAX);
        let _ = done.send(());
        (halt, started.elapsed())
    });
    match (halt, *lock(&bus.took)) {
        ((Halt::Attention, whole), Some(took)) => Ok((whole, took)),
        ((Halt::Attention, _), None) => Err(fail(format!("a tiny guest did not finish within {PATIENCE:?}"))),
        ((Halt::Failed(e), _), _) => Err(e),
        ((other, _), _) => Err(fail(format!("a tiny guest ended with {other:?}"))),
    }
}

fn real_mode() -> CpuState {
    let mut s = CpuState::reset(true, 0);
    s.segments[1] = Segment::real_mode(0, true);
    s.rip = CODE;
    s
}

/// 64-bit mode at a privilege level, with port access and a count in RCX.
fn long_mode(cpl: u32, iterations: u64) -> CpuState {
    let mut s = CpuState::reset(true, 0);
    s.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::WP | cr0::ET;
    s.cr3 = PML4;
    s.cr4 = cr4::PAE;
    s.efer = efer::LME | efer::LMA;
    let code = 0x9b | cpl << 5 | Segment::L | Segment::G;
    let data = 0x93 | cpl << 5 | Segment::DB | Segment::G;
    s.segments = [Segment { selector: 0x10 | cpl as u16, base: 0, limit: u32::MAX, access: data }; 6];
    s.segments[1] = Segment { selector: 0x8 | cpl as u16, base: 0, limit: u32::MAX, access: code };
    s.rflags = rflags::FIXED | rflags::IOPL;
    s.rip = CODE;
    s.gpr[reg::RSP] = 0x10_0000;
    s.gpr[reg::RCX] = iterations;
    s
}

/// Whether a vCPU of the default model shows what the model says.
fn cpuid_is_exact() -> Option<bool> {
    let vcpu = vm::open().ok()?.create_vm().ok()?.create_vcpu(0).ok()?;
    let table = cpuid::table(&CpuModel::default_model(), Topology { apic_id: 0, cpus: 1 });
    vcpu.set_cpuid2(&table).ok()?;
    Some(cpuid::altered(&vcpu, &table).ok()?.is_empty())
}

/// Nanoseconds of one instruction at a privilege level.
fn instruction_time(cpl: u32, exit_cost_ns: u64) -> Result<f64, EngineError> {
    let mut ns = 0.0;
    for iterations in ITERATIONS {
        let (whole, _) = time_guest(long_mode(cpl, iterations), COUNT_LOOP, 1)?;
        let loops = (whole.as_nanos() as f64 - exit_cost_ns as f64).max(1.0);
        ns = loops / (2 * iterations) as f64;
        if ns > PLAINLY_INTERPRETED_NS {
            break;
        }
    }
    Ok(ns)
}

/// Measure this host's /dev/kvm. Takes a few milliseconds where it is good, at
/// most a few seconds where it is not.
pub fn probe() -> ProbeResult {
    let tsc = host_tsc();
    let mut result = ProbeResult {
        cpuid_exact: cpuid_is_exact().unwrap_or(false),
        tsc_khz: tsc.map(|t| t.khz),
        tsc,
        ..ProbeResult::default()
    };
    match time_guest(real_mode(), EXIT_LOOP, EXITS) {
        Ok((_, took)) => result.exit_cost_ns = took.as_nanos() as u64 / (EXITS - 1),
        Err(e) => {
            result.reason = format!("KVM is not usable: {e}");
            return result;
        }
    }
    result.present = true;
    let mut failure = None;
    for cpl in [0, 3] {
        match instruction_time(cpl, result.exit_cost_ns) {
            Ok(ns) => result.instruction_ns[cpl as usize / 3] = ns,
            Err(e) => failure = failure.or(Some(e)),
        }
    }
    let native = |ns: f64| ns > 0.0 && ns < NATIVE_NS;
    [result.ring0_native, result.ring3_native] = result.instruction_ns.map(native);
    result.usable = result.ring0_native && failure.is_none();
    let [ring0, ring3] = result.instruction_ns;
    let figures = format!(
        "{:.1} us an exit, {ring0:.1} ns an instruction in ring 0, {ring3:.1} ns in ring 3",
        result.exit_cost_ns as f64 / 1000.0
    );
    let figures = if result.cpuid_exact {
        figures
    } else {
        format!("{figures}; it shows guests features of the host's, so models are not exact")
    };
    result.reason = match failure {
        Some(e) => format!("KVM is present but restricted ({e}); a software engine serves better"),
        None if result.ring0_native => format!("KVM runs guests on the processor ({figures})"),
        None => format!(
            "KVM is present but restricted: it interprets supervisor code ({figures}); a software engine serves better"
        ),
    };
    result
}
