//! Files in the guest's memory.
//!
//! Each has a range above all RAM, whole pieces of 2 MiB, which is what Linux takes
//! (MEMREMAP_COMPAT_ALIGN_MAX), and a virtio device that says where it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use disk::{Access, ImageLock};
use guest_memory::{GuestMemory, Region};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use virtio_pmem::{Pmem, PmemConfig};

use crate::devices::{Attachment, Context};
use crate::memory;

/// What ranges are made of, in bytes.
const PIECE: u64 = 2 << 20;
/// Where ranges begin: a multiple of this.
const ALIGNMENT: u64 = 1 << 30;

/// A file in the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmemSpec {
    /// The file.
    pub path: PathBuf,
    /// What the guest writes it does not see again, and the file stays as it is.
    #[serde(default)]
    pub read_only: bool,
}

/// Why a file cannot be in a guest's memory.
#[derive(Debug, thiserror::Error)]
pub enum PmemError {
    /// It cannot be opened.
    #[error("cannot open {}: {source}; give a file that you may read, and write or add ,ro", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// It is no plain file, or empty.
    #[error("{} is no file with contents; give a raw image of a file system", .0.display())]
    Kind(PathBuf),
    /// Its size is no whole number of pieces, and the guest would write behind it.
    #[error("{} has {size} bytes, which is not a whole number of 2 MiB; use truncate -s %2M, or ,ro", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// The host has no room for all of it: a guest's store into a hole would end the machine.
    #[error("{} has {size} bytes, and the host has no room for all of them: {source}; free some, or use ,ro", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// The host's error.
        source: io::Error,
    },
    /// It has holes that its file system cannot fill beforehand.
    #[error("{} has a hole at byte {at}, which its file system cannot fill now; use cp --sparse=never, or ,ro", path.display())]
    Hole {
        /// The file.
        path: PathBuf,
        /// Where the first one begins.
        at: u64,
    },
    /// There is no room above RAM.
    #[error("{} and what is before it do not fit below the 64-bit PCI window; use smaller files", .0.display())]
    NoRoom(PathBuf),
    /// It cannot be mapped.
    #[error("cannot map {}: {source}; put it on a local file system", path.display())]
    Map {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// Another process uses it.
    #[error(transparent)]
    Lock(#[from] disk::OpenError),
}

/// An opened file with its place.
pub(crate) struct PmemRange {
    spec: PmemSpec,
    file: File,
    _lock: ImageLock,
    start: u64,
    /// Bytes of the file; the range's are a whole number of pieces.
    len: u64,
}

impl PmemRange {
    fn size(&self) -> u64 {
        self.len.next_multiple_of(PIECE)
    }

    pub(crate) fn region(&self) -> Region {
        if self.spec.read_only {
            Region::rom(self.start, self.size())
        } else {
            Region::ram(self.start, self.size())
        }
    }

    /// Put the file into memory made with its region. A read-only one is a private
    /// mapping: not even an error of ours writes to it.
    pub(crate) fn map(&self, memory: &GuestMemory) -> Result<(), PmemError> {
        let hit = memory.translate(self.start).map(|hit| hit.offset);
        let mapped = match hit {
            Some(offset) => memory.overlay_file(offset, &self.file, self.len, !self.spec.read_only),
            None => Err(io::Error::other("its region is not in the memory map")),
        };
        mapped.map_err(|source| PmemError::Map { path: self.spec.path.clone(), source })
    }
}

/// Bytes of a file that its file system has given no room yet.
fn missing(about: &std::fs::Metadata) -> u64 {
    /// What `st_blocks` counts (inode(7)).
    const BLOCK: u64 = 512;
    about.len().saturating_sub(about.blocks().saturating_mul(BLOCK))
}

/// Have the host's file system give a file all its room now: a store into a hole of a
/// file system that has become full is SIGBUS, the machine's end.
fn fill(path: &Path, file: &File, about: &std::fs::Metadata) -> Result<(), PmemError> {
    let size = about.len();
    let full = |e: Errno| PmemError::Full { path: path.to_path_buf(), size, source: e.into() };
    // Asked first, or the attempt would fill the file system.
    if disk::room(file).is_some_and(|room| room < missing(about)) {
        return Err(full(Errno::NOSPC));
    }
    let filled = rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size)
    });
    match filled {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => no_holes(path, file, size),
        Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(full(e)),
        Err(e) => Err(PmemError::Open { path: path.to_path_buf(), source: e.into() }),
    }
}

/// Refuse a file with holes.
fn no_holes(path: &Path, file: &File, size: u64) -> Result<(), PmemError> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(0)) {
        Ok(at) if at < size => Err(PmemError::Hole { path: path.to_path_buf(), at }),
        Ok(_) => Ok(()),
        Err(e) => Err(PmemError::Open { path: path.to_path_buf(), source: e.into() }),
    }
}

