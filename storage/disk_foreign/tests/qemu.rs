//! Images that QEMU's tools make: we read the bytes that they read.

use std::path::{Path, PathBuf};
use std::process::Command;

use disk::{Disk, ImageFormat};
use tempfile::TempDir;

/// Not whole blocks, grains or MiB of any format.
const SIZE: u64 = (37 << 20) + 7 * 512;

/// Run one of QEMU's tools; false if it refuses. None: it is not installed.
fn qemu(program: &str, args: &[&str]) -> Option<bool> {
    let output = Command::new(program).args(args).output().ok()?;
    if !output.status.success() {
        println!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Some(output.status.success())
}

fn installed() -> bool {
    let installed = qemu("qemu-img", &["--version"]).is_some();
    if !installed {
        println!("skipped: no qemu-img; install qemu-utils");
    }
    installed
}

struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Images(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Data in places, holes between, of a disk of `size` bytes.
    fn raw(&self, size: u64) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let path = self.path("source.raw");
        let file = std::fs::File::create(&path).expect("a file");
        file.set_len(size).expect("its size");
        for (n, at) in
            [0, 65_536 - 512, 1 << 20, (3 << 20) + 4096, (9 << 20) + 512, size - 1024].into_iter().enumerate()
        {
            let len = (size - at).min(100_000) as usize;
            let bytes: Vec<u8> = (0..len).map(|i| ((i / 64) * 31 + n + (i % 7)) as u8).collect();
            file.write_all_at(&bytes, at).expect("its bytes");
        }
        path
    }

    /// The source in another format; None, told, where QEMU does not make it.
    fn convert(&self, raw: &Path, format: &str, options: &str) -> Option<PathBuf> {
        let path = self.path(&format!("image.{format}"));
        let (from, to) = (raw.to_string_lossy(), path.to_string_lossy());
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([&*from, &*to]);
        let made = qemu("qemu-img", &args) == Some(true);
        if !made {
            println!("skipped: {format} {options}");
        }
        made.then_some(path)
    }
}

fn open(path: &Path) -> Box<dyn Disk> {
    let format = disk::probe_file(path).expect("its format");
    disk_foreign::open(path, format).unwrap_or_else(|e| panic!("{e}"))
}

/// The disk's bytes, where it knows no zeroes; those known are skipped.
fn contents(disk: &dyn Disk) -> (Vec<u8>, u64) {
    let size = disk.geometry().size;
    let mut bytes = vec![0; size as usize];
    let (mut at, mut skipped) = (0, 0);
    while at < size {
        let zeroes = disk.known_zeroes(at, u64::MAX, &mut 4096).expect("its tables");
        if zeroes > 0 {
            (at, skipped) = (at + zeroes, skipped + zeroes);
            continue;
        }
        // Pieces that begin and end within blocks and grains.
        let n = (size - at).min(512 * 333);
        disk.read(at, &mut bytes[at as usize..(at + n) as usize]).expect("a read");
        at += n;
    }
    (bytes, skipped)
}

#[test]
fn what_qemu_makes_is_read_whole() {
    if !installed() {
        return;
    }
    let cases = [
        ("vdi", ""),
        ("vdi", "static=on"),
        ("vhdx", ""),
        ("vhdx", "subformat=fixed"),
        ("vhdx", "block_size=1M"),
        ("vhdx", "block_size=256M,log_size=2M"),
        ("vhdx", "block_state_zero=off"),
        ("vmdk", ""),
        ("vmdk", "subformat=monolithicSparse,zeroed_grain=on"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "adapter_type=lsilogic,hwversion=10"),
    ];
    let mut read = 0;
    for (format, options) in cases {
        let images = Images::new();
        let raw = images.raw(SIZE);
        let Some(path) = images.convert(&raw, format, options) else { continue };
        let disk = open(&path);
        let (bytes, skipped) = contents(&*disk);
        assert!(bytes == std::fs::read(&raw).expect("it is there"), "{format} {options}: other bytes");
        let full = options.contains("fixed") || options.contains("Flat") || options.contains("static");
        let coarse = options.contains("256M");
        assert!(full || coarse || skipped > 1 << 20, "{format} {options}: only {skipped} skipped");
        assert!(disk.read_only() && disk.write(0, &[0; 512]).is_err());
        assert!(disk.read(bytes.len() as u64, &mut [0; 512]).is_err(), "beyond the end");
        read += 1;
    }
    assert!(read >= 10, "QEMU makes these: {read}");
}

