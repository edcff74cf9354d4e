//! A host that ends while it writes: of what changed since the last sync the medium has
//! some sectors, and the file either length.

use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

#[path = "../tests/images/mod.rs"]
mod images;

/// Also of clusters.
const SECTOR_LEN: usize = 512;
const IMAGE: &str = "image.qcow2";
/// In entries of tables: nobody else uses it.
const COPIED: u64 = 1 << 63;

thread_local! {
    static ON_SYNC: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// A file was synced by this thread.
pub(crate) fn synced() {
    ON_SYNC.with_borrow_mut(|act| act.iter_mut().for_each(|act| act()));
}

/// Files in memory where there is a place for that: what is synced is the test's own matter.
fn temporary() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

/// The small image as one of 1 MiB, of which every second-level table is there; clusters of
/// the first are zeroes with room kept, in reverse.
fn spares() -> Vec<u8> {
    let mut image = images::small();
    image[24..32].copy_from_slice(&(2048 * SECTOR_LEN as u64).to_be_bytes());
    image[36..40].copy_from_slice(&32u32.to_be_bytes());
    let entry = |n: usize, flags: u64| ((n * SECTOR_LEN) as u64 | COPIED | flags).to_be_bytes();
    for n in 1..32 {
        image[3 * SECTOR_LEN + 8 * n..][..8].copy_from_slice(&entry(7 + n, 0));
    }
    for n in 16..64 {
        image[4 * SECTOR_LEN + 8 * n..][..8].copy_from_slice(&entry(120 - n, 1));
    }
    image
}

/// What the medium may have: of each sector the old or the new, and either length.
fn torn(old: &[u8], new: &[u8], mut seed: u64) -> Vec<u8> {
    let mut coin = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed >> 33 & 1 != 0
    };
    let mut medium = new.to_vec();
    for (n, sector) in medium.chunks_mut(SECTOR_LEN).enumerate().filter(|_| coin()) {
        let old = old.get(n * SECTOR_LEN..).unwrap_or(&[]);
        sector.iter_mut().enumerate().for_each(|(n, byte)| *byte = old.get(n).copied().unwrap_or(0));
    }
    medium.truncate(if coin() { old.len().min(new.len()) } else { new.len() });
    medium
}

type Access = (u8, u64, usize, u8);

/// Access an image, and open what a host would leave that stops behind each of the accesses:
/// it is whole, and what was flushed and not touched since is there.
fn check(files: &Path, sectors: u64, accesses: &[Access], seed: u64) -> Result<(), TestCaseError> {
    let (path, copy) = (files.join(IMAGE), files.join("copy.qcow2"));
    let options = Qcow2Options { backing: Backing::Allow, ..Qcow2Options::default() };
    let disk = Qcow2Disk::open(&path, options).expect("a good image");
    let bytes = move || fs::read(&path).unwrap_or_default();
    let durable = std::rc::Rc::new(RefCell::new(bytes()));
    let (noted, now) = (durable.clone(), bytes.clone());
    ON_SYNC.set(Some(Box::new(move || *noted.borrow_mut() = now())));
    let mut flushed = vec![0; sectors as usize * SECTOR_LEN];
    disk.read(0, &mut flushed).expect("it is whole");
    let mut touched = vec![false; sectors as usize];
    for (n, (kind, sector, count, fill)) in accesses.iter().enumerate() {
        let sector = sector % sectors;
        let count = (*count).min((sectors - sector) as usize);
        let (at, len) = (sector * SECTOR_LEN as u64, count * SECTOR_LEN);
        match kind {
            0..=2 => disk.write(at, &vec![*fill; len]),
            3 | 4 => disk.discard(at, len as u64),
            5 | 6 => disk.write_zeroes(at, len as u64, *kind == 5),
            _ => disk.flush().and_then(|()| disk.read(0, &mut flushed)),
        }
        .expect("there is room");
        touched[sector as usize..][..count].fill(true);
        if *kind == 7 {
            touched.fill(false);
        }
        for way in 0..4 {
            let medium = torn(&durable.borrow(), &bytes(), seed ^ (n as u64 * 4 + way) << 20);
            fs::write(&copy, &medium).expect("room");
            // It syncs nothing, which would be told.
            let again = Qcow2Disk::open(&copy, Qcow2Options { cache: CacheMode::Unsafe, ..options });
            let again = again.map_err(|e| TestCaseError::fail(e.to_string()))?;
            let mut contents = vec![0; flushed.len()];
            again.read(0, &mut contents).expect("it is whole");
            let pairs = contents.chunks(SECTOR_LEN).zip(flushed.chunks(SECTOR_LEN)).enumerate();
            for (n, (seen, was)) in pairs.filter(|(n, _)| !touched[*n]) {
                prop_assert!(seen == was, "sector {}: {:x} was {:x}", n, seen[0], was[0]);
            }
        }
    }
    Ok(())
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let sector = prop_oneof![0u64..2048, 0u64..64];
    prop::collection::vec((0u8..8, sector, 1usize..200, 1u8..), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_host_may_stop_after_any_access(accesses in accesses(), seed in 1u64..) {
        let files = temporary();
        fs::write(files.path().join(IMAGE), spares()).expect("room");
        check(files.path(), 2048, &accesses, seed)?;
    }
    /// Of an image with compressed clusters, and with tables that snapshots have too.
    #[test]
    fn a_host_may_stop_where_writing_frees(accesses in accesses(), seed in 1u64..) {
        let (files, kind) = (temporary(), images::Kind { extended_l2: false, zstd: false });
        fs::write(files.path().join(IMAGE), images::feature_rich(kind)).expect("room");
        check(files.path(), 128, &accesses, seed)?;
    }
    /// Of a new image, and of one that stands on another, with clusters of many sectors.
    #[test]
    fn a_host_may_stop_where_writing_copies(accesses in accesses(), seed in 1u64.., stands: bool) {
        let (files, len) = (temporary(), 2048 * SECTOR_LEN as u64);
        fs::write(files.path().join("base.raw"), vec![0xee; len as usize]).expect("room");
        let below = stands.then_some(("base.raw", ImageFormat::Raw));
        crate::create(&files.path().join(IMAGE), len, below).expect("a new image");
        check(files.path(), 2048, &accesses, seed)?;
    }
}
