//! MSI-X from any thread.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::{MsiMessage, MsiSink};
use pci::{ConfigSpace, MsixState, MsixTable};
use saved_state::{Saved, StateError};

/// The function's interrupt vectors. Clones are the same.
#[derive(Clone)]
pub struct Interrupts {
    table: Arc<Mutex<MsixTable>>,
    sink: Arc<dyn MsiSink>,
}

impl Interrupts {
    /// The vectors of a table, whose messages go to `sink`.
    pub fn new(table: MsixTable, sink: Arc<dyn MsiSink>) -> Self {
        Interrupts { table: Arc::new(Mutex::new(table)), sink }
    }

    fn lock(&self) -> MutexGuard<'_, MsixTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, messages: impl IntoIterator<Item = MsiMessage>) {
        messages.into_iter().for_each(|m| self.sink.send_msi(m));
    }

    /// Send a vector, or leave it pending.
    pub fn trigger(&self, vector: u16) {
        let message = self.lock().trigger(vector);
        self.send(message);
    }

    /// Software has written to the configuration space.
    pub fn config_written(&self, config: &ConfigSpace) {
        let released = {
            let mut table = self.lock();
            table.control_changed(config);
            table.released()
        };
        self.send(released);
    }

    /// Read from the BAR, if MSI-X is there.
    pub fn read(&self, offset: u64, size: u8) -> Option<u64> {
        self.lock().read(offset, size)
    }

    /// Write to the BAR; false if MSI-X is not there.
    pub fn write(&self, offset: u64, size: u8, value: u64) -> bool {
        let released = {
            let mut table = self.lock();
            table.write(offset, size, value).then(|| table.released())
        };
        let covered = released.is_some();
        self.send(released.into_iter().flatten());
        covered
    }

    /// The table's state.
    pub fn save(&self) -> MsixState {
        self.lock().save()
    }

    /// Put it back.
    ///
    /// # Errors
    /// When it is not this table's; nothing has changed then.
    pub fn restore(&self, state: &MsixState) -> Result<(), StateError> {
        self.lock().restore(state)
    }

    /// The state after power-up.
    pub fn reset(&self) {
        self.lock().reset();
    }
}
