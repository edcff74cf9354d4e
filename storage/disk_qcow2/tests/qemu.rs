//! Images beside QEMU's tools: what they make we read, what we write they find
//! whole.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use disk::{CacheMode, Disk, ImageFormat, OpenError, RawDisk, RawOptions};
use disk_qcow2::{Backing, Qcow2Disk, Qcow2Options};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;
/// In entries of tables: nobody else uses it.
const COPIED: u64 = 1 << 63;

/// Run one of QEMU's tools; false if it refuses. None: it is not installed.
fn qemu(program: &str, args: &[&str]) -> Option<bool> {
    let output = Command::new(program).args(args).output().ok()?;
    if !output.status.success() {
        println!(
            "{program} {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Some(output.status.success())
}

/// Open an image that was closed before: a tool that another test is about to start
/// holds every lock of this process for a moment, between its fork and its exec.
fn unlocked<T>(open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match open() {
            Err(OpenError::Locked { .. }) if Instant::now() < end => std::thread::yield_now(),
            other => return other,
        }
    }
}

struct Images {
    directory: TempDir,
}

impl Images {
    /// None, told, without QEMU's tools.
    fn new() -> Option<Self> {
        if qemu("qemu-img", &["--version"]).is_none() {
            println!("skipped: no qemu-img; install qemu-utils");
            return None;
        }
        Some(Images { directory: tempfile::tempdir().expect("a directory") })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, program: &str, args: &[&str], files: &[&Path]) {
        let files: Vec<_> = files.iter().map(|f| f.to_string_lossy().into_owned()).collect();
        let all: Vec<&str> = args.iter().copied().chain(files.iter().map(String::as_str)).collect();
        assert_eq!(qemu(program, &all), Some(true), "{program} {all:?}");
    }

    fn create(&self, name: &str, options: &str) -> PathBuf {
        let path = self.path(name);
        let size = SIZE.to_string();
        let at = path.to_string_lossy();
        assert_eq!(qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, &at, &size]), Some(true));
        path
    }

    fn is_clean(&self, image: &Path) {
        self.run("qemu-img", &["check", "-q", "-f", "qcow2"], &[image]);
    }

    /// The image's contents, as QEMU reads them.
    fn contents(&self, image: &Path) -> Vec<u8> {
        let raw = self.path("contents");
        self.run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw"], &[image, &raw]);
        std::fs::read(&raw).expect("it was made")
    }
}

fn open(path: &Path, options: Qcow2Options) -> Qcow2Disk {
    Qcow2Disk::open(path, options).unwrap_or_else(|e| panic!("{e}"))
}

fn whole(disk: &Qcow2Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.geometry().size as usize];
    disk.read(0, &mut bytes).expect("a read");
    bytes
}

/// Bytes that compress a little.
fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i / 64) * 31 + seed + (i % 7)) as u8).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, usize, u8),
    Zero(u64, usize, bool),
    Discard(u64, usize),
    Flush,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..SIZE / 512, 1usize..600);
    prop_oneof![
        4 => (place(), 1u8..).prop_map(|((at, n), fill)| Step::Write(at, n, fill)),
        1 => (place(), any::<bool>()).prop_map(|((at, n), unmap)| Step::Zero(at, n, unmap)),
        1 => place().prop_map(|(at, n)| Step::Discard(at, n)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ]
}

/// Steps on an image and on a model of its bytes; a model byte of None is unknown.
fn stress(images: &Images, path: &Path, options: Qcow2Options, steps: &[Step]) {
    let mut disk = Some(open(path, options));
    let mut model: Vec<Option<u8>> = whole(disk.as_ref().expect("open")).into_iter().map(Some).collect();
    for step in steps {
        let d = disk.as_ref().expect("open");
        let range = |at: u64, n: usize| (at as usize * 512)..((at as usize + n) * 512).min(SIZE as usize);
        match *step {
            Step::Write(at, n, fill) => {
                let r = range(at, n);
                d.write(r.start as u64, &vec![fill; r.len()]).expect("a write");
                model[r].fill(Some(fill));
            }
            Step::Zero(at, n, unmap) => {
                let r = range(at, n);
                d.write_zeroes(r.start as u64, r.len() as u64, unmap).expect("zeroes");
                model[r].fill(Some(0));
            }
            Step::Discard(at, n) => {
                let r = range(at, n);
                d.discard(r.start as u64, r.len() as u64).expect("a discard");
                model[r].fill(None);
            }
            Step::Flush => d.flush().expect("a flush"),
            Step::Reopen => {
                drop(disk.take());
                images.is_clean(path);
                disk = Some(open(path, options));
            }
        }
    }
    let seen = whole(disk.as_ref().expect("open"));
    drop(disk);
    for (at, (seen, model)) in seen.iter().zip(&model).enumerate() {
        assert!(model.is_none_or(|m| m == *seen), "byte {at:#x}: {seen:#x}, written {model:x?}");
    }
    images.is_clean(path);
    assert!(images.contents(path) == seen, "QEMU reads other bytes");
}

