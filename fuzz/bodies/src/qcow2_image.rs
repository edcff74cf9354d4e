//! A qcow2 image with arbitrary changes is refused, or read and written without a
//! panic and with little memory. Input: count of changes, (16-bit place, byte) for
//! each, then accesses of 5 bytes.

use std::io::Write;

use disk::Disk;
use disk_qcow2::{Qcow2Disk, Qcow2Options};

use crate::images::{qcow2 as images, scratch};

/// One run.
pub fn qcow2_image(data: &[u8]) {
    let [count, rest @ ..] = data else { return };
    let mut image = images::small();
    let (changes, accesses) = rest.split_at((usize::from(*count % 32) * 3).min(rest.len()));
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % image.len();
        image[at] = change[2];
    }
    let (mut file, path) = scratch();
    file.write_all(&image).expect("its bytes");
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
}
