//! One vCPU: the run loop.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{EngineError, Halt, KickGuard, Vcpu, VcpuConfig, attention_bits};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};
use kvm_ioctls::VcpuFd;
use x86_state::{Activity, CpuState, msr_index};

use crate::assist::{Next, Policy};
use crate::msr::{self, MsrFile};
use crate::state::Confined;
use crate::sys::{self, Exit, Kicker};
use crate::tsc::{GuestTsc, Moment};
use crate::vm::{Shared, host, kvm_error};
use crate::{NAME, cpuid};

/// Who has the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    Kvm,
    Assistant,
}

/// Why the loop in KVM stopped.
enum Pause {
    /// The caller decides.
    Return(Halt),
    /// KVM cannot go on from here.
    Stuck { reason: String, bytes: Vec<u8> },
}

/// Statistics.
#[derive(Debug, Default)]
struct Counters {
    exits: u64,
    port_exits: u64,
    mmio_exits: u64,
    msr_exits: u64,
    halts: u64,
    injected: u64,
    assists: u64,
    bursts: u64,
    refused: u64,
    shutdowns_checked: u64,
}

/// One vCPU in KVM, with its assistant once that was needed.
pub(crate) struct KvmVcpu {
    // Static configuration.
    pub(crate) config: VcpuConfig,
    pub(crate) shared: Arc<Shared>,

    // Runtime glue.
    pub(crate) fd: VcpuFd,
    kicker: Arc<Kicker>,
    _kick: KickGuard,
    assistant: Option<Box<dyn Vcpu>>,
    policy: Policy,
    /// KVM shows another CPUID than the model's: no code of the guest runs in it.
    assistant_only: bool,
    counters: Counters,

    // Volatile state that KVM does not hold.
    home: Home,
    pub(crate) msrs: MsrFile,
    pub(crate) activity: Activity,
    /// An exit was answered, but KVM has not finished its instruction yet.
    unfinished: bool,
    /// KVM was given an NMI that it may still have.
    pub(crate) nmi_given: bool,
    /// RFLAGS.IF at the last exit.
    pub(crate) interrupts_on: bool,
    /// An interrupt could be injected at the last exit.
    pub(crate) ready: bool,
    pub(crate) tsc: GuestTsc,
    /// User code runs with no way into supervisor code.
    pub(crate) confined: Option<Confined>,
}

impl KvmVcpu {
    pub(crate) fn new(shared: Arc<Shared>, config: VcpuConfig) -> Result<Self, EngineError> {
        let mut fd = shared.vm.create_vcpu(config.index as u64).map_err(kvm_error("KVM_CREATE_VCPU"))?;
        let table = cpuid::table(&config.model, config.topology);
        fd.set_cpuid2(&table).map_err(kvm_error("KVM_SET_CPUID2"))?;
        let altered = cpuid::altered(&fd, &table).map_err(kvm_error("KVM_GET_CPUID2"))?;
        let assistant_only = !altered.is_empty() && !shared.options.accept_other_cpuid;
        if assistant_only && shared.options.assistant.is_none() {
            let reason =
                format!("KVM on this host shows guests other CPUID leaves than the model's: {altered:x?}");
            return Err(EngineError::BadState { engine: NAME, reason });
        }
        Self::set_frequency(&fd, config.clock.tsc_khz())?;
        let kicker = Arc::new(Kicker::new(&mut fd));
        let kicked = kicker.clone();
        let kick = config.attention.on_raise(Box::new(move || kicked.kick()));
        let reset = CpuState::reset(config.index == 0, config.model.signature());
        let tsc = GuestTsc::new(&fd);
        let _ = shared.tsc_movable.set(tsc.movable());
        let mut vcpu = KvmVcpu {
            msrs: MsrFile::new(&fd),
            tsc,
            policy: Policy::new(shared.options.assistance),
            assistant_only,
            config,
            shared,
            fd,
            kicker,
            _kick: kick,
            assistant: None,
            counters: Counters::default(),
            home: Home::Kvm,
            activity: Activity::Active,
            unfinished: false,
            nmi_given: false,
            interrupts_on: false,
            ready: false,
            confined: None,
        };
        vcpu.load(&reset)?;
        if assistant_only {
            vcpu.enter_assistant()?;
        }
        Ok(vcpu)
    }