#[test]
fn what_we_write_qemu_finds_whole() {
    let Some(images) = Images::new() else { return };
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=4096",
        "cluster_size=2M",
        "refcount_bits=1",
        "lazy_refcounts=on",
    ] {
        let mut runner = TestRunner::new(Config { cases: 3, failure_persistence: None, ..Config::default() });
        runner
            .run(&prop::collection::vec(step(), 1..30), |steps| {
                let path = images.create("stress.qcow2", options);
                // Durability is another test's.
                let options = Qcow2Options { cache: CacheMode::Unsafe, ..Qcow2Options::default() };
                stress(&images, &path, options, &steps);
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{options}: {e}"));
    }
}

#[test]
fn several_threads_work_on_an_image_at_once() {
    const THREADS: usize = 4;
    let Some(images) = Images::new() else { return };
    let part = SIZE as usize / THREADS;
    for options in ["cluster_size=65536", "cluster_size=512"] {
        let path = images.create("threads.qcow2", options);
        let disk = open(&path, Qcow2Options::default());
        let work = |thread: usize| {
            let mut model = vec![0; part];
            let mut random = thread as u64 + 1;
            for step in 0..100 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (random >> 40) as usize % (part / 512) * 512;
                let len = ((random >> 20) as usize % 200 * 512).clamp(512, part - at);
                let offset = (thread * part + at) as u64;
                let done = match (random >> 60, step as u8) {
                    (0..8, fill) => {
                        model[at..at + len].fill(fill);
                        disk.write(offset, &vec![fill; len])
                    }
                    (kind @ 8..14, _) => {
                        model[at..at + len].fill(0);
                        disk.write_zeroes(offset, len as u64, kind & 1 != 0)
                    }
                    _ => disk.flush(),
                };
                done.expect("there is room");
            }
            model
        };
        let model = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || work(n))).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect::<Vec<u8>>()
        });
        assert!(whole(&disk) == model, "{options}");
        drop(disk);
        images.is_clean(&path);
        assert!(images.contents(&path) == model, "{options}: QEMU reads other bytes");
    }
}

#[test]
fn compressed_clusters_are_read_and_written_over() {
    let Some(images) = Images::new() else { return };
    let raw = images.path("source.raw");
    let data = pattern(SIZE as usize, 3);
    std::fs::write(&raw, &data).expect("a file");
    let path = images.path("compressed.qcow2");
    images.run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2"], &[&raw, &path]);
    assert!(std::fs::metadata(&path).expect("it is there").len() < SIZE / 2, "it is compressed");
    let disk = open(&path, Qcow2Options::default());
    assert!(whole(&disk) == data);
    disk.write(70_144, &[1; 1024]).expect("a write");
    drop(disk);
    let mut data = data;
    data[70_144..70_144 + 1024].fill(1);
    images.is_clean(&path);
    assert!(images.contents(&path) == data);
}

