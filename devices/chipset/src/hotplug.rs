//! Slots for processors, memory and PCI functions that come and go while the
//! guest runs: what the machine's AML reads and writes (our own registers, in the
//! manner of QEMU's `docs/specs/acpi_cpu_hotplug.rst`).
//!
//! Each kind of slot has a bank of two 32-bit registers. SELECT chooses a slot;
//! read, it gives the first slot with something pending, all ones for none. STATUS
//! is that slot's. The board raises the bank's general-purpose event after it has
//! changed a slot, the guest's AML then goes through what is pending.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device_model::{Device, PortIo, PortRange};
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

const NAME: &str = "acpi-hotplug";
const NO_SLOT: u32 = u32::MAX;
const SELECT: u16 = 0;
const STATUS: u16 = 4;

/// Bits of STATUS. Writing ones to INSERTED and REMOVING takes the event,
/// writing EJECT (read as zero) empties the slot.
mod status {
    pub(super) const PRESENT: u32 = 1 << 0;
    pub(super) const INSERTED: u32 = 1 << 1;
    pub(super) const REMOVING: u32 = 1 << 2;
    pub(super) const EJECT: u32 = 1 << 3;
}

/// What a bank's slots hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotKind {
    /// Processors, by number.
    Processor,
    /// Equal pieces of memory, by number.
    Memory,
    /// PCI functions, by slot of bus 0.
    Pci,
}

impl SlotKind {
    /// All kinds, in the order of their banks.
    pub const ALL: [SlotKind; 3] = [SlotKind::Processor, SlotKind::Memory, SlotKind::Pci];

    /// The bank's first port.
    pub fn port(self) -> u16 {
        Hotplug::PORTS[0].base + self as u16 * BANK
    }

    /// The general-purpose event to raise after a change.
    pub fn gpe(self) -> u8 {
        self as u8 + 1
    }
}

