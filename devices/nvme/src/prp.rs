//! Physical region pages: where a command's data are (4.3).

use disk::Segment;
use guest_memory::{GuestMemory, RamOffset};

use crate::MAX_TRANSFER_LOG2_PAGES;
use crate::command::Command;
use crate::spec::{PAGE, Status};

/// Most bytes of a command's data.
pub const MAX_TRANSFER: u64 = PAGE << MAX_TRANSFER_LOG2_PAGES;

/// Who writes to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The controller reads them.
    FromGuest,
    /// The controller writes them: read-only memory will not do.
    ToGuest,
}

struct Walk<'a> {
    memory: &'a GuestMemory,
    direction: Direction,
    segments: Vec<Segment>,
}

impl Walk<'_> {
    /// Add `len` bytes at a guest-physical address, which lie within a page.
    fn add(&mut self, address: u64, len: u64) -> Result<(), Status> {
        let hit = self.memory.translate(address).filter(|h| h.len >= len).ok_or(Status::DATA_TRANSFER)?;
        if self.direction == Direction::ToGuest && !hit.writable {
            return Err(Status::DATA_TRANSFER);
        }
        match self.segments.last_mut() {
            Some((RamOffset(at), n)) if *at + *n as u64 == hit.offset.0 => *n += len as usize,
            _ => self.segments.push((hit.offset, len as usize)),
        }
        Ok(())
    }

    fn entry(&self, address: u64) -> Result<u64, Status> {
        let hit = self.memory.translate(address).filter(|h| h.len >= 8).ok_or(Status::DATA_TRANSFER)?;
        let entry = self.memory.read::<u64>(hit.offset);
        if entry % PAGE != 0 { Err(Status::PRP_OFFSET) } else { Ok(entry) }
    }

    /// Follow a list. The last entry of a page of entries points to more of them,
    /// which begin at a page: at most one in 512 entries is a pointer, so that a
    /// loop ends with the data.
    fn list(&mut self, mut at: u64, mut left: u64) -> Result<(), Status> {
        if at % 8 != 0 {
            return Err(Status::PRP_OFFSET);
        }
        while left > 0 {
            let last_of_page = at % PAGE == PAGE - 8;
            if last_of_page && left > PAGE {
                at = self.entry(at)?;
                continue;
            }
            let n = left.min(PAGE);
            let page = self.entry(at)?;
            self.add(page, n)?;
            left -= n;
            at += 8;
        }
        Ok(())
    }
}

/// The `len` bytes of a command's data, in order; neighbours are one segment.
///
/// # Errors
/// The status the command ends with.
pub fn segments(
    memory: &GuestMemory,
    command: &Command,
    len: u64,
    direction: Direction,
) -> Result<Vec<Segment>, Status> {
    if len > MAX_TRANSFER {
        return Err(Status::INVALID_FIELD);
    }
    let mut walk = Walk { memory, direction, segments: Vec::new() };
    if len == 0 {
        return Ok(walk.segments);
    }
    let (prp1, prp2) = (command.prp1, command.prp2);
    if prp1 % 4 != 0 {
        return Err(Status::PRP_OFFSET);
    }
    let first = len.min(PAGE - prp1 % PAGE);
    walk.add(prp1, first)?;
    match len - first {
        0 => {}
        rest if rest <= PAGE => {
            if prp2 % PAGE != 0 {
                return Err(Status::PRP_OFFSET);
            }
            walk.add(prp2, rest)?;
        }
        rest => walk.list(prp2, rest)?,
    }
    Ok(walk.segments)
}

/// Put bytes where a command's data go.
///
/// # Errors
/// As [`segments`].
pub fn put(memory: &GuestMemory, command: &Command, bytes: &[u8]) -> Result<(), Status> {
    let mut rest = bytes;
    for (at, n) in segments(memory, command, bytes.len() as u64, Direction::ToGuest)? {
        let (head, tail) = rest.split_at(n);
        memory.write_bytes(at, head);
        rest = tail;
    }
    Ok(())
}

/// Get `len` bytes of a command's data.
///
/// # Errors
/// As [`segments`].
pub fn get(memory: &GuestMemory, command: &Command, len: u64) -> Result<Vec<u8>, Status> {
    let list = segments(memory, command, len, Direction::FromGuest)?;
    let mut bytes = vec![0; len as usize];
    let mut rest = &mut bytes[..];
    for (at, n) in list {
        let (head, tail) = rest.split_at_mut(n);
        memory.read_bytes(at, head);
        rest = tail;
    }
    Ok(bytes)
}
