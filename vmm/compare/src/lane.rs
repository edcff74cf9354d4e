//! One side: a machine of one vCPU in virtual time, driven from outside.

use std::sync::Arc;

use board::{Board, MachineEvent, NEVER};
use engine::attention_bits::{INTERRUPT, NMI, STOP};
use engine::{Halt, Vcpu};
use x86_state::CpuState;

use crate::{CompareError, Side};

/// Why a lane cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Idle with nothing that could wake it.
    Idle,
    /// Triple fault.
    TripleFault,
    /// The guest asked for power-off, reset or the like.
    Event(String),
}

/// One side of a comparison.
pub struct Lane {
    name: String,
    board: Arc<Board>,
    vcpu: Box<dyn Vcpu>,
    piece: u64,
    start: u64,
}

impl Lane {
    /// Power a board on, on this side's engine.
    pub(crate) fn new(side: &Side, board: Arc<Board>) -> Result<Self, CompareError> {
        let engine = (side.engine)(&board)?;
        board.use_local_interrupts(engine.local_interrupts());
        let mut vcpu = engine.create_vcpu(board.vcpu_config(0))?;
        vcpu.set_state(&board.power_on()?)?;
        board.memory().marks().set_dirty_logging(true);
        let attention = board.attention(0).clone();
        board.timers().on_sooner(Some(Box::new(move || attention.raise(STOP))));
        let start = vcpu.retired().ok_or_else(|| CompareError::NotCounted(side.name.clone()))?;
        Ok(Lane { name: side.name.clone(), board, vcpu, piece: side.piece.max(1), start })
    }

    /// The side's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The board.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// Instructions completed.
    pub fn ran(&self) -> u64 {
        self.vcpu.retired().unwrap_or(0).wrapping_sub(self.start)
    }

    /// The architectural state.
    ///
    /// # Errors
    /// When the engine cannot export it.
    pub fn state(&mut self) -> Result<CpuState, CompareError> {
        Ok(self.vcpu.state()?)
    }

    /// Complete `n` more instructions; `Some`: it ended before.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn run(&mut self, n: u64) -> Result<Option<End>, CompareError> {
        let until = self.ran() + n;
        while self.ran() < until {
            let deadline = self.expire_due();
            let limit = deadline.saturating_sub(self.board.clock().now()).max(1);
            let limit = limit.min(until - self.ran()).min(self.piece);
            match self.vcpu.run(limit) {
                Halt::Limit => {}
                Halt::Attention => {
                    self.board.attention(0).take(!(INTERRUPT | NMI));
                }
                Halt::Idle if deadline == NEVER => return Ok(Some(End::Idle)),
                Halt::Idle => {
                    let now = self.board.clock().now();
                    self.board.clock().advance(deadline.saturating_sub(now));
                }
                Halt::TripleFault => return Ok(Some(End::TripleFault)),
                Halt::Failed(error) => return Err(error.into()),
            }
            if let Some(event) = self.board.event_queue().poll() {
                return Ok(Some(End::Event(event_text(&event))));
            }
        }
        Ok(None)
    }

    /// Let every due device act; the next deadline.
    fn expire_due(&self) -> u64 {
        loop {
            let now = self.board.clock().now();
            let due = self.board.timers().take_due(now);
            for source in &due {
                self.board.expire(*source, now);
            }
            let deadline = self.board.timers().arm();
            if deadline > now || due.is_empty() {
                return deadline;
            }
        }
    }
}

fn event_text(event: &MachineEvent) -> String {
    match event {
        MachineEvent::PowerOff => "power off".to_string(),
        MachineEvent::Reset => "reset".to_string(),
        MachineEvent::Panic | MachineEvent::PanicNoticed => "panic".to_string(),
        MachineEvent::DebugExit(status) => format!("debug exit {status}"),
        other => format!("{other:?}"),
    }
}