/// Ports of a bank.
const BANK: u16 = 8;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Slot {
    present: bool,
    inserted: bool,
    removing: bool,
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotplugState {
    banks: [BankState; 3],
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct BankState {
    selected: u32,
    slots: Vec<Slot>,
}

/// Called with the chip locked when the guest has emptied a slot: note it and return.
pub type Ejected = Box<dyn Fn(SlotKind, usize) + Send>;

struct Banks {
    // Static configuration.
    /// Slots that the guest cannot empty.
    kept: [BTreeSet<usize>; 3],
    // Runtime glue.
    ejected: Ejected,
    // Volatile state.
    banks: [BankState; 3],
}

impl Banks {
    fn read(&self, bank: usize, register: u16) -> u32 {
        let BankState { selected, slots } = &self.banks[bank];
        match register {
            SELECT => slots.iter().position(|s| s.inserted || s.removing).map_or(NO_SLOT, |n| n as u32),
            _ => slots.get(*selected as usize).map_or(0, |s| {
                let bit = |on: bool, bit: u32| if on { bit } else { 0 };
                bit(s.present, status::PRESENT)
                    | bit(s.inserted, status::INSERTED)
                    | bit(s.removing, status::REMOVING)
            }),
        }
    }

    fn write(&mut self, kind: SlotKind, register: u16, value: u32) {
        let BankState { selected, slots } = &mut self.banks[kind as usize];
        if register == SELECT {
            *selected = value;
            return;
        }
        let number = *selected as usize;
        let Some(slot) = slots.get_mut(number) else { return };
        slot.inserted &= value & status::INSERTED == 0;
        slot.removing &= value & status::REMOVING == 0;
        if value & status::EJECT != 0 && slot.present && !self.kept[kind as usize].contains(&number) {
            *slot = Slot::default();
            (self.ejected)(kind, number);
        }
    }
}

/// The slots. A handle: clones are the same slots.
#[derive(Clone)]
pub struct Hotplug(Arc<Mutex<Banks>>);

impl Hotplug {
    /// The banks.
    pub const PORTS: &'static [PortRange] = &[PortRange::new(0xae00, 3 * BANK, 0)];
    /// The most slots of a bank.
    pub const MAX_SLOTS: usize = 256;

    /// Empty slots, `slots` of each kind in the order of [`SlotKind::ALL`].
    pub fn new(slots: [usize; 3], ejected: Ejected) -> Self {
        let bank = |n: usize| BankState { selected: 0, slots: vec![Slot::default(); n.min(Self::MAX_SLOTS)] };
        Hotplug(Arc::new(Mutex::new(Banks { kept: Default::default(), ejected, banks: slots.map(bank) })))
    }

    fn lock(&self) -> MutexGuard<'_, Banks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, kind: SlotKind, slot: usize, change: impl FnOnce(&mut Slot) -> bool) -> bool {
        self.lock().banks[kind as usize].slots.get_mut(slot).is_some_and(change)
    }

    /// A slot was filled before the guest started. False if there is no such slot.
    pub fn set_present(&self, kind: SlotKind, slot: usize) -> bool {
        self.change(kind, slot, |s| {
            s.present = true;
            true
        })
    }

    /// As [`Hotplug::set_present`], and it stays: the guest cannot empty the slot.
    pub fn keep(&self, kind: SlotKind, slot: usize) -> bool {
        let there = self.set_present(kind, slot);
        if there {
            self.lock().kept[kind as usize].insert(slot);
        }
        there
    }

    /// Fill an empty slot. False if it is full or does not exist; the guest is not
    /// asked for it any more then, if it has not taken note of that yet.
    pub fn insert(&self, kind: SlotKind, slot: usize) -> bool {
        self.change(kind, slot, |s| {
            let free = !s.present;
            if free {
                s.inserted = true;
            }
            s.present = true;
            s.removing = false;
            free
        })
    }

    /// Ask the guest to give up a slot. False if it is empty or what it holds stays.
    pub fn ask_removal(&self, kind: SlotKind, slot: usize) -> bool {
        if self.lock().kept[kind as usize].contains(&slot) {
            return false;
        }
        self.change(kind, slot, |s| {
            s.removing |= s.present;
            s.present
        })
    }

    /// Whether a slot is full.
    pub fn is_present(&self, kind: SlotKind, slot: usize) -> bool {
        self.change(kind, slot, |s| s.present)
    }

    /// Which slots are full.
    pub fn present(&self, kind: SlotKind) -> Vec<usize> {
        let banks = self.lock();
        let slots = &banks.banks[kind as usize].slots;
        slots.iter().enumerate().filter(|(_, s)| s.present).map(|(n, _)| n).collect()
    }
}

impl Device for Hotplug {
    fn name(&self) -> &'static str {
        NAME
    }
    /// What is present stays; a guest that starts anew looks at it by itself.
    fn reset(&mut self) {
        for bank in &mut self.lock().banks {
            bank.selected = 0;
            for slot in &mut bank.slots {
                (slot.inserted, slot.removing) = (false, false);
            }
        }
    }
    fn port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for Hotplug {
    fn port_read(&mut self, offset: u16, size: u8) -> u32 {
        match (usize::from(offset / BANK), offset % BANK, size) {
            (bank @ 0..3, register @ (SELECT | STATUS), 4) => self.lock().read(bank, register),
            _ => u32::MAX,
        }
    }
    fn port_write(&mut self, offset: u16, size: u8, value: u32) {
        let kind = SlotKind::ALL.get(usize::from(offset / BANK));
        if let (Some(&kind), register @ (SELECT | STATUS), 4) = (kind, offset % BANK, size) {
            self.lock().write(kind, register, value);
        }
    }
}

impl Saved for Hotplug {
    type State = HotplugState;
    const VERSION: u16 = 1;

    fn save(&self) -> HotplugState {
        let state = self.lock();
        let Banks { kept: _, ejected: _, banks } = &*state;
        HotplugState { banks: banks.clone() }
    }

    fn restore(&mut self, state: &HotplugState) -> Result<(), StateError> {
        let HotplugState { banks } = state;
        let mut own = self.lock();
        for ((new, old), kept) in banks.iter().zip(&own.banks).zip(&own.kept) {
            let fits = new.slots.len() == old.slots.len();
            StateError::check(fits, NAME, "slots", new.slots.len() as u64, "the slots of this machine")?;
            let sane = new.slots.iter().all(|s| s.present || !(s.inserted || s.removing));
            StateError::check(sane, NAME, "an empty slot's event", 1u64, "none")?;
            for &slot in kept {
                let there = new.slots.get(slot).is_some_and(|s| s.present && !s.removing);
                StateError::check(there, NAME, "a slot that stays", slot as u64, "full")?;
            }
        }
        own.banks.clone_from(banks);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use proptest::prelude::*;

    use super::*;

    fn at(kind: SlotKind, register: u16) -> u16 {
        kind.port() - Hotplug::PORTS[0].base + register
    }

    /// What the AML does with an event: answers (slot, status).
    fn next(h: &mut Hotplug, kind: SlotKind) -> Option<(u32, u32)> {
        let slot = h.port_read(at(kind, SELECT), 4);
        if slot == NO_SLOT {
            return None;
        }
        h.port_write(at(kind, SELECT), 4, slot);
        let found = h.port_read(at(kind, STATUS), 4);
        h.port_write(at(kind, STATUS), 4, found & (status::INSERTED | status::REMOVING));
        Some((slot, found))
    }

    #[test]
    fn slots_are_filled_and_emptied() {
        for kind in SlotKind::ALL {
            let (tx, rx) = channel();
            let mut h = Hotplug::new([4, 4, 4], Box::new(move |kind, slot| tx.send((kind, slot)).unwrap()));
            assert!(h.set_present(kind, 0) && !h.set_present(kind, 4));
            assert_eq!(next(&mut h, kind), None, "what was there from the start is no event");
            assert!(h.insert(kind, 2) && !h.insert(kind, 2) && !h.insert(kind, 0) && !h.insert(kind, 4));
            assert_eq!(next(&mut h, kind), Some((2, status::PRESENT | status::INSERTED)));
            assert_eq!(next(&mut h, kind), None);
            assert!(h.ask_removal(kind, 2) && !h.ask_removal(kind, 1));
            assert_eq!(next(&mut h, kind), Some((2, status::PRESENT | status::REMOVING)));
            assert_eq!((h.present(kind), rx.try_recv().ok()), (vec![0, 2], None), "asking removes nothing");
            h.port_write(at(kind, STATUS), 4, status::EJECT);
            h.port_write(at(kind, STATUS), 4, status::EJECT);
            assert_eq!((h.present(kind), rx.try_iter().collect()), (vec![0], vec![(kind, 2)]));
            for other in SlotKind::ALL.into_iter().filter(|&k| k != kind) {
                assert_eq!(h.present(other), vec![], "{other:?}");
            }
        }
    }

    #[test]
    fn what_stays_cannot_be_emptied() {
        for kind in SlotKind::ALL {
            let (tx, rx) = channel();
            let mut h = Hotplug::new([4, 4, 4], Box::new(move |kind, slot| tx.send((kind, slot)).unwrap()));
            assert!(h.keep(kind, 1) && !h.keep(kind, 4) && h.set_present(kind, 2));
            assert!(!h.ask_removal(kind, 1));
            assert_eq!(next(&mut h, kind), None);
            for slot in 0..4 {
                h.port_write(at(kind, SELECT), 4, slot);
                h.port_write(at(kind, STATUS), 4, status::EJECT);
            }
            assert_eq!((h.present(kind), rx.try_iter().collect()), (vec![1], vec![(kind, 2)]));
            let mut state = h.save();
            state.banks[kind as usize].slots[1].present = false;
            assert!(h.restore(&state).is_err() && h.is_present(kind, 1));
        }
    }

    #[test]
    fn a_wish_can_be_taken_back_before_the_guest_sees_it() {
        let mut h = Hotplug::new([4, 0, 0], Box::new(|_, _| {}));
        let kind = SlotKind::Processor;
        // (what is wished of slot 1, which is full; what the guest finds then)
        for (steps, found) in [
            (&["ask", "give"][..], None),
            (&["ask"], Some((1, status::PRESENT | status::REMOVING))),
            (&["ask", "give", "ask"], Some((1, status::PRESENT | status::REMOVING))),
        ] {
            h.set_present(kind, 1);
            for step in steps {
                match *step {
                    "ask" => assert!(h.ask_removal(kind, 1)),
                    _ => assert!(!h.insert(kind, 1), "it is there"),
                }
            }
            assert_eq!(next(&mut h, kind), found, "{steps:?}");
        }
        // One that was never seen to come is still told of when it stays after all.
        h.insert(kind, 2);
        h.ask_removal(kind, 2);
        h.insert(kind, 2);
        assert_eq!(next(&mut h, kind), Some((2, status::PRESENT | status::INSERTED)));
    }

    #[test]
    fn a_reset_forgets_events_and_keeps_what_is_there() {
        let mut h = Hotplug::new([4, 0, 0], Box::new(|_, _| {}));
        h.insert(SlotKind::Processor, 3);
        h.reset();
        assert_eq!((next(&mut h, SlotKind::Processor), h.present(SlotKind::Processor)), (None, vec![3]));
    }

    proptest! {
        #[test]
        fn any_accesses_leave_a_state_that_restores(ops in proptest::collection::vec((0u8..4, any::<u16>(), 0u32..16), 1..100)) {
            let mut h = Hotplug::new([8, 3, 32], Box::new(|_, _| {}));
            for (what, at, value) in ops {
                match what {
                    0 => h.port_write(at % 26, if value > 12 { 1 } else { 4 }, value),
                    1 => _ = h.port_read(at % 26, 4),
                    2 => _ = h.insert(SlotKind::ALL[usize::from(at % 3)], value as usize),
                    _ => _ = h.ask_removal(SlotKind::ALL[usize::from(at % 3)], value as usize),
                }
            }
            let state = h.save();
            let mut other = Hotplug::new([8, 3, 32], Box::new(|_, _| {}));
            prop_assert!(other.restore(&state).is_ok());
            prop_assert_eq!(other.save(), state.clone());
            let mut fewer = Hotplug::new([8, 2, 32], Box::new(|_, _| {}));
            prop_assert!(fewer.restore(&state).is_err());
        }
    }
}
