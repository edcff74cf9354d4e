//! The MSI-X capability with its table and pending bits (PCI local bus 3.0, 6.8.2).

use device_model::MsiMessage;
use saved_state::{Saved, StateError};
use serde::{Deserialize, Serialize};

use crate::ConfigSpace;

const NAME: &str = "msi-x";
const ID: u8 = 0x11;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: masked.
const MASKED: u32 = 1;
const ENTRY: u64 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
}

/// The saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    control: u16,
    entries: Vec<Entry>,
    pending: Vec<bool>,
}

/// A function's MSI-X table. The control register is in the configuration space;
/// the table has a copy, so that a function's threads can trigger vectors without
/// the bus's lock: tell it with [`MsixTable::control_changed`].
#[derive(Debug)]
pub struct MsixTable {
    // Static configuration.
    capability: u16,
    table: u64,
    pending_bits: u64,
    // Volatile state.
    /// The control register, a copy of the configuration space's.
    control: u16,
    entries: Vec<Entry>,
    pending: Vec<bool>,
}

impl MsixTable {
    /// Most vectors of a function.
    pub const MAX_VECTORS: u16 = 2048;

    /// Add the capability: `vectors` entries at `table` and the pending bits at
    /// `pending_bits`, offsets (multiples of 8) in BAR `bar`.
    ///
    /// # Panics
    /// When the count or an offset is out of range: errors of the device's author.
    pub fn add(config: &mut ConfigSpace, bar: u8, vectors: u16, table: u32, pending_bits: u32) -> Self {
        assert!((1..=Self::MAX_VECTORS).contains(&vectors), "{vectors} MSI-X vectors");
        assert!(table % 8 == 0 && pending_bits % 8 == 0 && bar < 6, "MSI-X table placement");
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((table | u32::from(bar)).to_le_bytes());
        body.extend((pending_bits | u32::from(bar)).to_le_bytes());
        let mut writable = (ENABLE | FUNCTION_MASK).to_le_bytes().to_vec();
        writable.extend([0; 8]);
        let capability = config.add_capability(ID, &body, &writable);
        let count = usize::from(vectors);
        MsixTable {
            capability,
            table: table.into(),
            pending_bits: pending_bits.into(),
            control: 0,
            entries: vec![Entry { address: 0, data: 0, masked: true }; count],
            pending: vec![false; count],
        }
    }

    /// The configuration space may have been written. The caller then sends what
    /// [`MsixTable::released`] gives.
    pub fn control_changed(&mut self, config: &ConfigSpace) {
        self.control = config.read(self.capability + 2, 2) as u16;
    }

    /// Whether software has enabled MSI-X.
    pub fn enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    fn masked(&self, n: usize) -> bool {
        self.control & FUNCTION_MASK != 0 || self.entries[n].masked
    }

    /// Vector `n` wants to be sent: its message, or `None` when MSI-X is off, there
    /// is no such vector, or it is masked, in which case it becomes pending.
    pub fn trigger(&mut self, n: u16) -> Option<MsiMessage> {
        let n = usize::from(n);
        if !self.enabled() || n >= self.entries.len() {
            return None;
        }
        if self.masked(n) {
            self.pending[n] = true;
            return None;
        }
        let Entry { address, data, .. } = self.entries[n];
        Some(MsiMessage { address, data })
    }

    /// After a write to the table or the configuration space: messages that were
    /// pending and may go now.
    pub fn released(&mut self) -> Vec<MsiMessage> {
        if !self.enabled() || !self.pending.contains(&true) {
            return Vec::new();
        }
        let ready: Vec<usize> =
            (0..self.entries.len()).filter(|&n| self.pending[n] && !self.masked(n)).collect();
        ready
            .into_iter()
            .map(|n| {
                self.pending[n] = false;
                MsiMessage { address: self.entries[n].address, data: self.entries[n].data }
            })
            .collect()
    }

    /// Read from the BAR, if `offset` lies in the table or the pending bits.
    pub fn read(&self, offset: u64, size: u8) -> Option<u64> {
        if size < 4 || offset % u64::from(size) != 0 {
            return self.covers(offset).then_some(u64::MAX);
        }
        let low = u64::from(self.read_word(offset)?);
        let high = if size == 8 { u64::from(self.read_word(offset + 4).unwrap_or(0)) } else { 0 };
        Some(low | high << 32)
    }

    fn table_len(&self) -> u64 {
        self.entries.len() as u64 * ENTRY
    }

    fn pending_len(&self) -> u64 {
        self.entries.len().div_ceil(64) as u64 * 8
    }

    fn covers(&self, offset: u64) -> bool {
        let within = |start: u64, len: u64| offset.checked_sub(start).is_some_and(|o| o < len);
        within(self.table, self.table_len()) || within(self.pending_bits, self.pending_len())
    }

