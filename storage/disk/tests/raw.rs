//! Raw images against a model, their refusals, and QEMU's tools as the other side
//! of locks.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use disk::{CacheMode, Disk, DiskError, OpenError, RawDisk, RawOptions};
use guest_memory::{GuestMemory, RamOffset};
use proptest::prelude::*;
use tempfile::NamedTempFile;

const SIZE: u64 = 64 << 10;

fn image(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(size).expect("its size");
    file
}

fn open(file: &NamedTempFile, options: RawOptions) -> RawDisk {
    RawDisk::open(file.path(), options).expect("a good image")
}

#[derive(Debug, Clone)]
enum Step {
    Write { at: u64, sectors: usize, fill: u8 },
    WriteGuest { at: u64, sectors: usize, fill: u8 },
    Zero { at: u64, sectors: usize, unmap: bool },
    Discard { at: u64, sectors: usize },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..SIZE / 512, 1usize..40);
    prop_oneof![
        (place(), 1u8..).prop_map(|((at, sectors), fill)| Step::Write { at, sectors, fill }),
        (place(), 1u8..).prop_map(|((at, sectors), fill)| Step::WriteGuest { at, sectors, fill }),
        (place(), any::<bool>()).prop_map(|((at, sectors), unmap)| Step::Zero { at, sectors, unmap }),
        place().prop_map(|(at, sectors)| Step::Discard { at, sectors }),
        Just(Step::Flush),
    ]
}

