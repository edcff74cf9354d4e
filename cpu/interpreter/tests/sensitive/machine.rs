//! The smallest world in which every mode and privilege level runs, and in which
//! every fault ends in a HLT that tells which it was.

use std::sync::Arc;

use device_model::Clock;
use engine::{Attention, Bus, Vcpu, VcpuConfig};
use guest_memory::GuestMemory;
use interpreter::InterpreterVcpu;
use x86_mmu::Descriptor;
use x86_state::{
    Activity, CpuModel, CpuState, Segment, TableRegister, Topology, cr0, cr4, efer, reg, rflags,
};

/// A mode of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Real,
    V86,
    Protected16,
    Protected32,
    Compatibility32,
    Long,
}

/// Where and how an instruction runs.
#[derive(Debug, Clone, Copy)]
pub struct Env {
    pub mode: Mode,
    pub cpl: u8,
    pub iopl: u8,
    pub umip: bool,
    pub vme: bool,
}

impl Env {
    /// Real-address or virtual-8086 mode: selectors are not looked up.
    pub fn real_segments(&self) -> bool {
        matches!(self.mode, Mode::Real | Mode::V86)
    }
    pub fn ia32e(&self) -> bool {
        matches!(self.mode, Mode::Compatibility32 | Mode::Long)
    }
    /// Default operand size in bytes of ordinary instructions.
    pub fn operand(&self) -> u64 {
        if matches!(self.mode, Mode::Real | Mode::V86 | Mode::Protected16) { 2 } else { 4 }
    }
    /// Bytes PUSH and POP move.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub fn slot(&self) -> u64 {
        if self.mode == Mode::Long { 8 } else { self.operand() }
    }
    /// ModRM byte of a memory operand at BX, EBX or RBX.
    pub fn at_bx(&self, field: u8) -> u8 {
        field << 3 | if self.operand() == 2 { 7 } else { 3 }
    }
}

/// Every combination that makes a difference.
pub fn environments() -> Vec<Env> {
    use Mode::*;
    let mut all = Vec::new();
    for mode in [Real, V86, Protected16, Protected32, Compatibility32, Long] {
        for cpl in 0..4 {
            let exists = match mode {
                Real => cpl == 0,
                V86 => cpl == 3,
                _ => true,
            };
            for (iopl, umip, vme) in [(0, false, false), (3, false, false), (0, true, false), (2, true, true)]
            {
                if exists {
                    all.push(Env { mode, cpl, iopl, umip, vme });
                }
            }
        }
    }
    all
}

pub const GDT: u64 = 0x1000;
pub const LDT: u64 = 0x1800;
pub const IDT: u64 = 0x2000;
pub const TSS: u64 = 0x3000;
pub const OTHER_TSS: u64 = 0x3800;
pub const DATA: u64 = 0x6000;
pub const STACK: u64 = 0x7000;
pub const INNER_STACK: u64 = 0x7c00;
pub const CODE: u64 = 0x8000;
/// Entry of the handler of vector 0; the others follow, 16 bytes apart.
pub const HANDLERS: u64 = 0x9000;
/// Where far transfers go.
pub const TARGET: u64 = 0xb000;
const PAGES: u64 = 0x1_0000;

/// Selectors, by number of the descriptor in the GDT.
pub mod gdt {
    const PER_RING: u16 = 5;
    const fn ring(kind: u16, level: u8) -> u16 {
        (1 + kind + PER_RING * level as u16) << 3
    }
    pub const fn code32(level: u8) -> u16 {
        ring(0, level)
    }
    pub const fn data(level: u8) -> u16 {
        ring(1, level)
    }
    pub const fn code16(level: u8) -> u16 {
        ring(2, level)
    }
    pub const fn read_only(level: u8) -> u16 {
        ring(3, level)
    }
    pub const fn code64(level: u8) -> u16 {
        ring(4, level)
    }
    const SPECIAL: u16 = 21;
    pub const CONFORMING32: u16 = SPECIAL << 3;
    pub const CONFORMING64: u16 = (SPECIAL + 1) << 3;
    pub const EXECUTE_ONLY: u16 = (SPECIAL + 2) << 3;
    pub const ABSENT_DATA: u16 = (SPECIAL + 3) << 3;
    pub const ABSENT_CODE: u16 = (SPECIAL + 4) << 3;
    pub const INTERRUPT_GATE: u16 = (SPECIAL + 5) << 3;
    /// System descriptors take two entries each, so that they are valid in
    /// 64-bit mode too.
    pub const LDT: u16 = (SPECIAL + 6) << 3;
    pub const TSS: u16 = (SPECIAL + 8) << 3;
    pub const OTHER_TSS: u16 = (SPECIAL + 10) << 3;
    pub const TSS16: u16 = (SPECIAL + 12) << 3;
    pub const CALL_GATE: u16 = (SPECIAL + 14) << 3;
    pub const TASK_GATE: u16 = (SPECIAL + 16) << 3;
    pub const ENTRIES: u16 = SPECIAL + 18;
    pub const BEYOND: u16 = ENTRIES << 3;
}

