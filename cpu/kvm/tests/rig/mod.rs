//! One vCPU with the least machine around it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::{Arc, Mutex};

use device_model::Clock;
use engine::{Attention, Bus, Engine, Halt, Vcpu, VcpuConfig};
use guest_memory::GuestMemory;
use kvm::{KvmEngine, MissingFeatures, Options};
use x86_state::{CpuModel, CpuState, Segment, Topology, cr0, cr4, efer, reg};

/// Something that the vCPU did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    Port(u16, u32),
    Store(u64, u64),
    TaskPriority(u64),
    Msr(u32, u64),
}

/// A task priority, one MSR of the platform's, and notes of what is written.
pub struct Notes {
    pub task_priority: Mutex<u64>,
    platform_msr: Mutex<Option<u64>>,
    pub done: Mutex<Vec<Did>>,
}

impl Notes {
    fn note(&self, did: Did) {
        self.done.lock().unwrap().push(did);
    }
}

impl Bus for Notes {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&self, port: u16, _: u8, value: u32) {
        self.note(Did::Port(port, value));
    }
    fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
        u64::MAX
    }
    fn mmio_write(&self, _: usize, address: u64, _: u8, value: u64) {
        self.note(Did::Store(address, value));
    }
    fn platform_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        *self.platform_msr.lock().unwrap()
    }
    fn platform_msr_write(&self, _: usize, index: u32, value: u64) -> Option<()> {
        *self.platform_msr.lock().unwrap() = Some(value);
        self.note(Did::Msr(index, value));
        Some(())
    }
    fn acknowledge_interrupt(&self, _: usize) -> Option<u8> {
        None
    }
    fn read_cr8(&self, _: usize) -> u64 {
        *self.task_priority.lock().unwrap()
    }
    fn write_cr8(&self, _: usize, value: u64) {
        *self.task_priority.lock().unwrap() = value;
        self.note(Did::TaskPriority(value));
    }
}

pub struct Rig {
    pub vcpu: Box<dyn Vcpu>,
    pub memory: GuestMemory,
    pub attention: Arc<Attention>,
    pub notes: Arc<Notes>,
    pub clock: Clock,
}

/// Where code of [`real_mode`] and [`long_mode`] begins.
pub const CODE: u64 = 0x8000;
const PML4: u64 = 0x1000;

/// Real mode with all segments at 0.
pub fn real_mode() -> CpuState {
    let mut s = CpuState::reset(true, 0);
    s.segments[1] = Segment::real_mode(0, true);
    s.rip = CODE;
    s.gpr[reg::RSP] = 0x7000;
    s
}

/// 64-bit mode with the first 2 MiB mapped; [`Rig::new`] has made the tables.
pub fn long_mode() -> CpuState {
    let mut s = real_mode();
    s.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::WP | cr0::ET;
    s.cr3 = PML4;
    s.cr4 = cr4::PAE;
    s.efer = efer::LME | efer::LMA;
    s.segments = [Segment { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 }; 6];
    s.segments[1] = Segment { selector: 8, base: 0, limit: u32::MAX, access: 0xa09b };
    s.tr = Segment { selector: 0x28, base: 0, limit: 0x67, access: 0x8b };
    s
}

impl Rig {
    /// A vCPU with 1 MiB of memory, or `None` with a message where there is no KVM.
    pub fn new() -> Option<Rig> {
        let memory = GuestMemory::flat(1 << 20).unwrap();
        for (at, entry) in [(PML4, PML4 + 0x1007), (PML4 + 0x1000, PML4 + 0x2007), (PML4 + 0x2000, 0x87u64)] {
            memory.store(at, &entry.to_le_bytes()).unwrap();
        }
        let Some(tsc) = kvm::host_tsc() else {
            eprintln!("skipped: no usable /dev/kvm");
            return None;
        };
        let model = CpuModel::default_model().with_tsc_khz(tsc.khz);
        let clock = tsc.clock();
        let options =
            Options { missing: MissingFeatures::Continue, accept_other_cpuid: true, ..Options::default() };
        let engine = KvmEngine::new(&memory, &model, &clock, options).expect("KVM opens");
        let attention = Arc::new(Attention::new());
        let notes = Arc::new(Notes {
            task_priority: 5.into(),
            platform_msr: Mutex::default(),
            done: Mutex::default(),
        });
        let config = VcpuConfig {
            index: 0,
            model: Arc::new(model),
            topology: Topology { apic_id: 0, cpus: 1 },
            memory: memory.clone(),
            clock: clock.clone(),
            attention: attention.clone(),
            bus: notes.clone(),
        };
        let vcpu = engine.create_vcpu(config).expect("a vCPU");
        Some(Rig { vcpu, memory, attention, notes, clock })
    }

    /// Run code from a state until it halts; what it did.
    pub fn run(&mut self, state: &CpuState, code: &[u8]) -> Vec<Did> {
        self.memory.store(CODE, code).unwrap();
        self.vcpu.set_state(state).unwrap();
        let halt = self.vcpu.run(u64::MAX);
        assert!(matches!(halt, Halt::Idle), "{halt:?} after {:?}", self.done());
        self.done()
    }

    /// What the vCPU did since the last look.
    pub fn done(&self) -> Vec<Did> {
        std::mem::take(&mut self.notes.done.lock().unwrap())
    }
}