/// Take a step on the disk and on the model. A raw file's discarded blocks read as
/// zeroes where whole file blocks go, so discards are of those.
fn take(disk: &RawDisk, memory: &GuestMemory, model: &mut [u8], step: &Step) {
    let range = |at: u64, sectors: usize| {
        let from = at as usize * 512;
        from..(from + sectors * 512).min(model.len())
    };
    match *step {
        Step::Write { at, sectors, fill } => {
            let r = range(at, sectors);
            model[r.clone()].fill(fill);
            disk.write(r.start as u64, &model[r]).expect("a write");
        }
        Step::WriteGuest { at, sectors, fill } => {
            let r = range(at, sectors);
            model[r.clone()].fill(fill);
            // Two segments, apart, at odd places.
            let head = r.len() / 3;
            memory.write_bytes(RamOffset(0x1001), &model[r.start..r.start + head]);
            memory.write_bytes(RamOffset(0x8007), &model[r.start + head..r.end]);
            let segments = [(RamOffset(0x1001), head), (RamOffset(0x8007), r.len() - head)];
            disk.write_guest(r.start as u64, memory, &segments).expect("a write");
        }
        Step::Zero { at, sectors, unmap } => {
            let r = range(at, sectors);
            model[r.clone()].fill(0);
            disk.write_zeroes(r.start as u64, r.len() as u64, unmap).expect("zeroes");
        }
        Step::Discard { at, sectors } => {
            let r = range(at & !7, sectors.next_multiple_of(8));
            model[r.clone()].fill(0);
            disk.discard(r.start as u64, r.len() as u64).expect("a discard");
        }
        Step::Flush => disk.flush().expect("a flush"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_disk_holds_what_was_written(steps in prop::collection::vec(step(), 1..40), direct: bool) {
        let file = image(SIZE);
        let cache = if direct { CacheMode::Direct } else { CacheMode::Writeback };
        let options = RawOptions { cache, ..RawOptions::default() };
        // Not every file system of temporary files has O_DIRECT.
        let Ok(disk) = RawDisk::open(file.path(), options) else { return Ok(()) };
        let memory = GuestMemory::flat(1 << 20).expect("memory");
        let mut model = vec![0; SIZE as usize];
        // A host that reads past its cache in larger units has larger blocks.
        if disk.geometry().logical_block == 512 {
            for step in &steps {
                take(&disk, &memory, &mut model, step);
            }
        }
        let mut seen = vec![0xee; SIZE as usize];
        disk.read(0, &mut seen).expect("a read");
        prop_assert!(seen == model, "read by buffer");
        let parts = [(RamOffset(0x20003), 12345), (RamOffset(0x60000), SIZE as usize - 12345)];
        disk.read_guest(0, &memory, &parts).expect("a read");
        let mut seen = vec![0; SIZE as usize];
        memory.read_bytes(parts[0].0, &mut seen[..12345]);
        memory.read_bytes(parts[1].0, &mut seen[12345..]);
        prop_assert!(seen == model, "read into guest memory");
    }
}

#[test]
fn discarded_blocks_take_no_room() {
    let file = image(0);
    let disk = {
        file.as_file().set_len(1 << 20).expect("its size");
        open(&file, RawOptions::default())
    };
    let blocks = || file.as_file().metadata().expect("it is there").blocks() * 512;
    disk.write(0, &vec![7; 1 << 20]).expect("a write");
    disk.flush().expect("a flush");
    assert!(blocks() >= 1 << 20, "{}", blocks());
    disk.discard(0, 512 << 10).expect("a discard");
    disk.write_zeroes(512 << 10, 256 << 10, true).expect("zeroes");
    assert!(blocks() <= 300 << 10, "{} bytes of room after a discard", blocks());
    assert_eq!(disk.geometry().size, 1 << 20);
}

#[test]
fn what_leaves_the_disk_is_refused_and_changes_nothing() {
    let file = image(SIZE);
    let disk = open(&file, RawOptions::default());
    for (offset, len) in [(SIZE, 512), (SIZE - 512, 1024), (u64::MAX - 511, 512), (0, SIZE + 512)] {
        let refused = |r: Result<(), DiskError>| matches!(r, Err(DiskError::OutOfRange { .. }));
        assert!(refused(disk.read(offset, &mut vec![0; len as usize])), "read {offset:#x}+{len:#x}");
        assert!(refused(disk.write(offset, &vec![1; len as usize])), "write {offset:#x}+{len:#x}");
        assert!(refused(disk.discard(offset, len)), "discard {offset:#x}+{len:#x}");
        assert!(refused(disk.write_zeroes(offset, len, true)), "zeroes {offset:#x}+{len:#x}");
    }
    for (offset, len) in [(1, 512), (0, 100), (512, 513)] {
        assert!(matches!(disk.write(offset, &vec![1; len]), Err(DiskError::Misaligned { .. })));
    }
    let mut all = vec![1; SIZE as usize];
    disk.read(0, &mut all).expect("a read");
    assert!(all.iter().all(|b| *b == 0));
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let file = image(SIZE);
    let disk = open(&file, RawOptions { read_only: true, ..RawOptions::default() });
    let memory = GuestMemory::flat(4096).expect("memory");
    for result in [
        disk.write(0, &[1; 512]),
        disk.write_guest(0, &memory, &[(RamOffset(0), 512)]),
        disk.discard(0, 512),
        disk.write_zeroes(0, 512, false),
    ] {
        assert!(matches!(result, Err(DiskError::ReadOnly)), "{result:?}");
    }
    assert!(matches!(disk.resize(SIZE * 2), Err(DiskError::CannotResize { .. })));
    disk.flush().expect("nothing to do");
}

#[test]
fn growing_is_told_and_shrinking_refused() {
    let file = image(SIZE);
    let disk = open(&file, RawOptions::default());
    let told = Arc::new(AtomicU32::new(0));
    let count = told.clone();
    disk.on_resize(Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    for bad in [SIZE - 512, SIZE + 1] {
        assert!(disk.resize(bad).is_err(), "{bad}");
    }
    disk.resize(2 * SIZE).expect("more");
    assert_eq!((told.load(Ordering::SeqCst), disk.geometry().size), (1, 2 * SIZE));
    disk.write(2 * SIZE - 512, &[1; 512]).expect("the new end");
}

#[test]
fn a_guessed_raw_disk_takes_no_header_of_another_format() {
    let file = image(SIZE);
    let mut header = [0; 512];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let guessed = open(&file, RawOptions { guessed: true, ..RawOptions::default() });
    assert!(matches!(guessed.write(0, &header), Err(DiskError::ForeignHeader)));
    let memory = GuestMemory::flat(4096).expect("memory");
    memory.write_bytes(RamOffset(0), &header);
    let refused = guessed.write_guest(0, &memory, &[(RamOffset(0), 4), (RamOffset(4), 508)]);
    assert!(matches!(refused, Err(DiskError::ForeignHeader)));
    guessed.write(512, &header).expect("elsewhere it is data");
    guessed.write(0, &[0x55; 512]).expect("a boot sector");
    drop(guessed);
    open(&file, RawOptions::default()).write(0, &header).expect("raw by name");
}

#[test]
fn refusals_name_the_image_and_a_remedy() {
    let odd = image(1000);
    let directory = tempfile::tempdir().expect("a directory");
    let check = |path: &std::path::Path, read_only, texts: &[&str]| {
        let options = RawOptions { read_only, ..RawOptions::default() };
        let text = RawDisk::open(path, options).err().expect("a refusal").to_string();
        for t in texts.iter().chain(&[&*path.to_string_lossy()]) {
            assert!(text.contains(t), "\"{text}\" lacks \"{t}\"");
        }
    };
    check(odd.path(), false, &["1000 bytes", "truncate -s %512"]);
    check(directory.path(), true, &["directory"]);
    check(&directory.path().join("none"), false, &["truncate -s 10G"]);
}

#[test]
fn qemu_and_we_see_each_others_locks() {
    let file = image(SIZE);
    let path = file.path();
    let may_write = || {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", "-c", "read 0 512"]).arg(path);
        command.output().is_ok_and(|o| o.status.success())
    };
    if !may_write() {
        return println!("skipped: no qemu-io; install qemu-utils");
    }
    let writer = open(&file, RawOptions::default());
    assert!(!may_write(), "we write");
    drop(writer);
    let reader = open(&file, RawOptions { read_only: true, ..RawOptions::default() });
    assert!(!may_write(), "we read");
    drop(reader);
    assert!(may_write(), "nobody has it");
    let mut holder = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "read 0 512", "-c", "sleep 3000"])
        .arg(path)
        .spawn()
        .expect("it ran before");
    let until = Instant::now() + Duration::from_secs(3);
    let refused = loop {
        match RawDisk::open(path, RawOptions::default()).err() {
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            refused => break refused,
        }
    };
    // It may have ended by itself.
    let _ = holder.kill();
    holder.wait().expect("it ends");
    assert!(matches!(refused, Some(OpenError::Locked { .. })), "{refused:?}");
}
