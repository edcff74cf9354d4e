//! Images whose files somebody else has opened.

use std::fs::{self, File};

use disk::{CacheMode, ImageFormat, OpenError, RawDisk, RawOptions};
use disk_qcow2::{Backing, Qcow2Options, create, open_given};

const SIZE: usize = 1 << 20;

fn file(path: &std::path::Path, write: bool) -> File {
    File::options().read(true).write(write).open(path).expect("it is there")
}

#[test]
fn a_chain_is_read_and_written_through_its_files() {
    let place = tempfile::tempdir().expect("a directory");
    let (base, thin) = (place.path().join("base"), place.path().join("thin"));
    fs::write(&base, vec![7; SIZE]).expect("a file");
    create(&thin, SIZE as u64, Some(("base", ImageFormat::Raw))).expect("an image");
    let options = Qcow2Options { backing: Backing::Allow, ..Qcow2Options::default() };
    let files = vec![file(&thin, true), file(&base, false)];
    // Their names are for messages alone.
    let (moved, unopened) = (place.path().join("moved"), place.path().join("gone/thin"));
    fs::rename(&base, &moved).expect("renamed");
    let disk = open_given(&unopened, files, options).expect("a good image");
    disk.write(4096, &[9; 4096]).expect("room");
    let mut contents = vec![0; 12288];
    disk.read(0, &mut contents).expect("it is whole");
    assert_eq!(contents, [[7; 4096], [9; 4096], [7; 4096]].concat());
    let locked = RawDisk::open(&thin, RawOptions { read_only: true, ..RawOptions::default() });
    assert!(matches!(locked, Err(OpenError::Locked { .. })), "its files are locked");
    drop(disk);
    assert!(fs::read(&moved).expect("it is there") == vec![7; SIZE], "the base is as it was");
}

#[test]
fn what_is_missing_or_not_meant_is_refused() {
    let place = tempfile::tempdir().expect("a directory");
    let (base, thin) = (place.path().join("base"), place.path().join("thin"));
    fs::write(&base, vec![7; SIZE]).expect("a file");
    create(&thin, SIZE as u64, Some(("base", ImageFormat::Raw))).expect("an image");
    let allowed = Qcow2Options { backing: Backing::Allow, ..Qcow2Options::default() };
    let direct = Qcow2Options { cache: CacheMode::Direct, ..allowed };
    // How many files are given, the options, a word of the message.
    for (count, options, text) in [
        (0, allowed, "not opened"),
        (1, allowed, "not opened"),
        (2, Qcow2Options::default(), "backing=on"),
        (2, direct, "cache=direct"),
    ] {
        let files = [&thin, &base].into_iter().take(count).map(|path| file(path, path == &thin)).collect();
        let message = open_given(&thin, files, options).map(drop).expect_err(text).to_string();
        assert!(message.contains(text), "\"{message}\" lacks \"{text}\"");
    }
}
