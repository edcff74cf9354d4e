//! Admin commands (5).

use std::sync::Arc;

use guest_memory::GuestMemory;
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::completion::{CompletionQueue, CompletionState};
use crate::controller::Controller;
use crate::identify;
use crate::prp;
use crate::spec::{CQE_SIZE, NSID, NSID_ALL, PAGE, SQE_SIZE, Status, admin, feature};
use crate::submission::{RunningQueue, Submission};
use crate::{MAX_IO_QUEUES, MAX_QUEUE_ENTRIES};

/// What a command answers: a result, or nothing yet.
type Answer = Result<Option<u32>, Status>;

/// Features a driver may set, as it last set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    arbitration: u32,
    temperature: [u32; 2],
    error_recovery: u32,
    write_cache: u32,
    coalescing: u32,
    atomicity: u32,
    events: u32,
}

impl Default for Features {
    fn default() -> Self {
        Features {
            arbitration: 4,
            temperature: [0x157, 0],
            error_recovery: 0,
            write_cache: 1,
            coalescing: 0,
            atomicity: 0,
            events: 0,
        }
    }
}

/// Whether `len` bytes at a guest-physical address are RAM in one piece.
fn is_ram(memory: &GuestMemory, address: u64, len: u64) -> bool {
    memory.translate(address).is_some_and(|h| h.writable && h.len >= len)
}

/// A queue's place: whole pages of RAM, of the size the driver says.
///
/// # Errors
/// The status the command ends with.
pub fn queue_place(
    memory: &GuestMemory,
    address: u64,
    entries: u32,
    entry_size: u64,
) -> Result<(u64, u16), Status> {
    if !(2..=u32::from(MAX_QUEUE_ENTRIES)).contains(&entries) {
        return Err(Status::QUEUE_SIZE);
    }
    if address % PAGE != 0 {
        return Err(Status::PRP_OFFSET);
    }
    if !is_ram(memory, address, u64::from(entries) * entry_size) {
        return Err(Status::INVALID_FIELD);
    }
    Ok((address, entries as u16))
}

