//! Headers no tool would write.

mod images;

use disk::{CacheMode, Disk};
use disk_qcow2::{Backing, Header, HeaderError, Qcow2Disk, Qcow2Options, open_to_read};
use proptest::prelude::*;

/// A good version 3 header of a disk of 1 GiB, in a file of 1 MiB.
fn good() -> Vec<u8> {
    let mut h = vec![0; 1 << 16];
    let mut put = |at: usize, bytes: &[u8]| h[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &16u32.to_be_bytes());
    put(24, &(1u64 << 30).to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &0x3_0000u64.to_be_bytes());
    put(48, &0x1_0000u64.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &112u32.to_be_bytes());
    h
}

fn parse(h: &[u8]) -> Result<Header, HeaderError> {
    Header::parse(h, 1 << 20, true)
}

#[test]
fn a_good_header_is_read() {
    let header = parse(&good()).expect("a good one");
    assert_eq!(
        (header.version, header.layout.cluster_bits, header.size, header.backing),
        (3, 16, 1 << 30, None)
    );
    let mut named = good();
    named[8..16].copy_from_slice(&200u64.to_be_bytes());
    named[16..20].copy_from_slice(&8u32.to_be_bytes());
    named[112..120].copy_from_slice(&[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3]);
    named[120..123].copy_from_slice(b"raw");
    named[200..208].copy_from_slice(b"base.raw");
    let backing = parse(&named).expect("a good one").backing;
    assert_eq!(backing, Some(("base.raw".to_string(), Some("raw".to_string()))));
}

#[test]
fn every_field_out_of_range_is_refused() {
    // Place, bytes, a word of the message.
    let cases: &[(usize, &[u8], &str)] = &[
        (0, b"QFI\0", "no qcow2"),
        (4, &[0, 0, 0, 4], "version 4"),
        (4, &[0, 0, 0, 1], "version 1"),
        (20, &[0, 0, 0, 8], "cluster bits"),
        (20, &[0, 0, 0, 22], "cluster bits"),
        (20, &[0xff; 4], "cluster bits"),
        (24, &[0xff; 8], "disk size"),
        (24, &[0x0f; 8], "L1 table entries"),
        (32, &[0, 0, 0, 1], "encryption"),
        (32, &[0, 0, 0, 9], "encryption"),
        (36, &[0xff; 4], "L1 table entries"),
        (36, &[0, 0, 0, 1], "L1 table entries"),
        (36, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0, 0], "L1 table offset"),
        (40, &[0, 0, 0, 0, 0, 0, 0x30, 1], "L1 table offset"),
        (40, &[0xff; 8], "L1 table offset"),
        (48, &[0; 8], "refcount table offset"),
        (48, &[0, 0, 0, 0, 0, 0x10, 0, 0], "refcount table offset"),
        (48, &[0xff; 8], "refcount table offset"),
        (56, &[0, 0, 0, 0], "refcount table clusters"),
        (56, &[0xff; 4], "refcount table clusters"),
        (60, &[0xff; 4], "snapshots"),
        (79, &[1], "dirty"),
        (79, &[2], "corrupt"),
        (79, &[4], "external data file"),
        (79, &[8], "compression type"),
        (79, &[0x10], "extended L2"),
        (72, &[0x80], "0x8000000000000000"),
        (96, &[0, 0, 0, 7], "refcount order"),
        (100, &[0, 0, 0, 96], "header length"),
        (100, &[0, 0, 0, 105], "header length"),
        (100, &[0, 2, 0, 0], "header length"),
        (112, &[1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff], "header extension length"),
        (8, &[0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 4, 0], "backing file's name"),
        (8, &[0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 0], "backing file's name"),
        (8, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9], "backing file's name"),
        (8, &[0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 9], "backing file's name"),
    ];
    for (at, bytes, text) in cases {
        let mut header = good();
        header[*at..at + bytes.len()].copy_from_slice(bytes);
        let message = parse(&header).expect_err(text).to_string();
        assert!(message.contains(text), "at {at}: \"{message}\" lacks \"{text}\"");
    }
    // Marks only keep writers out.
    let mut dirty = good();
    dirty[79] = 3;
    assert!(Header::parse(&dirty, 1 << 20, false).is_ok());
}

