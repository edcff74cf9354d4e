//! What one vCPU's host thread does between two visits at the gate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use board::{Board, EventPoster, MachineEvent};
use engine::attention_bits::{INIT, INTERRUPT, NMI, STARTUP, STOP};
use engine::{EngineError, Halt, Vcpu};
use x86_state::{Activity, CpuState, rflags};

use crate::gate::Gate;

/// One vCPU's place; its thread holds the lock while it executes.
pub(crate) type Slot = Mutex<Box<dyn Vcpu>>;

/// How a vCPU's thread spends its time. Written at every halt, read only when asked for.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// Nanoseconds asleep because the guest had halted.
    pub(crate) halted: AtomicU64,
    /// Nanoseconds executing the guest.
    pub(crate) executing: AtomicU64,
    /// Halts that the thread slept through.
    pub(crate) halts: AtomicU64,
}

impl Times {
    /// Add the time since `since` to a sum; answers the time now.
    fn add(sum: &AtomicU64, since: Instant) -> Instant {
        let now = Instant::now();
        sum.fetch_add(now.duration_since(since).as_nanos() as u64, Ordering::Relaxed);
        now
    }
}

/// Everything vCPU threads share.
pub(crate) struct Shared {
    pub(crate) board: Arc<Board>,
    pub(crate) events: EventPoster,
    pub(crate) gate: Gate,
    pub(crate) slots: Vec<Slot>,
    /// One a vCPU; stays zero in virtual time.
    pub(crate) times: Vec<Times>,
}

/// The body of a vCPU thread in host time.
pub(crate) fn main(shared: &Shared, index: usize) {
    while shared.gate.pass() {
        if shared.events.held() {
            stand_still(shared, index);
            continue;
        }
        let mut vcpu = shared.slots[index].lock().unwrap_or_else(PoisonError::into_inner);
        run_until_stopped(shared, index, vcpu.as_mut());
    }
}

fn run_until_stopped(shared: &Shared, index: usize, vcpu: &mut dyn Vcpu) {
    let attention = shared.board.attention(index);
    let times = &shared.times[index];
    let mut since = Instant::now();
    loop {
        let halt = vcpu.run(u64::MAX);
        since = Times::add(&times.executing, since);
        match halt {
            Halt::Limit => {}
            Halt::Idle => {
                let mask = match wake_mask(vcpu, attention.bits()) {
                    Ok(mask) => mask,
                    Err(error) => return fail(shared, index, error),
                };
                attention.wait(mask, None);
                times.halts.fetch_add(1, Ordering::Relaxed);
                since = Times::add(&times.halted, since);
            }
            Halt::Attention => match take_attention(&shared.board, index, vcpu) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => return fail(shared, index, error),
            },
            Halt::TripleFault => {
                shared.events.post(MachineEvent::TripleFault { vcpu: index });
                return stand_still(shared, index);
            }
            Halt::Failed(error) => return fail(shared, index, error),
        }
    }
}

/// Report an engine's failure and wait for the owner's decision.
fn fail(shared: &Shared, index: usize, error: EngineError) {
    shared.events.post(MachineEvent::Failed { vcpu: index, error });
    stand_still(shared, index);
}

/// Wait until the owner wants the vCPU at the gate.
pub(crate) fn stand_still(shared: &Shared, index: usize) {
    let attention = shared.board.attention(index);
    attention.wait(STOP, None);
    attention.take(STOP);
}

/// What an idle vCPU wakes for. Usually every bit; when a bit is up already and
/// the engine is idle all the same, the state says which do not count.
pub(crate) fn wake_mask(vcpu: &mut dyn Vcpu, bits: u32) -> Result<u32, EngineError> {
    const ALWAYS: u32 = INIT | STARTUP | STOP;
    if bits & (INTERRUPT | NMI) == 0 {
        return Ok(ALWAYS | INTERRUPT | NMI);
    }
    let state = vcpu.state()?;
    let mut mask = ALWAYS;
    if state.activity == Activity::Halted || state.activity == Activity::Active {
        if state.rflags & rflags::IF != 0 {
            mask |= INTERRUPT;
        }
        if !state.nmi_blocked {
            mask |= NMI;
        }
    }
    Ok(mask)
}

/// Act on INIT, STARTUP and STOP. True: the owner wants the vCPU back.
pub(crate) fn take_attention(board: &Board, index: usize, vcpu: &mut dyn Vcpu) -> Result<bool, EngineError> {
    let attention = board.attention(index);
    let bits = attention.take(INIT | STARTUP | STOP);
    if bits & INIT != 0 {
        board.init_local_apic(index);
    }
    if bits & (INIT | STARTUP) != 0 {
        let mut state = vcpu.state()?;
        if apply_init_startup(
            &mut state,
            bits,
            index == 0,
            board.model().signature(),
            attention.startup_vector(),
        ) {
            vcpu.set_state(&state)?;
        }
    }
    Ok(bits & STOP != 0)
}

/// INIT first, then a startup IPI if the processor waits for one (SDM volume 3,
/// 9.4.3: others are ignored). True: the state changed.
fn apply_init_startup(state: &mut CpuState, bits: u32, bsp: bool, signature: u32, vector: u8) -> bool {
    let mut changed = false;
    if bits & INIT != 0 {
        state.init(bsp, signature);
        changed = true;
    }
    if bits & STARTUP != 0 && state.activity == Activity::WaitForSipi {
        state.startup(vector);
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn startup_counts_only_while_waiting_for_it() {
        let mut s = CpuState::reset(true, 1);
        assert!(!apply_init_startup(&mut s, STARTUP, true, 1, 0x9a));
        assert_eq!(s.rip, 0xfff0);
        let mut ap = CpuState::reset(false, 1);
        ap.cr3 = 0x1000;
        assert!(apply_init_startup(&mut ap, INIT, false, 1, 0));
        assert_eq!((ap.activity, ap.cr3), (Activity::WaitForSipi, 0));
        assert!(apply_init_startup(&mut ap, STARTUP, false, 1, 0x9a));
        assert_eq!((ap.activity, ap.segments[1].base, ap.rip), (Activity::Active, 0x9a000, 0));
        assert!(apply_init_startup(&mut ap, INIT | STARTUP, false, 1, 0x10));
        assert_eq!(ap.segments[1].selector, 0x1000);
    }
}
