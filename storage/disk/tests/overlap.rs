//! Many transfers of a queue, one after another and by io_uring, which must not differ.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use disk::{Aio, CacheMode, DEPTH, Disk, DiskError, RawDisk, RawOptions, Segment, Transfer, Transfers};
use guest_memory::{GuestMemory, RamOffset};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tempfile::NamedTempFile;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 256;
const SIZE: u64 = BLOCK * BLOCKS;
const BOTH: [Aio; 2] = [Aio::Threads, Aio::IoUring];

/// A queue: transfers not yet taken, and what became of those taken.
#[derive(Default)]
struct Queue {
    waiting: Vec<Transfer>,
    done: BTreeMap<u64, Result<(), DiskError>>,
    /// Taken and not done at once, at most.
    under_way: usize,
    most: usize,
}

impl Queue {
    /// Whether it writes, first byte, where to.
    fn of(transfers: impl IntoIterator<Item = (bool, u64, Vec<Segment>)>) -> Self {
        let numbered = transfers.into_iter().enumerate();
        let mut waiting: Vec<_> = numbered
            .map(|(n, (write, offset, segments))| Transfer { tag: n as u64, write, offset, segments })
            .collect();
        waiting.reverse();
        Queue { waiting, ..Queue::default() }
    }

    /// The outcome of each, in words.
    fn outcomes(self) -> Vec<String> {
        assert!(self.waiting.is_empty());
        self.done.into_values().map(|r| r.map_or_else(|e| e.to_string(), |()| "ok".to_string())).collect()
    }
}

impl Transfers for Queue {
    fn next(&mut self) -> Option<Transfer> {
        let transfer = self.waiting.pop()?;
        self.under_way += 1;
        self.most = self.most.max(self.under_way);
        Some(transfer)
    }
    fn done(&mut self, tag: u64, result: Result<(), DiskError>) {
        self.under_way -= 1;
        assert!(self.done.insert(tag, result).is_none(), "{tag} is done twice");
    }
    fn holds(&self) -> bool {
        false
    }
}

fn open(path: &Path, options: RawOptions) -> RawDisk {
    RawDisk::open(path, options).expect("a good image")
}

fn pattern(seed: u8) -> Vec<u8> {
    (0..SIZE).map(|i| (i / BLOCK * 37 + i % 251) as u8 ^ seed).collect()
}

/// An image and its contents.
fn image() -> (NamedTempFile, Vec<u8>) {
    let file = NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), pattern(0)).expect("its contents");
    (file, pattern(0))
}

#[derive(Debug, Clone)]
struct Step {
    write: bool,
    /// Of a block this long, none of which another step touches.
    sectors: u64,
    /// Bytes by which guest memory is off a sector's boundary.
    skew: u64,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_transfer_reaches_its_place(
        steps in prop::collection::vec((any::<bool>(), 1u64..=8, prop_oneof![Just(0), 1u64..512]), BLOCKS as usize),
        order in Just((0..BLOCKS).collect::<Vec<_>>()).prop_shuffle(),
        direct: bool,
    ) {
        for aio in BOTH {
            let (file, mut model) = image();
            let cache = if direct { CacheMode::Direct } else { CacheMode::Writeback };
            // Not every file system of temporary files has O_DIRECT.
            let options = RawOptions { cache, aio, ..RawOptions::default() };
            let Ok(disk) = RawDisk::open(file.path(), options) else { return Ok(()) };
            if disk.geometry().logical_block > 512 {
                return Ok(());
            }
            let memory = GuestMemory::flat(4 * SIZE).expect("memory");
            let fresh = pattern(0x5a);
            let mut expect = Vec::new();
            let transfers: Vec<_> = order.iter().map(|&block| {
                let (write, sectors, skew) = steps[block as usize];
                let step = Step { write, sectors, skew };
                let (offset, len) = (block * BLOCK, (step.sectors * 512) as usize);
                let range = offset as usize..offset as usize + len;
                // Two pieces, the second in the other half of memory.
                let half = len / 1024 * 512;
                let at = offset * 2 + step.skew;
                let pieces = [(RamOffset(at), len - half), (RamOffset(2 * SIZE + at), half)];
                if step.write {
                    memory.write_bytes(pieces[0].0, &fresh[range.start..range.end - half]);
                    memory.write_bytes(pieces[1].0, &fresh[range.end - half..range.end]);
                    model[range.clone()].copy_from_slice(&fresh[range]);
                } else {
                    expect.push((pieces, model[range].to_vec()));
                }
                (step.write, offset, pieces.into_iter().filter(|p| p.1 > 0).collect())
            }).collect();
            let mut queue = Queue::of(transfers);
            disk.transfer_all(&memory, &mut queue);
            let expected = aio == Aio::IoUring && disk::check_io_uring().is_ok();
            prop_assert_eq!(disk.overlaps(), expected);
            if expected && !direct {
                prop_assert!((DEPTH / 2..).contains(&queue.most), "{} at once", queue.most);
            }
            prop_assert!(queue.outcomes().iter().all(|o| o == "ok"));
            for (pieces, bytes) in expect {
                let mut seen = vec![0; bytes.len()];
                let (head, tail) = seen.split_at_mut(pieces[0].1);
                memory.read_bytes(pieces[0].0, head);
                memory.read_bytes(pieces[1].0, tail);
                prop_assert!(seen == bytes, "a read by {:?}", aio);
            }
            prop_assert!(std::fs::read(file.path()).expect("it is there") == model, "what {:?} left", aio);
        }
    }
}