#[test]
fn a_header_that_ends_early_is_refused() {
    let good = good();
    for len in 0..112 {
        let message = parse(&good[..len]).expect_err("cut").to_string();
        assert!(message.contains("no qcow2") || message.contains("ends after"), "{len}: {message}");
    }
}

#[test]
fn images_with_features_that_are_only_read_are_good() {
    for (extended_l2, zstd) in [(false, false), (false, true), (true, false), (true, true)] {
        let kind = images::Kind { extended_l2, zstd };
        let cluster = kind.cluster();
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), images::feature_rich(kind)).expect("its bytes");
        let mut data = vec![0xaa; cluster];
        if extended_l2 {
            data[cluster / 32..cluster / 16].fill(0);
        }
        let expected = [data, vec![0xcc; cluster], vec![0; 64 * 1024 - 2 * cluster]].concat();
        let empty = vec![0; 64 * 1024];
        for (snapshot, expected) in [(None, &expected), (Some("1"), &expected), (Some("two"), &empty)] {
            let disk = open_to_read(file.path(), Backing::Deny, snapshot).expect("a good image");
            let mut contents = vec![1; 64 * 1024];
            disk.read(0, &mut contents).expect("it is whole");
            assert!(contents == *expected, "{kind:?} {snapshot:?}");
        }
    }
}

/// The refcounts of [`images::small`], in bits of a power of two.
fn with_refcounts(order: u32, of_cluster: impl Fn(u32) -> u64) -> Vec<u8> {
    let mut image = images::small();
    image[96..100].copy_from_slice(&order.to_be_bytes());
    image[1024..1536].fill(0);
    for cluster in 0..8 {
        let (at, count) = (1024 + ((cluster << order) / 8) as usize, of_cluster(cluster));
        if order < 3 {
            image[at] |= (count as u8) << ((cluster << order) % 8);
        } else {
            let bytes = 1 << (order - 3);
            image[at..at + bytes].copy_from_slice(&count.to_be_bytes()[8 - bytes..]);
        }
    }
    image
}

fn open_to_write(image: &[u8], read_only: bool) -> Result<Qcow2Disk, String> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), image).expect("its bytes");
    let options = Qcow2Options { read_only, ..Qcow2Options::default() };
    Qcow2Disk::open(file.path(), options).map_err(|e| e.to_string())
}

/// Clusters 0 to 4 of the small image are its header, refcount table, refcounts, first and
/// second level; 5 and 6 are data, 7 is free. A process that ends leaves second-level tables,
/// refcounts and data without a count, never the others.
#[test]
fn what_is_used_and_not_counted_is_counted_or_refused() {
    let counted = |cluster| u64::from(cluster < 7);
    for order in 0..=6 {
        open_to_write(&with_refcounts(order, counted), false).expect("a good image");
        for free in 0..7 {
            let image = with_refcounts(order, |cluster| if cluster == free { 0 } else { counted(cluster) });
            open_to_write(&image, true).expect("an image to read");
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            std::fs::write(file.path(), &image).expect("its bytes");
            let opened = Qcow2Disk::open(file.path(), Qcow2Options::default());
            if matches!(free, 0 | 1 | 3) {
                let why = opened.err().expect("its tables are free").to_string();
                assert!(why.contains(&format!("cluster {free},")) && why.contains("qemu-img check"), "{why}");
            } else {
                drop(opened.unwrap_or_else(|e| panic!("{free} with order {order}: {e}")));
                let mended = std::fs::read(file.path()).expect("its bytes");
                assert_eq!(mended[..4096], with_refcounts(order, counted), "{free} with order {order}");
            }
        }
    }
}

/// Writing to the first of these filled imago's stack.
#[test]
fn an_image_without_refcounts_is_only_read() {
    for entry in [0, 0x200, 0x1_0000, 1 << 56, u64::MAX] {
        let mut image = images::small();
        image[512..520].copy_from_slice(&u64::to_be_bytes(entry));
        open_to_write(&image, true).expect("an image to read");
        let why = open_to_write(&image, false).err().expect("it has none");
        assert!(why.contains("which is in use, is free"), "{entry:#x}: {why}");
    }
}

