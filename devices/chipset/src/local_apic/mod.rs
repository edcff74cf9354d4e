//! Local APICs of all vCPUs for engines that bring none (SDM volume 3, chapter 12).
//!
//! Each APIC has its own lock and no thread ever holds two: what one APIC does to
//! others (interprocessor interrupts, EOI broadcasts) is carried out after its
//! lock is released.

mod apic;
mod message;
mod msr;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod timer;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use device_model::{Clock, MsiMessage, MsiSink, Nanos};
use engine::{Attention, EngineError, LocalInterrupts};
use x86_state::ApicState;

use apic::{Apic, Effect};
use message::{Destination, Mode};

/// What the local APICs of a machine are like.
#[derive(Debug, Clone)]
pub struct LocalApicsConfig {
    /// APIC ID of each vCPU, all different; the bootstrap processor is the first.
    pub apic_ids: Vec<u32>,
    /// MAXPHYADDR: address bits above are reserved in IA32_APIC_BASE.
    pub physical_bits: u8,
    /// Whether x2APIC mode can be entered.
    pub x2apic: bool,
    /// Whether the timer has TSC-deadline mode.
    pub tsc_deadline: bool,
}

/// What the local APICs ask of the rest of the platform. Called with no APIC locked.
pub struct ApicWiring {
    /// EOI of a level-triggered vector, for the IOAPICs.
    pub end_of_interrupt: Box<dyn Fn(u8) + Send + Sync>,
    /// Interrupt acknowledge cycle to the PIC; `None` when there is no PIC.
    pub acknowledge_pic: Box<dyn Fn() -> Option<u8> + Send + Sync>,
}

/// One APIC and what of it is read without its lock.
struct Slot {
    apic: Mutex<Apic>,
    /// The timer's next deadline, [`NEVER`] without; a copy that needs no lock.
    deadline: AtomicU64,
    /// Address of the xAPIC page, [`NEVER`] when there is none.
    page: AtomicU64,
}

/// No deadline, no page.
const NEVER: u64 = u64::MAX;

/// The local APICs of all vCPUs.
///
/// They drive each vCPU's [`Attention`]: `INTERRUPT` as a level, `NMI`, `INIT`
/// and `STARTUP` as events. Bits are changed with the APIC locked, so that their
/// order is the order of events; a kick installed by an engine that uses these
/// APICs must therefore not call back into them.
pub struct LocalApics {
    slots: Vec<Slot>,
    /// (APIC ID, vCPU), sorted by ID.
    by_id: Vec<(u32, usize)>,
    clock: Clock,
    wiring: OnceLock<ApicWiring>,
    /// Where the search for a lowest-priority target begins, so that equals take turns.
    turn: AtomicU32,
}

impl LocalApics {
    /// APICs in their power-up state, one for each `attention`, not yet wired to IOAPIC and PIC.
    ///
    /// # Panics
    /// When the counts of APIC IDs and attention words differ: an error of the caller's.
    pub fn new(config: LocalApicsConfig, clock: Clock, attention: Vec<Arc<Attention>>) -> Arc<Self> {
        assert_eq!(config.apic_ids.len(), attention.len(), "one attention word for each APIC ID");
        let mut by_id: Vec<_> = config.apic_ids.iter().copied().zip(0..).collect();
        by_id.sort_unstable();
        let slots = attention
            .into_iter()
            .enumerate()
            .map(|(i, attention)| Slot {
                apic: Mutex::new(Apic::new(&config, i, clock.clone(), attention)),
                deadline: AtomicU64::new(NEVER),
                page: AtomicU64::new(apic::DEFAULT_PAGE),
            })
            .collect();
        Arc::new(LocalApics { slots, by_id, clock, wiring: OnceLock::new(), turn: AtomicU32::new(0) })
    }

    /// Wire to IOAPIC and PIC. Only the first call has an effect.
    pub fn connect(&self, wiring: ApicWiring) {
        let _ = self.wiring.set(wiring);
    }