#[test]
fn what_qemu_writes_to_later_is_read_too() {
    if !installed() {
        return;
    }
    for (format, options) in [
        ("vdi", ""),
        ("vhdx", "block_size=1M"),
        ("vmdk", "zeroed_grain=on"),
        ("vmdk", "subformat=monolithicFlat"),
    ] {
        let images = Images::new();
        let Some(path) = images.convert(&images.raw(SIZE), format, options) else { continue };
        let at = path.to_string_lossy();
        let commands = [
            "write -P 0x11 5M 70000",
            "write -z 1M 64k",
            "write -P 0x22 36M 1M",
            "write -P 0x33 0 512",
            "flush",
        ];
        let args: Vec<&str> = commands.iter().flat_map(|c| ["-c", c]).chain(["-f", format, &at]).collect();
        assert_eq!(qemu("qemu-io", &args), Some(true));
        let raw = images.path("expected.raw");
        let to = raw.to_string_lossy();
        assert_eq!(qemu("qemu-img", &["convert", "-f", format, "-O", "raw", &at, &to]), Some(true));
        let (bytes, _) = contents(&*open(&path));
        assert!(bytes == std::fs::read(&raw).expect("it is there"), "{format} {options}: other bytes");
    }
}

#[test]
fn split_images_are_read_across_their_files() {
    if !installed() {
        return;
    }
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let images = Images::new();
        let path = images.path("split.vmdk");
        let (at, options) = (path.to_string_lossy(), format!("subformat={subformat}"));
        assert_eq!(qemu("qemu-img", &["create", "-q", "-f", "vmdk", "-o", &options, &at, "5G"]), Some(true));
        let border = 2147418112u64;
        let write = format!("write -P 0x44 {} 8k", border - 4096);
        assert_eq!(qemu("qemu-io", &["-c", &write, "-f", "vmdk", &at]), Some(true));
        let disk = open(&path);
        assert_eq!(disk.geometry().size, 5 << 30);
        let mut bytes = [0; 16384];
        disk.read(border - 8192, &mut bytes).expect("a read");
        let expected = [vec![0; 4096], vec![0x44; 8192], vec![0; 4096]].concat();
        assert!(bytes[..] == expected[..], "{subformat}: other bytes");
        let mut last = [1; 512];
        disk.read((5 << 30) - 512, &mut last).expect("a read");
        assert_eq!(last, [0; 512]);
    }
}

#[test]
fn images_that_stand_on_others_are_refused() {
    if !installed() {
        return;
    }
    let images = Images::new();
    let base = images.convert(&images.raw(SIZE), "vmdk", "").expect("a base");
    let path = images.path("child.vmdk");
    let (at, below) = (path.to_string_lossy(), base.to_string_lossy());
    let args = ["create", "-q", "-f", "vmdk", "-b", &below, "-F", "vmdk", &at];
    assert_eq!(qemu("qemu-img", &args), Some(true));
    let refusal = disk_foreign::open(&path, ImageFormat::Vmdk).err().expect("refused").to_string();
    assert!(refusal.contains("another image") && refusal.contains("qemu-img convert"), "{refusal}");
}

#[test]
fn an_image_that_qemu_writes_to_is_not_opened() {
    if !installed() {
        return;
    }
    let images = Images::new();
    let path = images.convert(&images.raw(SIZE), "vdi", "").expect("an image");
    let lock = disk::ImageLock::take(&path, disk::Access::Write).expect("nobody else");
    let refusal = disk_foreign::open(&path, ImageFormat::Vdi).err().expect("refused").to_string();
    assert!(refusal.contains("another process"), "{refusal}");
    drop(lock);
    open(&path);
}