#[test]
fn an_image_stands_on_others_where_that_is_allowed() {
    let Some(images) = Images::new() else { return };
    let data = pattern(SIZE as usize, 9);
    let raw = images.path("base.raw");
    std::fs::write(&raw, &data).expect("a file");
    let over = |name: &str, below: &str, format: &str| {
        let path = images.path(name);
        let at = path.to_string_lossy();
        let args = ["create", "-q", "-f", "qcow2", "-b", below, "-F", format, &at];
        assert_eq!(qemu("qemu-img", &args), Some(true));
        path
    };
    let middle = over("middle.qcow2", "base.raw", "raw");
    let top = over("top.qcow2", "middle.qcow2", "qcow2");
    let refusal = Qcow2Disk::open(&top, Qcow2Options::default()).err().expect("denied").to_string();
    assert!(refusal.contains("middle.qcow2") && refusal.contains("backing=on"), "{refusal}");
    let allowed = Qcow2Options { backing: Backing::Allow, ..Qcow2Options::default() };
    {
        let disk = open(&middle, allowed);
        disk.write(4096, &[2; 4096]).expect("a write");
    }
    let disk = open(&top, allowed);
    let mut expected = data.clone();
    expected[4096..8192].fill(2);
    assert!(whole(&disk) == expected);
    disk.write(1 << 20, &[3; 512]).expect("a write");
    expected[1 << 20..(1 << 20) + 512].fill(3);
    assert!(Qcow2Disk::open(&middle, allowed).is_err(), "what is below is not written to meanwhile");
    drop(disk);
    images.is_clean(&top);
    assert!(images.contents(&top) == expected);
    assert!(std::fs::read(&raw).expect("it is there") == data, "what is below is as it was");
    let args = ["-q", "-u", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2"];
    images.run("qemu-img", &[&["rebase"], &args[..]].concat(), &[&middle]);
    let looped = Qcow2Disk::open(&top, allowed).err().expect("a loop").to_string();
    assert!(looped.contains("loop"), "{looped}");
}

#[test]
fn images_are_made_and_converted() {
    let Some(images) = Images::new() else { return };
    let mut data = pattern(SIZE as usize, 5);
    data[1 << 20..3 << 20].fill(0);
    let raw = images.path("source.raw");
    std::fs::write(&raw, &data).expect("a file");
    let source = RawDisk::open(&raw, RawOptions::default()).expect("a good image");
    let path = images.path("made.qcow2");
    disk_qcow2::create(&path, SIZE, None).expect("a new image");
    let mut told = Vec::new();
    let made = open(&path, Qcow2Options::default());
    let copied = disk::copy(&source, &made, |done| {
        told.push(done);
        ControlFlow::Continue(())
    });
    assert!(copied.expect("a copy").is_continue());
    drop(made);
    assert_eq!(told.last(), Some(&SIZE));
    images.is_clean(&path);
    assert!(images.contents(&path) == data);
    let room = std::fs::metadata(&path).expect("it is there").len();
    assert!(room < SIZE - (1 << 20), "zeroes take no room: {room}");
    assert!(disk_qcow2::create(&path, SIZE, None).is_err(), "nothing is overwritten");
    let over = images.path("over.qcow2");
    disk_qcow2::create(&over, SIZE, Some(("made.qcow2", ImageFormat::Qcow2))).expect("a new image");
    let allowed = Qcow2Options { backing: Backing::Allow, ..Qcow2Options::default() };
    assert!(whole(&open(&over, allowed)) == data);
    images.is_clean(&over);
    assert!(images.contents(&over) == data, "QEMU finds what it stands on");
}

#[test]
fn snapshots_survive_what_is_written_after_them() {
    let Some(images) = Images::new() else { return };
    let path = images.create("snapshots.qcow2", "compat=1.1");
    let data = pattern(SIZE as usize, 1);
    open(&path, Qcow2Options::default()).write(0, &data).expect("a write");
    images.run("qemu-img", &["snapshot", "-c", "before"], &[&path]);
    let disk = open(&path, Qcow2Options::default());
    assert!(whole(&disk) == data);
    disk.write(0, &vec![5; 1 << 20]).expect("a write");
    disk.discard(2 << 20, 1 << 20).expect("a discard");
    drop(disk);
    images.is_clean(&path);
    images.run("qemu-img", &["snapshot", "-a", "before"], &[&path]);
    assert!(images.contents(&path) == data, "the snapshot's bytes");
}

/// As what a host leaves that ends while it writes: the table, without what it names.
#[test]
fn what_was_not_written_is_made_whole() {
    let Some(images) = Images::new() else { return };
    let at = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    // More than 64 MiB that the file has not; for small clusters several refcount blocks.
    for (options, size) in [("cluster_size=65536", 512 << 20), ("cluster_size=512", 4 << 20)] {
        let path = images.path("unwritten.qcow2");
        let (name, size_text) = (path.to_string_lossy(), u64::to_string(&size));
        let args = ["create", "-q", "-f", "qcow2", "-o", options, &name, &size_text];
        assert_eq!(qemu("qemu-img", &args), Some(true));
        let disk = open(&path, Qcow2Options::default());
        let span = if size > 4 << 20 { size } else { 32 << 10 };
        (0..size / span).for_each(|n| disk.write(n * span, &[7; 512]).expect("a write"));
        drop(disk);
        let mut bytes = std::fs::read(&path).expect("it is there");
        let cluster = 1u64 << bytes[23];
        let first = (bytes.len() as u64).div_ceil(cluster);
        let mut next = first;
        for l1 in (at(&bytes, 40)..).step_by(8).take((size / span) as usize) {
            let l2 = (at(&bytes, l1 as usize) & 0x00ff_ffff_ffff_fe00) as usize;
            for entry in (l2..l2 + cluster as usize).step_by(8).skip(1) {
                bytes[entry..entry + 8].copy_from_slice(&(COPIED | (next * cluster)).to_be_bytes());
                next += 1;
            }
        }
        std::fs::write(&path, &bytes).expect("room");
        let disk = open(&path, Qcow2Options::default());
        let told = std::fs::metadata(&path).expect("it is there").len();
        assert!(told >= next * cluster, "{options}: {told} {next}");
        disk.write(size - cluster, &[8; 512]).expect("a write");
        drop(disk);
        images.is_clean(&path);
        let seen = images.contents(&path);
        let expected = |n: usize| match n as u64 {
            n if n % span < 512 => 7,
            n if (size - cluster..size - cluster + 512).contains(&n) => 8,
            _ => 0,
        };
        assert!((0..seen.len()).step_by(256).all(|n| seen[n] == expected(n)), "{options}");
    }
}

/// A source with data, holes and zeroes, and an image of it that QEMU makes with
/// these options; None, told, where it does not.
fn converted(images: &Images, name: &str, data: &[u8], arguments: &[&str]) -> Option<PathBuf> {
    let (raw, path) = (images.path("source.raw"), images.path(name));
    std::fs::write(&raw, data).expect("a file");
    let (from, to) = (raw.to_string_lossy(), path.to_string_lossy());
    let args = [&["convert", "-f", "raw", "-O", "qcow2"], arguments, &[&from, &to]].concat();
    let made = qemu("qemu-img", &args) == Some(true);
    if !made {
        println!("skipped: {arguments:?}");
    }
    made.then_some(path)
}

fn all_of(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.geometry().size as usize];
    for (n, piece) in bytes.chunks_mut(333 * 512).enumerate() {
        disk.read((n * 333 * 512) as u64, piece).expect("a read");
    }
    bytes
}