    /// Count of APICs.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is no APIC at all.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Do something to one APIC, then publish what follows from it.
    fn with<R>(&self, vcpu: usize, f: impl FnOnce(&mut Apic) -> R) -> R {
        let slot = &self.slots[vcpu];
        let mut apic = slot.apic.lock().unwrap_or_else(PoisonError::into_inner);
        let r = f(&mut apic);
        apic.update_attention();
        slot.deadline.store(apic.deadline().unwrap_or(NEVER), Ordering::Release);
        slot.page.store(apic.page_address().unwrap_or(NEVER), Ordering::Release);
        r
    }

    /// Guest-physical address of a vCPU's xAPIC page; `None` while the APIC is
    /// disabled or in x2APIC mode. Takes no lock.
    pub fn page_address(&self, vcpu: usize) -> Option<u64> {
        match self.slots[vcpu].page.load(Ordering::Acquire) {
            NEVER => None,
            page => Some(page),
        }
    }

    /// Read from a vCPU's xAPIC page at `offset` (below 4096).
    pub fn mmio_read(&self, vcpu: usize, offset: u64, size: u8) -> u64 {
        let now = self.clock.now();
        self.with(vcpu, |a| a.page_read(offset, size, now))
    }

    /// Write to a vCPU's xAPIC page. Only aligned 32-bit (and wider) writes have an effect.
    pub fn mmio_write(&self, vcpu: usize, offset: u64, size: u8, value: u64) {
        let now = self.clock.now();
        let effect = self.with(vcpu, |a| a.page_write(offset, size, value, now));
        self.carry_out(vcpu, effect);
    }

    /// RDMSR of APIC_BASE, TSC_DEADLINE and 0x800-0x8ff; `None` means #GP(0).
    pub fn msr_read(&self, vcpu: usize, index: u32) -> Option<u64> {
        let now = self.clock.now();
        self.with(vcpu, |a| a.msr_read(index, now))
    }

    /// WRMSR of the same; `None` means #GP(0). TSC_DEADLINE is in the clock's ticks:
    /// engines take their vCPU's offset off.
    pub fn msr_write(&self, vcpu: usize, index: u32, value: u64) -> Option<()> {
        let now = self.clock.now();
        let effect = self.with(vcpu, |a| {
            let effect = a.msr_write(index, value, now);
            if index == x86_state::msr_index::TSC_DEADLINE {
                // A deadline in the past fires at once, not when a timer thread wakes.
                a.expire(now);
            }
            effect
        })?;
        self.carry_out(vcpu, effect);
        Some(())
    }

    /// Interrupt acknowledge: the vector to deliver, which becomes in service.
    /// `None` when the request has gone away.
    pub fn acknowledge(&self, vcpu: usize) -> Option<u8> {
        // An external interrupt has its priority settled outside: it goes first.
        if self.with(vcpu, |a| a.external_interrupt()) {
            return self.wiring.get().and_then(|w| (w.acknowledge_pic)());
        }
        self.with(vcpu, Apic::acknowledge)
    }

    /// MOV from CR8: bits 7:4 of the TPR.
    pub fn read_cr8(&self, vcpu: usize) -> u64 {
        self.with(vcpu, |a| a.cr8())
    }

    /// MOV to CR8. Bits above 3 are ignored; the engine has raised #GP for them.
    pub fn write_cr8(&self, vcpu: usize, value: u64) {
        self.with(vcpu, |a| a.set_cr8(value));
    }

    /// The earliest timer deadline of all APICs, in guest nanoseconds. Takes no lock.
    pub fn next_deadline(&self) -> Option<Nanos> {
        let earliest = self.slots.iter().map(|s| s.deadline.load(Ordering::Acquire)).min()?;
        (earliest != NEVER).then_some(earliest)
    }