#[test]
fn an_image_that_uses_a_cluster_twice_is_only_read() {
    const COPIED: u64 = 1 << 63;
    const COMPRESSED: u64 = 1 << 62;
    // Where an entry is, the entry, and what is said.
    let cases = [
        (0x208, 0x400, "uses its cluster 2 twice"),
        (0x208, 0x200, "uses its cluster 1 twice"),
        (0x608, 0x800 | COPIED, "uses its cluster 4 twice"),
        (0x608, 0x600 | COPIED, "uses its cluster 3 twice"),
        (0x808, 0xa00 | COPIED, "uses its cluster 5 twice"),
        (0x808, 0xa00, "uses its cluster 5 twice"),
        (0x808, COMPRESSED | 0x410, "uses its cluster 2 twice"),
        (0x808, COMPRESSED | 0x1, "uses its cluster 0 twice"),
        (0x808, 1 << 41 | COPIED, "names cluster 4294967296, which is behind its end"),
        (0x808, 0xe00, "cluster 7, which is in use, is free"),
    ];
    for (at, entry, text) in cases {
        let mut image = images::small();
        image[at..at + 8].copy_from_slice(&u64::to_be_bytes(entry));
        open_to_write(&image, true).expect("an image to read");
        let why = open_to_write(&image, false).err().unwrap_or_else(|| panic!("{text}"));
        assert!(why.contains(text) && why.contains("qemu-img"), "\"{why}\" lacks \"{text}\"");
    }
}

/// A host that ends while it writes may leave tables without what they name, the refcounts of
/// that, and the file's length.
#[test]
fn what_a_host_did_not_write_reads_as_zeroes() {
    const COPIED: u64 = 1 << 63;
    // A disk of 1 MiB has 2048 clusters; a refcount block counts 256.
    for first in [7, 8, 200, 250, 256, 300, 1000, 2000] {
        let mut image = images::small();
        image[24..32].copy_from_slice(&(1u64 << 20).to_be_bytes());
        image[36..40].copy_from_slice(&32u32.to_be_bytes());
        // The other second-level tables, and data of the first.
        for (n, at) in (0x608..0x700).step_by(8).chain((0x820..0xa00).step_by(8)).enumerate() {
            let entry = (first + n as u64) << 9 | COPIED;
            image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        }
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), &image).expect("its bytes");
        let mut expected = vec![0; 1 << 20];
        expected[..512].fill(0xaa);
        expected[3 * 512..4 * 512].fill(0xaa);
        let open = |read_only, expected: &[u8]| {
            let options = Qcow2Options { read_only, ..Qcow2Options::default() };
            let disk = Qcow2Disk::open(file.path(), options).unwrap_or_else(|e| panic!("{first}: {e}"));
            let mut contents = vec![1; 1 << 20];
            disk.read(0, &mut contents).expect("it is whole");
            assert!(contents == expected, "{first}");
            disk
        };
        drop(open(true, &expected));
        assert!(std::fs::read(file.path()).expect("its bytes") == image, "{first}: it was only read");
        drop(open(false, &expected));
        let mended = std::fs::read(file.path()).expect("its bytes");
        assert!(mended.len() as u64 >= (first + 91) << 9, "{first}: {}", mended.len());
        drop(open(false, &expected));
        assert!(std::fs::read(file.path()).expect("its bytes") == mended, "{first}: it was whole");
        open(false, &expected).write(0, &vec![0xbb; 1 << 20]).expect("there is room");
        expected.fill(0xbb);
        drop(open(false, &expected));
    }
}

/// What may be read where after a process has ended, by sector.
struct Promise(Vec<Vec<u8>>);