    fn set_frequency(fd: &VcpuFd, khz: u32) -> Result<(), EngineError> {
        let host_khz = fd.get_tsc_khz().unwrap_or(0);
        if host_khz != khz && fd.set_tsc_khz(khz).is_err() {
            let reason = format!(
                "KVM on this host cannot scale the TSC from its {host_khz} kHz to the model's {khz} kHz; state {host_khz} kHz in the model"
            );
            return Err(EngineError::BadState { engine: NAME, reason });
        }
        Ok(())
    }

    /// Run in KVM, the assistant, or both in turn, until the caller must act.
    fn run_unlimited(&mut self) -> Result<Halt, EngineError> {
        loop {
            if self.home == Home::Assistant {
                if let Some(halt) = self.run_assistant()? {
                    return Ok(halt);
                }
                continue;
            }
            let entered = Instant::now();
            match self.run_kvm(&mut u64::MAX.clone())? {
                Pause::Return(halt) => return Ok(halt),
                Pause::Stuck { reason, bytes } => self.hand_over(entered.elapsed(), reason, bytes)?,
            }
        }
    }

    /// Run exactly `limit` instructions: on the assistant, which counts, or by
    /// single steps.
    fn run_counted(&mut self, limit: u64) -> Result<Halt, EngineError> {
        if self.shared.options.assistant.is_some() {
            self.enter_assistant()?;
            return Ok(self.assistant_mut()?.run(limit));
        }
        self.step_mode(true)?;
        let mut left = limit;
        let pause = if limit == 0 { Ok(Pause::Return(Halt::Limit)) } else { self.run_kvm(&mut left) };
        self.step_mode(false)?;
        match pause? {
            Pause::Return(halt) => Ok(halt),
            Pause::Stuck { reason, .. } if reason == SHUTDOWN => {
                self.activity = Activity::Shutdown;
                Ok(Halt::TripleFault)
            }
            Pause::Stuck { reason, bytes } => Err(self.unsupported(reason, bytes)),
        }
    }

    fn step_mode(&mut self, on: bool) -> Result<(), EngineError> {
        let control = if on { KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP } else { 0 };
        self.fd
            .set_guest_debug(&kvm_guest_debug { control, ..Default::default() })
            .map_err(kvm_error("KVM_SET_GUEST_DEBUG"))
    }

    /// Run in KVM until something is to be decided. While stepping, `left`
    /// counts instructions down.
    fn run_kvm(&mut self, left: &mut u64) -> Result<Pause, EngineError> {
        loop {
            self.kicker.set_immediate_exit(false);
            if self.confined.is_some() && self.config.attention.bits() & DELIVERABLE != 0 {
                return Ok(Pause::Stuck { reason: EVENT.into(), bytes: Vec::new() });
            }
            if let Some(halt) = self.attend()? {
                return Ok(Pause::Return(halt));
            }
            let event = Self::enter(&mut self.fd, &self.config, &mut self.msrs, &mut self.counters);
            let run = self.fd.get_kvm_run();
            self.ready = run.ready_for_interrupt_injection != 0;
            self.interrupts_on = run.if_flag != 0;
            self.unfinished = matches!(event, Ok(Event::Answered));
            match event.map_err(host("KVM_RUN"))? {
                Event::Answered | Event::Nothing => {}
                Event::Halted => {
                    self.counters.halts += 1;
                    self.activity = Activity::Halted;
                }
                Event::Stepped => {
                    *left -= 1;
                    if *left == 0 {
                        return Ok(Pause::Return(Halt::Limit));
                    }
                }
                Event::Stuck { reason, bytes } => return Ok(Pause::Stuck { reason, bytes }),
            }
        }
    }

