//! Images beside QEMU's tools: what they make we read, what we write they find
//! whole.

use std::path::{Path, PathBuf};
use std::process::Command;

use disk::{CacheMode, Disk, ImageFormat, RawDisk, RawOptions};
use disk_qcow2::{Backing, Qcow2Disk, Qcow2Options};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;

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
    disk::copy(&source, &made, |done| told.push(done)).expect("a copy");
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

#[test]
fn what_cannot_be_read_is_refused_with_a_remedy() {
    let Some(images) = Images::new() else { return };
    for (options, text) in [
        ("compression_type=zstd", "zstd"),
        ("extended_l2=on", "extended L2"),
        ("data_file=ext.raw", "external data file"),
    ] {
        let path = images.path("feature.qcow2");
        let (at, size) = (path.to_string_lossy(), SIZE.to_string());
        let data_file = images.path("ext.raw");
        let options = options.replace("ext.raw", &data_file.to_string_lossy());
        let args = ["create", "-q", "-f", "qcow2", "-o", &options, &at, &size];
        // QEMU built without a feature does not make it.
        if qemu("qemu-img", &args) != Some(true) {
            println!("skipped: {options}");
            continue;
        }
        let refusal = Qcow2Disk::open(&path, Qcow2Options::default()).err().expect("refused").to_string();
        assert!(refusal.contains(text) && refusal.contains("qemu-img"), "{refusal}");
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
