//! From interrupt controllers to whichever local APICs are in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use device_model::{MsiMessage, MsiSink};
use engine::LocalInterrupts;

/// The board's connection to local APICs: its own, or those an engine brings.
/// Changes hands when the machine moves to another engine.
pub(crate) struct LocalInterruptSwitch {
    platform: Arc<dyn LocalInterrupts>,
    current: RwLock<Current>,
    /// Level of the PIC's INTR output, repeated to each new owner.
    extint: AtomicBool,
}

struct Current {
    locals: Arc<dyn LocalInterrupts>,
    foreign: bool,
}

impl LocalInterruptSwitch {
    /// Connected to the platform's own APICs.
    pub(crate) fn new(platform: Arc<dyn LocalInterrupts>) -> Self {
        LocalInterruptSwitch {
            current: RwLock::new(Current { locals: platform.clone(), foreign: false }),
            platform,
            extint: AtomicBool::new(false),
        }
    }

    /// The platform's own APICs.
    pub(crate) fn platform(&self) -> Arc<dyn LocalInterrupts> {
        self.platform.clone()
    }

    /// The APICs in use.
    pub(crate) fn current(&self) -> Arc<dyn LocalInterrupts> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).locals.clone()
    }

    /// Whether an engine's own APICs are in use.
    pub(crate) fn is_foreign(&self) -> bool {
        self.current.read().unwrap_or_else(PoisonError::into_inner).foreign
    }

    /// Use an engine's APICs, or with `None` the platform's.
    pub(crate) fn connect(&self, locals: Option<Arc<dyn LocalInterrupts>>) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let foreign = locals.is_some();
        *current = Current { locals: locals.unwrap_or_else(|| self.platform.clone()), foreign };
        current.locals.set_extint(self.extint.load(Ordering::SeqCst));
    }

    /// The PIC's INTR output.
    pub(crate) fn set_extint(&self, asserted: bool) {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        self.extint.store(asserted, Ordering::SeqCst);
        current.locals.set_extint(asserted);
    }
}

impl MsiSink for LocalInterruptSwitch {
    fn send_msi(&self, message: MsiMessage) {
        self.current.read().unwrap_or_else(PoisonError::into_inner).locals.send_msi(message);
    }
}
