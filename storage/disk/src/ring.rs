//! Reads and writes of a file by io_uring, straight between it and guest RAM.
//!
//! A ring is made while the process may make one, and is good for reads and writes
//! only (`IORING_REGISTER_RESTRICTIONS`): a process that has given up opening files
//! does not get that back by it. Crate io-uring: the rings' layout and barriers.
// UNSAFE: queues entries that point to guest RAM, which outlives them.
#![allow(unsafe_code, reason = "io_uring entries hold pointers")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use guest_memory::GuestMemory;
use host_sys::RawPiece;
use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, types};

use crate::{Transfer, total_len};

/// Most transfers of a queue under way at once.
pub const DEPTH: usize = 64;
/// How long to wait before a ring that is short of something is asked again.
const PAUSE: Duration = Duration::from_millis(1);

/// A ring nothing is under way in.
pub struct Ring(IoUring);

impl Ring {
    /// Make one.
    ///
    /// # Errors
    /// What the host says: that it has no io_uring, or this process may not use it.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().setup_r_disabled().build(DEPTH as u32)?;
        if !ring.params().is_feature_submit_stable() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut only = [Restriction::sqe_op(opcode::Readv::CODE), Restriction::sqe_op(opcode::Writev::CODE)];
        ring.submitter().register_restrictions(&mut only)?;
        ring.submitter().register_enable_rings()?;
        Ok(Ring(ring))
    }
}

/// Whether this process may use io_uring, as [`crate::Aio::IoUring`] does.
///
/// # Errors
/// What the host says.
pub fn check_io_uring() -> io::Result<()> {
    Ring::new().map(drop)
}

struct Flight {
    transfer: Transfer,
    /// What the entry points to.
    pieces: Vec<RawPiece>,
}

/// What is under way in a ring. When it is dropped nothing is any more.
pub struct Flights<'a> {
    file: BorrowedFd<'a>,
    memory: &'a GuestMemory,
    /// Where the ring goes after use.
    pool: &'a Mutex<Vec<Ring>>,
    /// None was left, or it has failed.
    ring: Option<Ring>,
    /// By the entries' user data.
    flights: [Option<Flight>; DEPTH],
    count: usize,
}

impl<'a> Flights<'a> {
    /// Take a ring from a pool, if there is one.
    pub fn new(file: BorrowedFd<'a>, memory: &'a GuestMemory, pool: &'a Mutex<Vec<Ring>>) -> Self {
        let ring = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Flights { file, memory, pool, ring, flights: [const { None }; DEPTH], count: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn is_full(&self) -> bool {
        self.count == DEPTH
    }

    /// Begin a transfer of at most [`host_sys::MAX_PIECES`] segments.
    ///
    /// # Errors
    /// It comes back where there is no ring.
    pub fn begin(&mut self, transfer: Transfer) -> Result<(), Transfer> {
        let free = self.flights.iter().position(Option::is_none);
        let (Some(ring), Some(slot)) = (&mut self.ring, free) else { return Err(transfer) };
        let pieces = self.memory.host_pieces(&transfer.segments);
        let (file, list, count) = (types::Fd(self.file.as_raw_fd()), pieces.as_ptr(), pieces.len() as u32);
        let entry = match transfer.write {
            true => opcode::Writev::new(file, list, count).offset(transfer.offset).build(),
            false => opcode::Readv::new(file, list, count).offset(transfer.offset).build(),
        };
        let entry = entry.user_data(slot as u64);
        // SAFETY: the file, the list and the RAM it points to, which `memory` has
        // bounds-checked, live until the entry is completed: the list's heap block in
        // `flights`, the others behind borrows that outlive `self`, whose drop waits
        // for all. The guest and other threads may use that RAM meanwhile.
        if unsafe { ring.0.submission().push(&entry) }.is_err() {
            return Err(transfer);
        }
        self.flights[slot] = Some(Flight { transfer, pieces });
        self.count += 1;
        Ok(())
    }

    /// Hand over what was begun and wait until something has ended; answers that,
    /// with whether all its bytes were moved. What was not can be done again. May
    /// answer nothing.
    pub fn wait(&mut self) -> Vec<(Transfer, bool)> {
        let Some(ring) = &mut self.ring else { return Vec::new() };
        match ring.0.submit_and_wait(1) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The kernel has seen nothing of what was begun, and no longer will.
            Err(_) if ring.0.submission().len() == self.count => {
                self.ring = None;
                self.count = 0;
                return self
                    .flights
                    .iter_mut()
                    .filter_map(Option::take)
                    .map(|f| (f.transfer, false))
                    .collect();
            }
            // Short of memory: what is under way gives some back.
            Err(_) => std::thread::sleep(PAUSE),
        }
        let mut ended = Vec::new();
        for entry in ring.0.completion() {
            let slot = usize::try_from(entry.user_data()).ok().and_then(|n| self.flights.get_mut(n));
            let Some(Flight { transfer, pieces }) = slot.and_then(Option::take) else { continue };
            drop(pieces);
            self.count -= 1;
            let moved = u64::try_from(entry.result()).ok();
            if !transfer.write {
                self.memory.host_filled(&transfer.segments, moved.map(|n| n as usize));
            }
            let whole = moved == Some(total_len(&transfer.segments));
            ended.push((transfer, whole));
        }
        ended
    }
}

impl Drop for Flights<'_> {
    fn drop(&mut self) {
        // Something is under way only when a device's callback has panicked.
        while self.count > 0 {
            self.wait();
        }
        if let Some(ring) = self.ring.take() {
            self.pool.lock().unwrap_or_else(PoisonError::into_inner).push(ring);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_reads_and_writes_and_does_nothing_else() {
        let mut ring = match Ring::new() {
            Ok(ring) => ring,
            Err(e) => return println!("skipped: no io_uring here: {e}"),
        };
        let file = std::fs::File::open("/dev/zero").unwrap();
        let file = types::Fd(file.as_raw_fd());
        let directory = types::Fd(rustix::fs::CWD.as_raw_fd());
        for (entry, refused) in [
            (opcode::Readv::new(file, std::ptr::null(), 0).build(), false),
            (opcode::Nop::new().build(), true),
            (opcode::Fsync::new(file).build(), true),
            (opcode::OpenAt::new(directory, c"/etc/passwd".as_ptr()).build(), true),
        ] {
            // SAFETY: what the entry points to lives until it has ended, below.
            unsafe { ring.0.submission().push(&entry) }.unwrap();
            ring.0.submit_and_wait(1).unwrap();
            let result = ring.0.completion().next().unwrap().result();
            assert_eq!(result, if refused { -rustix::io::Errno::ACCESS.raw_os_error() } else { 0 });
        }
        assert!(ring.0.submitter().register_eventfd(1).is_err(), "nothing more can be registered");
    }
}
