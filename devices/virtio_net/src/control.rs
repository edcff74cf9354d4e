//! The control queue (virtio 1.2 section 5.1.6.5), and what it controls.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use port::MacAddress;
use saved_state::StateError;
use serde::{Deserialize, Serialize};
use virtio_core::{Chain, Doorbell, Reader};

use crate::filter::{Filter, MAX_TABLE};
use crate::spec::{ERR, OK, command, feature, status};

/// Bytes of the longest command that is read: two full address tables and more.
const MAX_COMMAND: u64 = 64 << 10;

/// What the driver has said, shared by the workers.
pub(crate) struct Control {
    /// Taken for a frame or a command; nothing is locked while it is held.
    pub(crate) filter: Mutex<Filter>,
    /// Pairs of queues in use.
    pub(crate) pairs: AtomicU16,
    /// Bits of the status field.
    pub(crate) status: AtomicU16,
    /// `GUEST_*` features that are switched on.
    pub(crate) guest_offloads: AtomicU64,
    /// Features agreed on.
    pub(crate) features: AtomicU64,
    /// To tell workers of a change.
    pub(crate) doorbells: Mutex<Vec<Doorbell>>,
    max_pairs: u16,
}

/// [`Control`] as it is saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    filter: Filter,
    pairs: u16,
    status: u16,
    guest_offloads: u64,
}

