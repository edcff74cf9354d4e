//! Good images, which other crates' tests make, for the targets that damage them; and
//! what these have in common.

use std::fs::File;
use std::os::fd::AsRawFd;

use disk::Disk;
use rustix::fs::{MemfdFlags, memfd_create};

#[allow(dead_code, reason = "tests use all of it")]
#[path = "../../../storage/disk_foreign/tests/images/mod.rs"]
pub mod foreign;
#[path = "../../../boot/loader/tests/images/mod.rs"]
pub mod kernels;
#[path = "../../../storage/disk_qcow2/tests/images/mod.rs"]
pub mod qcow2;

/// An empty file without a name, and a path to it.
pub fn scratch() -> (File, String) {
    let file = File::from(memfd_create("fuzz-image", MemfdFlags::CLOEXEC).expect("a file"));
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path)
}

/// Read what input of 4 bytes each says: 16 bits of place, length, and whether only
/// zeroes are asked for.
pub fn read(disk: &dyn Disk, reads: &[u8]) {
    let mut buffer = vec![0; 64 << 10];
    for read in reads.chunks_exact(4).take(64) {
        let offset = u64::from(u16::from_le_bytes([read[0], read[1]])) * 512;
        let len = usize::from(read[2] % 128) * 512;
        if read[3] & 1 == 0 {
            let _ = disk.read(offset, &mut buffer[..len]);
        } else {
            let _ = disk.known_zeroes(offset, u64::MAX, &mut 4096);
        }
    }
}
