//! Images no tool would make.

mod images;

use disk::Disk;
use images::{FILL, Sample, samples};
use proptest::prelude::*;
use tempfile::NamedTempFile;

fn open(sample: &Sample) -> Result<Box<dyn Disk>, String> {
    let file = NamedTempFile::new().expect("a temporary file");
    sample.write(file.as_file());
    disk_foreign::open(file.path(), sample.format).map_err(|e| e.to_string())
}

#[test]
fn good_ones_are_read() {
    for sample in samples() {
        let disk = open(&sample).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(disk.geometry().size, sample.size);
        let mut bytes = vec![1; sample.size as usize];
        disk.read(0, &mut bytes).unwrap_or_else(|e| panic!("{:?}: {e}", sample.format));
        let (at, len) = (sample.data.0 as usize, sample.data.1);
        let (data, rest) = (&bytes[at..at + len], [&bytes[..at], &bytes[at + len..]].concat());
        assert!(data.iter().all(|b| *b == FILL) && rest.iter().all(|b| *b == 0), "{:?}", sample.format);
        assert_eq!(disk.known_zeroes(0, u64::MAX, &mut 4096).expect("its tables"), sample.data.0);
        let mut part = [0; 512];
        disk.read(sample.data.0 + 1024, &mut part).expect("a part of a block");
        assert_eq!(part, [FILL; 512]);
    }
}

/// A change of a good image, and a word of what is told.
fn check(good: &Sample, changes: &[(u64, &[u8])], text: &str) {
    let mut sample = good.clone();
    changes.iter().for_each(|(at, bytes)| sample.put(*at, bytes));
    sample.seal();
    let told = open(&sample).and_then(|disk| {
        let mut bytes = vec![0; sample.size as usize];
        disk.read(0, &mut bytes).map_err(|e| e.to_string())
    });
    let message = told.expect_err(text);
    assert!(message.contains(text) && message.contains("; "), "{changes:?}: \"{message}\" lacks \"{text}\"");
}

#[test]
fn fields_of_vdi_are_checked() {
    let cases: &[(u64, &[u8], &str)] = &[
        (0x40, &[0], "VDI signature"),
        (0x44, &[2], "VDI version"),
        (0x4c, &[4], "another image"),
        (0x4c, &[9], "image type"),
        (0x1a8, &[1], "another image"),
        (0x1b8, &[1], "another image"),
        (0x154, &[0, 0, 0, 0], "map offset"),
        (0x154, &[0xff; 4], "map offset"),
        (0x158, &[0; 4], "data offset"),
        (0x168, &[1], "sector size"),
        (0x170, &[0xff; 8], "disk size"),
        (0x170, &[0; 8], "disk size"),
        (0x170, &[1], "disk size"),
        (0x178, &[1], "block size"),
        (0x178, &[0; 4], "block size"),
        (0x178, &[0, 0, 0, 0x80], "block size"),
        (0x17c, &[0xff; 4], "extra block bytes"),
        (0x180, &[15], "block count"),
        (0x180, &[0xff; 4], "map offset"),
        (0x208, &[7], "damaged"),
        (0x208, &[0xfd, 0xff, 0xff, 0xff], "damaged"),
    ];
    cases.iter().for_each(|(at, bytes, text)| check(&images::vdi(), &[(*at, bytes)], text));
}

#[test]
fn fields_of_vmdk_are_checked() {
    let header: &[(u64, &[u8], &str)] = &[
        (4, &[0], "version 0"),
        (4, &[4], "version 4"),
        (11, &[0x80], "unknown flags"),
        (10, &[3], "compressed"),
        (12, &[0; 8], "disk size"),
        (12, &[0xff; 8], "disk size"),
        (20, &[0; 8], "grain size"),
        (20, &[7], "grain size"),
        (20, &[0, 16], "grain size"),
        (20, &[0xff; 8], "grain size"),
        (36, &[0xff; 8], "descriptor length"),
        (28, &[0xff; 8], "ends after"),
        (44, &[0], "grains of a table"),
        (44, &[1, 2], "grains of a table"),
        (56, &[0], "grain directory offset"),
        (56, &[0xff, 0xff], "grain directory offset"),
        (73, b"\r", "line ends"),
        (1024, &[0xff; 4], "grain table"),
        (1544, &[0xff; 4], "damaged"),
        (512, b"hello", "VMDK descriptor"),
        (512 + 48, b"0badcafe", "another image"),
    ];
    header.iter().for_each(|(at, bytes, text)| check(&images::vmdk(), &[(*at, bytes)], text));
    let packed: &[(u64, &[u8], &str)] = &[
        (77, &[2], "footer"),
        (8192 - 1024, b"X", "VMDK header"),
        (8192 - 1024 + 77, &[2], "compressed by method 2"),
        (2048, &[8], "another's marker"),
        (2048 + 8, &[0xff; 4], "packed length"),
        (2048 + 8, &[0; 4], "packed length"),
        (2048 + 12, &[0], "packed data"),
        (2048 + 15, &[0, 8, 0xff, 0xf7], "packed data"),
    ];
    // The first header's own method does not count.
    packed[1..].iter().for_each(|(at, bytes, text)| check(&images::packed_vmdk(), &[(*at, bytes)], text));
}

