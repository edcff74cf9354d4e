//! Processors and memory that are added and taken away while the guest runs.
//!
//! Everything that can be added exists from the start: a vCPU that has not been
//! added waits for its start-up interrupt, memory is in the map and untouched. To
//! add means to tell the guest; to take away means to ask it.

use chipset::SlotKind;

use crate::board::Board;
use crate::spec::bytes_text;

/// What a machine has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// vCPUs that the guest has been given.
    pub cpus: u32,
    /// The most it can be given.
    pub cpus_max: u32,
    /// Bytes of RAM that the guest has been given.
    pub memory: u64,
    /// The most it can be given.
    pub memory_max: u64,
}

/// Why a machine cannot have what was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HotplugError {
    /// Not so many vCPUs.
    #[error("{0} vCPUs: this machine has 1 to {1}; start it with a larger --cpus-max")]
    Cpus(u32, u32),
    /// Not so much memory, or less than at the start.
    #[error("{asked} of memory: this machine has {least} to {most} in steps of {step}; start it with another --memory or --memory-max", asked = bytes_text(*.0), least = bytes_text(*.1), most = bytes_text(*.2), step = bytes_text(*.3))]
    Memory(u64, u64, u64, u64),
    /// The PCI bus is full.
    #[error("no slot of the PCI bus is free; remove a device first")]
    NoSlot,
    /// No device of this name.
    #[error("there is no device {0}; this machine has {list}", list = if .1.is_empty() { "none" } else { .1 })]
    NoDevice(String, String),
    /// A device that is part of the machine.
    #[error("{0} stays: disks and network cards on the PCI bus can be removed")]
    Stays(String),
    /// A serial number no interface can tell.
    #[error(
        "disk serial number \"{0}\" is not 1 to 20 letters, digits and punctuation marks; use e.g. serial=data-1"
    )]
    Serial(String),
    /// Runs would not repeat.
    #[error("a machine in virtual time keeps the devices it has; start it without --time virtual")]
    VirtualTime,
}

impl Board {
    /// What the machine has now. What the guest was asked to give up counts until
    /// it has done so.
    pub fn resources(&self) -> Resources {
        let spec = self.spec();
        let size = self.piece_size();
        let present = |kind| self.handles.hotplug.as_ref().map_or(0, |h| h.present(kind).len());
        Resources {
            cpus: present(SlotKind::Processor) as u32,
            cpus_max: spec.most_cpus(),
            memory: spec.memory + present(SlotKind::Memory) as u64 * size,
            memory_max: spec.memory + self.pieces() as u64 * size,
        }
    }

    fn pieces(&self) -> usize {
        crate::memory::pieces(self.spec().memory, self.spec().more_memory()).len()
    }

    fn piece_size(&self) -> u64 {
        crate::memory::pieces(self.spec().memory, self.spec().more_memory())
            .first()
            .map_or(crate::memory::MIN_PIECE, |p| p.1)
    }

    /// Give the guest `cpus` vCPUs: more at once, fewer when it lets them go, the
    /// highest first.
    ///
    /// # Errors
    /// When the machine cannot have so many.
    pub fn set_cpus(&self, cpus: u32) -> Result<(), HotplugError> {
        let most = self.spec().most_cpus();
        if !(1..=most).contains(&cpus) {
            return Err(HotplugError::Cpus(cpus, most));
        }
        self.fill(SlotKind::Processor, most as usize, cpus as usize);
        Ok(())
    }

    /// Give the guest `memory` bytes of RAM: more at once, less when it can move
    /// what it keeps there.
    ///
    /// # Errors
    /// When the machine cannot have so much or so little.
    pub fn set_memory(&self, memory: u64) -> Result<(), HotplugError> {
        let (least, size, count) = (self.spec().memory, self.piece_size(), self.pieces());
        let wanted = memory.checked_sub(least).filter(|more| more % size == 0).map(|more| more / size);
        match wanted {
            Some(pieces) if pieces <= count as u64 => {
                self.fill(SlotKind::Memory, count, pieces as usize);
                Ok(())
            }
            _ => Err(HotplugError::Memory(memory, least, least + count as u64 * size, size)),
        }
    }

    /// The guest has emptied a slot; for the owner, when the event comes.
    pub fn ejected(&self, kind: SlotKind, slot: usize) {
        // A vCPU halts without interrupts, as the guest left it, until it is started again.
        match kind {
            SlotKind::Processor => {}
            SlotKind::Memory => self.release_piece(slot),
            SlotKind::Pci => self.empty_slot(slot),
        }
    }

    /// What the guest kept in a piece of memory goes back to the host.
    fn release_piece(&self, slot: usize) {
        let pieces = crate::memory::pieces(self.spec().memory, self.spec().more_memory());
        let Some(&(start, size)) = pieces.get(slot) else { return };
        if let Some(hit) = self.memory.translate(start) {
            // A host that cannot take it back leaves it with the machine, which is allowed to have it.
            let _ = self.memory.discard(hit.offset, size);
        }
    }

    /// Fill the first `wanted` of `slots` slots and ask for the others.
    fn fill(&self, kind: SlotKind, slots: usize, wanted: usize) {
        let Some(hotplug) = &self.handles.hotplug else { return };
        let mut changed = false;
        for slot in 0..wanted {
            changed |= hotplug.insert(kind, slot);
        }
        for slot in wanted..slots {
            changed |= hotplug.ask_removal(kind, slot);
        }
        if changed {
            self.raise(kind);
        }
    }

    /// Tell the guest that slots of a kind have changed.
    pub(crate) fn raise(&self, kind: SlotKind) {
        if let Some((slot, pm)) = &self.handles.pm {
            pm.raise_gpe(kind.gpe());
            self.refresh_deadline(*slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::Bus;

    use super::*;
    use crate::{BoardIo, MIN_PIECE, MachineSpec};

    #[test]
    fn ejected_memory_goes_back_to_the_host() {
        let memory = 2 << 20;
        let spec = MachineSpec {
            memory,
            memory_max: Some(memory + 2 * MIN_PIECE),
            serial: Vec::new(),
            ..MachineSpec::default()
        };
        let board = Board::build(spec, BoardIo::new()).unwrap();
        board.set_memory(memory + 2 * MIN_PIECE).unwrap();
        let second = crate::memory::pieces(memory, 2 * MIN_PIECE)[1].0;
        let before = board.memory().resident();
        board.memory().store(second, &[7; 1 << 20]).unwrap();
        assert!(board.memory().resident() >= before + (1 << 20));
        // What the guest's AML writes: select the slot, eject it.
        board.port_write(SlotKind::Memory.port(), 4, 1);
        board.port_write(SlotKind::Memory.port() + 4, 4, 8);
        let event = board.event_queue().poll();
        let Some(crate::MachineEvent::Ejected { kind, slot }) = event else { panic!("{event:?}") };
        board.ejected(kind, slot);
        assert!(board.memory().resident() <= before + 4096, "{} bytes", board.memory().resident());
        assert_eq!(board.resources().memory, memory + MIN_PIECE);
    }
}
