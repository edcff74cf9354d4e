//! The loop: blocks, events at instruction boundaries, limits.

use engine::{EngineError, Halt, Vcpu, VcpuConfig, attention_bits};
use x86_state::{Activity, CpuState, Exception, InterruptShadow, debugctl, dr6, rflags, vector};

use crate::blocks::Blocks;
use crate::cpu::{Cpu, Stop};
use crate::insn::{Insn, REG_RIP};
use crate::system::exception;

/// How a single step ended.
#[derive(Debug)]
pub enum StepEnd {
    /// One instruction has retired, or an event was delivered instead.
    Done,
    /// The instruction needs the x87 or vector registers; it has not executed.
    NeedsFpu,
    /// As [`Vcpu::run`] would return.
    Halted(Halt),
}

/// One vCPU of the interpreter.
pub struct InterpreterVcpu {
    cpu: Cpu,
    blocks: Blocks,
}

impl InterpreterVcpu {
    /// A vCPU in reset state.
    pub fn new(config: VcpuConfig) -> Self {
        InterpreterVcpu { cpu: Cpu::new(config), blocks: Blocks::new() }
    }

    /// The processor.
    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    /// Where the limit of the last run or step lies, counted in retired instructions:
    /// each fault and debug trap has brought it one nearer.
    pub fn limit_at(&self) -> u64 {
        self.cpu.limit_at
    }

    /// Deliver what is pending and execute one instruction. With `fpu_elsewhere`
    /// the x87 and vector registers of [`Cpu`] are stale: an instruction that uses
    /// them is left alone, at its boundary.
    pub fn step(&mut self, fpu_elsewhere: bool) -> StepEnd {
        self.cpu.limit_at = self.cpu.retired.saturating_add(1);
        self.blocks.decode_singly(true);
        let end = match self.boundary() {
            Some(Halt::Limit) => StepEnd::Done,
            Some(halt) => StepEnd::Halted(halt),
            None if fpu_elsewhere => self.step_without_fpu(),
            None => {
                self.advance();
                StepEnd::Done
            }
        };
        self.blocks.decode_singly(false);
        self.cpu.sync_time();
        end
    }

    /// Execute the next instruction if it leaves the x87 and vector registers alone: the
    /// very one that was looked at, since another processor may rewrite or map it.
    fn step_without_fpu(&mut self) -> StepEnd {
        let next = self.blocks.find(&mut self.cpu).ok().and_then(|i| i.first().copied());
        match next {
            Some(i) if !i.has(Insn::FPU) => {
                let single = self.watched();
                let outcome = if single { self.run_one(Some(i)) } else { self.run_found(&i) };
                self.ended(outcome);
                StepEnd::Done
            }
            // One that cannot be fetched may be there the next time.
            _ => StepEnd::NeedsFpu,
        }
    }

    fn run_to_halt(&mut self) -> Halt {
        loop {
            if let Some(halt) = self.boundary() {
                return halt;
            }
            self.advance();
        }
    }

    /// Execute blocks, or one instruction where each must be watched.
    fn advance(&mut self) {
        let outcome = if self.watched() { self.run_one(None) } else { self.run_blocks() };
        self.ended(outcome);
    }

    /// Whether each instruction must be watched.
    fn watched(&self) -> bool {
        self.cpu.system_flags & rflags::TF != 0 || self.cpu.code_breakpoints
    }

    fn ended(&mut self, outcome: Result<(), Stop>) {
        // A fault has been delivered; only its failure ends the machine.
        if outcome == Err(Stop::Shutdown) {
            self.cpu.activity = Activity::Shutdown;
        }
    }