#[test]
fn fields_of_vhdx_are_checked() {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let item = MIB + 64 * KIB;
    let cases: &[(u64, &[u8], &str)] = &[
        (0, b"x", "file identifier"),
        (64 * KIB, b"x", "VHDX header"),
        (64 * KIB + 66, &[2], "version 2"),
        (64 * KIB + 48, &[1], "log"),
        (192 * KIB, b"x", "region table"),
        (192 * KIB + 8, &[0xff; 4], "region count"),
        (192 * KIB + 8, &[1], "allocation table and metadata"),
        (192 * KIB + 32, &[1], "region offset"),
        (192 * KIB + 32, &[0; 8], "region offset"),
        (192 * KIB + 64, &[0xff; 8], "region offset"),
        (192 * KIB + 40, &[0xff; 4], "region offset"),
        (192 * KIB + 40, &[0, 0, 0, 0], "metadata length"),
        (192 * KIB + 72, &[16, 0, 0, 0], "allocation table length"),
        (MIB, b"x", "metadata table"),
        (MIB + 10, &[0xff; 2], "metadata count"),
        (MIB + 10, &[2, 0], "metadata of its size"),
        (MIB + 48, &[0xff; 4], "metadata item offset"),
        (MIB + 48, &[0; 4], "metadata item offset"),
        (item, &[1], "block size"),
        (item, &[0; 4], "block size"),
        (item, &[0, 0, 0, 0x20], "block size"),
        (item + 4, &[2], "another image"),
        (item + 8, &[1], "disk size"),
        (item + 8, &[0xff; 8], "disk size"),
        (item + 16, &[0; 4], "logical sector size"),
        (2 * MIB + 8, &[7], "state 7"),
        (2 * MIB + 8, &[6, 0, 0, 0, 0, 0, 0, 0], "in the header"),
        (2 * MIB + 8, &[6, 0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff], "damaged"),
    ];
    cases.iter().for_each(|(at, bytes, text)| check(&images::vhdx(), &[(*at, bytes)], text));
    let mut unsealed = images::vhdx();
    unsealed.put(64 * KIB + 4, &[0; 4]);
    assert!(open(&unsealed).err().is_some_and(|e| e.contains("VHDX header")), "the checksum counts");
}

#[test]
fn images_cut_short_are_told() {
    for sample in samples() {
        for keep in [0, 3, 4, 511, 513, 1025, sample.len / 2, sample.data.1 as u64, sample.len - 1] {
            let file = NamedTempFile::new().expect("a temporary file");
            sample.write(file.as_file());
            file.as_file().set_len(keep).expect("cut");
            let read =
                disk_foreign::open(file.path(), sample.format).map_err(|e| e.to_string()).and_then(|disk| {
                    let mut bytes = vec![0; sample.size as usize];
                    disk.read(0, &mut bytes).map_err(|e| e.to_string())
                });
            // Only padding after a stream's end may go.
            let message = read.expect_err("cut");
            assert!(message.contains("; "), "{:?} {keep}: {message}", sample.format);
        }
    }
}

#[test]
fn other_files_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x.vmdk");
    let secret = directory.path().join("secret");
    std::fs::write(&secret, [1; 4096]).expect("a file");
    std::os::unix::fs::symlink(&secret, directory.path().join("link")).expect("a link");
    for (name, text) in [("../secret", "elsewhere"), ("link", "open"), ("none", "open"), (".", "elsewhere")] {
        let text_of = format!("# Disk DescriptorFile\nRW 8 FLAT \"{name}\" 0\n");
        std::fs::write(&path, text_of).expect("a descriptor");
        let refusal = disk_foreign::open(&path, disk::ImageFormat::Vmdk).err().expect(name).to_string();
        assert!(refusal.contains(text), "{name}: {refusal}");
    }
    std::fs::write(&path, "# Disk DescriptorFile\nRW 9 FLAT \"secret\" 0\n").expect("a descriptor");
    let refusal = disk_foreign::open(&path, disk::ImageFormat::Vmdk).err().expect("too short").to_string();
    assert!(refusal.contains("flat data"), "{refusal}");
    assert!(disk_foreign::open(directory.path(), disk::ImageFormat::Vdi).is_err(), "a directory");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn a_damaged_image_is_refused_or_read_without_a_panic(
        kind in 0usize..4,
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..8),
        reads in prop::collection::vec((0u64..8192, 0usize..64), 0..8),
    ) {
        let mut sample = samples()[kind].clone();
        changes.iter().for_each(|(at, byte)| sample.change(*at, *byte));
        sample.seal();
        let opened = open(&sample);
        prop_assert!(opened.is_ok() || !changes.is_empty(), "the image is good: {:?}", opened.err());
        let Ok(disk) = opened else { return Ok(()) };
        let mut buffer = vec![0; 64 * 512];
        for (sector, sectors) in reads {
            // Errors are answers too.
            let _ = disk.read(sector * 512, &mut buffer[..sectors * 512]);
            let _ = disk.known_zeroes(sector * 512, u64::MAX, &mut 4096);
        }
    }
}
