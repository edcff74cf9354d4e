//! Conversions, judged by QEMU's tools where they are.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

use disk_qcow2::Backing;
use image_convert::{Conversion, ConvertError, Source, Target, convert};
use tempfile::TempDir;

/// Not whole blocks, grains or clusters of any format.
const SIZE: u64 = (21 << 20) + 3 * 512;

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Data, holes and written zeroes.
    fn raw(&self) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let path = self.path("source.raw");
        let file = fs::File::create(&path).expect("a file");
        file.set_len(SIZE).expect("its size");
        let bytes: Vec<u8> = (0..300_000usize).map(|i| ((i / 64) * 31 + i % 7) as u8).collect();
        for at in [512, 5 << 20, SIZE - 300_000] {
            file.write_all_at(&bytes, at).expect("its bytes");
        }
        file.write_all_at(&[0; 1 << 20], 10 << 20).expect("zeroes");
        path
    }

    fn names(&self) -> Vec<String> {
        let read = fs::read_dir(self.0.path()).expect("the directory");
        let mut names: Vec<_> =
            read.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn wanted(from: &Path, to: &Path, target: Target) -> Conversion {
    let from = Source { path: from.into(), format: None, backing: Backing::Deny, snapshot: None };
    Conversion { from, to: to.into(), target, replace: false }
}

fn qemu_img(args: &[&str], files: &[&Path]) -> Option<bool> {
    let output = Command::new("qemu-img").args(args).args(files).output().ok()?;
    if !output.status.success() {
        println!("qemu-img {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Some(output.status.success())
}

/// Whether QEMU's tools are here; told if not.
fn has_qemu() -> bool {
    let is_there = qemu_img(&["--version"], &[]).is_some();
    if !is_there {
        println!("skipped: no qemu-img; install qemu-utils");
    }
    is_there
}

#[test]
fn every_format_becomes_raw_and_qcow2_with_the_same_bytes() {
    if !has_qemu() {
        return;
    }
    let cases: &[(&str, &[&str])] = &[
        ("raw", &[]),
        ("qcow2", &[]),
        ("qcow2", &["-c", "-o", "compression_type=zstd"]),
        ("qcow2", &["-o", "extended_l2=on"]),
        ("vdi", &[]),
        ("vhdx", &[]),
        ("vmdk", &[]),
        ("vmdk", &["-o", "subformat=streamOptimized"]),
        ("vmdk", &["-o", "subformat=twoGbMaxExtentFlat"]),
    ];
    for (format, options) in cases {
        let place = Place::new();
        // The name says nothing.
        let (raw, from) = (place.raw(), place.path("image.iso"));
        let args = [&["convert", "-f", "raw", "-O", format], *options].concat();
        if qemu_img(&args, &[&raw, &from]) != Some(true) {
            println!("skipped: {format} {options:?}");
            continue;
        }
        for target in [Target::Raw, Target::Qcow2] {
            let to = place.path(target.word());
            let mut told = Vec::new();
            let size = convert(&wanted(&from, &to, target), |done, of| {
                told.push((done, of));
                ControlFlow::Continue(())
            });
            assert_eq!(size.unwrap_or_else(|e| panic!("{e}")), SIZE);
            assert_eq!((told.first(), told.last()), (Some(&(0, SIZE)), Some(&(SIZE, SIZE))));
            assert!(told.windows(2).all(|w| w[0].0 <= w[1].0));
            let compare = ["compare", "-f", "raw", "-F", target.word()];
            assert_eq!(qemu_img(&compare, &[&raw, &to]), Some(true), "{format} {options:?} to {target:?}");
            if target == Target::Qcow2 {
                assert_eq!(qemu_img(&["check", "-q", "-f", "qcow2"], &[&to]), Some(true));
            }
            use std::os::unix::fs::MetadataExt;
            let taken = fs::metadata(&to).expect("it is there").blocks() * 512;
            assert!(taken < 3 << 20, "{format} to {target:?}: {taken} bytes; zeroes take no room");
        }
        assert!(place.names().iter().all(|n| !n.contains("strata")), "{:?}", place.names());
    }
}

#[test]
fn a_snapshot_is_converted_by_its_name() {
    if !has_qemu() {
        return;
    }
    let place = Place::new();
    let (raw, from, to) = (place.raw(), place.path("image"), place.path("to"));
    assert_eq!(qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &from]), Some(true));
    assert_eq!(qemu_img(&["snapshot", "-c", "first"], &[&from]), Some(true));
    let disk = disk_qcow2::Qcow2Disk::open(&from, Default::default()).expect("a good image");
    disk::Disk::write(&disk, 0, &[1; 4096]).expect("a write");
    drop(disk);
    let mut conversion = wanted(&from, &to, Target::Raw);
    conversion.from.snapshot = Some("first".into());
    convert(&conversion, |_, _| ControlFlow::Continue(())).unwrap_or_else(|e| panic!("{e}"));
    assert!(fs::read(&to).expect("it is there") == fs::read(&raw).expect("it is there"));
    conversion.from.path = raw;
    conversion.to = place.path("other");
    let refusal = convert(&conversion, |_, _| ControlFlow::Continue(())).expect_err("raw").to_string();
    assert!(refusal.contains("--snapshot"), "{refusal}");
}

#[test]
fn a_conversion_that_is_broken_off_leaves_nothing() {
    for target in [Target::Raw, Target::Qcow2] {
        let place = Place::new();
        let from = place.raw();
        let mut steps = 0;
        let broken = convert(&wanted(&from, &place.path("to"), target), |_, _| {
            steps += 1;
            if steps < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert!(matches!(broken, Err(ConvertError::Interrupted)), "{broken:?}");
        assert_eq!((steps, place.names()), (3, vec!["source.raw".to_string()]));
    }
}

#[test]
fn nothing_is_overwritten_unless_that_is_said() {
    let place = Place::new();
    let (from, to) = (place.raw(), place.path("to"));
    fs::write(&to, "mine").expect("a file");
    let mut conversion = wanted(&from, &to, Target::Raw);
    let refusal = convert(&conversion, |_, _| ControlFlow::Continue(())).expect_err("there").to_string();
    assert!(refusal.contains("--force"), "{refusal}");
    assert_eq!(fs::read(&to).expect("it is there"), b"mine");
    conversion.replace = true;
    convert(&conversion, |_, _| ControlFlow::Continue(())).unwrap_or_else(|e| panic!("{e}"));
    assert!(fs::read(&to).expect("it is there") == fs::read(&from).expect("it is there"));
    // Somebody uses it.
    let lock = disk::ImageLock::take(&to, disk::Access::Write).expect("nobody else");
    let refusal = convert(&conversion, |_, _| ControlFlow::Continue(())).expect_err("in use").to_string();
    assert!(refusal.contains("another process"), "{refusal}");
    drop(lock);
    let itself =
        convert(&Conversion { to: from.clone(), ..conversion.clone() }, |_, _| ControlFlow::Continue(()));
    assert!(itself.expect_err("one file").to_string().contains("itself"));
    let over_directory = Conversion { to: place.0.path().into(), ..conversion };
    assert!(convert(&over_directory, |_, _| ControlFlow::Continue(())).is_err());
    assert_eq!(place.names(), ["source.raw", "to"]);
}

#[test]
fn a_failure_leaves_nothing() {
    let place = Place::new();
    let (from, to) = (place.path("from"), place.path("to"));
    let mut vdi = vec![0; 4096];
    vdi[0x40..0x44].copy_from_slice(&0xbeda_107fu32.to_le_bytes());
    for (bytes, text) in [
        (&vdi[..], "VDI version"),
        (b"\x1f\x8b\x08", "unpack"),
        (&[7; 700], "whole number"),
        (b"QFI\xfb\0\0\0\x03", "ends"),
    ] {
        fs::write(&from, bytes).expect("a file");
        let refusal = convert(&wanted(&from, &to, Target::Qcow2), |_, _| ControlFlow::Continue(()))
            .expect_err(text)
            .to_string();
        assert!(refusal.contains(text) && refusal.contains("; "), "{refusal}");
    }
    fs::write(&from, [7; 512]).expect("a file");
    let nowhere = wanted(&from, Path::new("/nonexistent/x"), Target::Qcow2);
    assert!(convert(&nowhere, |_, _| ControlFlow::Continue(())).is_err());
    assert_eq!(place.names(), ["from"]);
}

#[test]
fn a_target_is_named_by_its_extension_unless_told() {
    for (name, target) in [
        ("a.qcow2", Target::Qcow2),
        ("a.QCOW2", Target::Qcow2),
        ("a.raw", Target::Raw),
        ("qcow2", Target::Raw),
    ] {
        assert_eq!(Target::of_name(Path::new(name)), target, "{name}");
    }
}
