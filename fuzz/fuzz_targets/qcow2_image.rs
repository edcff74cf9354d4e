//! A qcow2 image with arbitrary changes is refused, or read and written without a
//! panic and with little memory. Input: count of changes, (16-bit place, byte) for
//! each, then accesses of 5 bytes.
#![no_main]

use std::os::fd::AsRawFd;

use disk::Disk;
use disk_qcow2::{Qcow2Disk, Qcow2Options};
use libfuzzer_sys::fuzz_target;

const CLUSTER: usize = 512;

/// A version 3 image of 64 KiB with clusters of 512 bytes: header, refcount table,
/// refcount block, first-level table, a second-level table, two clusters of data.
fn image() -> Vec<u8> {
    let mut image = vec![0; 8 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let cluster = |n: usize, flags: u64| ((n * CLUSTER) as u64 | flags).to_be_bytes();
    const COPIED: u64 = 1 << 63;
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &9u32.to_be_bytes());
    put(24, &(64u64 << 10).to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &cluster(3, 0));
    put(48, &cluster(1, 0));
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(CLUSTER, &cluster(2, 0));
    for n in 0..7 {
        put(2 * CLUSTER + 2 * n, &1u16.to_be_bytes());
    }
    put(3 * CLUSTER, &cluster(4, COPIED));
    put(4 * CLUSTER, &cluster(5, COPIED));
    put(4 * CLUSTER + 24, &cluster(6, COPIED));
    put(5 * CLUSTER, &[0xaa; 2 * CLUSTER]);
    image
}

fuzz_target!(|data: &[u8]| {
    let [count, rest @ ..] = data else { return };
    let mut image = image();
    let (changes, accesses) = rest.split_at((usize::from(*count % 32) * 3).min(rest.len()));
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % image.len();
        image[at] = change[2];
    }
    let file = rustix::fs::memfd_create("fuzz-image", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    rustix::io::write(&file, &image).expect("its bytes");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let options = Qcow2Options { read_only: count & 0x80 != 0, ..Qcow2Options::default() };
    let Ok(disk) = Qcow2Disk::open(path.as_ref(), options) else { return };
    let mut buffer = vec![0; 64 << 10];
    for access in accesses.chunks_exact(5).take(64) {
        let offset = u64::from(u16::from_le_bytes([access[1], access[2]])) * 512;
        let len = usize::from(access[3] % 128) * 512;
        let _ = match access[0] % 6 {
            0 | 1 => disk.read(offset, &mut buffer[..len]),
            2 => {
                buffer[..len].fill(access[4]);
                disk.write(offset, &buffer[..len])
            }
            3 => disk.discard(offset, len as u64),
            4 => disk.write_zeroes(offset, len as u64, access[4] & 1 != 0),
            _ => disk.flush(),
        };
    }
});
