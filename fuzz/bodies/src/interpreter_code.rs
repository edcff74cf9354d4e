//! Arbitrary bytes as code never panic the interpreter, from the decoder to the
//! last instruction's effects, and leave a state that it accepts again.
//!
//! Input: mode, sixteen registers of 8 bytes, then code.

use std::sync::Arc;

use device_model::Clock;
use engine::{Attention, Bus, Engine, VcpuConfig};
use guest_memory::GuestMemory;
use x86_state::{CpuModel, CpuState, Segment, TableRegister, Topology, cr0, cr4, efer, reg, xcr0};

const MEMORY: u64 = 1 << 20;
const TABLES: u64 = 0x8_0000;
const GDT: u64 = 0x9_0000;
const IDT: u64 = 0xa_0000;
const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x7_0000;
/// Enough for any path the bytes can take, short enough for speed.
const INSTRUCTIONS: u64 = 500;

/// Answers with the address, so that what was read matters.
struct Echo;

impl Bus for Echo {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        u32::from(port) & (u32::MAX >> (32 - 8 * u32::from(size)))
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: usize, address: u64, size: u8) -> u64 {
        address & (u64::MAX >> (64 - 8 * u64::from(size)))
    }
    fn mmio_write(&self, _: usize, _: u64, _: u8, _: u64) {}
    fn platform_msr_read(&self, _: usize, index: u32) -> Option<u64> {
        Some(index.into())
    }
    fn platform_msr_write(&self, _: usize, _: u32, _: u64) -> Option<()> {
        Some(())
    }
    fn acknowledge_interrupt(&self, _: usize) -> Option<u8> {
        None
    }
    fn read_cr8(&self, _: usize) -> u64 {
        0
    }
    fn write_cr8(&self, _: usize, _: u64) {}
}

/// A start state: real mode, 16-bit, 32-bit or 64-bit protected mode, ring 0 or 3.
fn state(mode: u8, signature: u32) -> CpuState {
    let mut s = CpuState::reset(true, signature);
    s.rip = CODE & 0xffff;
    s.cr0 = cr0::ET | cr0::NE;
    s.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    s.xcr0 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    s.idtr = TableRegister { base: IDT, limit: 0xfff };
    if mode & 3 == 0 {
        s.segments = [Segment::real_mode(0x2000, false); 6];
        s.segments[1] = Segment::real_mode((CODE >> 4) as u16, true);
        s.rip = 0;
        s.idtr = TableRegister { base: 0, limit: 0x3ff };
        return s;
    }
    let (size, long) = match mode & 3 {
        1 => (0, false),
        2 => (Segment::DB, false),
        _ => (Segment::L, true),
    };
    let dpl = if mode & 4 != 0 { 3 } else { 0 };
    let ring = u32::from(dpl) << 5;
    let data = Segment {
        selector: 16 | dpl,
        base: 0,
        limit: 0xffff_ffff,
        access: Segment::G | Segment::DB | 0x93 | ring,
    };
    s.segments = [data; 6];
    s.segments[1] =
        Segment { selector: 8 | dpl, base: 0, limit: 0xffff_ffff, access: Segment::G | size | 0x9b | ring };
    s.gdtr = TableRegister { base: GDT, limit: 0xffff };
    s.rip = CODE;
    s.cr0 |= cr0::PE;
    if long {
        s.cr0 |= cr0::PG;
        s.cr4 |= cr4::PAE;
        s.cr3 = TABLES;
        s.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
    }
    s
}

/// Identity tables: one large user page of 2 MiB.
fn page_tables(memory: &GuestMemory) {
    for (at, entry) in
        [(TABLES, TABLES + 0x1007), (TABLES + 0x1000, TABLES + 0x2007), (TABLES + 0x2000, 0x87)]
    {
        let _ = memory.store(at, &entry.to_le_bytes());
    }
}

/// One run.
pub fn interpreter_code(data: &[u8]) {
    let Some((head, code)) = data.split_at_checked(1 + 16 * 8) else { return };
    let Ok(memory) = GuestMemory::flat(MEMORY) else { return };
    page_tables(&memory);
    let _ = memory.store(CODE, &code[..code.len().min(0x1000)]);
    // The same bytes serve as descriptors, gates and data.
    for at in [0, GDT, IDT, 0x2_0000] {
        let _ = memory.store(at, &code[..code.len().min(0x400)]);
    }
    let model: Arc<CpuModel> = Arc::new("x86-64-v3".parse().expect("a known model"));
    let clock = Clock::virtual_time(model.tsc_khz(), 0);
    let config = VcpuConfig {
        index: 0,
        model: model.clone(),
        topology: Topology { apic_id: 0, cpus: 1 },
        memory,
        clock,
        attention: Arc::new(Attention::new()),
        bus: Arc::new(Echo),
    };
    let mut start = state(head[0], model.signature());
    for (register, bytes) in start.gpr.iter_mut().zip(head[1..].chunks_exact(8)) {
        let value = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        // Half of all registers point into memory.
        *register = if value & 1 == 0 { value } else { value >> 1 & (MEMORY - 1) };
    }
    start.gpr[reg::RSP] = STACK;
    let mut vcpu = interpreter::Interpreter.create_vcpu(config).expect("a vCPU");
    vcpu.set_state(&start).expect("the start state is valid");
    let _ = vcpu.run(INSTRUCTIONS);
    let end = vcpu.state().expect("the state is readable");
    vcpu.set_state(&end).expect("the interpreter accepts its own state");
    assert_eq!(vcpu.state().expect("the state is readable"), end);
}
