//! One request (5.2.6).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use disk::{Disk, DiskError, Segment};
use guest_memory::GuestMemory;
use rate_log::RateLog;
use virtio_core::{Chain, Reader};

use crate::SERIAL_LEN;
use crate::config::{self, MAX_DISCARD_SECTORS, MAX_RANGES};

/// Request types.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// The unit of sector numbers, whatever the disk's blocks.
const SECTOR: u64 = 512;
/// Bytes of the header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of a range of a discard or a write of zeroes.
const RANGE: u64 = 16;
/// In a range: what keeps the blocks may be given back.
const UNMAP: u32 = 1;

/// The status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// The host has no room for what a request writes; it can be executed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Type and sector of a header.
fn parse(header: [u8; HEADER]) -> (u32, u64) {
    let [k0, k1, k2, k3, _, _, _, _, s @ ..] = header;
    (u32::from_le_bytes([k0, k1, k2, k3]), u64::from_le_bytes(s))
}

/// Where requests go. Shared by all queues.
pub struct Target {
    disk: Arc<dyn Disk>,
    serial: [u8; SERIAL_LEN],
    write_through: Arc<AtomicBool>,
    features: AtomicU64,
    log: RateLog,
}

impl Target {
    pub fn new(disk: Arc<dyn Disk>, serial: &str, write_through: Arc<AtomicBool>, log: RateLog) -> Self {
        let mut id = [0; SERIAL_LEN];
        for (to, byte) in id.iter_mut().zip(serial.bytes()) {
            *to = byte;
        }
        Target { disk, serial: id, write_through, features: AtomicU64::new(0), log }
    }

    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// What the driver and the device agreed on.
    pub fn negotiated(&self, features: u64) {
        self.features.store(features, Ordering::Release);
    }

    fn may(&self, feature: u64) -> bool {
        self.features.load(Ordering::Acquire) & feature != 0
    }

    /// End a request with an error; answers how many bytes were written.
    pub fn fail(chain: &Chain) -> u32 {
        Self::end(chain, Status::IoError)
    }

    /// End a request whose data, if any, are in its buffers.
    fn end(chain: &Chain, status: Status) -> u32 {
        let mut writer = chain.writer();
        let Some(data) = writer.remaining().checked_sub(1) else { return 0 };
        writer.skip(data as usize);
        // There is room: the status's byte was counted.
        let _ = writer.write_value(status as u8);
        writer.written()
    }

    /// A read or write that may be executed beside others: whether it writes, first
    /// byte, and where its data are. `None`: leave it to [`Target::execute`].
    pub fn transfer(&self, chain: &Chain) -> Option<(bool, u64, Vec<Segment>)> {
        let mut writer = chain.writer();
        let data = writer.remaining().checked_sub(1)?;
        let mut reader = chain.reader();
        let mut header = [0; HEADER];
        reader.read_all(&mut header).ok()?;
        let (kind, sector) = parse(header);
        let (write, segments) = match kind {
            kind::IN => (false, writer.take_pieces(data)),
            kind::OUT if !self.write_through.load(Ordering::Acquire) => {
                (true, reader.take_pieces(reader.remaining()))
            }
            _ => return None,
        };
        Some((write, self.offset(sector).ok()?, segments))
    }

    /// What became of a [`Target::transfer`]; answers how many bytes were written to
    /// the request's buffers.
    pub fn finish(&self, chain: &Chain, result: Result<(), DiskError>) -> u32 {
        if let Err(e) = result {
            self.log.report(|| format!("request: {e}"));
            return Self::fail(chain);
        }
        Self::end(chain, Status::Ok)
    }

    /// Execute a request; answers how many bytes were written to its buffers. One
    /// without room for a status is dropped: there is no way to answer it.
    ///
    /// # Errors
    /// [`Full`]: no status has been written.
    pub fn execute(&self, chain: &Chain, memory: &GuestMemory) -> Result<u32, Full> {
        let mut writer = chain.writer();
        let Some(data) = writer.remaining().checked_sub(1) else { return Ok(0) };
        let mut reader = chain.reader();
        let mut header = [0; HEADER];
        if reader.read_all(&mut header).is_err() {
            return Ok(Self::fail(chain));
        }
        let (kind, sector) = parse(header);
        let result = match kind {
            kind::IN => {
                let to = writer.take_pieces(data);
                self.offset(sector).and_then(|at| self.disk.read_guest(at, memory, &to)).map(|()| Status::Ok)
            }
            kind::OUT => {
                let from = reader.take_pieces(reader.remaining());
                self.write(sector, memory, &from).map(|()| Status::Ok)
            }
            kind::FLUSH => self.disk.flush().map(|()| Status::Ok),
            kind::GET_ID => {
                writer.write_some(&self.serial[..SERIAL_LEN.min(data as usize)]);
                Ok(Status::Ok)
            }
            kind::DISCARD if self.may(config::DISCARD) => self.ranges(&mut reader, false),
            kind::WRITE_ZEROES if self.may(config::WRITE_ZEROES) => self.ranges(&mut reader, true),
            _ => Ok(Status::Unsupported),
        };
        let status = match result {
            Ok(status) => status,
            Err(e) => {
                self.log.report(|| format!("request of type {kind} at sector {sector}: {e}"));
                if matches!(e, DiskError::NoSpace) {
                    return Err(Full);
                }
                Status::IoError
            }
        };
        let left = writer.remaining().saturating_sub(1);
        writer.skip(left as usize);
        let _ = writer.write_value(status as u8);
        Ok(writer.written())
    }

    fn offset(&self, sector: u64) -> Result<u64, DiskError> {
        let size = self.disk.geometry().size;
        sector.checked_mul(SECTOR).ok_or(DiskError::OutOfRange { offset: u64::MAX, len: 0, size })
    }

    fn write(&self, sector: u64, memory: &GuestMemory, from: &[Segment]) -> Result<(), DiskError> {
        self.disk.write_guest(self.offset(sector)?, memory, from)?;
        self.after_change()
    }

    fn after_change(&self) -> Result<(), DiskError> {
        if self.write_through.load(Ordering::Acquire) { self.disk.flush() } else { Ok(()) }
    }

    /// Discards and writes of zeroes.
    fn ranges(&self, reader: &mut Reader<'_>, zeroes: bool) -> Result<Status, DiskError> {
        let len = reader.remaining();
        if len == 0 || len % RANGE != 0 || len / RANGE > MAX_RANGES.into() {
            return Ok(Status::IoError);
        }
        let mut range = [0; RANGE as usize];
        while reader.read_all(&mut range).is_ok() {
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f @ ..] = range;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let (sectors, flags) = (u32::from_le_bytes([n0, n1, n2, n3]), u32::from_le_bytes(f));
            let known = if zeroes { UNMAP } else { 0 };
            if flags & !known != 0 {
                return Ok(Status::Unsupported);
            }
            if sectors > MAX_DISCARD_SECTORS {
                return Ok(Status::IoError);
            }
            let (offset, len) = (self.offset(sector)?, u64::from(sectors) * SECTOR);
            match zeroes {
                true => self.disk.write_zeroes(offset, len, flags & UNMAP != 0)?,
                false => self.disk.discard(offset, len)?,
            }
        }
        self.after_change()?;
        Ok(Status::Ok)
    }
}
