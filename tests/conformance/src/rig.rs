//! The smallest machine around one vCPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use device_model::Clock;
use engine::{Attention, Bus, Engine, Halt, Vcpu, VcpuConfig, attention_bits};
use guest_memory::GuestMemory;
use x86_state::{CpuModel, CpuState, Topology};

/// No interrupt is requested.
const NONE: u32 = u32::MAX;

/// A bus on which nothing answers: reads are all ones. The test itself may
/// request an interrupt.
struct Nobody {
    attention: Arc<Attention>,
    vector: AtomicU32,
}

impl Bus for Nobody {
    fn port_read(&self, _: u16, size: u8) -> u32 {
        u32::MAX >> (32 - 8 * u32::from(size))
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {}
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
    fn acknowledge_interrupt(&self, _: usize) -> Option<u8> {
        self.attention.clear(attention_bits::INTERRUPT);
        u8::try_from(self.vector.swap(NONE, Ordering::SeqCst)).ok()
    }
    fn read_cr8(&self, _: usize) -> u64 {
        0
    }
    fn write_cr8(&self, _: usize, _: u64) {}
}

/// Every engine that needs no hardware, or those that `STRATA_ENGINES` names.
pub fn software_engines() -> Vec<Box<dyn Engine>> {
    let all: Vec<Box<dyn Engine>> =
        vec![Box::new(interpreter::Interpreter), Box::new(translator::Translator)];
    let wanted = std::env::var("STRATA_ENGINES").unwrap_or_default();
    all.into_iter().filter(|e| wanted.is_empty() || wanted.split(',').any(|w| w == e.name())).collect()
}

/// The same with the interpreter as it is where it agrees with the others to the last bit:
/// it does not record where x87 instructions were (docs/translator.md, exactness).
pub fn comparable_engines() -> Vec<Box<dyn Engine>> {
    let comparable = |e: Box<dyn Engine>| -> Box<dyn Engine> {
        if e.name() == interpreter::Interpreter.name() {
            Box::new(interpreter::WithoutX87Pointers)
        } else {
            e
        }
    };
    software_engines().into_iter().map(comparable).collect()
}

/// The model of random cases: `STRATA_RANDOM_MODEL` or x86-64-v3. It has AVX.
///
/// # Panics
/// When that is no model: the caller's mistake.
pub fn random_model() -> CpuModel {
    let wanted = std::env::var("STRATA_RANDOM_MODEL").unwrap_or_else(|_| "x86-64-v3".into());
    wanted.parse().expect("STRATA_RANDOM_MODEL is a model, like x86-64-v3,-bmi1")
}

/// One vCPU with flat memory.
pub struct Rig {
    /// Guest memory from physical address 0.
    pub memory: GuestMemory,
    /// The model it was made with.
    pub model: Arc<CpuModel>,
    attention: Arc<Attention>,
    bus: Arc<Nobody>,
    vcpu: Box<dyn Vcpu>,
}

impl Rig {
    /// A machine with `memory` as RAM.
    ///
    /// # Panics
    /// When the engine cannot make a vCPU: there is nothing to test then.
    pub fn new(engine: &dyn Engine, model: CpuModel, memory: GuestMemory) -> Self {
        // Virtual time would make translated code count instructions.
        let clock = Clock::host(model.tsc_khz());
        Self::with_clock(engine, model, memory, clock)
    }

    /// The same machine in virtual time, in which every run is repeatable.
    ///
    /// # Panics
    /// As [`Rig::new`].
    pub fn repeatable(engine: &dyn Engine, model: CpuModel, memory: GuestMemory) -> Self {
        let clock = Clock::virtual_time(model.tsc_khz(), 0);
        Self::with_clock(engine, model, memory, clock)
    }

    fn with_clock(engine: &dyn Engine, model: CpuModel, memory: GuestMemory, clock: Clock) -> Self {
        let model = Arc::new(model);
        let attention = Arc::new(Attention::new());
        let bus = Arc::new(Nobody { attention: attention.clone(), vector: AtomicU32::new(NONE) });
        let config = VcpuConfig {
            index: 0,
            model: model.clone(),
            topology: Topology { apic_id: 0, cpus: 1 },
            memory: memory.clone(),
            clock,
            attention: attention.clone(),
            bus: bus.clone(),
        };
        let vcpu = engine.create_vcpu(config).expect("the engine makes a vCPU");
        Rig { memory, model, attention, bus, vcpu }
    }

    /// Request an interrupt, as an interrupt controller does.
    pub fn interrupt(&self, vector: u8) {
        self.interrupter()(vector);
    }

    /// The same for another thread, while the vCPU runs.
    pub fn interrupter(&self) -> impl Fn(u8) + Send + 'static {
        let (bus, attention) = (self.bus.clone(), self.attention.clone());
        move |vector| {
            bus.vector.store(vector.into(), Ordering::SeqCst);
            attention.raise(attention_bits::INTERRUPT);
        }
    }

    /// Withdraw what was requested and not taken.
    pub fn quiet(&self) {
        self.attention.clear(attention_bits::INTERRUPT);
        self.bus.vector.store(NONE, Ordering::SeqCst);
    }

    /// The reset state, to start a case from.
    pub fn reset_state(&self) -> CpuState {
        CpuState::reset(true, self.model.signature())
    }

    /// Run from `state` for at most `limit` instructions.
    ///
    /// # Panics
    /// When the engine refuses the state or cannot give it back.
    pub fn run(&mut self, state: &CpuState, limit: u64) -> (Halt, CpuState) {
        self.vcpu.set_state(state).expect("the state is accepted");
        let halt = self.vcpu.run(limit);
        (halt, self.vcpu.state().expect("the state is readable"))
    }

    /// Instructions so far, where the engine counts them.
    pub fn retired(&self) -> u64 {
        self.vcpu.retired().unwrap_or_default()
    }

    /// How other threads reach the vCPU.
    pub fn attention(&self) -> Arc<Attention> {
        self.attention.clone()
    }

    /// Run from `state` without counting instructions, for at most `patience`.
    ///
    /// # Panics
    /// As [`Rig::run`].
    pub fn run_freely(&mut self, state: &CpuState, patience: Duration) -> (Halt, CpuState) {
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        let attention = self.attention.clone();
        let watchdog = std::thread::spawn(move || {
            if waiting.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                attention.raise(attention_bits::STOP);
            }
        });
        let end = self.run(state, u64::MAX);
        drop(done);
        let _ = watchdog.join();
        self.attention.take(attention_bits::STOP);
        end
    }
}