    /// Everything that happens between instructions, in the order of SDM volume
    /// 3, table 7-2. `None`: go on with the next instruction.
    fn boundary(&mut self) -> Option<Halt> {
        loop {
            let cpu = &mut self.cpu;
            if let Some(reason) = cpu.failure.take() {
                let rip = cpu.rip();
                return Some(Halt::Failed(EngineError::Unsupported {
                    engine: "interp",
                    rip,
                    bytes: Vec::new(),
                    reason,
                }));
            }
            let bits = cpu.attention.bits();
            match cpu.activity {
                Activity::Active => {}
                Activity::Shutdown => return Some(Halt::TripleFault),
                Activity::Halted if wakes(cpu, bits) => cpu.activity = Activity::Active,
                _ if bits & attention_bits::RETURNING != 0 => return Some(Halt::Attention),
                _ => return Some(Halt::Idle),
            }
            if bits & attention_bits::RETURNING != 0 {
                return Some(Halt::Attention);
            }
            if cpu.retired >= cpu.limit_at {
                return Some(Halt::Limit);
            }
            match deliver_pending(cpu, bits) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(_) => cpu.activity = Activity::Shutdown,
            }
        }
    }

    /// Execute `i`, found at RIP.
    fn run_found(&mut self, i: &Insn) -> Result<(), Stop> {
        let cpu = &mut self.cpu;
        cpu.shadow = InterruptShadow::None;
        cpu.system_flags &= !rflags::RF;
        cpu.leave_at = cpu.limit_at;
        execute(cpu, std::slice::from_ref(i))
    }

    /// Execute blocks until something needs the boundary's attention.
    fn run_blocks(&mut self) -> Result<(), Stop> {
        let InterpreterVcpu { cpu, blocks } = self;
        // Events are blocked for one instruction. With none pending that one may
        // as well be the first of a whole block.
        let blocked = cpu.shadow != InterruptShadow::None;
        let waiting = cpu.attention.bits() != 0 || cpu.pending_debug != 0;
        let mut limit = if blocked && waiting { cpu.retired.wrapping_add(1) } else { cpu.limit_at };
        cpu.shadow = InterruptShadow::None;
        cpu.system_flags &= !rflags::RF;
        loop {
            run_block(cpu, blocks, limit)?;
            limit = cpu.limit_at;
            if cpu.retired >= cpu.leave_at {
                return Ok(());
            }
            let bits = cpu.attention.bits();
            if bits != 0 && (bits & !attention_bits::INTERRUPT != 0 || cpu.system_flags & rflags::IF != 0) {
                return Ok(());
            }
        }
    }

    /// Execute one instruction under TF or with instruction breakpoints: `found`, or the
    /// one at RIP.
    fn run_one(&mut self, found: Option<Insn>) -> Result<(), Stop> {
        let InterpreterVcpu { cpu, blocks } = self;
        let before = cpu.system_flags;
        let blocked = cpu.shadow == InterruptShadow::MovSs;
        if cpu.code_breakpoints && before & rflags::RF == 0 && !blocked {
            let hit = cpu.code_breakpoint_hit();
            if hit != 0 {
                cpu.fault = Exception { vector: vector::DB, error_code: None, payload: hit };
                count_fault(cpu);
                return exception::deliver_fault(cpu);
            }
        }
        cpu.shadow = InterruptShadow::None;
        cpu.system_flags &= !rflags::RF;
        let retired = cpu.retired;
        let branches_only = before & rflags::TF != 0 && cpu.msrs.debugctl & debugctl::BTF != 0;
        let found = match found {
            None if branches_only => blocks.find(cpu).ok().and_then(|i| i.first().copied()),
            found => found,
        };
        let behind = found.map(|i| cpu.rip().wrapping_add(u64::from(i.len)));
        // A trap is due for a completed instruction (or iteration) that began with
        // TF set; not after a fault or INT n, whose delivery has saved TF.
        cpu.step_trap = before & rflags::TF != 0;
        let limit = retired.wrapping_add(1);
        let outcome = match &found {
            Some(i) => {
                cpu.leave_at = limit;
                execute(cpu, std::slice::from_ref(i))
            }
            None => run_block(cpu, blocks, limit),
        };
        // That of MOV SS and POP SS is lost, not held off.
        let lost = cpu.shadow == InterruptShadow::MovSs;
        // A repeated instruction that has not ended is no branch either.
        let due = !branches_only || cpu.retired != retired && behind.is_some_and(|b| b != cpu.rip());
        if outcome != Err(Stop::Fault) && cpu.step_trap && !lost && due {
            cpu.pending_debug |= dr6::BS;
        }
        outcome.or_else(|stop| if stop == Stop::Fault { Ok(()) } else { Err(stop) })
    }
}

/// Whether something pending ends HLT.
fn wakes(cpu: &Cpu, bits: u32) -> bool {
    bits & attention_bits::NMI != 0 && !cpu.nmi_blocked
        || bits & attention_bits::INTERRUPT != 0 && cpu.system_flags & rflags::IF != 0
        || cpu.pending_debug != 0
        || cpu.injected.is_some()
}

