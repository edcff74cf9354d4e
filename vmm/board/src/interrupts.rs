//! From interrupt controllers to whichever local APICs are in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

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
    /// Messages of devices that come while the APICs' states are on their way to a new owner.
    held: Option<Mutex<Vec<MsiMessage>>>,
}

/// Messages are held until this is dropped; then the owner of that moment gets them.
pub struct HeldInterrupts(Arc<LocalInterruptSwitch>);

impl Drop for HeldInterrupts {
    fn drop(&mut self) {
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        let held = current.held.take().map(|h| h.into_inner().unwrap_or_else(PoisonError::into_inner));
        for message in held.unwrap_or_default() {
            current.locals.send_msi(message);
        }
    }
}

impl LocalInterruptSwitch {
    /// Connected to the platform's own APICs.
    pub(crate) fn new(platform: Arc<dyn LocalInterrupts>) -> Self {
        LocalInterruptSwitch {
            current: RwLock::new(Current { locals: platform.clone(), foreign: false, held: None }),
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
        current.foreign = locals.is_some();
        current.locals = locals.unwrap_or_else(|| self.platform.clone());
        current.locals.set_extint(self.extint.load(Ordering::SeqCst));
    }

    /// Hold what devices send while the APICs' states move: sent to the old owner it
    /// would be lost, and an edge does not come twice. No guest code runs meanwhile.
    pub(crate) fn hold(self: &Arc<Self>) -> HeldInterrupts {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        current.held.get_or_insert_default();
        HeldInterrupts(self.clone())
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
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        match &current.held {
            None => current.locals.send_msi(message),
            Some(held) => {
                // An APIC keeps one of equals, so no more are kept than devices have interrupts.
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                if !held.contains(&message) {
                    held.push(message);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::EngineError;
    use x86_state::ApicState;

    /// Local APICs that write down what they are sent.
    #[derive(Default)]
    struct Sent(Mutex<Vec<u32>>);

    impl Sent {
        fn take(&self) -> Vec<u32> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl MsiSink for Sent {
        fn send_msi(&self, message: MsiMessage) {
            self.0.lock().unwrap().push(message.data);
        }
    }

    impl LocalInterrupts for Sent {
        fn set_extint(&self, _: bool) {}
        fn nmi(&self, _: usize) {}
        fn apic_state(&self, _: usize) -> Result<ApicState, EngineError> {
            unreachable!("no states move in this test")
        }
        fn set_apic_state(&self, _: usize, _: &ApicState) -> Result<(), EngineError> {
            Ok(())
        }
    }

    fn message(vector: u32) -> MsiMessage {
        MsiMessage { address: 0xfee0_0000, data: vector }
    }

    #[test]
    fn what_comes_while_apics_move_reaches_the_new_owner_once() {
        let (ours, theirs) = (Arc::new(Sent::default()), Arc::new(Sent::default()));
        let switch = Arc::new(LocalInterruptSwitch::new(ours.clone()));
        switch.send_msi(message(0x30));
        assert_eq!(ours.take(), [0x30]);
        // To an engine's APICs, back to ours, and a move that fails half-way.
        for (to, owner) in [(Some(&theirs), &theirs), (None, &ours), (None, &ours)] {
            let held = switch.hold();
            for vector in [0x31, 0x32, 0x31] {
                switch.send_msi(message(vector));
            }
            switch.connect(to.map(|t| t.clone() as Arc<dyn LocalInterrupts>));
            switch.send_msi(message(0x33));
            assert_eq!((ours.take(), theirs.take()), (vec![], vec![]), "sent while held");
            drop(held);
            assert_eq!(owner.take(), [0x31, 0x32, 0x33]);
            switch.send_msi(message(0x34));
            assert_eq!(owner.take(), [0x34]);
            assert_eq!((ours.take(), theirs.take()), (vec![], vec![]), "sent to another");
        }
    }
}
