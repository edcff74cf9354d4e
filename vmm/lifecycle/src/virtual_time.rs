//! The deterministic driver: one thread runs all vCPUs in turn, and time is the
//! count of instructions.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use board::{Board, MachineEvent, NEVER};
use engine::attention_bits::{INIT, INTERRUPT, NMI, STARTUP, STOP};
use engine::{Attention, Halt, Vcpu};

use crate::vcpu_thread::{Shared, stand_still, take_attention, wake_mask};

/// Instructions a vCPU runs before the next one's turn, when there are several.
const TURN: u64 = 20_000;

/// Sleeps while no vCPU can run and no deadline is set: only input from outside
/// can go on then.
#[derive(Default)]
struct Sleep {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Sleep {
    fn signal(&self) {
        *self.signalled.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
    fn wait(&self) {
        let mut s = self.signalled.lock().unwrap_or_else(PoisonError::into_inner);
        while !*s {
            s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        *s = false;
    }
}

/// What the driver knows of each vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Ready,
    /// Idle until one of these attention bits is up.
    Waiting(u32),
    /// Failed or shut down; the owner decides.
    Out,
}

/// The body of the one vCPU thread of a machine in virtual time.
pub(crate) fn main(shared: &Shared) {
    let board = &shared.board;
    let (sleep, running) = (Arc::new(Sleep::default()), Arc::new(AtomicUsize::new(0)));
    let kick = |attention: &Arc<Attention>| {
        let sleep = sleep.clone();
        attention.on_raise(Box::new(move || sleep.signal()))
    };
    let _kicks: Vec<_> = board.attentions().iter().map(kick).collect();
    let (current, attentions) = (running.clone(), board.attentions().to_vec());
    board.timers().on_sooner(Some(Box::new(move || {
        if let Some(a) = attentions.get(current.load(Ordering::SeqCst)) {
            a.raise(STOP);
        }
    })));
    while shared.gate.pass() {
        if shared.events.held() {
            stand_still(shared, 0);
            continue;
        }
        let mut vcpus: Vec<_> =
            shared.slots.iter().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner)).collect();
        Driver { shared, sleep: &sleep, running: &running }.run(&mut vcpus);
    }
    board.timers().on_sooner(None);
}

struct Driver<'a> {
    shared: &'a Shared,
    sleep: &'a Sleep,
    running: &'a AtomicUsize,
}

impl Driver<'_> {
    /// Run until the owner wants the vCPUs back.
    fn run(&self, vcpus: &mut [MutexGuard<'_, Box<dyn Vcpu>>]) {
        let board = &self.shared.board;
        let mut turns = vec![Turn::Ready; vcpus.len()];
        let mut next = 0;
        loop {
            let deadline = expire_due(board);
            // A device may have posted what holds the machine, such as a watchdog's reset.
            if self.stands() {
                return;
            }
            let ready =
                (0..vcpus.len()).map(|i| (next + i) % vcpus.len()).find(|i| is_ready(board, *i, turns[*i]));
            let Some(index) = ready else {
                // A STOP that is still up would keep the owner's from being heard.
                board.attentions().iter().for_each(|a| a.clear(STOP));
                if self.stands() {
                    return;
                }
                match deadline {
                    NEVER => self.sleep.wait(),
                    at => board.clock().advance(at.saturating_sub(board.clock().now())),
                }
                continue;
            };
            next = (index + 1) % vcpus.len();
            self.running.store(index, Ordering::SeqCst);
            let limit = deadline.saturating_sub(board.clock().now()).max(1);
            let limit = if vcpus.len() > 1 { limit.min(TURN) } else { limit };
            let halt = vcpus[index].run(limit);
            turns[index] = self.after(index, vcpus[index].as_mut(), halt);
            if self.stands() {
                return;
            }
        }
    }

    /// Whether no vCPU may go on, and no time pass, before the owner has acted.
    fn stands(&self) -> bool {
        self.shared.gate.closed() || self.shared.events.held()
    }

    fn after(&self, index: usize, vcpu: &mut dyn Vcpu, halt: Halt) -> Turn {
        let board = &self.shared.board;
        let failed = |error| {
            self.shared.events.post(MachineEvent::Failed { vcpu: index, error });
            Turn::Out
        };
        match halt {
            Halt::Limit => Turn::Ready,
            Halt::Idle => match wake_mask(vcpu, board.attention(index).bits()) {
                Ok(mask) => Turn::Waiting(mask),
                Err(error) => failed(error),
            },
            Halt::Attention => match take_attention(board, index, vcpu) {
                Ok(_) => Turn::Ready,
                Err(error) => failed(error),
            },
            Halt::TripleFault => {
                self.shared.events.post(MachineEvent::TripleFault { vcpu: index });
                Turn::Out
            }
            Halt::Failed(error) => failed(error),
        }
    }
}

fn is_ready(board: &Board, index: usize, turn: Turn) -> bool {
    match turn {
        Turn::Ready => true,
        // STOP only means "look again"; it does not wake a halted processor.
        Turn::Waiting(mask) => board.attention(index).bits() & mask & (INIT | STARTUP | INTERRUPT | NMI) != 0,
        Turn::Out => false,
    }
}

/// Let every due device act; the next deadline.
fn expire_due(board: &Board) -> u64 {
    loop {
        let now = board.clock().now();
        let due = board.timers().take_due(now);
        for source in &due {
            board.expire(*source, now);
        }
        let deadline = board.timers().arm();
        if deadline > now {
            return deadline;
        }
        if due.is_empty() {
            // A source insists on a deadline in the past: give time one step so
            // that it cannot stop the machine.
            board.clock().advance(1);
        }
    }
}