impl Promise {
    fn check(&self, disk: &Qcow2Disk, when: &str) {
        let mut contents = vec![0; self.0.len() * 512];
        disk.read(0, &mut contents).expect("it is whole");
        for (n, (sector, allowed)) in contents.chunks(512).zip(&self.0).enumerate() {
            let same = sector.iter().all(|b| *b == sector[0]);
            assert!(
                same && allowed.contains(&sector[0]),
                "{when}: sector {n} is {sector:x?}, not of {allowed:x?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn a_damaged_image_is_refused_or_used_without_a_panic(
        changes in prop::collection::vec((0usize..8 * 512, any::<u8>()), 0..12),
        accesses in prop::collection::vec((0u8..6, 0u64..130, 0usize..64, any::<u8>()), 0..16),
    ) {
        let mut image = images::small();
        changes.iter().for_each(|(at, byte)| image[*at] = *byte);
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), &image).expect("its bytes");
        let options = Qcow2Options { cache: CacheMode::Unsafe, ..Qcow2Options::default() };
        let opened = Qcow2Disk::open(file.path(), options);
        prop_assert!(opened.is_ok() || !changes.is_empty(), "the image is good: {:?}", opened.err());
        let Ok(disk) = opened else { return Ok(()) };
        let mut buffer = vec![0; 64 * 512];
        for (kind, sector, sectors, fill) in accesses {
            let (at, len) = (sector * 512, sectors * 512);
            // Errors are answers too.
            let _ = match kind {
                0 | 1 => disk.read(at, &mut buffer[..len]),
                2 => {
                    buffer[..len].fill(fill);
                    disk.write(at, &buffer[..len])
                }
                3 => disk.discard(at, len as u64),
                4 => disk.write_zeroes(at, len as u64, fill & 1 != 0),
                _ => disk.flush(),
            };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    /// After every access a copy of the file is what `kill -9` would leave: it opens to be
    /// written, nothing flushed is lost, and nothing is read that was never there.
    #[test]
    fn a_process_may_end_after_any_access(
        accesses in prop::collection::vec((0u8..8, 0u64..2048, 1usize..48, 1u8..), 1..24),
    ) {
        const SECTORS: u64 = 2048;
        // The small image as one of 1 MiB: of its 32 second-level tables one is there.
        let mut image = images::small();
        image[24..32].copy_from_slice(&(SECTORS * 512).to_be_bytes());
        image[36..40].copy_from_slice(&32u32.to_be_bytes());
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let copy = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), &image).expect("its bytes");
        let options = Qcow2Options { cache: CacheMode::Unsafe, ..Qcow2Options::default() };
        let disk = Qcow2Disk::open(file.path(), options).expect("a good image");
        let mut now = vec![0; SECTORS as usize * 512];
        disk.read(0, &mut now).expect("it is whole");
        let mut promise = Promise(now.chunks(512).map(|sector| vec![sector[0]]).collect());
        for (kind, sector, sectors, fill) in accesses {
            let sectors = sectors.min((SECTORS - sector) as usize);
            let (at, len) = (sector * 512, sectors as u64 * 512);
            let touched = &mut promise.0[sector as usize..sector as usize + sectors];
            match kind {
                0..=2 => {
                    disk.write(at, &vec![fill; len as usize]).expect("there is room");
                    touched.iter_mut().for_each(|allowed| allowed.push(fill));
                }
                3 | 4 => {
                    disk.discard(at, len).expect("it is whole");
                    touched.iter_mut().for_each(|allowed| allowed.push(0));
                }
                5 | 6 => {
                    disk.write_zeroes(at, len, kind == 5).expect("it is whole");
                    touched.iter_mut().for_each(|allowed| allowed.push(0));
                }
                _ => {
                    disk.flush().expect("it is whole");
                    disk.read(0, &mut now).expect("it is whole");
                    promise.0.iter_mut().zip(now.chunks(512)).for_each(|(allowed, now)| *allowed = vec![now[0]]);
                }
            }
            promise.check(&disk, "now");
            std::fs::copy(file.path(), copy.path()).expect("room");
            let again = Qcow2Disk::open(copy.path(), options);
            promise.check(&again.map_err(|e| e.to_string()).expect("it opens again"), "again");
        }
    }
}
