//! Tells perf(1) where translated code lies and which guest code it is.
//!
//! Two formats of the Linux tools: the perf map (`tools/perf/Documentation/
//! jit-interface.txt`), one text line a block, read when a profile is shown; and
//! jitdump (`tools/perf/Documentation/jitdump-specification.txt`), with the code
//! and the time of each block, so that an address used twice is told apart.
// UNSAFE: maps the jitdump file once, because perf looks for that mapping.
#![allow(unsafe_code, reason = "perf recognises a jitdump by an executable mapping of its first page")]

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::time::{ClockId, clock_gettime};

/// How old a line may become before it is written.
const FLUSH_AFTER: Duration = Duration::from_millis(500);
/// `e_machine` of x86-64 in ELF.
const ELF_X86_64: u32 = 62;
/// Size of a jitdump's header, and of a record's part before the name.
const HEADER: u32 = 40;
const RECORD: usize = 56;

/// Names of guest code by linear address.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Sorted by address.
    list: Vec<(u64, String)>,
}

impl Symbols {
    /// Most symbols kept: a distribution's kernel has about 200,000.
    const CAP: usize = 1 << 20;

    /// Read a Linux `System.map` (or `/proc/kallsyms`): `ADDRESS TYPE NAME` a
    /// line. Only code (types t and w) is kept; other lines are passed over.
    pub fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            let code = words.next().is_some_and(|t| matches!(t, "t" | "T" | "w" | "W"));
            let name = words.next()?;
            (code && address != 0).then(|| (address, name.to_string()))
        };
        let mut list: Vec<_> = text.lines().filter_map(line).take(Self::CAP).collect();
        list.sort_by_key(|s| s.0);
        Symbols { list }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What to call the code at a guest address. A name is good up to the next
    /// one, and not across the border between user and kernel.
    fn name(&self, guest: u64) -> String {
        let before = self.list.partition_point(|s| s.0 <= guest).checked_sub(1);
        match before.map(|i| &self.list[i]).filter(|s| s.0 >> 63 == guest >> 63) {
            Some((at, name)) if *at == guest => format!("guest:{name}"),
            Some((at, name)) => format!("guest:{name}+{:#x}", guest - at),
            None => format!("guest:{guest:#x}"),
        }
    }
}

/// Receives every translated block of a process.
#[derive(Debug)]
pub struct Recorder {
    symbols: Symbols,
    output: Mutex<Output>,
    path: PathBuf,
}

#[derive(Debug)]
struct Output {
    file: BufWriter<File>,
    flushed: Instant,
    format: Format,
}

#[derive(Debug)]
enum Format {
    Map,
    Dump {
        _seen_by_perf: Marker,
        /// Number of the next record.
        index: u64,
    },
}

impl Recorder {
    /// Write `/tmp/perf-PID.map`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn perf_map(symbols: Symbols) -> io::Result<Self> {
        Self::map_in(Path::new("/tmp"), symbols)
    }

    fn map_in(dir: &Path, symbols: Symbols) -> io::Result<Self> {
        let path = dir.join(format!("perf-{}.map", std::process::id()));
        let file = create(&path)?;
        Ok(Self::new(path, file, Format::Map, symbols))
    }

    /// Write `jit-PID.dump` in a directory, for `perf record -k mono` and
    /// `perf inject --jit`.
    ///
    /// # Errors
    /// When the file cannot be made or mapped.
    pub fn jitdump(dir: &Path, symbols: Symbols) -> io::Result<Self> {
        let path = dir.join(format!("jit-{}.dump", std::process::id()));
        let mut file = create(&path)?;
        file.write_all(&header())?;
        let format = Format::Dump { _seen_by_perf: Marker::new(&file)?, index: 0 };
        Ok(Self::new(path, file, format, symbols))
    }

    fn new(path: PathBuf, file: File, format: Format, symbols: Symbols) -> Self {
        let output = Output { file: BufWriter::new(file), flushed: Instant::now(), format };
        Recorder { symbols, output: Mutex::new(output), path }
    }

    /// The file written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The guest code at `guest` is executed as `code` at `host`. A full disk
    /// costs the profile, not the guest: errors are passed over.
    pub(crate) fn block(&self, guest: u64, host: u64, code: &[u8]) {
        let name = self.symbols.name(guest);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = output.block(&name, host, code);
    }
}

impl Output {
    fn block(&mut self, name: &str, host: u64, code: &[u8]) -> io::Result<()> {
        match &mut self.format {
            Format::Map => writeln!(self.file, "{host:x} {:x} {name}", code.len())?,
            Format::Dump { index, .. } => {
                self.file.write_all(&load_record(name, host, code, *index))?;
                *index += 1;
            }
        }
        if self.flushed.elapsed() > FLUSH_AFTER {
            self.file.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }
}

/// A new file. What has that name is removed first: in `/tmp` it may be a link
/// of somebody else's.
fn create(path: &Path) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    File::options().read(true).write(true).create_new(true).open(path)
}

/// Nanoseconds of CLOCK_MONOTONIC, which `perf record -k mono` uses.
fn timestamp() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