#[test]
fn what_is_refused_or_fails_is_told_as_one_by_one() {
    let data = vec![(RamOffset(0x1000), 4096)];
    let each = || {
        [
            (false, 0, data.clone()),
            (true, SIZE, data.clone()),
            (false, SIZE - 512, data.clone()),
            (false, u64::MAX - 511, data.clone()),
            (true, 512, vec![(RamOffset(0), 100)]),
            (true, 4096, data.clone()),
            (false, 0, vec![]),
            // More pieces than one call takes.
            (false, 0, (0..2048).map(|i| (RamOffset(0x2000 + i), 1)).collect()),
            (false, 8192, data.clone()),
        ]
    };
    for read_only in [false, true] {
        let seen = BOTH.map(|aio| {
            let (file, _) = image();
            let disk = open(file.path(), RawOptions { aio, read_only, ..RawOptions::default() });
            let mut queue = Queue::of(each());
            disk.transfer_all(&GuestMemory::flat(SIZE).expect("memory"), &mut queue);
            queue.outcomes()
        });
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0].iter().filter(|o| *o == "ok").count(), if read_only { 4 } else { 5 }, "{seen:?}");
    }
}

#[test]
fn an_error_of_the_host_fails_its_transfer_alone() {
    for aio in BOTH {
        let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a file");
        let file = File::from(file);
        file.set_len(SIZE).expect("its size");
        fcntl_add_seals(&file, SealFlags::WRITE).expect("sealed");
        let options = RawOptions { aio, ..RawOptions::default() };
        let disk = RawDisk::of_file(Path::new("memory"), file, options).expect("a good image");
        let memory = GuestMemory::flat(SIZE).expect("memory");
        let mut queue =
            Queue::of((0..32).map(|i| (i % 2 == 1, i * BLOCK, vec![(RamOffset(i * BLOCK), 4096)])));
        disk.transfer_all(&memory, &mut queue);
        for (tag, outcome) in queue.outcomes().iter().enumerate() {
            assert_eq!(outcome == "ok", tag % 2 == 0, "{tag}: {outcome}");
            assert!(tag % 2 == 0 || outcome.contains("not permitted"), "{outcome}");
        }
    }
}

#[test]
fn what_a_file_lacks_reads_as_zeroes_and_makes_code_stale() {
    for aio in BOTH {
        let (file, model) = image();
        let disk = open(file.path(), RawOptions { aio, ..RawOptions::default() });
        // Cut behind the disk's back, in the middle of a transfer.
        file.as_file().set_len(SIZE / 2 + 512).expect("cut");
        let memory = GuestMemory::flat(SIZE).expect("memory");
        memory.fill(RamOffset(0), 0x77u8, SIZE as usize);
        let generation = memory.marks().mark_code(RamOffset(0x3000), 64);
        memory.marks().set_dirty_logging(true);
        let mut queue = Queue::of([
            (false, 0, vec![(RamOffset(0x3000), 4096)]),
            (false, SIZE / 2, vec![(RamOffset(0x5000), 4096)]),
            (false, SIZE - BLOCK, vec![(RamOffset(0x9000), 4096)]),
            (true, 0, vec![(RamOffset(0xb000), 4096)]),
        ]);
        disk.transfer_all(&memory, &mut queue);
        assert_eq!(queue.outcomes(), ["ok"; 4]);
        let mut seen = vec![0; 0x3000];
        memory.read_bytes(RamOffset(0x5000), &mut seen[..0x1000]);
        memory.read_bytes(RamOffset(0x9000), &mut seen[0x1000..0x2000]);
        let half = SIZE as usize / 2;
        assert!(seen[..512] == model[half..half + 512] && seen[512..0x2000].iter().all(|b| *b == 0));
        assert_ne!(memory.marks().code_generation(RamOffset(0x3000)), generation, "{aio:?}");
        assert_eq!(memory.marks().take_dirty(), [3, 5, 9], "{aio:?}");
    }
}
