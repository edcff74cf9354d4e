//! The device behind the mock driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use disk::mock::FullDisk;
use disk::{Aio, Disk, RawDisk, RawOptions};
use tempfile::NamedTempFile;
use virtio_block::{Block, BlockConfig};
use virtio_core::VirtioDevice;
use virtio_core::mock::{Bench, BenchConfig};

const SIZE: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(10);
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

#[test]
fn requests_wait_for_room_on_the_host() {
    let split = !virtio_core::features::RING_PACKED;
    for (features, inline, overlaps) in [
        (u64::MAX, false, false),
        (split, false, false),
        (u64::MAX, true, true),
        (u64::MAX, false, true),
        (split, false, true),
    ] {
        let f = fixture(RawOptions::default(), BenchConfig::default());
        let full = Arc::new(FullDisk { disk: f.disk.clone(), is_full: AtomicBool::new(true), overlaps });
        let (tell, told) = channel();
        let device = || {
            let tell = tell.clone();
            Block::new(BlockConfig {
                disk: full.clone(),
                serial: String::new(),
                queues: 1,
                on_full: Some(Arc::new(move || tell.send(()).unwrap())),
            })
        };
        let mut bench = Bench::new(device(), BenchConfig { features, inline });
        // A read that needs no room, a write that does, a read beside it, and
        // one that sees it, by the flush between.
        let ids = [
            bench.post(0, &[&header(0, 0)], &[513]),
            bench.post(0, &[&header(1, 8), &[7; 512]], &[1]),
            bench.post(0, &[&header(0, 9)], &[513]),
            bench.post(0, &[&header(4, 0)], &[1]),
            bench.post(0, &[&header(0, 8)], &[513]),
        ];
        bench.device.notify(0);
        assert_eq!(bench.wait(0).id, ids[0]);
        told.recv_timeout(PATIENCE).expect("told");
        bench.device.notify(0);
        // It goes on while there is no room: held again, by a device with its state.
        bench.replace(device());
        told.recv_timeout(PATIENCE).expect("told again");
        assert_eq!(bench.poll(0), None, "nothing is answered");
        full.is_full.store(false, Ordering::SeqCst);
        bench.replace(device());
        let [write, beside, flush, read] = std::array::from_fn(|_| bench.wait(0));
        assert_eq!((write.id, &write.data[..]), (ids[1], &[OK][..]));
        assert_eq!((beside.id, &beside.data[..]), (ids[2], &[&[0; 512][..], &[OK]].concat()[..]));
        assert_eq!((flush.id, &flush.data[..]), (ids[3], &[OK][..]));
        assert_eq!((read.id, &read.data[..]), (ids[4], &[&[7; 512][..], &[OK]].concat()[..]));
        assert!(told.try_recv().is_err());
    }
}

#[test]
fn a_size_that_changed_while_the_device_stood_still_is_told() {
    let mut f = fixture(RawOptions::default(), BenchConfig::default());
    let queues = f.bench.device.quiesce();
    f.disk.resize(2 * SIZE).unwrap();
    assert_eq!(f.bench.interrupts.take_config(), 0);
    f.bench.go_on(queues);
    assert_eq!(f.bench.interrupts.take_config(), 1);
}

struct Fixture {
    bench: Bench<Block>,
    disk: Arc<dyn Disk>,
    _file: NamedTempFile,
}

fn device(disk: &Arc<dyn Disk>) -> Block {
    Block::new(BlockConfig { disk: disk.clone(), serial: "serial-1".to_string(), queues: 2, on_full: None })
}

fn fixture(options: RawOptions, config: BenchConfig) -> Fixture {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::open(file.path(), options).unwrap());
    Fixture { bench: Bench::new(device(&disk), config), disk, _file: file }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

impl Fixture {
    /// A request; its data and its status.
    fn request(&mut self, queue: u16, readable: &[&[u8]], data: &[u32]) -> (Vec<u8>, u8) {
        let writable = [data, &[1]].concat();
        let mut all = self.bench.request(queue, readable, &writable).data;
        let status = all.pop().expect("a status");
        (all, status)
    }

    fn status(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        self.request(0, &[&header(kind, sector), data], &[]).1
    }
}