/// The lock's content, whatever happened to another thread that held it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Control {
    pub(crate) fn new(mac: MacAddress, max_pairs: u16) -> Self {
        Control {
            filter: Mutex::new(Filter::new(mac)),
            pairs: AtomicU16::new(1),
            status: AtomicU16::new(status::LINK_UP),
            guest_offloads: AtomicU64::new(0),
            features: AtomicU64::new(0),
            doorbells: Mutex::new(Vec::new()),
            max_pairs,
        }
    }

    pub(crate) fn reset(&self, mac: MacAddress) {
        *lock(&self.filter) = Filter::new(mac);
        self.pairs.store(1, Ordering::Relaxed);
        self.status.store(status::LINK_UP, Ordering::Relaxed);
        self.guest_offloads.store(0, Ordering::Relaxed);
        self.features.store(0, Ordering::Relaxed);
        lock(&self.doorbells).clear();
    }

    pub(crate) fn save(&self) -> Vec<u8> {
        let state = State {
            filter: lock(&self.filter).clone(),
            pairs: self.pairs.load(Ordering::Relaxed),
            status: self.status.load(Ordering::Relaxed),
            guest_offloads: self.guest_offloads.load(Ordering::Relaxed),
        };
        // Plain values always have an encoding.
        postcard::to_allocvec(&state).unwrap_or_default()
    }

    pub(crate) fn restore(&self, device: &'static str, bytes: &[u8]) -> Result<(), StateError> {
        let wrong = |field, value, allowed| StateError::OutOfRange { device, field, value, allowed };
        let state: State = postcard::from_bytes(bytes)
            .map_err(|_| wrong("state", bytes.len() as u64, "the state of a network card"))?;
        let State { filter, pairs, status, guest_offloads } = state;
        if pairs == 0 || pairs > self.max_pairs {
            return Err(wrong("pairs", pairs.into(), "1 to the device's pairs"));
        }
        if !filter.is_sound() {
            return Err(wrong("filter", 0, "tables of the device's size"));
        }
        if guest_offloads & !feature::GUEST_OFFLOADS != 0 {
            return Err(wrong("guest offloads", guest_offloads, "offload bits"));
        }
        *lock(&self.filter) = filter;
        self.pairs.store(pairs, Ordering::Relaxed);
        self.status.store(status, Ordering::Relaxed);
        self.guest_offloads.store(guest_offloads, Ordering::Relaxed);
        Ok(())
    }

    /// Carry out a command; answers the bytes written: its status.
    pub(crate) fn command(&self, chain: &Chain) -> u32 {
        let mut reader = chain.reader();
        let done = reader.remaining() <= MAX_COMMAND && self.carry_out(&mut reader).is_some();
        let mut writer = chain.writer();
        writer.write_some(&[if done { OK } else { ERR }]);
        writer.written()
    }

    fn carry_out(&self, from: &mut Reader<'_>) -> Option<()> {
        let (class, command) = (from.read_value::<u8>().ok()?, from.read_value::<u8>().ok()?);
        let features = self.features.load(Ordering::Relaxed);
        let agreed = |bits: u64| (features & bits == bits).then_some(());
        match class {
            command::RX => {
                agreed(if command <= command::RX_ALLMULTI {
                    feature::CTRL_RX
                } else {
                    feature::CTRL_RX_EXTRA
                })?;
                self.set_mode(command, from.read_value::<u8>().ok()?)
            }
            command::MAC if command == command::MAC_TABLE_SET => {
                agreed(feature::CTRL_RX)?;
                let (unicast, multicast) = (read_table(from)?, read_table(from)?);
                lock(&self.filter).set_tables(unicast, multicast);
                Some(())
            }
            command::MAC if command == command::MAC_ADDR_SET => {
                agreed(feature::CTRL_MAC_ADDR)?;
                let mut mac = [0; 6];
                from.read_all(&mut mac).ok()?;
                lock(&self.filter).mac = mac;
                Some(())
            }
            command::VLAN if command == command::VLAN_ADD || command == command::VLAN_DEL => {
                agreed(feature::CTRL_VLAN)?;
                let vlan = from.read_value::<u16>().ok()?;
                lock(&self.filter).set_vlan(vlan, command == command::VLAN_ADD).then_some(())
            }
            command::ANNOUNCE if command == command::ANNOUNCE_ACK => {
                agreed(feature::GUEST_ANNOUNCE)?;
                self.status.fetch_and(!status::ANNOUNCE, Ordering::Relaxed);
                Some(())
            }
            command::MQ if command == command::MQ_VQ_PAIRS_SET => {
                agreed(feature::MQ)?;
                self.set_pairs(from.read_value::<u16>().ok()?)
            }
            command::GUEST_OFFLOADS if command == command::GUEST_OFFLOADS_SET => {
                agreed(feature::CTRL_GUEST_OFFLOADS)?;
                self.set_offloads(from.read_value::<u64>().ok()?, features)
            }
            _ => None,
        }
    }

    fn set_mode(&self, command: u8, on: u8) -> Option<()> {
        let mut filter = lock(&self.filter);
        let mode = match command {
            command::RX_PROMISC => &mut filter.promiscuous,
            command::RX_ALLMULTI => &mut filter.all_multicast,
            command::RX_ALLUNI => &mut filter.all_unicast,
            command::RX_NOMULTI => &mut filter.no_multicast,
            command::RX_NOUNI => &mut filter.no_unicast,
            command::RX_NOBCAST => &mut filter.no_broadcast,
            _ => return None,
        };
        *mode = on != 0;
        Some(())
    }

    fn set_pairs(&self, pairs: u16) -> Option<()> {
        if pairs == 0 || pairs > self.max_pairs {
            return None;
        }
        self.pairs.store(pairs, Ordering::Relaxed);
        self.tell_workers();
        Some(())
    }

    fn set_offloads(&self, offloads: u64, features: u64) -> Option<()> {
        if offloads & !(features & feature::GUEST_OFFLOADS) != 0 {
            return None;
        }
        self.guest_offloads.store(offloads, Ordering::Relaxed);
        self.tell_workers();
        Some(())
    }

    fn tell_workers(&self) {
        lock(&self.doorbells).iter().for_each(Doorbell::ring);
    }
}

/// An address table, `None` inside if it is longer than is kept.
fn read_table(from: &mut Reader<'_>) -> Option<Option<Vec<[u8; 6]>>> {
    let entries = u64::from(from.read_value::<u32>().ok()?);
    if entries * 6 > from.remaining() {
        return None;
    }
    if entries > MAX_TABLE as u64 {
        from.skip(entries as usize * 6);
        return Some(None);
    }
    let mut table = vec![[0; 6]; entries as usize];
    table.iter_mut().try_for_each(|entry| from.read_all(entry)).ok()?;
    Some(Some(table))
}
