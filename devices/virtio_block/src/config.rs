//! Features and the configuration structure (5.2.3, 5.2.4).

use disk::Disk;

/// Most data segments of a request.
pub const MAX_SEGMENTS: u32 = 254;
/// Most bytes of a segment: requests of up to 1 MiB need one each.
const MAX_SEGMENT_BYTES: u32 = 1 << 20;
/// Most 512-byte sectors of a discard or a write of zeroes: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Most ranges of one.
pub const MAX_RANGES: u32 = 64;

const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
/// The driver knows flush.
pub const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const CONFIG_WCE: u64 = 1 << 11;
const MULTI_QUEUE: u64 = 1 << 12;
/// The driver may discard.
pub const DISCARD: u64 = 1 << 13;
/// The driver may write zeroes.
pub const WRITE_ZEROES: u64 = 1 << 14;

/// Offset of the write cache's switch.
pub const WRITEBACK: u64 = 32;

/// What a device of a disk offers.
pub struct Features(u64);

impl Features {
    /// For a disk, with so many queues.
    pub fn of(disk: &dyn Disk, queues: u16) -> Self {
        let mut bits = SIZE_MAX | SEG_MAX | BLOCK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE;
        bits |= if disk.read_only() { READ_ONLY } else { DISCARD | WRITE_ZEROES };
        bits |= if queues > 1 { MULTI_QUEUE } else { 0 };
        Features(bits)
    }

    /// As bits.
    pub fn bits(&self) -> u64 {
        self.0
    }
}

/// `struct virtio_blk_config`; `cached`: writes are durable only when flushed.
pub fn bytes(disk: &dyn Disk, queues: u16, cached: bool) -> [u8; 60] {
    let g = disk.geometry();
    let mut b = [0; 60];
    let mut put = |at: usize, value: &[u8]| b[at..at + value.len()].copy_from_slice(value);
    put(0, &(g.size / 512).to_le_bytes());
    put(8, &MAX_SEGMENT_BYTES.to_le_bytes());
    put(12, &MAX_SEGMENTS.to_le_bytes());
    put(20, &g.logical_block.to_le_bytes());
    // Logical blocks of a physical one as a power of two, alignment, least and best I/O in blocks.
    put(24, &[(g.physical_block / g.logical_block).trailing_zeros() as u8, 0]);
    put(26, &((g.physical_block / g.logical_block).min(0xffff) as u16).to_le_bytes());
    put(28, &(g.physical_block / g.logical_block).to_le_bytes());
    put(WRITEBACK as usize, &[u8::from(cached)]);
    put(34, &queues.to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &MAX_RANGES.to_le_bytes());
    put(44, &(g.discard_unit / 512).to_le_bytes());
    put(48, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(52, &MAX_RANGES.to_le_bytes());
    put(56, &[1]);
    b
}