    /// Look at the attention word and bring in what is due.
    fn attend(&mut self) -> Result<Option<Halt>, EngineError> {
        let attention = self.config.attention.clone();
        let bits = attention.bits();
        if bits & attention_bits::RETURNING != 0 {
            return Ok(Some(Halt::Attention));
        }
        match self.activity {
            Activity::WaitForSipi => return Ok(Some(Halt::Idle)),
            Activity::Shutdown => return Ok(Some(Halt::TripleFault)),
            Activity::Active | Activity::Halted => {}
        }
        let mut wanted = bits & attention_bits::INTERRUPT != 0;
        if self.activity == Activity::Halted {
            if !(self.nmi_wakes(bits)? || wanted && self.interrupts_on) {
                return Ok(Some(Halt::Idle));
            }
            self.activity = Activity::Active;
        }
        if attention.take(attention_bits::NMI) != 0 {
            self.fd.nmi().map_err(kvm_error("KVM_NMI"))?;
            self.nmi_given = true;
        }
        if wanted && self.ready {
            if let Some(vector) = self.config.bus.acknowledge_interrupt(self.config.index) {
                sys::interrupt(&self.fd, vector).map_err(host("KVM_INTERRUPT"))?;
                self.counters.injected += 1;
            }
            self.ready = false;
            wanted = attention.bits() & attention_bits::INTERRUPT != 0;
        }
        self.fd.get_kvm_run().request_interrupt_window = u8::from(wanted);
        Ok(None)
    }

    /// Whether an NMI ends HLT: one that has arrived, or one that KVM was given and
    /// has not delivered.
    fn nmi_wakes(&mut self, bits: u32) -> Result<bool, EngineError> {
        let arrived = bits & attention_bits::NMI != 0;
        if !arrived && !self.nmi_given {
            return Ok(false);
        }
        let events = self.fd.get_vcpu_events().map_err(kvm_error("KVM_GET_VCPU_EVENTS"))?;
        let pending = events.nmi.pending != 0;
        self.nmi_given = pending;
        Ok((arrived || pending) && events.nmi.masked == 0)
    }

    /// One KVM_RUN, with the answer to its exit.
    fn enter(
        fd: &mut VcpuFd,
        config: &VcpuConfig,
        msrs: &mut MsrFile,
        counters: &mut Counters,
    ) -> std::io::Result<Event> {
        counters.exits += 1;
        let index = config.index;
        let bus = &*config.bus;
        let task_priority = bus.read_cr8(index);
        fd.get_kvm_run().cr8 = task_priority;
        let (exit, new_priority) = sys::run(fd)?;
        if new_priority != task_priority {
            // MOV to CR8 was before the access that KVM came back for.
            bus.write_cr8(index, new_priority);
        }
        Ok(match exit {
            Exit::Port { port, size, write, data } => {
                counters.port_exits += 1;
                for element in data.chunks_exact_mut(usize::from(size)) {
                    let mut value = [0; 4];
                    if write {
                        value[..element.len()].copy_from_slice(element);
                        bus.port_write(port, size, u32::from_le_bytes(value));
                    } else {
                        value = bus.port_read(port, size).to_le_bytes();
                        element.copy_from_slice(&value[..element.len()]);
                    }
                }
                Event::Answered
            }
            Exit::Mmio { address, write, data } => {
                counters.mmio_exits += 1;
                for (at, size) in aligned_pieces(address, data.len()) {
                    let (place, piece) = (address.wrapping_add(at as u64), &mut data[at..at + size]);
                    let mut value = [0; 8];
                    if write {
                        value[..size].copy_from_slice(piece);
                        bus.mmio_write(index, place, size as u8, u64::from_le_bytes(value));
                    } else {
                        value = bus.mmio_read(index, place, size as u8).to_le_bytes();
                        piece.copy_from_slice(&value[..size]);
                    }
                }
                Event::Answered
            }
            Exit::ReadMsr { index: msr } => {
                counters.msr_exits += 1;
                let answer = match msr {
                    msr_index::TSC_DEADLINE => bus
                        .platform_msr_read(index, msr)
                        .map(|deadline| Moment::now(fd, &config.clock).to_guest(deadline)),
                    _ if msr::is_platform(msr) => bus.platform_msr_read(index, msr),
                    _ => msrs.read(fd, &config.model, msr),
                };
                sys::answer_msr(fd, answer);
                Event::Answered
            }
            Exit::WriteMsr { index: msr, value } => {
                counters.msr_exits += 1;
                let answer = match msr {
                    msr_index::TSC_DEADLINE => {
                        let deadline = Moment::now(fd, &config.clock).to_clock(value);
                        bus.platform_msr_write(index, msr, deadline)
                    }
                    _ if msr::is_platform(msr) => bus.platform_msr_write(index, msr, value),
                    _ => msrs.write(fd, &config.model, msr, value),
                };
                sys::answer_msr(fd, answer.map(|()| value));
                Event::Answered
            }
            Exit::Halt => Event::Halted,
            Exit::Nothing | Exit::Interrupted => Event::Nothing,
            Exit::Debug => Event::Stepped,
            Exit::Shutdown => Event::Stuck { reason: SHUTDOWN.into(), bytes: Vec::new() },
            Exit::Internal { suberror, bytes } => {
                let reason = match suberror {
                    kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "KVM's emulator does not know it".into(),
                    other => format!("KVM internal error {other}"),
                };
                Event::Stuck { reason, bytes }
            }
            Exit::Other(what) => Event::Stuck { reason: format!("KVM exit {what}"), bytes: Vec::new() },
        })
    }

