//! Raw images: files and block devices that hold a disk's bytes as they are.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use guest_memory::GuestMemory;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::overlap::Order;
use crate::probe::probe;
use crate::ring::{Flights, Ring};
use crate::{
    Access, Aio, CacheMode, Disk, DiskError, Geometry, ImageFormat, ImageLock, OpenError, PROBE_LEN,
    ResizeListener, Segment, Transfer, Transfers, bounce, total_len,
};

/// The unit guests know.
const SECTOR: u32 = 512;
/// File systems keep files in such units, or multiples.
const FILE_BLOCK: u32 = 4096;
/// Queues that use io_uring at once. The rings are made with the disk: later the
/// process may no longer be allowed to.
const RINGS: usize = 16;

/// How a raw image is opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawOptions {
    /// Refuse every change.
    pub read_only: bool,
    /// What the host caches.
    pub cache: CacheMode,
    /// Its format was guessed, not named: a guest must not turn it into an image of
    /// another format, by whose header the next start would open other files.
    pub guessed: bool,
    /// How a device's reads and writes reach it.
    pub aio: Aio,
}

/// A raw image. Sparse where the host's file system is: blocks never written,
/// discarded or written with zeroes take no room.
pub struct RawDisk {
    // Static configuration.
    read_only: bool,
    cache: CacheMode,
    guessed: bool,
    is_file: bool,
    logical_block: u32,
    // Runtime glue.
    file: File,
    /// Those not in use; none were made without [`Aio::IoUring`].
    rings: Mutex<Vec<Ring>>,
    overlaps: bool,
    _lock: ImageLock,
    listeners: Mutex<Vec<ResizeListener>>,
    // Volatile state.
    size: AtomicU64,
}

impl RawDisk {
    /// Open an image and lock it.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, options: RawOptions) -> Result<Self, OpenError> {
        let RawOptions { read_only, cache, guessed: _, aio: _ } = options;
        let flags = if cache == CacheMode::Direct { OFlags::DIRECT } else { OFlags::empty() };
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(|e| OpenError::open(path, e))?;
        Self::of_file(path, file, options)
    }

    /// Take an image that was opened as the options say, here or by another process;
    /// `path` is for messages. It is locked.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn of_file(path: &Path, file: File, options: RawOptions) -> Result<Self, OpenError> {
        let RawOptions { read_only, cache, guessed, aio } = options;
        let kind = file.metadata().map_err(|e| OpenError::open(path, e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let kind = if kind.is_dir() { "directory" } else { "special file" };
            return Err(OpenError::Kind { path: path.to_path_buf(), kind });
        }
        let locked = file.try_clone().map_err(|e| OpenError::open(path, e))?;
        let lock = ImageLock::on(path, locked, if read_only { Access::Read } else { Access::Write })?;
        // A block device says its size by seeking only.
        let size = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| OpenError::open(path, e))?;
        let logical_block = if cache == CacheMode::Direct { direct_block(&file) } else { SECTOR };
        if size % u64::from(logical_block) != 0 {
            return Err(OpenError::Size { path: path.to_path_buf(), size, block: logical_block });
        }
        // Where the host refuses them, requests are executed one after another.
        let rings = if aio == Aio::IoUring { RINGS } else { 0 };
        let rings: Vec<Ring> = (0..rings).map_while(|_| Ring::new().ok()).collect();
        Ok(RawDisk {
            read_only,
            cache,
            guessed,
            is_file: kind.is_file(),
            logical_block,
            file,
            overlaps: !rings.is_empty(),
            rings: Mutex::new(rings),
            _lock: lock,
            listeners: Mutex::default(),
            size: AtomicU64::new(size),
        })
    }

    /// Check a range that is to be changed.
    fn check_change(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.geometry().check(offset, len)
    }

    /// Whether a write must be looked at before it is done.
    fn guards(&self, offset: u64) -> bool {
        self.guessed && offset < PROBE_LEN as u64
    }

    /// Refuse a write at the image's start that makes it look like another format.
    fn check_header(&self, offset: u64, from: &[u8]) -> Result<(), DiskError> {
        if !self.guards(offset) {
            return Ok(());
        }
        let mut start = vec![0; PROBE_LEN.min(self.geometry().size as usize)];
        self.read(0, &mut start)?;
        let before = probe(&start);
        for (to, from) in start[offset as usize..].iter_mut().zip(from) {
            *to = *from;
        }
        let after = probe(&start);
        if after == before || matches!(after, ImageFormat::Raw | ImageFormat::Compressed) {
            Ok(())
        } else {
            Err(DiskError::ForeignHeader)
        }
    }

    /// Run `step` on aligned pieces of a buffer, as `O_DIRECT` wants them.
    fn through_aligned(
        &self,
        offset: u64,
        len: usize,
        mut step: impl FnMut(u64, &mut [u8], usize) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        const ALIGNMENT: usize = FILE_BLOCK as usize;
        let size = len.min(bounce::BOUNCE);
        let mut buffer = vec![0; size + ALIGNMENT];
        let skip = buffer.as_ptr().align_offset(ALIGNMENT);
        let aligned = &mut buffer[skip..skip + size];
        let mut done = 0;
        while done < len {
            let n = size.min(len - done);
            step(offset + done as u64, &mut aligned[..n], done)?;
            done += n;
        }
        Ok(())
    }

    /// Whether the host can reach these segments without a buffer between.
    fn is_direct_to(&self, segments: &[Segment]) -> bool {
        let unit = u64::from(self.logical_block);
        let aligned = |s: &Segment| s.0.0 % unit == 0 && s.1 as u64 % unit == 0;
        self.cache != CacheMode::Direct || segments.iter().all(aligned)
    }

    /// Whether the host can be given a transfer as it is: what can be refused has been
    /// looked at, and it is one call.
    fn can_overlap(&self, transfer: &Transfer) -> bool {
        let Transfer { tag: _, write, offset, ref segments } = *transfer;
        let len = total_len(segments);
        let checked = if write { self.check_change(offset, len) } else { self.geometry().check(offset, len) };
        checked.is_ok()
            && len > 0
            && segments.len() <= host_sys::MAX_PIECES
            && !(write && self.guards(offset))
            && self.is_direct_to(segments)
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        retry(|| {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, mode, offset, len)
        })
    }

    fn zero_by_writing(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let zeroes = vec![0; len.min(bounce::BOUNCE as u64) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeroes.len() as u64);
            self.write(offset + done, &zeroes[..n as usize])?;
            done += n;
        }
        Ok(())
    }
}