#[test]
fn data_go_both_ways_on_every_queue_and_ring() {
    let split = !virtio_core::features::RING_PACKED;
    for (features, inline, aio) in [
        (u64::MAX, false, Aio::Threads),
        (split, false, Aio::Threads),
        (u64::MAX, true, Aio::Threads),
        (u64::MAX, false, Aio::IoUring),
        (split, false, Aio::IoUring),
    ] {
        let options = RawOptions { aio, ..RawOptions::default() };
        let mut f = fixture(options, BenchConfig { features, inline });
        for queue in [0, 1] {
            let data: Vec<u8> = (0..12 << 10).map(|i| (i % 251) as u8 + queue as u8).collect();
            let sector = 100 + 64 * u64::from(queue);
            let (head, tail) = data.split_at(5 << 10);
            assert_eq!(f.request(queue, &[&header(1, sector), head, tail], &[]), (vec![], OK));
            let mut on_disk = vec![0; data.len()];
            f.disk.read(sector * 512, &mut on_disk).unwrap();
            assert!(on_disk == data);
            assert_eq!(f.request(queue, &[&header(0, sector)], &[512, 11 << 10, 512]), (data, OK));
        }
    }
}

#[test]
fn flush_zeroes_discard_and_serial() {
    let mut f = fixture(RawOptions::default(), BenchConfig::default());
    f.disk.write(0, &vec![9; 64 << 10]).unwrap();
    assert_eq!(f.status(4, 0, &[]), OK);
    let range = |sector: u64, n: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &n.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    assert_eq!(f.status(13, 0, &range(8, 8, 1)), OK);
    assert_eq!(f.status(13, 0, &range(24, 1, 0)), OK);
    assert_eq!(f.status(11, 0, &[range(32, 8, 0), range(64, 8, 0)].concat()), OK);
    let mut all = vec![0; 64 << 10];
    f.disk.read(0, &mut all).unwrap();
    for (block, bytes) in all.chunks(512).enumerate() {
        let zero = [8..16, 24..25, 32..40, 64..72].iter().any(|r| r.contains(&block));
        assert!(bytes.iter().all(|b| *b == if zero { 0 } else { 9 }), "block {block}");
    }
    let (id, status) = f.request(0, &[&header(8, 0)], &[20]);
    assert_eq!((&id[..], status), (&b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0"[..], OK));
    // Type, sector, data, status.
    let last = SIZE / 512;
    for (kind, sector, data, status) in [
        (1, last, vec![0; 512], IO_ERROR),
        (1, u64::MAX, vec![0; 512], IO_ERROR),
        (1, u64::MAX / 512, vec![0; 1024], IO_ERROR),
        (1, 0, vec![0; 100], IO_ERROR),
        (11, 0, range(last, 1, 0), IO_ERROR),
        (11, 0, range(0, u32::MAX, 0), IO_ERROR),
        (11, 0, range(0, 1, 1), UNSUPPORTED),
        (13, 0, range(0, 1, 2), UNSUPPORTED),
        (11, 0, vec![0; 15], IO_ERROR),
        (11, 0, vec![0; 65 * 16], IO_ERROR),
        (99, 0, vec![], UNSUPPORTED),
    ] {
        assert_eq!(f.status(kind, sector, &data), status, "type {kind} at {sector:#x}");
    }
    assert_eq!(f.request(0, &[&[0; 15]], &[]).1, IO_ERROR, "half a header");
}

#[test]
fn a_read_only_disk_says_so_and_refuses_changes() {
    let options = RawOptions { read_only: true, ..RawOptions::default() };
    let mut f = fixture(options, BenchConfig::default());
    assert_ne!(f.bench.device.features() & 1 << 5, 0);
    assert_eq!(f.status(1, 0, &[1; 512]), IO_ERROR);
    assert_eq!(f.status(11, 0, &[0; 16]), UNSUPPORTED, "not offered");
    assert_eq!(f.request(0, &[&header(0, 0)], &[512]), (vec![0; 512], OK));
}

#[test]
fn growth_of_the_disk_is_a_configuration_change() {
    let mut f = fixture(RawOptions::default(), BenchConfig::default());
    let mut capacity = [0; 8];
    f.bench.device.config_read(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SIZE / 512);
    f.disk.resize(2 * SIZE).unwrap();
    assert_eq!(f.bench.interrupts.take_config(), 1);
    f.bench.device.config_read(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), SIZE / 256);
    let mut beyond = [0xff; 8];
    f.bench.device.config_read(u64::MAX - 3, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}

#[test]
fn requests_survive_a_change_of_device() {
    let mut f = fixture(RawOptions::default(), BenchConfig::default());
    f.bench.device.config_write(32, &[0]);
    assert_eq!(f.status(1, 7, &[5; 512]), OK);
    let fresh = device(&f.disk);
    f.bench.replace(fresh);
    let mut writeback = [9];
    f.bench.device.config_read(32, &mut writeback);
    assert_eq!(writeback, [0], "write-through stays");
    assert_eq!(f.request(1, &[&header(0, 7)], &[512]), (vec![5; 512], OK));
}
