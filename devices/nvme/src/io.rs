//! I/O commands on the namespace (6).

use std::sync::Arc;

use disk::{Disk, DiskError, FullListener, Segment};
use guest_memory::GuestMemory;
use rate_log::RateLog;

use crate::MAX_RANGES;
use crate::command::Command;
use crate::completion::Completion;
use crate::prp::{self, Direction};
use crate::spec::{NSID, NSID_ALL, Status, nvm};

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, or has failed.
    Done(Completion),
    /// The host has no room for what it writes. It can be executed again.
    Full,
}

/// Force unit access, in dword 12 of a write.
const FUA: u32 = 1 << 30;
/// Deallocate, in dword 12 of write zeroes.
const DEALLOCATE: u32 = 1 << 25;
/// Attribute deallocate, in dword 11 of dataset management.
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;
/// Bytes of a range of dataset management.
const RANGE: usize = 16;

/// The namespace: a disk.
pub struct Namespace {
    pub disk: Arc<dyn Disk>,
    pub memory: GuestMemory,
    /// Told when commands wait for room on the host. `None`: they fail.
    on_full: Option<FullListener>,
    log: RateLog,
}

impl Namespace {
    pub fn new(disk: Arc<dyn Disk>, memory: GuestMemory, on_full: Option<FullListener>) -> Self {
        Namespace { disk, memory, on_full, log: RateLog::new("nvme") }
    }

    /// Something waits for room on the host: tell the machine's owner. False if
    /// nobody wants to hear of it.
    pub fn tell_full(&self) -> bool {
        if let Some(told) = &self.on_full {
            told();
        }
        self.on_full.is_some()
    }

    /// Make everything durable. False: there is no room for it on the host, which
    /// the machine's owner has been told.
    pub fn flush(&self) -> bool {
        match self.disk.flush() {
            Err(DiskError::NoSpace) => !self.tell_full(),
            // The driver is told of errors of its own commands; here none waits.
            Ok(()) | Err(_) => true,
        }
    }

    /// Whether commands wait for room on the host, rather than fail.
    pub fn holds(&self) -> bool {
        self.on_full.is_some()
    }

    /// A read or write that may be executed beside others: whether it writes, first
    /// byte, and where its data are. `None`: leave it to [`Namespace::execute`].
    pub fn transfer(&self, command: &Command) -> Option<(bool, u64, Vec<Segment>)> {
        let (write, direction) = match command.opcode {
            nvm::READ => (false, Direction::ToGuest),
            nvm::WRITE if command.dword(12) & FUA == 0 => (true, Direction::FromGuest),
            _ => return None,
        };
        if command.unsupported || command.nsid != NSID {
            return None;
        }
        let (offset, len) = self.range(command.lba(), command.blocks()).ok()?;
        Some((write, offset, prp::segments(&self.memory, command, len, direction).ok()?))
    }

    /// What became of a [`Namespace::transfer`].
    pub fn finish(&self, command: &Command, result: Result<(), DiskError>) -> Completion {
        let status = self.judge(result, command).err().unwrap_or(Status::SUCCESS);
        Completion { cid: command.cid, status, result: 0 }
    }

    /// Execute a command.
    pub fn execute(&self, command: &Command) -> Outcome {
        let status = match self.dispatch(command) {
            Ok(()) => Status::SUCCESS,
            Err(Status::CAPACITY) if self.holds() => return Outcome::Full,
            Err(status) => status,
        };
        Outcome::Done(Completion { cid: command.cid, status, result: 0 })
    }

    fn dispatch(&self, command: &Command) -> Result<(), Status> {
        let known = matches!(
            command.opcode,
            nvm::FLUSH | nvm::WRITE | nvm::READ | nvm::WRITE_ZEROES | nvm::DATASET_MANAGEMENT
        );
        if !known {
            return Err(Status::INVALID_OPCODE);
        }
        if command.unsupported {
            return Err(Status::INVALID_FIELD);
        }
        let all = command.nsid == NSID_ALL && command.opcode == nvm::FLUSH;
        if command.nsid != NSID && !all {
            return Err(Status::INVALID_NAMESPACE);
        }
        match command.opcode {
            nvm::READ => self.read(command),
            nvm::WRITE => self.write(command),
            nvm::FLUSH => self.judge(self.disk.flush(), command),
            nvm::WRITE_ZEROES => self.write_zeroes(command),
            _ => self.dataset_management(command),
        }
    }

    /// First byte and bytes of a run of blocks.
    fn range(&self, lba: u64, blocks: u64) -> Result<(u64, u64), Status> {
        let geometry = self.disk.geometry();
        let block = u64::from(geometry.logical_block);
        let (offset, len) = (lba.checked_mul(block), blocks.checked_mul(block));
        let (Some(offset), Some(len)) = (offset, len) else { return Err(Status::LBA_RANGE) };
        geometry.check(offset, len).map_err(|_| Status::LBA_RANGE)?;
        Ok((offset, len))
    }

    /// The status of what a disk did; what the host did wrong is logged.
    fn judge<T>(&self, result: Result<T, DiskError>, command: &Command) -> Result<T, Status> {
        result.map_err(|e| {
            let status = match &e {
                DiskError::OutOfRange { .. } | DiskError::Misaligned { .. } => Status::LBA_RANGE,
                DiskError::ReadOnly => Status::WRITE_PROTECTED,
                DiskError::NoSpace => Status::CAPACITY,
                _ if command.opcode == nvm::READ => Status::READ_ERROR,
                _ => Status::WRITE_FAULT,
            };
            self.log.report(|| format!("command {:#04x}: {e}", command.opcode));
            status
        })
    }

    fn read(&self, command: &Command) -> Result<(), Status> {
        let (offset, len) = self.range(command.lba(), command.blocks())?;
        let to = prp::segments(&self.memory, command, len, Direction::ToGuest)?;
        self.judge(self.disk.read_guest(offset, &self.memory, &to), command)
    }

    fn write(&self, command: &Command) -> Result<(), Status> {
        let (offset, len) = self.range(command.lba(), command.blocks())?;
        let from = prp::segments(&self.memory, command, len, Direction::FromGuest)?;
        self.judge(self.disk.write_guest(offset, &self.memory, &from), command)?;
        if command.dword(12) & FUA != 0 {
            self.judge(self.disk.flush(), command)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, command: &Command) -> Result<(), Status> {
        let (offset, len) = self.range(command.lba(), command.blocks())?;
        let unmap = command.dword(12) & DEALLOCATE != 0;
        self.judge(self.disk.write_zeroes(offset, len, unmap), command)?;
        if command.dword(12) & FUA != 0 {
            self.judge(self.disk.flush(), command)?;
        }
        Ok(())
    }

    fn dataset_management(&self, command: &Command) -> Result<(), Status> {
        let count = (command.dword(10) & 0xff) as usize + 1;
        debug_assert!(count <= MAX_RANGES, "eight bits");
        if self.disk.read_only() {
            return Err(Status::WRITE_PROTECTED);
        }
        let bytes = prp::get(&self.memory, command, (count * RANGE) as u64)?;
        if command.dword(11) & ATTRIBUTE_DEALLOCATE == 0 {
            // Hints about future use.
            return Ok(());
        }
        for range in bytes.as_chunks::<RANGE>().0 {
            let [_, _, _, _, l0, l1, l2, l3, s @ ..] = *range;
            let blocks = u32::from_le_bytes([l0, l1, l2, l3]);
            let (offset, len) = self.range(u64::from_le_bytes(s), blocks.into())?;
            self.judge(self.disk.discard(offset, len), command)?;
        }
        Ok(())
    }
}