/// A code or data descriptor: flat, 1 MiB.
fn flat(kind: u64, level: u8, flags: u64) -> u64 {
    let access = 0x90 | u64::from(level) << 5 | kind;
    0xffff | access << 40 | 0xf << 48 | flags << 52
}

fn system(base: u64, limit: u64, kind: u64, level: u8) -> u64 {
    let access = 0x80 | u64::from(level) << 5 | kind;
    limit & 0xffff | (base & 0xff_ffff) << 16 | access << 40 | (base >> 24 & 0xff) << 56
}

fn gate(selector: u16, offset: u64, kind: u64, level: u8) -> u64 {
    let access = 0x80 | u64::from(level) << 5 | kind;
    offset & 0xffff | u64::from(selector) << 16 | access << 40 | (offset & 0xffff_0000) << 32
}

const BIG: u64 = 4;
const LONG: u64 = 2;
const ACCESSED: u64 = 1;

/// The descriptor tables for one environment.
fn descriptors(env: &Env) -> Vec<u64> {
    let mut t = vec![0; usize::from(gdt::ENTRIES)];
    let mut set = |selector: u16, raw: u64| t[usize::from(selector >> 3)] = raw;
    for level in 0..4 {
        set(gdt::code32(level), flat(0xa | ACCESSED, level, BIG));
        set(gdt::data(level), flat(0x2 | ACCESSED, level, BIG));
        set(gdt::code16(level), flat(0xa | ACCESSED, level, 0));
        set(gdt::read_only(level), flat(ACCESSED, level, 0));
        set(gdt::code64(level), flat(0xa | ACCESSED, level, LONG));
    }
    set(gdt::CONFORMING32, flat(0xe | ACCESSED, 0, BIG));
    set(gdt::CONFORMING64, flat(0xe | ACCESSED, 0, LONG));
    set(gdt::EXECUTE_ONLY, flat(0x8 | ACCESSED, 3, BIG));
    set(gdt::ABSENT_DATA, flat(0x2 | ACCESSED, 3, BIG) & !(1 << 47));
    let code_size = if env.mode == Mode::Long { LONG } else { BIG };
    set(gdt::ABSENT_CODE, flat(0xe | ACCESSED, 0, code_size) & !(1 << 47));
    set(gdt::INTERRUPT_GATE, gate(gdt::code32(0), 0, 0xe, 3));
    set(gdt::LDT, system(LDT, 0x7f, 2, 3));
    set(gdt::TSS, system(TSS, 0x1ff, 0xb, 3));
    set(gdt::OTHER_TSS, system(OTHER_TSS, 0x1ff, 9, 3));
    set(gdt::TSS16, system(OTHER_TSS, 0x1ff, 1, 3));
    let inner = if env.ia32e() { gdt::code64(0) } else { gdt::code32(0) };
    set(gdt::CALL_GATE, gate(inner, TARGET, 0xc, 3));
    set(gdt::TASK_GATE, gate(gdt::OTHER_TSS, 0, 5, 3));
    t
}

struct Nobody;

impl Bus for Nobody {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        0
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: usize, _: u64, _: u8) -> u64 {
        0
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

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It completed.
    Done,
    /// It raised this exception, with this error code (0 for those without).
    Fault(u8, u32),
}

/// One vCPU in the world above.
pub struct Machine {
    pub memory: GuestMemory,
    vcpu: InterpreterVcpu,
}

impl Machine {
    pub fn new() -> Self {
        Self::of(CpuModel::default_model())
    }