    /// Let KVM finish the instruction whose exit was answered, without going on.
    pub(crate) fn finish(&mut self) -> Result<(), EngineError> {
        while self.unfinished {
            self.kicker.set_immediate_exit(true);
            let event = Self::enter(&mut self.fd, &self.config, &mut self.msrs, &mut self.counters);
            self.unfinished = matches!(event.map_err(host("KVM_RUN"))?, Event::Answered);
        }
        Ok(())
    }

    fn unsupported(&self, reason: String, bytes: Vec<u8>) -> EngineError {
        let rip = self.fd.get_regs().map_or(0, |r| r.rip);
        EngineError::Unsupported { engine: NAME, rip, bytes, reason }
    }

    /// KVM is stuck after `ran`: the assistant goes on from the exported state.
    fn hand_over(&mut self, ran: Duration, reason: String, bytes: Vec<u8>) -> Result<(), EngineError> {
        if reason == SHUTDOWN && !self.shared.options.rechecks_shutdowns() {
            self.activity = Activity::Shutdown;
            return Ok(());
        }
        if self.shared.options.assistant.is_none() {
            return Err(self.unsupported(reason, bytes));
        }
        self.policy.kvm_failed(ran);
        self.counters.assists += 1;
        // A real triple fault happens again on the assistant.
        self.counters.shutdowns_checked += u64::from(reason == SHUTDOWN);
        self.enter_assistant()
    }

    /// What KVM has, and what has not reached it yet: an NMI that waits outside is
    /// part of the state, too.
    fn whole_state(&mut self) -> Result<CpuState, EngineError> {
        let mut state = self.export()?;
        state.nmi_pending |= self.config.attention.bits() & attention_bits::NMI != 0;
        Ok(state)
    }

    fn enter_assistant(&mut self) -> Result<(), EngineError> {
        if self.home == Home::Assistant {
            return Ok(());
        }
        let state = self.whole_state()?;
        // KVM writes guest memory without leaving marks.
        self.shared.memory.marks().forget_all_code();
        self.assistant_mut()?.set_state(&state)?;
        self.home = Home::Assistant;
        Ok(())
    }

    fn assistant_mut(&mut self) -> Result<&mut Box<dyn Vcpu>, EngineError> {
        if self.assistant.is_none() {
            let engine = self.shared.options.assistant.as_ref().ok_or_else(|| EngineError::BadState {
                engine: NAME,
                reason: "no assistant engine is configured".into(),
            })?;
            self.assistant = Some(engine.create_vcpu(self.config.clone())?);
        }
        Ok(self.assistant.as_mut().expect("made above"))
    }

    /// One burst of the assistant. `None`: go on.
    fn run_assistant(&mut self) -> Result<Option<Halt>, EngineError> {
        let burst = if self.assistant_only { u64::MAX } else { self.policy.burst() };
        self.counters.bursts += 1;
        match self.assistant_mut()?.run(burst) {
            Halt::Limit => {}
            other => return Ok(Some(other)),
        }
        if self.shared.options.confine_user && self.config.attention.bits() & DELIVERABLE != 0 {
            // It would come straight back to have that delivered.
            return Ok(None);
        }
        let state = self.assistant_mut()?.state()?;
        if self.policy.after_burst(state.cpl()) == Next::Kvm {
            match self.import(&state) {
                Ok(()) => self.home = Home::Kvm,
                Err(EngineError::BadState { .. }) => {
                    self.counters.refused += 1;
                    self.policy.kvm_refused();
                }
                Err(other) => return Err(other),
            }
        }
        Ok(None)
    }
}