/// Repeat a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// The host's file system or device cannot do it.
fn is_unsupported(e: Errno) -> bool {
    matches!(e, Errno::OPNOTSUPP | Errno::NODEV | Errno::INVAL | Errno::NOSYS | Errno::NOTTY)
}

/// The unit in which the host reads a file past its cache: whatever it takes.
fn direct_block(file: &File) -> u32 {
    let mut buffer = vec![0; 2 * FILE_BLOCK as usize];
    let skip = buffer.as_ptr().align_offset(FILE_BLOCK as usize);
    let sector = &mut buffer[skip..skip + SECTOR as usize];
    match retry(|| rustix::io::pread(file, &mut *sector, 0)) {
        Err(Errno::INVAL) => FILE_BLOCK,
        _ => SECTOR,
    }
}

/// Take steps over segments until all are done; a step answers how many bytes it
/// did, at least one.
fn whole(
    mut offset: u64,
    segments: &[Segment],
    mut step: impl FnMut(u64, &[Segment]) -> Result<usize, DiskError>,
) -> Result<(), DiskError> {
    let mut left = total_len(segments);
    if left == 0 {
        return Ok(());
    }
    let n = step(offset, segments)? as u64;
    (offset, left) = (offset + n, left.saturating_sub(n));
    if left == 0 {
        return Ok(());
    }
    // Rare: the call was cut short, or has more segments than it can have.
    let mut rest = segments.to_vec();
    let mut done = n;
    while left > 0 {
        while let Some(first) = rest.first_mut() {
            let n = done.min(first.1 as u64);
            first.0.0 += n;
            first.1 -= n as usize;
            done -= n;
            if first.1 > 0 {
                break;
            }
            rest.remove(0);
        }
        let n = step(offset, &rest)? as u64;
        (offset, left, done) = (offset + n, left.saturating_sub(n), n);
    }
    Ok(())
}

fn read_at(file: &File, mut offset: u64, mut to: &mut [u8]) -> Result<(), DiskError> {
    while !to.is_empty() {
        let n = retry(|| rustix::io::pread(file, &mut *to, offset))?;
        if n == 0 {
            // The file was cut behind our back: what is missing reads as zeroes, as
            // a hole does.
            to.fill(0);
            return Ok(());
        }
        offset += n as u64;
        to = &mut to[n..];
    }
    Ok(())
}

fn write_at(file: &File, mut offset: u64, mut from: &[u8]) -> Result<(), DiskError> {
    while !from.is_empty() {
        let n = retry(|| rustix::io::pwrite(file, from, offset))?;
        if n == 0 {
            return Err(DiskError::NoSpace);
        }
        offset += n as u64;
        from = &from[n..];
    }
    Ok(())
}

impl Disk for RawDisk {
    fn geometry(&self) -> Geometry {
        let block = self.logical_block;
        Geometry {
            size: self.size.load(Ordering::Acquire),
            logical_block: block,
            physical_block: FILE_BLOCK.max(block),
            discard_unit: FILE_BLOCK.max(block),
        }
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), DiskError> {
        self.geometry().check(offset, to.len() as u64)?;
        if self.cache != CacheMode::Direct {
            return read_at(&self.file, offset, to);
        }
        self.through_aligned(offset, to.len(), |at, buffer, done| {
            read_at(&self.file, at, buffer)?;
            to[done..done + buffer.len()].copy_from_slice(buffer);
            Ok(())
        })
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), DiskError> {
        self.check_change(offset, from.len() as u64)?;
        self.check_header(offset, from)?;
        if self.cache != CacheMode::Direct {
            return write_at(&self.file, offset, from);
        }
        self.through_aligned(offset, from.len(), |at, buffer, done| {
            buffer.copy_from_slice(&from[done..done + buffer.len()]);
            write_at(&self.file, at, buffer)
        })
    }

