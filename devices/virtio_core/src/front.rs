//! What every transport is made around: the device's registers, the doorbells that
//! ring past their lock, and the owner's handle.
//!
//! Locks, outermost first: registers (with the device) · doorbells · signals.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::Doorbell;
use crate::registers::{Registers, RegistersState, StatusChange};
use crate::virtio_mmio::{LineSignals, LineSignalsState};
use crate::virtio_pci::{Signals, SignalsState};

/// A device behind a transport.
pub(crate) struct Front {
    /// Rung without the registers' lock; empty while the device is not active.
    doorbells: RwLock<Vec<Option<Doorbell>>>,
    registers: Mutex<Registers>,
}

impl Front {
    pub fn new(registers: Registers) -> Self {
        Front { doorbells: RwLock::default(), registers: Mutex::new(registers) }
    }

    pub fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_doorbells(&self, bells: Vec<Option<Doorbell>>) {
        *self.doorbells.write().unwrap_or_else(PoisonError::into_inner) = bells;
    }

    /// The driver rang.
    pub fn notify(&self, queue: u16) {
        let bells = self.doorbells.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(bell)) = bells.get(usize::from(queue)) {
            bell.ring();
            return;
        }
        drop(bells);
        self.registers().notify(queue);
    }

    /// The right to access memory was taken away from an active device.
    pub fn stop(&self) {
        let mut r = self.registers();
        self.set_doorbells(Vec::new());
        r.stop();
    }

    /// The driver wrote the status; `reset` is called, with the registers locked,
    /// when that was a reset.
    pub fn set_status(&self, value: u8, reset: impl FnOnce()) {
        let mut r = self.registers();
        if value == 0 {
            // Nobody rings a worker that is about to end.
            self.set_doorbells(Vec::new());
        }
        match r.set_status(value) {
            StatusChange::None => {}
            StatusChange::Active => self.set_doorbells(r.doorbells()),
            StatusChange::Reset => reset(),
        }
    }
}

/// A transport's way to speak up.
#[derive(Clone)]
pub(crate) enum TransportSignals {
    Pci(Arc<Signals>),
    Mmio(Arc<LineSignals>),
}

/// The owner's way to a device behind a transport: to make it stand still, save and
/// restore it. A PCI function's configuration space is saved by the bus.
#[derive(Clone)]
pub struct VirtioHandle {
    pub(crate) name: &'static str,
    pub(crate) front: Arc<Front>,
    pub(crate) signals: TransportSignals,
}

/// The saved state of a device with its transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    registers: RegistersState,
    signals: TransportSignalsState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum TransportSignalsState {
    Pci(SignalsState),
    Mmio(LineSignalsState),
}

impl TransportSignals {
    fn save(&self) -> TransportSignalsState {
        match self {
            TransportSignals::Pci(signals) => TransportSignalsState::Pci(signals.save()),
            TransportSignals::Mmio(signals) => TransportSignalsState::Mmio(signals.save()),
        }
    }

    fn restore(&self, state: &TransportSignalsState, name: &'static str) -> Result<(), StateError> {
        match (self, state) {
            (TransportSignals::Pci(signals), TransportSignalsState::Pci(state)) => {
                signals.restore(state, name)
            }
            (TransportSignals::Mmio(signals), TransportSignalsState::Mmio(state)) => {
                signals.restore(state, name)
            }
            _ => StateError::check(false, name, "transport", 1u64, "this machine's"),
        }
    }
}

impl VirtioHandle {
    /// The device's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Make the device stand still: afterwards no thread of it touches guest
    /// memory, and doorbells are not answered. Needed before [`Saved::save`].
    pub fn quiesce(&self) {
        let mut r = self.front.registers();
        self.front.set_doorbells(Vec::new());
        r.quiesce();
    }

    /// Let it go on.
    pub fn resume(&self) {
        let mut r = self.front.registers();
        if r.resume() {
            self.front.set_doorbells(r.doorbells());
        }
    }
}

impl Saved for VirtioHandle {
    type State = VirtioState;
    const VERSION: u16 = 3;

    fn save(&self) -> VirtioState {
        let VirtioHandle { name: _, front, signals } = self;
        VirtioState { registers: front.registers().save(), signals: signals.save() }
    }

    /// The device stands still afterwards; [`VirtioHandle::resume`] lets it go on.
    fn restore(&mut self, state: &VirtioState) -> Result<(), StateError> {
        let VirtioState { registers, signals } = state;
        let mut r = self.front.registers();
        self.front.set_doorbells(Vec::new());
        let before = self.signals.save();
        self.signals.restore(signals, self.name)?;
        let restored = r.restore(registers);
        if restored.is_err() {
            // What was saved a moment ago is accepted.
            let _ = self.signals.restore(&before, self.name);
        }
        restored
    }
}