    pub fn of(model: CpuModel) -> Self {
        let model = Arc::new(model);
        let memory = GuestMemory::flat(0x20_0000).unwrap();
        let vcpu = InterpreterVcpu::new(VcpuConfig {
            index: 0,
            model: model.clone(),
            topology: Topology { apic_id: 0, cpus: 1 },
            memory: memory.clone(),
            clock: Clock::virtual_time(model.tsc_khz(), 0),
            attention: Arc::new(Attention::new()),
            bus: Arc::new(Nobody),
        });
        Machine { memory, vcpu }
    }

    pub fn poke(&self, address: u64, bytes: &[u8]) {
        self.memory.store(address, bytes).unwrap();
    }

    pub fn peek(&self, address: u64, size: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.load(address, &mut bytes[..size as usize]).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Write the tables for `env` and return its state, about to execute `code`.
    pub fn prepare(&mut self, env: &Env, code: &[u8]) -> CpuState {
        self.poke(0, &[0; 0x1_0000]);
        let table = descriptors(env);
        for (n, raw) in table.iter().enumerate() {
            self.poke(GDT + 8 * n as u64, &raw.to_le_bytes());
        }
        self.write_idt(env);
        self.write_tss(env);
        self.poke(PAGES, &(PAGES + 0x1007).to_le_bytes());
        self.poke(PAGES + 0x1000, &(PAGES + 0x2007).to_le_bytes());
        self.poke(PAGES + 0x2000, &0xe7u64.to_le_bytes());
        self.poke(CODE, code);
        self.state(env, &table)
    }

    fn write_idt(&mut self, env: &Env) {
        for v in 0..=255u64 {
            let entry = HANDLERS + 16 * v;
            self.poke(entry, &[0xf4]);
            // 0x40 may be called by everyone, others by level 0 only.
            let level = if v == 0x40 { 3 } else { 0 };
            if env.ia32e() {
                self.poke(IDT + 16 * v, &gate(gdt::code64(0), entry, 0xe, level).to_le_bytes());
            } else if env.mode == Mode::Real {
                self.poke(4 * v, &(entry as u32).to_le_bytes());
            } else {
                self.poke(IDT + 8 * v, &gate(gdt::code32(0), entry, 0xe, level).to_le_bytes());
            }
        }
    }

    fn write_tss(&mut self, env: &Env) {
        if env.ia32e() {
            for level in 0..3 {
                self.poke(TSS + 4 + 8 * level, &INNER_STACK.to_le_bytes());
            }
        } else {
            for level in 0..3u8 {
                let at = TSS + 4 + 8 * u64::from(level);
                self.poke(at, &(INNER_STACK as u32).to_le_bytes());
                self.poke(at + 4, &(gdt::data(level) | u16::from(level)).to_le_bytes());
            }
        }
        // Interrupt redirection: every INT n of virtual-8086 mode to the monitor.
        self.poke(TSS + 0x66, &0x100u16.to_le_bytes());
        self.poke(TSS + 0xe0, &[0xff; 32]);
        // The other task: level 0, flat, at TARGET.
        let words = [(0x20, TARGET as u32), (0x24, 2), (0x38, STACK as u32), (0x1c, 0)];
        for (offset, value) in words {
            self.poke(OTHER_TSS + offset, &value.to_le_bytes());
        }
        for n in 0..6u64 {
            let selector = if n == 1 { gdt::code32(0) } else { gdt::data(0) };
            self.poke(OTHER_TSS + 0x48 + 4 * n, &selector.to_le_bytes());
        }
    }

    fn state(&self, env: &Env, table: &[u64]) -> CpuState {
        let mut s = CpuState::reset(true, 0);
        let segment = |selector: u16| Descriptor::parse(table[usize::from(selector >> 3)]).segment(selector);
        let rpl = u16::from(env.cpl);
        s.gpr = [0; 16];
        s.gpr[reg::RBX] = DATA;
        s.gpr[reg::RSP] = STACK;
        s.rip = CODE;
        s.rflags = rflags::FIXED | u64::from(env.iopl) << rflags::IOPL_SHIFT;
        s.gdtr = TableRegister { base: GDT, limit: 8 * gdt::ENTRIES - 1 };
        s.idtr = match env.mode {
            Mode::Real => TableRegister { base: 0, limit: 0x3ff },
            _ => TableRegister { base: IDT, limit: 0xfff },
        };
        s.ldtr = segment(gdt::LDT);
        s.tr = segment(gdt::TSS);
        s.cr0 = cr0::ET | if env.mode == Mode::Real { 0 } else { cr0::PE };
        let flag = |on: bool, bit: u64| if on { bit } else { 0 };
        s.cr4 = flag(env.umip, cr4::UMIP) | flag(env.vme, cr4::VME);
        if env.ia32e() {
            s.cr0 |= cr0::PG;
            s.cr4 |= cr4::PAE;
            s.efer = efer::LME | efer::LMA;
            s.cr3 = PAGES;
        }
        let code = match env.mode {
            Mode::Protected16 => gdt::code16(env.cpl),
            Mode::Long => gdt::code64(env.cpl),
            _ => gdt::code32(env.cpl),
        };
        if env.real_segments() {
            s.segments = [Segment::real_mode(0, false); 6];
            s.segments[1] = Segment::real_mode(0, true);
        } else {
            s.segments = [segment(gdt::data(env.cpl) | rpl); 6];
            s.segments[1] = segment(code | rpl);
        }
        if env.mode == Mode::V86 {
            s.rflags |= rflags::VM;
            s.segments = [Segment { selector: 0, base: 0, limit: 0xffff, access: 0xf3 }; 6];
        }
        s
    }

    /// Execute until HLT.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub fn run_to_halt(&mut self, state: &CpuState) -> CpuState {
        self.vcpu.set_state(state).expect("the state is legal");
        let _ = self.vcpu.run(100);
        let after = self.vcpu.state().unwrap();
        assert_eq!(after.activity, Activity::Halted);
        after
    }