#[test]
fn what_is_only_read_is_read_whole() {
    let Some(images) = Images::new() else { return };
    let mut data = pattern(SIZE as usize, 6);
    data[1 << 20..3 << 20].fill(0);
    let cases: &[&[&str]] = &[
        &["-c", "-o", "compression_type=zstd"],
        &["-c", "-o", "compression_type=zstd,cluster_size=2M"],
        &["-c"],
        &["-c", "-o", "cluster_size=4096"],
        &["-o", "extended_l2=on"],
        &["-c", "-o", "extended_l2=on,compression_type=zstd"],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=512"],
        &["-o", "preallocation=metadata"],
    ];
    for arguments in cases {
        let Some(path) = converted(&images, "read.qcow2", &data, arguments) else { continue };
        let disk = disk_qcow2::open_to_read(&path, Backing::Deny, None).unwrap_or_else(|e| panic!("{e}"));
        assert!(all_of(&*disk) == data, "{arguments:?}: other bytes");
        // What is zeroes is whole clusters, and known, in all but these.
        if !arguments.iter().any(|a| a.contains("preallocation") || a.contains("2M")) {
            assert!(
                disk.known_zeroes(1 << 20, u64::MAX, &mut 4096).expect("its tables") >= 1 << 20,
                "{arguments:?}"
            );
        }
        assert!(disk.write(0, &[0; 512]).is_err());
        assert!(Qcow2Disk::open(&path, Qcow2Options::default()).is_err(), "no writer while it is read");
        drop(disk);
        let only_read = arguments.iter().any(|a| a.contains("zstd") || a.contains("extended"));
        let written = unlocked(|| Qcow2Disk::open(&path, Qcow2Options::default()));
        assert_eq!(written.is_err(), only_read, "{arguments:?}");
        if let Some(refusal) = written.err().map(|e| e.to_string()) {
            assert!(refusal.contains("strata image convert") && refusal.contains("only read"), "{refusal}");
            let options = Qcow2Options { read_only: true, ..Qcow2Options::default() };
            let attached = disk_qcow2::open(&path, options).unwrap_or_else(|e| panic!("{e}"));
            assert!(all_of(&*attached) == data);
            assert!(Qcow2Disk::open(&path, options).is_err(), "the library does not read it");
        }
    }
}