    fn read_guest(&self, offset: u64, memory: &GuestMemory, to: &[Segment]) -> Result<(), DiskError> {
        self.geometry().check(offset, total_len(to))?;
        if !self.is_direct_to(to) {
            return bounce::read(self, offset, memory, to);
        }
        whole(offset, to, |at, rest| match memory.read_from(&self.file, at, rest)? {
            // The file was cut behind our back: what is missing reads as zeroes.
            0 => {
                rest.iter().for_each(|s| {
                    memory.fill::<u8>(s.0, 0, s.1);
                });
                Ok(total_len(rest) as usize)
            }
            n => Ok(n),
        })
    }

    fn write_guest(&self, offset: u64, memory: &GuestMemory, from: &[Segment]) -> Result<(), DiskError> {
        self.check_change(offset, total_len(from))?;
        if self.guards(offset) || !self.is_direct_to(from) {
            return bounce::write(self, offset, memory, from);
        }
        whole(offset, from, |at, rest| match memory.write_to(&self.file, at, rest)? {
            0 => Err(DiskError::NoSpace),
            n => Ok(n),
        })
    }

    fn overlaps(&self) -> bool {
        self.overlaps
    }

    fn transfer_all(&self, memory: &GuestMemory, transfers: &mut dyn Transfers) {
        let mut order = Order::new(transfers.holds());
        let mut flights = Flights::new(self.file.as_fd(), memory, &self.rings);
        loop {
            while !flights.is_full() && order.takes_more() {
                let Some(transfer) = transfers.next() else { break };
                order.begin(&transfer);
                let alone = match self.can_overlap(&transfer) {
                    true => flights.begin(transfer).err(),
                    false => Some(transfer),
                };
                if let Some(transfer) = alone {
                    order.finish(transfer.tag, transfer.execute(self, memory), transfers);
                }
            }
            if flights.is_empty() {
                break;
            }
            transfers.pause();
            for (transfer, is_whole) in flights.wait() {
                // An error, the file's end, a call cut short: done again, it says which.
                let result = if is_whole { Ok(()) } else { transfer.execute(self, memory) };
                order.finish(transfer.tag, result, transfers);
            }
        }
    }

    fn known_zeroes(&self, offset: u64, most: u64, _steps: &mut u32) -> Result<u64, DiskError> {
        let size = self.geometry().size.min(offset.saturating_add(most));
        if !self.is_file || offset >= size {
            return Ok(0);
        }
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // No data up to the end.
            Err(Errno::NXIO) => size,
            // The file system tells no holes.
            Err(e) if is_unsupported(e) => offset,
            Err(e) => return Err(e.into()),
        };
        // Whole blocks, as accesses are.
        Ok((data.min(size) - offset) / u64::from(self.logical_block) * u64::from(self.logical_block))
    }

    fn flush(&self) -> Result<(), DiskError> {
        match self.cache {
            CacheMode::Unsafe => Ok(()),
            _ if self.read_only => Ok(()),
            _ => Ok(retry(|| rustix::fs::fdatasync(&self.file))?),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        match self.punch(offset, len) {
            _ if len == 0 => Ok(()),
            Err(e) if is_unsupported(e) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check_change(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        let zeroed = if unmap {
            self.punch(offset, len)
        } else {
            let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
            retry(|| rustix::fs::fallocate(&self.file, mode, offset, len))
        };
        match zeroed {
            Err(e) if is_unsupported(e) => self.zero_by_writing(offset, len),
            other => Ok(other?),
        }
    }

    fn resize(&self, size: u64) -> Result<(), DiskError> {
        if !self.is_file || self.read_only {
            let why = if self.read_only { "it is read-only" } else { "it is a block device of the host" };
            return Err(DiskError::CannotResize { size, why });
        }
        if size % u64::from(self.logical_block) != 0 {
            return Err(DiskError::CannotResize { size, why: "that is not a whole number of blocks" });
        }
        if size < self.geometry().size {
            let why = "it would cut off data; attach a smaller copy instead";
            return Err(DiskError::CannotResize { size, why });
        }
        rustix::fs::ftruncate(&self.file, size)?;
        self.size.store(size, Ordering::Release);
        for listener in &*self.listeners.lock().unwrap_or_else(PoisonError::into_inner) {
            listener();
        }
        Ok(())
    }

    fn room(&self) -> Option<u64> {
        self.is_file.then(|| crate::room(&self.file)).flatten()
    }

    fn on_resize(&self, listener: ResizeListener) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }
}
