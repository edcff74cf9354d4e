//! A driver's side of one queue, in both formats.

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};

use guest_memory::{GuestMemory, RamOffset};

use crate::{QueueAddresses, QueueConfig, features};

/// Descriptors of an indirect table at most.
const TABLE: u64 = 32;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const PACKED_AVAILABLE: u16 = 1 << 7;
const PACKED_USED: u16 = 1 << 15;

/// When the driver wants to be interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// At the next used buffer.
    Next,
    /// Never.
    Never,
    /// With event indices: at the used buffer after this many more. Counted in
    /// buffers for split rings, in descriptors for packed ones.
    After(u16),
}

/// One buffer of a chain: guest-physical address, bytes, whether the device writes.
type Buffer = (u64, u32, bool);

/// A driver's side of a queue whose rings start at a page of flat guest memory.
#[derive(Debug)]
pub struct DriverQueue {
    memory: GuestMemory,
    size: u16,
    features: u64,
    at: QueueAddresses,
    tables: u64,
    free: Vec<u16>,
    /// Descriptors of each chain that is with the device, by its ID.
    busy: BTreeMap<u16, Vec<u16>>,
    next_available: u16,
    next_used: u16,
    available_wrap: bool,
    used_wrap: bool,
    /// What was added since a doorbell was last thought of: chains of a split ring,
    /// descriptors of a packed one.
    added: u16,
}

impl DriverQueue {
    /// Bytes of guest memory that a queue of `size` descriptors takes.
    pub fn footprint(size: u16) -> u64 {
        (u64::from(size) * (16 + 16 * TABLE) + 10 * u64::from(size) + 64).next_multiple_of(4096)
    }

    /// Lay out an empty queue at `base`, a multiple of 16.
    pub fn new(memory: GuestMemory, base: u64, size: u16, features: u64) -> Self {
        let n = u64::from(size);
        let tables = base + 16 * n;
        let driver = tables + 16 * TABLE * n;
        let device = (driver + 6 + 2 * n).next_multiple_of(4);
        let at = QueueAddresses { descriptors: base, driver, device };
        // Tables are written when a chain uses them.
        memory.fill(RamOffset(base), 0u64, 2 * n as usize);
        memory.fill(RamOffset(driver), 0u8, (device + 6 + 8 * n - driver) as usize);
        let mut q = DriverQueue {
            memory,
            size,
            features,
            at,
            tables,
            free: (0..size).rev().collect(),
            busy: BTreeMap::new(),
            next_available: 0,
            next_used: 0,
            available_wrap: true,
            used_wrap: true,
            added: 0,
        };
        q.wish(Wish::Next);
        q
    }

