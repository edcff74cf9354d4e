//! The least machine the demo and the engines' tests need: memory, one vCPU, its
//! local APIC, a serial port that keeps what it is sent, and a few ports by
//! which the guest talks to its observer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chipset::{LocalApics, LocalApicsConfig};
use device_model::{Clock, MsiMessage, MsiSink};
use engine::{Attention, Bus, Engine, EngineError, Halt, Vcpu, VcpuConfig, attention_bits};
use guest_memory::{GuestMemory, MemoryError};
use x86_state::{CpuModel, Feature, PhysicalBits, Topology, msr_index};

/// Ports of the observer, all 32 bits wide.
pub mod port {
    /// Serial port: data register, and line status at +5.
    pub const SERIAL: u16 = 0x3f8;
    /// Write: a phase begins or ends; its number.
    pub const MARK: u16 = 0x500;
    /// Write: a result.
    pub const VALUE: u16 = 0x504;
    /// Read: how often to repeat the next measured loop; 0 ends it.
    pub const COUNT: u16 = 0x508;
    /// Write: the guest is done; its exit status.
    pub const EXIT: u16 = 0x50c;
    /// Write: deliver this vector to the vCPU as an interrupt.
    pub const INTERRUPT: u16 = 0x510;
}

/// Address of a 64-bit register in device memory that keeps what is written.
pub const SCRATCH: u64 = 0xd000_0000;
const APIC_PAGE_SIZE: u64 = 0x1000;
/// Line status: transmitter empty.
const LINE_STATUS_EMPTY: u32 = 0x60;
/// Most bytes of serial output kept.
const MAX_OUTPUT: usize = 64 << 10;
/// Most marks and values kept.
const MAX_NOTES: usize = 1 << 16;

/// How many iterations the guest's next measured loop should have.
pub type Plan = Box<dyn FnMut(&[(u32, Instant)]) -> u32 + Send>;

/// What the guest told its observer.
#[derive(Default)]
pub struct Notes {
    /// What it sent to the serial port.
    pub serial: Vec<u8>,
    /// Phase marks and when they came.
    pub marks: Vec<(u32, Instant)>,
    /// Results.
    pub values: Vec<u32>,
    /// The counts it was given for measured loops.
    pub counts: Vec<u32>,
    /// Exit status, once it is done.
    pub exit: Option<u32>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Devices {
    attention: Arc<Attention>,
    apics: Arc<LocalApics>,
    clock: Clock,
    notes: Mutex<Notes>,
    plan: Mutex<Plan>,
    scratch: Mutex<[u8; 8]>,
    /// Tells the timer thread that a deadline moved.
    timer: (Mutex<bool>, Condvar),
    over: AtomicBool,
}

impl Devices {
    fn timer_moved(&self) {
        *lock(&self.timer.0) = true;
        self.timer.1.notify_one();
    }

    /// Fire timers until the run is over.
    fn keep_time(&self) {
        while !self.over.load(Ordering::SeqCst) {
            let mut moved = lock(&self.timer.0);
            let now = self.clock.now();
            let due = self.apics.next_deadline();
            if !*moved && due.is_none_or(|d| d > now) {
                let patience = due.map_or(Duration::from_secs(1), |d| Duration::from_nanos(d - now));
                moved = self.timer.1.wait_timeout(moved, patience).unwrap_or_else(PoisonError::into_inner).0;
            }
            *moved = false;
            drop(moved);
            self.apics.expire(self.clock.now());
        }
    }

    fn apic_offset(&self, vcpu: usize, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(self.apics.page_address(vcpu)?);
        (offset < APIC_PAGE_SIZE).then_some(offset)
    }
}

impl Bus for Devices {
    fn port_read(&self, at: u16, size: u8) -> u32 {
        match at {
            _ if at == port::SERIAL + 5 => LINE_STATUS_EMPTY,
            port::COUNT => {
                let mut notes = lock(&self.notes);
                let count = (lock(&self.plan))(&notes.marks);
                if notes.counts.len() < MAX_NOTES {
                    notes.counts.push(count);
                }
                count
            }
            _ => u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))),
        }
    }

    fn port_write(&self, at: u16, _: u8, value: u32) {
        let mut notes = lock(&self.notes);
        match at {
            port::SERIAL if notes.serial.len() < MAX_OUTPUT => notes.serial.push(value as u8),
            port::MARK if notes.marks.len() < MAX_NOTES => notes.marks.push((value, Instant::now())),
            port::VALUE if notes.values.len() < MAX_NOTES => notes.values.push(value),
            port::EXIT => {
                notes.exit = Some(value);
                self.attention.raise(attention_bits::STOP);
            }
            port::INTERRUPT => {
                drop(notes);
                self.apics.send_msi(MsiMessage { address: 0xfee0_0000, data: value & 0xff });
            }
            _ => {}
        }
    }

    fn mmio_read(&self, vcpu: usize, address: u64, size: u8) -> u64 {
        if let Some(offset) = self.apic_offset(vcpu, address) {
            return self.apics.mmio_read(vcpu, offset, size);
        }
        let at = address.wrapping_sub(SCRATCH) as usize;
        let mut value = [0xff; 8];
        if at < 8 {
            let register = lock(&self.scratch);
            let n = usize::from(size).min(8 - at);
            value[..n].copy_from_slice(&register[at..at + n]);
        }
        u64::from_le_bytes(value)
    }

    fn mmio_write(&self, vcpu: usize, address: u64, size: u8, value: u64) {
        if let Some(offset) = self.apic_offset(vcpu, address) {
            self.apics.mmio_write(vcpu, offset, size, value);
            return self.timer_moved();
        }
        let at = address.wrapping_sub(SCRATCH) as usize;
        if at < 8 {
            let n = usize::from(size).min(8 - at);
            lock(&self.scratch)[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
        }
    }

    fn platform_msr_read(&self, vcpu: usize, index: u32) -> Option<u64> {
        self.apics.msr_read(vcpu, index)
    }

    fn platform_msr_write(&self, vcpu: usize, index: u32, value: u64) -> Option<()> {
        let done = self.apics.msr_write(vcpu, index, value);
        self.timer_moved();
        done
    }

    fn acknowledge_interrupt(&self, vcpu: usize) -> Option<u8> {
        self.apics.acknowledge(vcpu)
    }

    fn read_cr8(&self, vcpu: usize) -> u64 {
        self.apics.read_cr8(vcpu)
    }

    fn write_cr8(&self, vcpu: usize, value: u64) {
        self.apics.write_cr8(vcpu, value);
    }
}

