//! Interrupts of the PCI transport: MSI-X vectors, or INTx with the ISR byte.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::{IrqLine, MsiSink};
use pci::{ConfigSpace, MsixState, MsixTable, command};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::InterruptSink;

/// No vector (4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;
/// ISR: a queue has used buffers.
const ISR_QUEUE: u8 = 1;
/// ISR: the configuration has changed.
const ISR_CONFIG: u8 = 2;

struct Vectors {
    msix: MsixTable,
    config: u16,
    queues: Vec<u16>,
    isr: u8,
    intx_disabled: bool,
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalsState {
    msix: MsixState,
    config: u16,
    queues: Vec<u16>,
    isr: u8,
    intx_disabled: bool,
    needs_reset: bool,
    generation: u8,
}

/// What a device's threads signal with. Its lock is taken last: with the
/// device's held or not, and held while interrupts are delivered, so that levels
/// arrive in the order of events.
pub(crate) struct Signals {
    // Runtime glue.
    sink: Arc<dyn MsiSink>,
    line: IrqLine,
    // Volatile state.
    needs_reset: AtomicBool,
    generation: AtomicU8,
    vectors: Mutex<Vectors>,
}

/// Whose vector.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source {
    Config,
    Queue(u16),
}

impl Signals {
    pub fn new(sink: Arc<dyn MsiSink>, line: IrqLine, msix: MsixTable, queues: u16) -> Self {
        let queues = vec![NO_VECTOR; queues.into()];
        let vectors = Vectors { msix, config: NO_VECTOR, queues, isr: 0, intx_disabled: false };
        Signals {
            sink,
            line,
            needs_reset: AtomicBool::new(false),
            generation: AtomicU8::new(0),
            vectors: Mutex::new(vectors),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vectors> {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn raise(&self, source: Source) {
        let mut v = self.lock();
        if v.msix.enabled() {
            let vector = v.vector(source);
            if let Some(message) = v.msix.trigger(vector) {
                self.sink.send_msi(message);
            }
        } else {
            v.isr |= if matches!(source, Source::Config) { ISR_CONFIG } else { ISR_QUEUE };
            self.drive(&v);
        }
    }

    fn drive(&self, v: &Vectors) {
        self.line.set(v.isr != 0 && !v.intx_disabled && !v.msix.enabled());
    }

    fn send_released(&self, v: &mut Vectors) {
        v.msix.released().into_iter().for_each(|message| self.sink.send_msi(message));
    }

    /// Read the ISR byte, which clears it (4.1.4.5).
    pub fn take_isr(&self) -> u8 {
        let mut v = self.lock();
        let isr = std::mem::take(&mut v.isr);
        self.drive(&v);
        isr
    }

    /// Whether INTx is wanted, for the configuration space's status.
    pub fn intx_wanted(&self) -> bool {
        let v = self.lock();
        v.isr != 0 && !v.msix.enabled()
    }

    /// The configuration space may have been written.
    pub fn config_space_changed(&self, config: &ConfigSpace) {
        let mut v = self.lock();
        v.msix.control_changed(config);
        v.intx_disabled = config.command() & command::INTX_DISABLE != 0;
        self.send_released(&mut v);
        self.drive(&v);
    }

    pub(super) fn vector(&self, source: Source) -> u16 {
        self.lock().vector(source)
    }

    /// Map a vector; one that does not exist reads back as none.
    pub(super) fn set_vector(&self, source: Source, vector: u16) {
        let mut v = self.lock();
        let vector = if usize::from(vector) <= v.queues.len() { vector } else { NO_VECTOR };
        match source {
            Source::Config => v.config = vector,
            Source::Queue(q) => {
                if let Some(slot) = v.queues.get_mut(usize::from(q)) {
                    *slot = vector;
                }
            }
        }
    }

    pub fn msix_read(&self, offset: u64, size: u8) -> Option<u64> {
        self.lock().msix.read(offset, size)
    }

    pub fn msix_write(&self, offset: u64, size: u8, value: u64) {
        let mut v = self.lock();
        if v.msix.write(offset, size, value) {
            self.send_released(&mut v);
        }
    }

    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// The driver reset the device: its vectors and what is wanted are gone, the
    /// MSI-X table is the bus driver's.
    pub fn reset_device(&self) {
        self.needs_reset.store(false, Ordering::Release);
        let mut v = self.lock();
        v.config = NO_VECTOR;
        v.queues.fill(NO_VECTOR);
        v.isr = 0;
        self.drive(&v);
    }

    /// The function was reset.
    pub fn reset_function(&self) {
        self.lock().msix.reset();
        self.generation.store(0, Ordering::Release);
        self.reset_device();
        self.lock().intx_disabled = false;
    }

    pub fn save(&self) -> SignalsState {
        let Signals { sink: _, line: _, needs_reset, generation, vectors } = self;
        let v = vectors.lock().unwrap_or_else(PoisonError::into_inner);
        let Vectors { msix, config, queues, isr, intx_disabled } = &*v;
        SignalsState {
            msix: msix.save(),
            config: *config,
            queues: queues.clone(),
            isr: *isr,
            intx_disabled: *intx_disabled,
            needs_reset: needs_reset.load(Ordering::Acquire),
            generation: generation.load(Ordering::Acquire),
        }
    }

    pub fn restore(&self, state: &SignalsState, name: &'static str) -> Result<(), StateError> {
        let SignalsState { msix, config, queues, isr, intx_disabled, needs_reset, generation } = state;
        let mut v = self.lock();
        let count = v.queues.len();
        StateError::check(queues.len() == count, name, "vectors", queues.len() as u64, "one for each queue")?;
        for &vector in queues.iter().chain([config]) {
            let exists = vector == NO_VECTOR || usize::from(vector) <= count;
            StateError::check(exists, name, "vector", vector, "one for each queue and one more")?;
        }
        v.msix.restore(msix)?;
        (v.config, v.queues, v.isr, v.intx_disabled) = (*config, queues.clone(), *isr, *intx_disabled);
        self.needs_reset.store(*needs_reset, Ordering::Release);
        self.generation.store(*generation, Ordering::Release);
        self.drive(&v);
        Ok(())
    }
}

impl Vectors {
    fn vector(&self, source: Source) -> u16 {
        match source {
            Source::Config => self.config,
            Source::Queue(q) => self.queues.get(usize::from(q)).copied().unwrap_or(NO_VECTOR),
        }
    }
}

impl InterruptSink for Signals {
    fn queue_used(&self, queue: u16) {
        self.raise(Source::Queue(queue));
    }
    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(Source::Config);
    }
    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(Source::Config);
    }
}
