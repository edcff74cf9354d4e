//! Several vCPUs of one machine: shared memory, a host thread for each, and
//! interrupts that they send each other by a port.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use device_model::Clock;
use engine::{Attention, Bus, Engine, Halt, Vcpu, VcpuConfig, attention_bits};
use guest_memory::GuestMemory;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use x86_state::{CpuModel, CpuState, Segment, TableRegister, Topology, cr0, cr4, efer, reg, rflags, xcr0};

/// Bytes of RAM; the first GiB is mapped as it is.
pub const RAM: u64 = 16 << 20;
/// OUT to this port plus a vCPU's number interrupts it.
pub const INTERRUPT_PORT: u16 = 0x500;
/// The vector of such interrupts.
pub const VECTOR: u8 = 0x40;
/// Linear addresses that [`PAGE_ENTRIES`] maps, for programs to change: 2 MiB from here.
pub const REMAPPED: u64 = 1 << 30;
/// Page-table entries of [`REMAPPED`].
pub const PAGE_ENTRIES: u64 = 0x7000;
/// Programs and data of tests begin here.
pub const FREE: u64 = 0x10_0000;

const ROOT: u64 = 0x1000;
const POINTERS: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const UPPER_DIRECTORY: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const CODE: u64 = 0x8000;
const CODE_SPACE: u64 = 0x1000;
const STACKS: u64 = 0x1_0000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Interrupt requests by vCPU; everything else answers nothing.
struct Requests {
    pending: Vec<AtomicBool>,
    attention: Vec<Arc<Attention>>,
}

impl Bus for Requests {
    fn port_read(&self, _: u16, size: u8) -> u32 {
        u32::MAX >> (32 - 8 * u32::from(size))
    }
    fn port_write(&self, port: u16, _: u8, _: u32) {
        let to = usize::from(port.wrapping_sub(INTERRUPT_PORT));
        if let Some(pending) = self.pending.get(to) {
            pending.store(true, Ordering::SeqCst);
            self.attention[to].raise(attention_bits::INTERRUPT);
        }
    }
    fn mmio_read(&self, _: usize, _: u64, size: u8) -> u64 {
        u64::MAX >> (64 - 8 * u32::from(size))
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn platform_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        None
    }
    fn platform_msr_write(&self, _: usize, _: u32, _: u64) -> Option<()> {
        None
    }
    fn acknowledge_interrupt(&self, vcpu: usize) -> Option<u8> {
        self.attention[vcpu].clear(attention_bits::INTERRUPT);
        self.pending[vcpu].swap(false, Ordering::SeqCst).then_some(VECTOR)
    }
    fn read_cr8(&self, _: usize) -> u64 {
        0
    }
    fn write_cr8(&self, _: usize, _: u64) {}
}

/// A program of one vCPU: ends with HLT while interrupts are off.
pub type Source<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Assemble for an address.
///
/// # Panics
/// When the source is wrong: the caller's mistake.
pub fn assemble(at: u64, source: Source<'_>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).expect("64-bit code exists");
    source(&mut a).expect("the program assembles");
    a.assemble(at).expect("the program can be encoded")
}

/// Run a program on each vCPU until all have ended; the memory they leave.
/// `handler` is the interrupt's; exceptions end in shutdown.
///
/// # Panics
/// When a vCPU does not end within a minute, or ends otherwise.
pub fn run(engine: &dyn Engine, handler: Source<'_>, programs: &[Source<'_>]) -> GuestMemory {
    let model: CpuModel = "x86-64-v3".parse().expect("the model exists");
    let model = Arc::new(model);
    let memory = GuestMemory::flat(RAM).expect("memory");
    store_tables(&memory);
    memory.store(CODE, &assemble(CODE, handler)).expect("the handler");
    let attention: Vec<_> = programs.iter().map(|_| Arc::new(Attention::new())).collect();
    let pending = programs.iter().map(|_| AtomicBool::new(false)).collect();
    let bus = Arc::new(Requests { pending, attention: attention.clone() });
    let clock = Clock::host(model.tsc_khz());
    let (done, waiting) = std::sync::mpsc::channel::<()>();
    let stopped = attention.clone();
    let watchdog = std::thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            stopped.iter().for_each(|a| a.raise(attention_bits::STOP));
        }
    });
    std::thread::scope(|scope| {
        for (index, program) in programs.iter().enumerate() {
            let at = CODE + (1 + index as u64) * CODE_SPACE;
            let code = assemble(at, *program);
            assert!(code.len() as u64 <= CODE_SPACE, "program {index} has {} bytes", code.len());
            memory.store(at, &code).expect("the program");
            let config = VcpuConfig {
                index,
                model: model.clone(),
                topology: Topology { apic_id: index as u32, cpus: programs.len() as u32 },
                memory: memory.clone(),
                clock: clock.clone(),
                attention: attention[index].clone(),
                bus: bus.clone(),
            };
            let mut vcpu = engine.create_vcpu(config).expect("the engine makes a vCPU");
            let state = state(CpuState::reset(true, model.signature()), index as u64, at);
            scope.spawn(move || to_the_end(&mut *vcpu, &state, index));
        }
    });
    drop(done);
    let _ = watchdog.join();
    memory
}

fn to_the_end(vcpu: &mut dyn Vcpu, state: &CpuState, index: usize) {
    vcpu.set_state(state).expect("the state is accepted");
    let halt = vcpu.run(u64::MAX);
    let end = vcpu.state().expect("the state is readable");
    assert!(matches!(halt, Halt::Idle), "vCPU {index}: {halt:?} at {:#x}, {:x?}", end.rip, end.gpr);
}

fn store_tables(memory: &GuestMemory) {
    let put = |at: u64, v: u64| memory.store(at, &v.to_le_bytes()).expect("tables");
    put(ROOT, POINTERS | 0x27);
    put(POINTERS, DIRECTORY | 0x27);
    put(POINTERS + 8, UPPER_DIRECTORY | 0x27);
    for n in 0..512 {
        put(DIRECTORY + n * 8, n << 21 | 0xe7);
    }
    put(UPPER_DIRECTORY, PAGE_ENTRIES | 0x27);
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    put(IDT + u64::from(VECTOR) * 16, CODE | 8 << 16 | 0x8e00 << 32);
}

/// 64-bit supervisor code at `at`, interrupts off.
fn state(reset: CpuState, index: u64, at: u64) -> CpuState {
    let mut s = reset;
    s.segments = [Segment { selector: 16, base: 0, limit: u32::MAX, access: 0xc093 }; 6];
    s.segments[1] = Segment { selector: 8, base: 0, limit: u32::MAX, access: 0xa09b };
    s.gdtr = TableRegister { base: GDT, limit: 23 };
    s.idtr = TableRegister { base: IDT, limit: u16::from(VECTOR) * 16 + 15 };
    s.cr0 = cr0::PG | cr0::WP | cr0::PE | cr0::ET | cr0::NE | cr0::MP;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::PAE;
    s.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    s.cr3 = ROOT;
    s.efer = efer::LME | efer::LMA | efer::NXE;
    s.rip = at;
    s.rflags = rflags::FIXED;
    s.gpr[reg::RSP] = STACKS + (index + 1) * 0x4000;
    s
}