/// Why a guest did not get to its end.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No memory for the guest.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine failed or refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It shut down.
    #[error("triple fault at {0:#x}")]
    TripleFault(u64),
    /// It took too long.
    #[error("not done after {0:?}, at {1:#x}")]
    Timeout(Duration, u64),
}

/// A machine with one vCPU, before an engine is chosen for it.
pub struct Machine {
    devices: Arc<Devices>,
    config: VcpuConfig,
}

impl Machine {
    /// `memory_size` bytes from guest-physical 0.
    ///
    /// # Errors
    /// When the host has no memory for it.
    pub fn new(memory_size: u64, model: CpuModel, clock: Clock, plan: Plan) -> Result<Self, MachineError> {
        let memory = GuestMemory::flat(memory_size)?;
        let attention = Arc::new(Attention::new());
        let apics = LocalApics::new(
            LocalApicsConfig {
                apic_ids: vec![0],
                physical_bits: PhysicalBits::MAX as u8,
                x2apic: model.has(Feature::X2apic),
                tsc_deadline: model.has(Feature::TscDeadline),
            },
            clock.clone(),
            vec![attention.clone()],
        );
        // As firmware leaves it: the software enable is what interrupts need.
        let enabled = apics.msr_read(0, msr_index::APIC_BASE).unwrap_or(0) | 1 << 11;
        apics.msr_write(0, msr_index::APIC_BASE, enabled);
        apics.mmio_write(0, 0xf0, 4, 0x1ff);
        let devices = Arc::new(Devices {
            attention: attention.clone(),
            apics,
            clock: clock.clone(),
            notes: Mutex::default(),
            plan: Mutex::new(plan),
            scratch: Mutex::default(),
            timer: (Mutex::new(false), Condvar::new()),
            over: AtomicBool::new(false),
        });
        let config = VcpuConfig {
            index: 0,
            model: Arc::new(model),
            topology: Topology { apic_id: 0, cpus: 1 },
            memory,
            clock,
            attention,
            bus: devices.clone(),
        };
        Ok(Machine { devices, config })
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.config.memory
    }

    /// The processor model.
    pub fn model(&self) -> &CpuModel {
        &self.config.model
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.config.clock
    }

    /// What the guest has told so far.
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        lock(&self.devices.notes)
    }

    /// A vCPU on an engine, in reset state. Only one may run at a time.
    ///
    /// # Errors
    /// As the engine's.
    pub fn vcpu(&self, engine: &dyn Engine) -> Result<Box<dyn Vcpu>, EngineError> {
        engine.create_vcpu(self.config.clone())
    }

    /// Run until the guest is done or `patience` has passed.
    ///
    /// # Errors
    /// When the guest does not get to its end.
    pub fn run(&self, vcpu: &mut dyn Vcpu, patience: Duration) -> Result<u32, MachineError> {
        self.run_until(vcpu, patience)?
            .ok_or_else(|| MachineError::Timeout(patience, vcpu.state().map_or(0, |s| s.rip)))
    }

    /// As [`Machine::run`]; `None` when `patience` has passed first. The vCPU is
    /// at an instruction boundary then and may go on, here or on another engine.
    ///
    /// # Errors
    /// When the guest cannot go on.
    pub fn run_until(&self, vcpu: &mut dyn Vcpu, patience: Duration) -> Result<Option<u32>, MachineError> {
        self.devices.over.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            scope.spawn(|| self.devices.keep_time());
            let (done, timeout) = std::sync::mpsc::channel::<()>();
            let attention = self.config.attention.clone();
            scope.spawn(move || {
                if timeout.recv_timeout(patience).is_err() {
                    attention.raise(attention_bits::STOP);
                }
            });
            let result = self.drive(vcpu);
            let _ = done.send(());
            self.devices.over.store(true, Ordering::SeqCst);
            self.devices.timer_moved();
            result
        })
    }

    fn drive(&self, vcpu: &mut dyn Vcpu) -> Result<Option<u32>, MachineError> {
        let attention = &self.config.attention;
        loop {
            match vcpu.run(u64::MAX) {
                Halt::Limit => {}
                Halt::Idle => {
                    attention.wait(u32::MAX, None);
                }
                Halt::Attention => {
                    attention.take(attention_bits::RETURNING);
                    return Ok(self.notes().exit);
                }
                Halt::TripleFault => {
                    return Err(MachineError::TripleFault(vcpu.state().map_or(0, |s| s.rip)));
                }
                Halt::Failed(e) => return Err(e.into()),
            }
        }
    }
}