    /// What the device's side needs to know.
    pub fn config(&self, index: u16) -> QueueConfig {
        QueueConfig { index, size: self.size, addresses: self.at, features: self.features }
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn packed(&self) -> bool {
        self.has(features::RING_PACKED)
    }

    fn store<T: guest_memory::Scalar>(&self, address: u64, value: T) {
        self.memory.write(RamOffset(address), value);
    }

    fn load<T: guest_memory::Scalar>(&self, address: u64) -> T {
        self.memory.read(RamOffset(address))
    }

    fn store_descriptor(&self, at: u64, b: Buffer, third: u16, fourth: u16) {
        self.store(at, b.0);
        self.store(at + 8, b.1);
        self.store(at + 12, third);
        self.store(at + 14, fourth);
    }

    /// Make a chain available; answers its ID, or `None` when the ring is full.
    pub fn add(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Option<u16> {
        let list: Vec<Buffer> = (readable.iter().map(|&(a, l)| (a, l, false)))
            .chain(writable.iter().map(|&(a, l)| (a, l, true)))
            .collect();
        let indirect = self.has(features::INDIRECT_DESC) && list.len() > 1 && list.len() as u64 <= TABLE;
        let needed = if indirect { 1 } else { list.len() };
        if needed == 0 || self.free.len() < needed {
            return None;
        }
        match self.packed() {
            true => Some(self.add_packed(&list, indirect)),
            false => Some(self.add_split(&list, indirect)),
        }
    }

    fn table(&self, id: u16, list: &[Buffer]) -> Buffer {
        let table = self.tables + u64::from(id) * 16 * TABLE;
        for (i, &b) in list.iter().enumerate() {
            let write = if b.2 { WRITE } else { 0 };
            let at = table + 16 * i as u64;
            match self.packed() {
                true => self.store_descriptor(at, b, 0, write),
                false if i + 1 == list.len() => self.store_descriptor(at, b, write, 0),
                false => self.store_descriptor(at, b, write | NEXT, i as u16 + 1),
            }
        }
        (table, 16 * list.len() as u32, false)
    }

    fn add_split(&mut self, list: &[Buffer], indirect: bool) -> u16 {
        let ids = self.free.split_off(self.free.len() - if indirect { 1 } else { list.len() });
        let head = ids[0];
        if indirect {
            let table = self.table(head, list);
            self.store_descriptor(self.at.descriptors + 16 * u64::from(head), table, INDIRECT, 0);
        } else {
            for (i, (&id, &b)) in ids.iter().zip(list).enumerate() {
                let next = ids.get(i + 1).copied();
                let flags = if b.2 { WRITE } else { 0 } | if next.is_some() { NEXT } else { 0 };
                let at = self.at.descriptors + 16 * u64::from(id);
                self.store_descriptor(at, b, flags, next.unwrap_or(0));
            }
        }
        let slot = u64::from(self.next_available % self.size);
        self.store(self.at.driver + 4 + 2 * slot, head);
        self.next_available = self.next_available.wrapping_add(1);
        self.store(self.at.driver + 2, self.next_available);
        self.added = self.added.saturating_add(1);
        self.busy.insert(head, ids);
        head
    }

    fn add_packed(&mut self, list: &[Buffer], indirect: bool) -> u16 {
        let ids = self.free.split_off(self.free.len() - if indirect { 1 } else { list.len() });
        let id = ids[0];
        let ring: Vec<Buffer> = if indirect { vec![self.table(id, list)] } else { list.to_vec() };
        self.added = self.added.saturating_add(ring.len() as u16);
        let mut first = None;
        for (i, &b) in ring.iter().enumerate() {
            let at = self.at.descriptors + 16 * u64::from(self.next_available);
            let mut flags = if self.available_wrap { PACKED_AVAILABLE } else { PACKED_USED };
            flags |= if b.2 { WRITE } else { 0 } | if indirect { INDIRECT } else { 0 };
            flags |= if i + 1 < ring.len() { NEXT } else { 0 };
            self.store(at, b.0);
            self.store(at + 8, b.1);
            self.store(at + 12, id);
            match first {
                None => first = Some((at + 14, flags)),
                Some(_) => self.store(at + 14, flags),
            }
            self.next_available += 1;
            if self.next_available == self.size {
                self.next_available = 0;
                self.available_wrap = !self.available_wrap;
            }
        }
        if let Some((at, flags)) = first {
            self.store(at, flags);
        }
        self.busy.insert(id, ids);
        id
    }

    /// Take the next used chain: its ID and the bytes the device wrote.
    ///
    /// # Panics
    /// When the device used what it does not have.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let (id, written) = if self.packed() { self.used_packed()? } else { self.used_split()? };
        let ids = self
            .busy
            .remove(&id)
            .unwrap_or_else(|| panic!("the device used chain {id}, which it does not have"));
        if self.packed() {
            let slots = ids.len() as u16;
            self.next_used += slots;
            if self.next_used >= self.size {
                self.next_used -= self.size;
                self.used_wrap = !self.used_wrap;
            }
        } else {
            self.next_used = self.next_used.wrapping_add(1);
        }
        self.free.extend(ids);
        Some((id, written))
    }

    fn used_split(&self) -> Option<(u16, u32)> {
        let index: u16 = self.load(self.at.device + 2);
        if index == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let element: u64 = self.load(self.at.device + 4 + 8 * slot);
        Some((element as u16, (element >> 32) as u32))
    }

    fn used_packed(&self) -> Option<(u16, u32)> {
        let at = self.at.descriptors + 16 * u64::from(self.next_used);
        let flags: u16 = self.load(at + 14);
        let both = [PACKED_AVAILABLE, PACKED_USED].map(|bit| flags & bit != 0);
        (both == [self.used_wrap; 2]).then(|| (self.load(at + 12), self.load(at + 8)))
    }

    /// Chains that are with the device.
    pub fn outstanding(&self) -> usize {
        self.busy.len()
    }

    /// Say when to be interrupted.
    pub fn wish(&mut self, wish: Wish) {
        let events = self.has(features::EVENT_IDX);
        match (self.packed(), wish) {
            (false, Wish::Never) => {
                self.store(self.at.driver, 1u16);
                // With event indices the flag means nothing: an index just passed is half a round away.
                if events {
                    self.store(self.used_event(), self.next_used.wrapping_sub(1));
                }
            }
            (false, _) => {
                self.store(self.at.driver, 0u16);
                let after = if let Wish::After(n) = wish { n } else { 0 };
                if events {
                    self.store(self.used_event(), self.next_used.wrapping_add(after));
                }
            }
            (true, Wish::Never) => self.store(self.at.driver, 1u32 << 16),
            (true, Wish::Next | Wish::After(_)) if events => {
                let n = if let Wish::After(n) = wish { n } else { 0 };
                let index = self.next_used + n;
                let (index, wrap) = if index >= self.size {
                    (index - self.size, !self.used_wrap)
                } else {
                    (index, self.used_wrap)
                };
                self.store(self.at.driver, u32::from(index) | u32::from(wrap) << 15 | 2 << 16);
            }
            (true, _) => self.store(self.at.driver, 0u32),
        }
        fence(Ordering::SeqCst);
    }

    fn used_event(&self) -> u64 {
        self.at.driver + 4 + 2 * u64::from(self.size)
    }

    /// Whether the device asked for a doorbell for what was added since the last call.
    pub fn needs_doorbell(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let added = std::mem::take(&mut self.added);
        let next = self.next_available;
        let crossed = |event: u16| next.wrapping_sub(event).wrapping_sub(1) < added;
        if !self.packed() {
            return match self.has(features::EVENT_IDX) {
                true => crossed(self.load(self.at.device + 4 + 8 * u64::from(self.size))),
                false => added > 0 && self.load::<u16>(self.at.device) & 1 == 0,
            };
        }
        let wish: u32 = self.load(self.at.device);
        match wish >> 16 & 3 {
            0 => added > 0,
            1 => false,
            _ => {
                let (event, wrap) = (wish as u16 & 0x7fff, wish >> 15 & 1 != 0);
                // A place of the last round lies a ring's size lower.
                crossed(if wrap == self.available_wrap { event } else { event.wrapping_sub(self.size) })
            }
        }
    }
}