    /// Run for a while; false if the state is not one a processor can be in.
    #[allow(dead_code, reason = "not every test binary needs it")]
    pub fn survives(&mut self, state: &CpuState, limit: u64) -> bool {
        if self.vcpu.set_state(state).is_err() {
            return false;
        }
        let _ = self.vcpu.run(limit);
        true
    }

    /// Execute one instruction, or deliver its fault, whose return address must
    /// be the instruction.
    pub fn step(&mut self, state: &CpuState) -> (Outcome, CpuState) {
        let before = self.vcpu.retired();
        let (outcome, after) = self.run(state, 1);
        if after.activity != Activity::Shutdown && self.vcpu.retired() != before {
            return (Outcome::Done, after);
        }
        if after.activity != Activity::Shutdown && state.cr0 & cr0::PE != 0 {
            let size = if state.efer & efer::LMA != 0 { 8 } else { 4 };
            let above_error = if Self::pushes_error(&after) { size } else { 0 };
            let saved_ip = self.peek(after.gpr[reg::RSP] + above_error, size);
            assert_eq!(saved_ip, CODE, "a fault's return address is the instruction");
        }
        (outcome, after)
    }

    /// The vector of the handler RIP is at.
    fn handler_at(rip: u64) -> Option<u8> {
        let n = rip.wrapping_sub(HANDLERS) / 16;
        (rip >= HANDLERS && n < 32).then_some(n as u8)
    }

    fn pushes_error(after: &CpuState) -> bool {
        Self::handler_at(after.rip).is_some_and(|v| matches!(v, 8 | 10..=14 | 17))
    }

    /// Execute `limit` instructions; a fault if that leads to an exception's handler.
    pub fn run(&mut self, state: &CpuState, limit: u64) -> (Outcome, CpuState) {
        self.vcpu.set_state(state).expect("the state is legal");
        let _ = self.vcpu.run(limit);
        let after = self.vcpu.state().unwrap();
        if after.activity == Activity::Shutdown {
            return (Outcome::Fault(255, 0), after);
        }
        let Some(vector) = Self::handler_at(after.rip) else { return (Outcome::Done, after) };
        let has_code = Self::pushes_error(&after) && state.cr0 & cr0::PE != 0;
        let size = if state.efer & efer::LMA != 0 { 8 } else { 4 };
        let error = if has_code { self.peek(after.gpr[reg::RSP], size) as u32 } else { 0 };
        (Outcome::Fault(vector, error), after)
    }
}