    fn read_word(&self, offset: u64) -> Option<u32> {
        if let Some(o) = offset.checked_sub(self.table).filter(|&o| o < self.table_len()) {
            let e = &self.entries[(o / ENTRY) as usize];
            return Some(match o % ENTRY {
                0 => e.address as u32,
                4 => (e.address >> 32) as u32,
                8 => e.data,
                _ => u32::from(e.masked),
            });
        }
        let o = offset.checked_sub(self.pending_bits).filter(|&o| o < self.pending_len())?;
        let bit = |i: usize| u32::from(self.pending.get(o as usize * 8 + i).copied().unwrap_or(false)) << i;
        Some((0..32).map(bit).sum())
    }

    /// Write to the BAR; answers whether `offset` lies in the table or the pending
    /// bits. The caller then sends what [`MsixTable::released`] gives.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) -> bool {
        let covered = self.covers(offset);
        if covered && size >= 4 && offset % u64::from(size) == 0 {
            self.write_word(offset, value as u32);
            if size == 8 {
                self.write_word(offset + 4, (value >> 32) as u32);
            }
        }
        covered
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        let Some(o) = offset.checked_sub(self.table).filter(|&o| o < self.table_len()) else { return };
        let e = &mut self.entries[(o / ENTRY) as usize];
        match o % ENTRY {
            0 => e.address = e.address & !0xffff_ffff | u64::from(value & !3),
            4 => e.address = e.address & 0xffff_ffff | u64::from(value) << 32,
            8 => e.data = value,
            _ => e.masked = value & MASKED != 0,
        }
    }

    /// The state after power-up: all masked.
    pub fn reset(&mut self) {
        self.control = 0;
        self.entries.fill(Entry { address: 0, data: 0, masked: true });
        self.pending.fill(false);
    }
}

impl Saved for MsixTable {
    type State = MsixState;
    const VERSION: u16 = 1;

    fn save(&self) -> MsixState {
        let MsixTable { capability: _, table: _, pending_bits: _, control, entries, pending } = self;
        MsixState { control: *control, entries: entries.clone(), pending: pending.clone() }
    }

    fn restore(&mut self, state: &MsixState) -> Result<(), StateError> {
        let MsixState { control, entries, pending } = state;
        let count = self.entries.len();
        StateError::check(
            entries.len() == count,
            NAME,
            "entries",
            entries.len() as u64,
            "the function's vectors",
        )?;
        StateError::check(
            pending.len() == count,
            NAME,
            "pending",
            pending.len() as u64,
            "the function's vectors",
        )?;
        for e in entries {
            StateError::check(e.address & 3 == 0, NAME, "address", e.address, "multiples of 4")?;
        }
        self.control = *control;
        self.entries = entries.clone();
        self.pending = pending.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BarKind, Identity};

    #[test]
    fn table_masks_and_pending() {
        let id = Identity { vendor: 1, device: 2, class: 0, revision: 0, subsystem: (0, 0) };
        let mut c = ConfigSpace::new(id).with_bar(1, BarKind::Memory32, 0x1000);
        let mut t = MsixTable::add(&mut c, 1, 3, 0, 0x800);
        assert_eq!((c.read(0x40, 4), c.read(0x44, 4), c.read(0x48, 4)), (0x0002_0011, 1, 0x801));
        assert_eq!(t.read(0x1c, 4), Some(1), "masked at reset");
        assert!(t.write(0x10, 8, 0xfee0_2003));
        assert!(t.write(0x18, 4, 0x4055));
        assert_eq!(t.read(0x10, 8), Some(0xfee0_2000));
        assert_eq!((t.read(0x30, 4), t.read(0x808, 4), t.write(0x30, 4, 0)), (None, None, false));
        let message = MsiMessage { address: 0xfee0_2000, data: 0x4055 };
        assert_eq!(t.trigger(1), None, "off");
        assert_eq!(t.read(0x800, 8), Some(0));
        c.write(0x42, 2, 0x8000);
        t.control_changed(&c);
        assert_eq!(t.trigger(1), None, "masked");
        assert_eq!(t.read(0x800, 8), Some(2));
        t.write(0x1c, 4, 0);
        assert_eq!(t.released(), [message]);
        assert_eq!(t.trigger(1), Some(message));
        c.write(0x42, 2, 0xc000);
        t.control_changed(&c);
        assert_eq!(t.trigger(1), None, "function masked");
        c.write(0x42, 2, 0x8000);
        t.control_changed(&c);
        let state = t.save();
        assert_eq!(t.released(), [message]);
        assert_eq!(t.trigger(3), None, "no such vector");
        t.restore(&state).unwrap();
        assert_eq!(t.read(0x800, 4), Some(2));
        t.reset();
        assert!(t.restore(&MsixState { control: 0, entries: vec![], pending: vec![] }).is_err());
        assert_eq!(t.read(0x10, 8), Some(0));
    }
}
