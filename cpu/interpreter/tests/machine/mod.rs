//! A processor with flat memory and no devices, for tests.
#![allow(dead_code, reason = "each test crate uses a part")]

use std::sync::{Arc, Mutex};

use engine::{Attention, Bus, Halt, Vcpu, VcpuConfig};
use guest_memory::{GuestMemory, RamOffset};
use interpreter::InterpreterVcpu;
use x86_state::{CpuModel, CpuState, Segment, Topology, cr0, cr4, efer};

/// Records accesses; reads give the address's low bits; one interrupt vector
/// may be pending.
#[derive(Default)]
pub struct TestBus {
    pub log: Mutex<Vec<(char, u64, u8, u64)>>,
    pub vector: Mutex<Option<u8>>,
}

impl Bus for TestBus {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.log.lock().unwrap().push(('i', port.into(), size, 0));
        u32::from(port)
    }
    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.log.lock().unwrap().push(('o', port.into(), size, value.into()));
    }
    fn mmio_read(&self, _: usize, address: u64, size: u8) -> u64 {
        self.log.lock().unwrap().push(('r', address, size, 0));
        (0..u64::from(size)).fold(0, |v, n| v | ((address + n) & 0xff) << (8 * n))
    }
    fn mmio_write(&self, _: usize, address: u64, size: u8, value: u64) {
        self.log.lock().unwrap().push(('w', address, size, value));
    }
    fn platform_msr_read(&self, _: usize, _: u32) -> Option<u64> {
        None
    }
    fn platform_msr_write(&self, _: usize, _: u32, _: u64) -> Option<()> {
        None
    }
    fn acknowledge_interrupt(&self, _: usize) -> Option<u8> {
        self.vector.lock().unwrap().take()
    }
    fn read_cr8(&self, _: usize) -> u64 {
        0
    }
    fn write_cr8(&self, _: usize, _: u64) {}
}

pub struct Machine {
    pub vcpu: InterpreterVcpu,
    pub memory: GuestMemory,
    pub bus: Arc<TestBus>,
    pub attention: Arc<Attention>,
}

/// Page tables and descriptor tables lie below this; tests use what is above.
pub const FREE: u64 = 0x10_0000;
const PML4: u64 = 0x1000;
const GDT: u64 = 0x8000;
const IDT: u64 = 0x9000;
/// Selectors of the descriptor table that [`Machine::new`] makes.
pub const CODE64: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const CODE32: u16 = 0x18;
pub const CODE16: u16 = 0x20;
/// Exception and interrupt handlers: one HLT for each vector.
pub const HANDLERS: u64 = 0xa000;

impl Machine {
    pub fn new(size: u64, model: &str) -> Self {
        Self::with_memory(GuestMemory::flat(size).unwrap(), model, 1)
    }

    /// One of `cpus` processors on this memory.
    pub fn with_memory(memory: GuestMemory, model: &str, cpus: u32) -> Self {
        let bus = Arc::new(TestBus::default());
        let attention = Arc::new(Attention::new());
        let model: CpuModel = model.parse().unwrap();
        let vcpu = InterpreterVcpu::new(VcpuConfig {
            index: 0,
            model: Arc::new(model),
            topology: Topology { apic_id: 0, cpus },
            memory: memory.clone(),
            clock: device_model::Clock::virtual_time(1_000_000, 0),
            attention: attention.clone(),
            bus: bus.clone(),
        });
        let m = Machine { vcpu, memory, bus, attention };
        for (n, d) in [
            0,
            0x00af_9b00_0000_ffff_u64,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x000f_9b00_0000_ffff,
        ]
        .into_iter()
        .enumerate()
        {
            m.write(GDT + 8 * n as u64, &d.to_le_bytes());
        }
        m
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_bytes(RamOffset(at), bytes);
    }

    pub fn read_u64(&self, at: u64) -> u64 {
        self.memory.read(RamOffset(at))
    }

    /// 64-bit mode, the first 2 GiB mapped to themselves by 2 MiB pages,
    /// handlers that halt.
    pub fn long_mode(&mut self) -> CpuState {
        let m = &self.memory;
        m.write::<u64>(RamOffset(PML4), 0x2000 | 7);
        for g in 0..2u64 {
            m.write::<u64>(RamOffset(0x2000 + 8 * g), (0x3000 + g * 0x1000) | 7);
            for n in 0..512u64 {
                m.write::<u64>(RamOffset(0x3000 + g * 0x1000 + 8 * n), g << 30 | n << 21 | 0x87);
            }
        }
        for v in 0..256u64 {
            let at = HANDLERS + v;
            m.write::<u8>(RamOffset(at), 0xf4);
            let low = at & 0xffff | u64::from(CODE64) << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
            m.write::<u64>(RamOffset(IDT + 16 * v), low);
            m.write::<u64>(RamOffset(IDT + 16 * v + 8), 0);
        }
        let mut s = self.base_state();
        s.cr0 |= cr0::PE | cr0::PG | cr0::WP | cr0::NE;
        s.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR;
        s.cr3 = PML4;
        s.efer = efer::LME | efer::LMA | efer::NXE;
        s.idtr = x86_state::TableRegister { base: IDT, limit: 0xfff };
        s.segments[1] = Segment { selector: CODE64, base: 0, limit: u32::MAX, access: 0xa09b };
        s
    }

    /// 32-bit protected mode without paging.
    pub fn protected_mode(&mut self) -> CpuState {
        let mut s = self.base_state();
        s.cr0 |= cr0::PE | cr0::NE;
        s.segments[1] = Segment { selector: CODE32, base: 0, limit: u32::MAX, access: 0xc09b };
        for v in 0..256u64 {
            let at = HANDLERS + v;
            self.memory.write::<u8>(RamOffset(at), 0xf4);
            let gate = at & 0xffff | u64::from(CODE32) << 16 | 0x8e00 << 32;
            self.memory.write::<u64>(RamOffset(IDT + 8 * v), gate);
        }
        s.idtr = x86_state::TableRegister { base: IDT, limit: 0x7ff };
        s
    }

    /// Real mode at 0:FREE's low part, vectors to one HLT each.
    pub fn real_mode(&mut self) -> CpuState {
        let mut s = CpuState::reset(true, 0);
        s.cr0 = cr0::ET;
        s.segments = [Segment::real_mode(0, false); 6];
        s.segments[1] = Segment::real_mode(0, true);
        for v in 0..256u64 {
            self.memory.write::<u8>(RamOffset(HANDLERS + v), 0xf4);
            self.memory.write::<u32>(RamOffset(4 * v), (HANDLERS + v) as u32);
        }
        s.idtr = x86_state::TableRegister { base: 0, limit: 0x3ff };
        s
    }

    fn base_state(&self) -> CpuState {
        let mut s = CpuState::reset(true, 0);
        s.cr0 = cr0::ET;
        let data = Segment { selector: DATA, base: 0, limit: u32::MAX, access: 0xc093 };
        s.segments = [data; 6];
        s.gdtr = x86_state::TableRegister { base: GDT, limit: 0x27 };
        s.gpr = [0; 16];
        s.gpr[4] = FREE - 0x1000;
        s
    }

    pub fn run(&mut self, s: &CpuState, limit: u64) -> (CpuState, Halt) {
        self.vcpu.set_state(s).unwrap();
        let halt = self.vcpu.run(limit);
        (self.vcpu.state().unwrap(), halt)
    }
}