impl Controller {
    /// Execute an admin command. `Ok(None)`: it is completed later.
    pub fn admin_command(&mut self, c: &Command) -> Answer {
        if c.unsupported {
            return Err(Status::INVALID_FIELD);
        }
        match c.opcode {
            admin::DELETE_SQ => self.delete_submission(c),
            admin::CREATE_SQ => self.create_submission(c),
            admin::GET_LOG_PAGE => self.log_page(c),
            admin::DELETE_CQ => self.delete_completion(c),
            admin::CREATE_CQ => self.create_completion(c),
            admin::IDENTIFY => self.identify(c),
            // Best effort (5.1): commands are not found again once they are fetched.
            admin::ABORT => Ok(Some(1)),
            admin::SET_FEATURES => self.set_features(c),
            admin::GET_FEATURES => self.get_features(c),
            admin::ASYNC_EVENT => self.events.request(c.cid).map(|()| None),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// The slot of an I/O queue.
    fn slot(c: &Command) -> Result<usize, Status> {
        match c.dword(10) & 0xffff {
            id @ 1.. if id <= MAX_IO_QUEUES.into() => Ok(id as usize - 1),
            _ => Err(Status::QUEUE_ID),
        }
    }

    fn create_completion(&mut self, c: &Command) -> Answer {
        let slot = Self::slot(c)?;
        if self.completions[slot].is_some() {
            return Err(Status::QUEUE_ID);
        }
        let entries = (c.dword(10) >> 16) + 1;
        let place = queue_place(&self.namespace.memory, c.prp1, entries, CQE_SIZE)?;
        let (flags, vector) = (c.dword(11) & 0xffff, (c.dword(11) >> 16) as u16);
        if flags & 1 == 0 {
            // Not in one piece, which CAP.CQR demands.
            return Err(Status::INVALID_FIELD);
        }
        if vector > MAX_IO_QUEUES {
            return Err(Status::VECTOR);
        }
        let vector = (flags & 2 != 0).then_some(vector);
        let (memory, interrupts) = (self.namespace.memory.clone(), self.interrupts.clone());
        let queue = CompletionQueue::new(CompletionState::fresh(place, vector), memory, interrupts);
        self.completions[slot] = Some(Arc::new(queue));
        Ok(Some(0))
    }

    fn delete_completion(&mut self, c: &Command) -> Answer {
        let slot = Self::slot(c)?;
        let queue = self.completions[slot].as_ref().ok_or(Status::QUEUE_ID)?;
        if queue.is_used() {
            return Err(Status::QUEUE_DELETION);
        }
        self.completions[slot] = None;
        Ok(Some(0))
    }

    fn create_submission(&mut self, c: &Command) -> Answer {
        let slot = Self::slot(c)?;
        if self.submissions[slot].is_some() {
            return Err(Status::QUEUE_ID);
        }
        let entries = (c.dword(10) >> 16) + 1;
        let place = queue_place(&self.namespace.memory, c.prp1, entries, SQE_SIZE)?;
        if c.dword(11) & 1 == 0 {
            return Err(Status::INVALID_FIELD);
        }
        let completions = (c.dword(11) >> 16) as usize;
        let completions = completions.checked_sub(1).and_then(|i| self.completions.get(i)?.clone());
        let completions = completions.ok_or(Status::CQ_INVALID)?;
        let namespace = self.namespace.clone();
        let queue = Submission::new(slot as u16 + 1, place, (0, 0), completions, namespace);
        let running = RunningQueue::new(queue, self.inline);
        running.go().map_err(|_| Status::INTERNAL)?;
        self.submissions[slot] = Some(Arc::new(running));
        Ok(Some(0))
    }

    fn delete_submission(&mut self, c: &Command) -> Answer {
        let slot = Self::slot(c)?;
        // Commands are completed then, or forgotten.
        self.submissions[slot].take().ok_or(Status::QUEUE_ID)?.end();
        Ok(Some(0))
    }

    fn identify(&mut self, c: &Command) -> Answer {
        let this = c.nsid == NSID || c.nsid == NSID_ALL;
        let (disk, serial) = (&self.namespace.disk, &self.serial);
        let data = match c.dword(10) & 0xff {
            0x00 if this => identify::namespace(serial, disk.geometry(), disk.read_only()),
            0x01 => identify::controller(serial, disk.read_only()),
            0x02 if c.nsid < NSID_ALL - 1 => identify::namespace_list(c.nsid),
            0x03 if c.nsid == NSID => identify::descriptors(serial),
            0x00 | 0x02 | 0x03 => return Err(Status::INVALID_NAMESPACE),
            _ => return Err(Status::INVALID_FIELD),
        };
        prp::put(&self.namespace.memory, c, &data).map(|()| Some(0))
    }

    fn log_page(&mut self, c: &Command) -> Answer {
        /// Longer than any page served: what lies behind is zeroes.
        const MOST: u64 = 4096;
        let dwords = u64::from(c.dword(10) >> 16) | u64::from(c.dword(11) & 0xffff) << 16;
        let len = (dwords + 1) * 4;
        let offset = u64::from(c.dword(12)) | u64::from(c.dword(13)) << 32;
        if len > MOST || offset > MOST || offset % 4 != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let mut page = vec![0; 2 * MOST as usize];
        match c.dword(10) & 0xff {
            // Errors: none.
            0x01 => {}
            // Health: spare blocks and threshold in percent, temperature in kelvins.
            0x02 => {
                page[1..3].copy_from_slice(&300u16.to_le_bytes());
                page[3] = 100;
                page[4] = 10;
            }
            // Firmware: slot 1 is active.
            0x03 => {
                page[0] = 1;
                page[8..16].fill(b' ');
                let revision = env!("CARGO_PKG_VERSION").as_bytes();
                page[8..8 + revision.len().min(8)].copy_from_slice(&revision[..revision.len().min(8)]);
            }
            0x04 => {
                let keep = c.dword(10) & 1 << 15 != 0;
                if self.events.take_changed(keep) {
                    page[..4].copy_from_slice(&NSID.to_le_bytes());
                }
            }
            _ => return Err(Status::LOG_PAGE),
        }
        let part = &page[offset as usize..(offset + len) as usize];
        prp::put(&self.namespace.memory, c, part).map(|()| Some(0))
    }

    fn set_features(&mut self, c: &Command) -> Answer {
        if c.dword(10) >> 31 != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        let value = c.dword(11);
        let f = &mut self.features;
        match c.dword(10) as u8 {
            feature::ARBITRATION => f.arbitration = value,
            // One power state.
            feature::POWER_MANAGEMENT if value & 0x1f != 0 => return Err(Status::INVALID_FIELD),
            feature::POWER_MANAGEMENT => {}
            // The composite temperature's thresholds, over and under; no sensors.
            feature::TEMPERATURE if value >> 16 & 0xf == 0 && value >> 20 & 3 < 2 => {
                f.temperature[(value >> 20 & 1) as usize] = value & 0xffff;
            }
            feature::ERROR_RECOVERY => f.error_recovery = value & 0xffff,
            // Writes stay in the host's cache whatever the driver says; a driver that
            // relies on the cache being off is told so by a refusal.
            feature::WRITE_CACHE if value & 1 == 0 => return Err(Status::NOT_CHANGEABLE),
            feature::WRITE_CACHE => {}
            feature::QUEUES => {
                if value & 0xffff == 0xffff || value >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                return Ok(Some(Self::QUEUE_COUNT));
            }
            feature::COALESCING => f.coalescing = value & 0xffff,
            feature::VECTOR if value & 0xffff <= MAX_IO_QUEUES.into() => {}
            feature::ATOMICITY => f.atomicity = value & 1,
            feature::EVENTS => {
                f.events = value;
                self.events.configure(value);
            }
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(Some(0))
    }

    /// Queues of each kind, from 0.
    const QUEUE_COUNT: u32 = (MAX_IO_QUEUES as u32 - 1) << 16 | (MAX_IO_QUEUES as u32 - 1);

    fn get_features(&mut self, c: &Command) -> Answer {
        let (f, argument) = (&self.features, c.dword(11));
        let defaults = Features::default();
        let f = match c.dword(10) >> 8 & 7 {
            0 => f,
            // Default; saved, which is the same.
            1 | 2 => &defaults,
            _ => return Err(Status::INVALID_FIELD),
        };
        Ok(Some(match c.dword(10) as u8 {
            feature::ARBITRATION => f.arbitration,
            feature::POWER_MANAGEMENT => 0,
            feature::TEMPERATURE if argument >> 16 & 0xf == 0 && argument >> 20 & 3 < 2 => {
                f.temperature[(argument >> 20 & 1) as usize]
            }
            feature::ERROR_RECOVERY => f.error_recovery,
            feature::WRITE_CACHE => f.write_cache,
            feature::QUEUES => Self::QUEUE_COUNT,
            feature::COALESCING => f.coalescing,
            feature::VECTOR if argument & 0xffff <= MAX_IO_QUEUES.into() => argument & 0xffff,
            feature::ATOMICITY => f.atomicity,
            feature::EVENTS => f.events,
            _ => return Err(Status::INVALID_FIELD),
        }))
    }
}