#[test]
fn parts_of_clusters_are_read() {
    let Some(images) = Images::new() else { return };
    let path = images.path("parts.qcow2");
    let base = images.path("base.raw");
    std::fs::write(&base, pattern(SIZE as usize, 2)).expect("a file");
    let at = path.to_string_lossy();
    let args = ["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "-b", "base.raw", "-F", "raw", &at];
    if qemu("qemu-img", &args) != Some(true) {
        return println!("skipped: extended_l2");
    }
    let commands = ["write -P 7 6k 2k", "write -z 64k 4k", "write -P 9 1M 64k", "write -z 1040k 2k"];
    let args: Vec<&str> = commands.iter().flat_map(|c| ["-c", c]).chain(["-f", "qcow2", &at]).collect();
    assert_eq!(qemu("qemu-io", &args), Some(true));
    let disk = disk_qcow2::open_to_read(&path, Backing::Allow, None).unwrap_or_else(|e| panic!("{e}"));
    assert!(all_of(&*disk) == images.contents(&path), "QEMU reads other bytes");
    assert!(disk_qcow2::open_to_read(&path, Backing::Deny, None).is_err(), "the gate");
}

#[test]
fn snapshots_are_listed_and_read() {
    let Some(images) = Images::new() else { return };
    let path = images.create("snapshots.qcow2", "compat=1.1");
    assert_eq!(disk_qcow2::snapshots(&path).expect("a good image"), []);
    let (first, second) = (pattern(SIZE as usize, 1), pattern(SIZE as usize, 40));
    for (name, data) in [("one", &first), ("two", &second)] {
        open(&path, Qcow2Options::default()).write(0, data).expect("a write");
        images.run("qemu-img", &["snapshot", "-c", name], &[&path]);
    }
    open(&path, Qcow2Options::default()).write_zeroes(0, SIZE, true).expect("zeroes");
    let list = disk_qcow2::snapshots(&path).expect("a good image");
    let told: Vec<_> = list.iter().map(|s| (s.id.as_str(), s.name.as_str(), s.disk_size)).collect();
    assert_eq!(told, [("1", "one", Some(SIZE)), ("2", "two", Some(SIZE))]);
    assert!(list[0].created > 1_600_000_000);
    let read = |wanted| disk_qcow2::open_to_read(&path, Backing::Deny, wanted);
    let bytes = |wanted| all_of(&*read(wanted).unwrap_or_else(|e| panic!("{e}")));
    assert!(bytes(Some("one")) == first && bytes(Some("2")) == second);
    assert!(bytes(None).iter().all(|b| *b == 0));
    let refusal = read(Some("three")).err().expect("none such").to_string();
    assert!(refusal.contains("\"three\"") && refusal.contains("\"one\", \"two\""), "{refusal}");
}

#[test]
fn what_cannot_be_read_is_refused_with_a_remedy() {
    let Some(images) = Images::new() else { return };
    let path = images.path("feature.qcow2");
    let (at, size) = (path.to_string_lossy(), SIZE.to_string());
    let options = format!("data_file={}", images.path("ext.raw").display());
    assert_eq!(qemu("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &at, &size]), Some(true));
    for read_only in [false, true] {
        let options = Qcow2Options { read_only, ..Qcow2Options::default() };
        let refusal = disk_qcow2::open(&path, options).err().expect("refused").to_string();
        assert!(refusal.contains("external data file") && refusal.contains("qemu-img"), "{refusal}");
    }
}

#[test]
fn qemu_img_keeps_off_what_we_write() {
    let Some(images) = Images::new() else { return };
    let path = images.create("locked.qcow2", "compat=1.1");
    let at = path.to_string_lossy();
    let disk = open(&path, Qcow2Options::default());
    assert_eq!(qemu("qemu-img", &["check", "-q", &at]), Some(false));
    drop(disk);
    assert_eq!(qemu("qemu-img", &["check", "-q", &at]), Some(true));
}
