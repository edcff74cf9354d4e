//! Processors and memory that are added and taken away while the guest runs.
//!
//! Everything that can be added exists from the start: a vCPU that has not been
//! added waits for its start-up interrupt, memory is in the map and untouched. To
//! add means to tell the guest; to take away means to ask it.

use chipset::SlotKind;

use crate::board::Board;
use crate::spec::bytes_text;
use crate::tables::Now;

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

    /// Give the guest `cpus` vCPUs and `memory` bytes of RAM; `None`: as many as it has.
    /// More come at once; vCPUs go, the highest first, when the guest lets them go, and
    /// memory when it can move what it keeps there. What it was asked to give up and is
    /// given again stays, if it has not seen the request yet.
    ///
    /// # Errors
    /// When the machine cannot have so many, so much or so little; nothing changes then.
    pub fn set_resources(&self, cpus: Option<u32>, memory: Option<u64>) -> Result<(), HotplugError> {
        let cpus = cpus.map(|cpus| self.judge_cpus(cpus)).transpose()?;
        let pieces = memory.map(|memory| self.judge_memory(memory)).transpose()?;
        if let Some(cpus) = cpus {
            self.fill(SlotKind::Processor, self.cpus(), cpus);
        }
        if let Some(pieces) = pieces {
            self.fill(SlotKind::Memory, self.pieces(), pieces);
        }
        Ok(())
    }

    /// How many slots are full with so many vCPUs.
    fn judge_cpus(&self, cpus: u32) -> Result<usize, HotplugError> {
        let most = self.spec().most_cpus();
        let fits = (1..=most).contains(&cpus);
        fits.then_some(cpus as usize).ok_or(HotplugError::Cpus(cpus, most))
    }

    /// How many pieces are there with so much memory.
    fn judge_memory(&self, memory: u64) -> Result<usize, HotplugError> {
        let (least, size, count) = (self.spec().memory, self.piece_size(), self.pieces() as u64);
        let more = memory.checked_sub(least).filter(|more| more % size == 0 && more / size <= count);
        let refusal = HotplugError::Memory(memory, least, least + count * size, size);
        more.map(|more| (more / size) as usize).ok_or(refusal)
    }

    /// How the machine is now, for its tables.
    pub(crate) fn now(&self) -> Now {
        Now {
            processors: self
                .handles
                .hotplug
                .as_ref()
                .map_or_else(|| (0..self.cpus()).collect(), |slots| slots.present(SlotKind::Processor)),
            pci_slots: self.open_pci_slots(),
            virtio_mmio: self.handles.virtio_mmio.clone(),
        }
    }

    /// The guest has emptied a slot; for the owner, when the event comes. A slot of
    /// memory may be full again by then: the guest's new memory stays.
    pub fn ejected(&self, kind: SlotKind, slot: usize) {
        let full_again = || self.handles.hotplug.as_ref().is_some_and(|h| h.is_present(kind, slot));
        // A vCPU halts without interrupts, as the guest left it, until it is started again.
        match kind {
            SlotKind::Processor => {}
            SlotKind::Memory if full_again() => {}
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
        board.set_resources(None, Some(memory + 2 * MIN_PIECE)).unwrap();
        let second = crate::memory::pieces(memory, 2 * MIN_PIECE)[1].0;
        let before = board.memory().resident();
        board.memory().store(second, &[7; 1 << 20]).unwrap();
        assert!(board.memory().resident() >= before + (1 << 20));
        eject(&board, SlotKind::Memory, 1);
        let event = board.event_queue().poll();
        let Some(crate::MachineEvent::Ejected { kind, slot }) = event else { panic!("{event:?}") };
        board.ejected(kind, slot);
        assert!(board.memory().resident() <= before + 4096, "{} bytes", board.memory().resident());
        assert_eq!(board.resources().memory, memory + MIN_PIECE);
        // Given again before the owner hears of it: the guest's new memory stays.
        board.set_resources(None, Some(memory + 2 * MIN_PIECE)).unwrap();
        eject(&board, SlotKind::Memory, 1);
        board.set_resources(None, Some(memory + 2 * MIN_PIECE)).unwrap();
        board.memory().store(second, &[7; 1 << 20]).unwrap();
        board.ejected(SlotKind::Memory, 1);
        let mut kept = [0; 8];
        board.memory().load(second, &mut kept).unwrap();
        assert_eq!(kept, [7; 8]);
    }

    fn small(cpus: u32, cpus_max: u32) -> MachineSpec {
        let memory = 2 << 20;
        MachineSpec {
            cpus,
            cpus_max: Some(cpus_max),
            memory,
            memory_max: Some(memory + 2 * MIN_PIECE),
            serial: Vec::new(),
            ..MachineSpec::default()
        }
    }

    /// What the guest's AML writes: select the slot, eject it.
    fn eject(board: &Board, kind: SlotKind, slot: u32) {
        board.port_write(kind.port(), 4, slot);
        board.port_write(kind.port() + 4, 4, 8);
    }

    /// The slots of which the guest would be told, as its AML finds them.
    fn pending(board: &Board, kind: SlotKind) -> Vec<(u32, u32)> {
        let next = || {
            let slot = board.port_read(kind.port(), 4);
            board.port_write(kind.port(), 4, slot);
            let status = board.port_read(kind.port() + 4, 4) & 6;
            board.port_write(kind.port() + 4, 4, status);
            (slot != u32::MAX).then_some((slot, status))
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_refused_update_asks_the_guest_for_nothing() {
        const ASKED: u32 = 4;
        let board = Board::build(small(4, 4), BoardIo::new()).unwrap();
        let memory = board.resources().memory;
        for (cpus, memory) in [(1, memory + 1), (5, memory), (0, memory), (1, u64::MAX)] {
            assert!(board.set_resources(Some(cpus), Some(memory)).is_err());
            assert_eq!(pending(&board, SlotKind::Processor), [], "{cpus} vCPUs, {memory:#x}");
        }
        board.set_resources(Some(1), Some(memory)).unwrap();
        board.set_resources(Some(3), None).unwrap();
        assert_eq!(pending(&board, SlotKind::Processor), [(3, ASKED)], "the last wish counts");
    }

    #[test]
    fn the_tables_tell_how_the_machine_is_at_each_start() {
        let mut spec = small(2, 4);
        spec.debug_exit = Some(0xf4);
        let board = Board::build(spec, BoardIo::new()).unwrap();
        for (cpus, ejected, there) in
            [(None, None, vec![0, 1]), (Some(4), None, vec![0, 1, 2, 3]), (None, Some(1), vec![0, 2, 3])]
        {
            board.set_resources(cpus, None).unwrap();
            if let Some(slot) = ejected {
                eject(&board, SlotKind::Processor, slot);
            }
            // The bootstrap processor stays.
            eject(&board, SlotKind::Processor, 0);
            board.power_on_devices();
            crate::tables::store(board.memory(), board.spec(), &board.now()).unwrap();
            let mut tables = vec![0; 0x8000];
            board.memory().load(0xe_0000, &mut tables).unwrap();
            let at = tables.windows(4).position(|w| w == b"APIC").unwrap() + 44;
            let enabled = |cpu: &usize| tables[at + 8 * cpu + 4] == 1;
            assert_eq!((0..4).filter(enabled).collect::<Vec<_>>(), there);
            board.port_write(0x510, 2, chipset::fw_cfg_key::CPU_COUNT.into());
            assert_eq!(board.port_read(0x511, 1) as usize, there.len());
        }
    }

    #[test]
    fn what_stays_cannot_be_thrown_out() {
        let rng = Some(crate::RngSpec::default());
        let spec = MachineSpec { rng, ..small(1, 2) };
        let board = Board::build(spec, BoardIo::new()).unwrap();
        board.power_on_devices();
        assert_eq!(board.devices()[0].pci_slot, Some(1));
        for slot in 0..32 {
            eject(&board, SlotKind::Pci, slot);
        }
        assert!(board.event_queue().poll().is_none());
        assert_eq!(board.devices()[0].pci_slot, Some(1));
        assert!(!board.now().pci_slots.contains(&1) && board.now().pci_slots.contains(&2));
    }
}
