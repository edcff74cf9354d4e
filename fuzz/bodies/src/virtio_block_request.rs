//! No request panics the block device or goes unanswered. Input: for each request
//! its type, sector, a length to read, lengths to write, and how the header is cut.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use disk::{Disk, RawDisk, RawOptions};
use virtio_block::{Block, BlockConfig};
use virtio_core::VirtioDevice;
use virtio_core::mock::{Bench, BenchConfig};

const KINDS: [u32; 8] = [0, 1, 4, 8, 11, 13, 14, u32::MAX];

/// One run.
pub fn virtio_block_request(data: &[u8]) {
    let [features, steps @ ..] = data else { return };
    let file = rustix::fs::memfd_create("fuzz-disk", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    rustix::fs::ftruncate(&file, 1 << 20).expect("its size");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let disk: Arc<dyn Disk> =
        Arc::new(RawDisk::open(path.as_ref(), RawOptions::default()).expect("a good image"));
    let device = Block::new(BlockConfig { disk, serial: "fuzz".to_string(), queues: 1, on_full: None });
    let features = if features & 1 == 0 { u64::MAX } else { !(1 << 34 | 0x7f << 8) };
    let mut bench = Bench::new(device, BenchConfig { features, inline: true });
    for step in steps.chunks_exact(24) {
        let kind = KINDS[usize::from(step[0] & 7)];
        let sector = u64::from(step[1]) | u64::from(step[2] & 0x8f) << 8 | u64::from(step[3] & 0x80) << 56;
        let mut readable = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        readable.extend_from_slice(&step[8..24]);
        readable.resize(16 + usize::from(step[4]) * 16, step[5]);
        let cut = usize::from(step[6]).min(readable.len());
        let (head, tail) = readable.split_at(cut);
        let parts: Vec<&[u8]> = [head, tail].into_iter().filter(|p| !p.is_empty()).collect();
        let writable: Vec<u32> = step[7..9].iter().map(|n| u32::from(*n) * 128 + u32::from(*n & 1)).collect();
        let writable: Vec<u32> = writable.into_iter().filter(|n| *n > 0).collect();
        if parts.is_empty() && writable.is_empty() {
            continue;
        }
        let response = bench.request(0, &parts, &writable);
        assert!(response.written <= writable.iter().sum());
        bench.device.config_write(u64::from(step[3]), &step[..usize::from(step[1] & 7)]);
        bench.device.config_read(sector, &mut [0; 9]);
    }
}