    /// Fire all timers whose deadline is not after `now`.
    pub fn expire(&self, now: Nanos) {
        for (vcpu, slot) in self.slots.iter().enumerate() {
            if slot.deadline.load(Ordering::Acquire) <= now {
                self.with(vcpu, |a| a.expire(now));
            }
        }
    }

    /// INIT: all registers but the ID and the mode return to their power-up state
    /// (SDM volume 3, 12.4.7.3 and 12.12.5.1). Done by who takes the `INIT` bit.
    pub fn init(&self, vcpu: usize) {
        self.with(vcpu, Apic::init);
    }

    /// Power-up state of all APICs.
    pub fn reset(&self) {
        for vcpu in 0..self.slots.len() {
            self.with(vcpu, Apic::power_up);
        }
    }

    fn carry_out(&self, from: usize, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::EndOfInterrupt(vector) => {
                if let Some(w) = self.wiring.get() {
                    (w.end_of_interrupt)(vector);
                }
            }
            Effect::Send(destination, mode) => self.send(Some(from), destination, mode),
        }
    }

    /// Deliver to all that the destination names.
    fn send(&self, from: Option<usize>, to: Destination, mode: Mode) {
        if let Mode::LowestPriority { vector, level } = mode {
            if let Some(vcpu) = self.lowest_priority(from, to) {
                self.with(vcpu, |a| a.receive(Mode::Fixed { vector, level }));
            }
            return;
        }
        match to {
            Destination::Physical(message::BROADCAST) => {}
            Destination::Physical(id) => {
                if let Ok(i) = self.by_id.binary_search_by_key(&id, |&(id, _)| id) {
                    self.with(self.by_id[i].1, |a| a.receive(mode));
                }
                return;
            }
            _ => {}
        }
        for vcpu in 0..self.slots.len() {
            self.with(vcpu, |a| {
                if a.is_addressed(to, from == Some(vcpu)) {
                    a.receive(mode);
                }
            });
        }
    }

    /// The addressed APIC with the lowest processor priority; equals take turns.
    fn lowest_priority(&self, from: Option<usize>, to: Destination) -> Option<usize> {
        let count = self.slots.len();
        let turn = self.turn.load(Ordering::Relaxed) as usize;
        let candidates = (0..count).map(|i| turn.wrapping_add(i) % count).filter_map(|vcpu| {
            self.with(vcpu, |a| {
                let takes = a.is_addressed(to, from == Some(vcpu)) && a.accepts_fixed();
                takes.then(|| (a.processor_priority(), vcpu))
            })
        });
        // The first of equals wins: `min_by_key` keeps the earliest.
        let (_, chosen) = candidates.min_by_key(|&(priority, _)| priority)?;
        self.turn.store(chosen as u32 + 1, Ordering::Relaxed);
        Some(chosen)
    }
}

impl MsiSink for LocalApics {
    fn send_msi(&self, message: MsiMessage) {
        if let Some((to, mode)) = message::from_msi(message) {
            self.send(None, to, mode);
        }
    }
}

impl LocalInterrupts for LocalApics {
    fn set_extint(&self, asserted: bool) {
        if !self.slots.is_empty() {
            self.with(0, |a| a.set_lint0(asserted));
        }
    }

    fn nmi(&self, vcpu: usize) {
        self.with(vcpu, |a| a.attention().nmi());
    }

    fn apic_state(&self, vcpu: usize) -> Result<ApicState, EngineError> {
        let now = self.clock.now();
        Ok(self.with(vcpu, |a| a.state(now)))
    }

    fn set_apic_state(&self, vcpu: usize, state: &ApicState) -> Result<(), EngineError> {
        self.with(vcpu, |a| a.set_state(state))
            .map_err(|reason| EngineError::BadState { engine: "platform APIC", reason })
    }
}

impl std::fmt::Debug for LocalApics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalApics").field("count", &self.slots.len()).finish_non_exhaustive()
    }
}