fn header() -> Vec<u8> {
    let mut h = Vec::with_capacity(HEADER as usize);
    // Magic, version, size, machine, padding, process; then time and flags.
    for word in [0x4a69_5444, 1, HEADER, ELF_X86_64, 0, std::process::id()] {
        h.extend_from_slice(&word.to_le_bytes());
    }
    h.extend_from_slice(&timestamp().to_le_bytes());
    h.extend_from_slice(&0u64.to_le_bytes());
    h
}

/// A JIT_CODE_LOAD record.
fn load_record(name: &str, host: u64, code: &[u8], index: u64) -> Vec<u8> {
    let size = RECORD + name.len() + 1 + code.len();
    let mut r = Vec::with_capacity(size);
    for word in [0, size as u32] {
        r.extend_from_slice(&word.to_le_bytes());
    }
    r.extend_from_slice(&timestamp().to_le_bytes());
    for word in [std::process::id(), rustix::thread::gettid().as_raw_nonzero().get() as u32] {
        r.extend_from_slice(&word.to_le_bytes());
    }
    for word in [host, host, code.len() as u64, index] {
        r.extend_from_slice(&word.to_le_bytes());
    }
    r.extend_from_slice(name.as_bytes());
    r.push(0);
    r.extend_from_slice(code);
    r
}

/// A mapping of the jitdump's first page, by which `perf record` notices the file.
#[derive(Debug)]
struct Marker(*mut std::ffi::c_void, usize);

// SAFETY: nobody looks at the mapping but perf.
unsafe impl Send for Marker {}

impl Marker {
    fn new(file: &File) -> io::Result<Self> {
        let size = rustix::param::page_size();
        let (access, flags) = (ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE);
        // SAFETY: a fresh mapping at an address of the kernel's choice; never read or executed.
        let at = unsafe { mmap(std::ptr::null_mut(), size, access, flags, file, 0) }?;
        Ok(Marker(at, size))
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        let _ = unsafe { munmap(self.0, self.1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "ffffffff81000000 T startup_64\nffffffff81000040 t verify_cpu\n\
        ffffffff81000080 D data\n0000000000000000 T zero\nnonsense\nffffffff81000100 W weak [module]\n";

    #[test]
    fn guest_code_is_called_by_the_symbol_before_it() {
        let symbols = Symbols::parse(MAP);
        assert_eq!(symbols.len(), 3);
        for (guest, name) in [
            (0xffff_ffff_8100_0000, "guest:startup_64"),
            (0xffff_ffff_8100_003f, "guest:startup_64+0x3f"),
            (0xffff_ffff_8100_0090, "guest:verify_cpu+0x50"),
            (0xffff_ffff_8100_0100, "guest:weak"),
            (0xffff_ffff_80ff_ffff, "guest:0xffffffff80ffffff"),
            (0x40_1000, "guest:0x401000"),
        ] {
            assert_eq!(symbols.name(guest), name);
        }
        assert_eq!(Symbols::default().name(0x1000), "guest:0x1000");
    }

    /// A directory of this test's own, removed at the end.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("strata-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_map_has_start_size_and_name_of_each_block() {
        let dir = Dir::new("map");
        let recorder = Recorder::map_in(&dir.0, Symbols::parse(MAP)).unwrap();
        recorder.block(0xffff_ffff_8100_0004, 0x7f00_0000_1000, &[0x90; 0x2a]);
        recorder.block(0x1000, 0x7f00_0000_2000, &[0x90]);
        let path = recorder.path().to_path_buf();
        drop(recorder);
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "7f0000001000 2a guest:startup_64+0x4\n7f0000002000 1 guest:0x1000\n"
        );
    }

    #[test]
    fn a_dump_can_be_walked_record_by_record() {
        let dir = Dir::new("dump");
        let recorder = Recorder::jitdump(&dir.0, Symbols::default()).unwrap();
        recorder.block(0x1000, 0x7f00_0000_1000, &[0xaa; 5]);
        recorder.block(0x2000, 0x7f00_0000_2000, &[0xbb; 300]);
        let path = recorder.path().to_path_buf();
        drop(recorder);
        let bytes = std::fs::read(path).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        // "JiTD", version 1, header size, EM_X86_64, this process.
        assert_eq!([word(0), word(4), word(12), word(20)], [0x4a69_5444, 1, 62, std::process::id()]);
        let mut at = word(8) as usize;
        for (index, (host, name, code)) in [
            (0x7f00_0000_1000, "guest:0x1000", &[0xaa; 5][..]),
            (0x7f00_0000_2000, "guest:0x2000", &[0xbb; 300]),
        ]
        .into_iter()
        .enumerate()
        {
            let size = word(at + 4) as usize;
            assert_eq!(word(at), 0);
            assert_eq!([long(at + 24), long(at + 32)], [host, host]);
            assert_eq!([long(at + 40), long(at + 48)], [code.len() as u64, index as u64]);
            let rest = &bytes[at + 56..at + size];
            assert_eq!(rest, [name.as_bytes(), &[0], code].concat());
            at += size;
        }
        assert_eq!(at, bytes.len());
    }
}