/// Deliver the most urgent pending event. False: there is none.
fn deliver_pending(cpu: &mut Cpu, bits: u32) -> Result<bool, Stop> {
    if let Some(e) = cpu.injected.take() {
        cpu.fault = e;
        exception::deliver_fault(cpu)?;
        return Ok(true);
    }
    if cpu.pending_debug != 0 && cpu.shadow != InterruptShadow::MovSs {
        // Its own delivery may meet a data breakpoint, for ever.
        count_fault(cpu);
        exception::deliver_debug_trap(cpu)?;
        return Ok(true);
    }
    if bits == 0 || cpu.shadow != InterruptShadow::None {
        return Ok(false);
    }
    if bits & attention_bits::NMI != 0 && !cpu.nmi_blocked {
        cpu.attention.take(attention_bits::NMI);
        exception::deliver_nmi(cpu)?;
        return Ok(true);
    }
    if bits & attention_bits::INTERRUPT != 0 && cpu.system_flags & rflags::IF != 0 {
        cpu.sync_time();
        if let Some(vector) = cpu.bus.acknowledge_interrupt(cpu.index) {
            exception::deliver_interrupt(cpu, vector)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Execute the block at RIP, at most until `retired` reaches `limit`. Faults
/// are delivered here; `Err(Stop::Fault)` says that one was.
#[inline(always)]
fn run_block(cpu: &mut Cpu, blocks: &mut Blocks, limit: u64) -> Result<(), Stop> {
    cpu.leave_at = limit;
    match blocks.find(cpu) {
        Ok(insns) => execute(cpu, insns),
        Err(_) => fault(cpu),
    }
}

/// Execute `insns`, which lie at RIP, until `retired` reaches `leave_at`; as [`run_block`].
#[inline(always)]
fn execute(cpu: &mut Cpu, insns: &[Insn]) -> Result<(), Stop> {
    let mut rip = cpu.regs[REG_RIP as usize];
    for i in insns {
        rip = rip.wrapping_add(u64::from(i.len));
        cpu.regs[REG_RIP as usize] = rip;
        let step = (i.handler)(cpu, i);
        if step.is_err() {
            return stopped(cpu, step, rip.wrapping_sub(u64::from(i.len)));
        }
        cpu.retired = cpu.retired.wrapping_add(1);
        if cpu.retired >= cpu.leave_at {
            break;
        }
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn stopped(cpu: &mut Cpu, step: Result<(), Stop>, rip: u64) -> Result<(), Stop> {
    match step {
        Err(Stop::Fault) => {
            cpu.regs[REG_RIP as usize] = rip;
            return fault(cpu);
        }
        Err(Stop::Shutdown) => return Err(Stop::Shutdown),
        Err(Stop::Idle) => cpu.activity = Activity::Halted,
        Err(Stop::Resync) | Ok(()) => {}
    }
    cpu.retired = cpu.retired.wrapping_add(1);
    cpu.leave_at = 0;
    Ok(())
}

#[cold]
#[inline(never)]
fn fault(cpu: &mut Cpu) -> Result<(), Stop> {
    cpu.leave_at = 0;
    // Data breakpoints met by an instruction that faults are met again when it restarts.
    cpu.pending_debug = 0;
    count_fault(cpu);
    exception::deliver_fault(cpu)?;
    Err(Stop::Fault)
}

/// A fault uses up one instruction of the limit although none retires: a handler
/// that faults itself would otherwise never let `run` return.
fn count_fault(cpu: &mut Cpu) {
    cpu.limit_at = cpu.limit_at.saturating_sub(1);
}

impl Vcpu for InterpreterVcpu {
    fn run(&mut self, limit: u64) -> Halt {
        self.cpu.limit_at = self.cpu.retired.saturating_add(limit);
        let halt = self.run_to_halt();
        self.cpu.sync_time();
        halt
    }

    fn state(&mut self) -> Result<CpuState, EngineError> {
        Ok(self.cpu.to_state())
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.cpu.load_state(state).map_err(|reason| EngineError::BadState { engine: "interp", reason })
    }

    fn retired(&self) -> Option<u64> {
        Some(self.cpu.retired)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let (decoded, dropped) = self.blocks.counters();
        vec![("instructions", self.cpu.retired), ("blocks_decoded", decoded), ("block_cache_drops", dropped)]
    }
}