/// What an exit amounts to.
enum Event {
    /// Its data was supplied or taken; KVM finishes the instruction when it is entered next.
    Answered,
    Nothing,
    Halted,
    Stepped,
    Stuck {
        reason: String,
        bytes: Vec<u8>,
    },
}

const SHUTDOWN: &str = "triple fault";
/// Confined user code is interrupted: the assistant delivers.
const EVENT: &str = "event for confined user code";
/// Attention that is a matter of delivery, and none that returns to the owner.
const DELIVERABLE: u32 = attention_bits::INTERRUPT | attention_bits::NMI;

/// Split `len` bytes at `address` at their natural alignment: offset and size of
/// pieces of 1, 2, 4 or 8 bytes.
fn aligned_pieces(address: u64, len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = len.checked_sub(at).filter(|n| *n > 0)?;
        let alignment = 1usize << address.wrapping_add(at as u64).trailing_zeros().min(3);
        let fits = 1usize << left.min(8).ilog2();
        let piece = (at, alignment.min(fits));
        at += piece.1;
        Some(piece)
    })
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, limit: u64) -> Halt {
        self.kicker.bind();
        let result = if limit == u64::MAX { self.run_unlimited() } else { self.run_counted(limit) };
        result.unwrap_or_else(Halt::Failed)
    }

    fn state(&mut self) -> Result<CpuState, EngineError> {
        match self.home {
            Home::Kvm => self.whole_state(),
            Home::Assistant => self.assistant_mut()?.state(),
        }
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        if self.assistant_only {
            return self.assistant_mut()?.set_state(state);
        }
        match self.import(state) {
            Ok(()) => self.home = Home::Kvm,
            // What KVM refuses the assistant may take.
            Err(EngineError::BadState { .. }) if self.shared.options.assistant.is_some() => {
                self.counters.refused += 1;
                self.shared.memory.marks().forget_all_code();
                self.assistant_mut()?.set_state(state)?;
                self.home = Home::Assistant;
            }
            Err(e) => return Err(e),
        }
        if self.home == Home::Kvm && !self.policy.starts_in_kvm(state.cpl()) {
            self.enter_assistant()?;
        }
        Ok(())
    }

    fn retired(&self) -> Option<u64> {
        None
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let c = &self.counters;
        let mut list = vec![
            ("kvm_exits", c.exits),
            ("kvm_port_exits", c.port_exits),
            ("kvm_mmio_exits", c.mmio_exits),
            ("kvm_msr_exits", c.msr_exits),
            ("kvm_halts", c.halts),
            ("kvm_interrupts_injected", c.injected),
            ("kvm_assists", c.assists),
            ("kvm_assistant_bursts", c.bursts),
            ("kvm_state_refused", c.refused),
            ("kvm_shutdowns_checked", c.shutdowns_checked),
        ];
        if let Some(assistant) = &self.assistant {
            list.extend(assistant.counters());
        }
        list
    }

    fn clock_stood_still(&mut self, ticks: u64) -> Result<(), EngineError> {
        self.tsc.take_off(&self.fd, ticks)
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicker.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_accesses_are_split_at_their_natural_alignment() {
        let check = |address, len, want: &[(usize, usize)]| {
            assert_eq!(aligned_pieces(address, len).collect::<Vec<_>>(), want, "{len} bytes at {address:#x}");
        };
        check(0x1000, 8, &[(0, 8)]);
        check(0x1004, 8, &[(0, 4), (4, 4)]);
        check(0x1001, 4, &[(0, 1), (1, 2), (3, 1)]);
        check(0x1002, 3, &[(0, 2), (2, 1)]);
        check(u64::MAX, 2, &[(0, 1), (1, 1)]);
        check(0x1000, 0, &[]);
    }
}