/// Open and lock the files of a machine whose RAM, with what can be added, ends at `end`.
pub(crate) fn open(specs: &[PmemSpec], end: u64) -> Result<Vec<PmemRange>, PmemError> {
    let mut next = end;
    let mut list = Vec::new();
    for spec in specs {
        let path = || spec.path.clone();
        let fail = |source| PmemError::Open { path: path(), source };
        let file = OpenOptions::new().read(true).write(!spec.read_only).open(&spec.path).map_err(fail)?;
        let about = file.metadata().map_err(fail)?;
        let len = about.len();
        if !about.is_file() || len == 0 {
            return Err(PmemError::Kind(path()));
        }
        if !spec.read_only && len % PIECE != 0 {
            return Err(PmemError::Size { path: path(), size: len });
        }
        let access = if spec.read_only { Access::Read } else { Access::Write };
        let lock = ImageLock::take(&spec.path, access)?;
        let start = next.next_multiple_of(ALIGNMENT);
        next = start
            .checked_add(len.next_multiple_of(PIECE))
            .filter(|end| *end <= memory::PCI_WINDOW_64.0)
            .ok_or_else(|| PmemError::NoRoom(path()))?;
        if !spec.read_only {
            fill(&spec.path, &file, &about)?;
        }
        list.push(PmemRange { spec: spec.clone(), file, _lock: lock, start, len });
    }
    Ok(list)
}

/// A device for each file.
pub(crate) fn virtio_pmems(c: &mut Context<'_>, _slot: usize) -> Vec<Attachment> {
    let mut list = Vec::new();
    for (n, range) in std::mem::take(&mut c.pmems).into_iter().enumerate() {
        let (start, size) = (range.start, range.size());
        // The device keeps the file open, and so its lock.
        let keep = range.file.try_clone().ok().filter(|_| !range.spec.read_only);
        let config = PmemConfig { start, size, file: keep };
        c.handles.pmems.push(range);
        list.extend(c.plug(format!("pmem-{n}"), Box::new(Pmem::new(config))));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Board, BoardIo, MachineSpec};

    fn file(name: &str, size: u64) -> PathBuf {
        let path = std::env::temp_dir().join(format!("strata-board-pmem-{name}-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.set_len(size).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"content", 0).unwrap();
        path
    }

    #[test]
    fn files_are_in_memory_above_all_ram() {
        let (fixed, changed) = (file("ro", 12345), file("rw", PIECE));
        let spec = MachineSpec {
            memory: 2 << 20,
            serial: Vec::new(),
            pmems: vec![
                PmemSpec { path: fixed.clone(), read_only: true },
                PmemSpec { path: changed.clone(), read_only: false },
            ],
            ..MachineSpec::default()
        };
        let board = Board::build(spec.clone(), BoardIo::new()).unwrap();
        let other = Board::build(spec, BoardIo::new()).err().unwrap();
        assert!(other.is_input() && other.to_string().contains("used"), "{other}");
        let memory = board.memory();
        for (start, writable) in [(4 << 30, false), (5 << 30, true)] {
            let mut start_of_file = [0; 7];
            memory.load(start, &mut start_of_file).unwrap();
            assert_eq!(&start_of_file, b"content");
            assert_eq!(memory.translate(start + PIECE - 1).unwrap().writable, writable);
            assert!(memory.translate(start + PIECE).is_none());
            memory.write(memory.translate(start).unwrap().offset, b'C');
        }
        assert_eq!(std::fs::read(&fixed).unwrap()[..7], *b"content");
        assert_eq!(std::fs::read(&changed).unwrap()[..7], *b"Content");
        drop(board);
        std::fs::remove_file(fixed).unwrap();
        std::fs::remove_file(changed).unwrap();
    }

    #[test]
    fn a_file_that_is_written_has_its_room_beforehand() {
        let few = file("few", 2 * PIECE);
        let missing = || missing(&std::fs::metadata(&few).unwrap());
        let before = missing();
        assert!(before > PIECE, "the test needs a file system with holes");
        drop(open(&[PmemSpec { path: few.clone(), read_only: true }], 0).unwrap());
        assert_eq!(missing(), before, "what is only read stays as it is");
        assert!(no_holes(&few, &File::open(&few).unwrap(), 2 * PIECE).is_err());
        drop(open(&[PmemSpec { path: few.clone(), read_only: false }], 0).unwrap());
        assert_eq!(missing(), 0);
        assert_eq!(std::fs::read(&few).unwrap()[..8], *b"content\0");
        std::fs::remove_file(few).unwrap();
    }

    #[test]
    fn a_file_that_the_host_has_no_room_for_is_refused_and_stays_sparse() {
        let much = file("much", PIECE);
        let handle = OpenOptions::new().write(true).open(&much).unwrap();
        let room = disk::room(&handle).unwrap();
        handle.set_len((room + (1 << 30)).next_multiple_of(PIECE)).unwrap();
        let about = std::fs::metadata(&much).unwrap();
        let told = fill(&much, &handle, &about).unwrap_err().to_string();
        assert!(told.contains("no room") && told.contains(",ro"), "{told}");
        assert_eq!(missing(&std::fs::metadata(&much).unwrap()), missing(&about));
        std::fs::remove_file(much).unwrap();
    }

    #[test]
    fn what_cannot_be_mapped_is_named_with_a_remedy() {
        let (odd, empty) = (file("odd", PIECE + 1), std::env::temp_dir());
        for (path, read_only, text) in [
            (odd.clone(), false, "truncate"),
            (empty, true, "no file with contents"),
            (PathBuf::from("/nonexistent/x"), true, "cannot open /nonexistent/x"),
        ] {
            let told = open(&[PmemSpec { path, read_only }], 0).err().unwrap().to_string();
            assert!(told.contains(text), "{told}");
        }
        let far = open(&[PmemSpec { path: odd.clone(), read_only: true }], memory::PCI_WINDOW_64.0);
        assert!(far.err().unwrap().to_string().contains("do not fit"));
        std::fs::remove_file(odd).unwrap();
    }
}
