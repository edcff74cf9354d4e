//! VHDX, VDI and VMDK images with arbitrary changes are refused, or read without a
//! panic and with little memory. Input: the kind, the count of changes, (32-bit place,
//! byte) for each, then reads of 4 bytes.

use crate::images::{foreign as images, read, scratch};

/// One run.
pub fn foreign_image(data: &[u8]) {
    let [kind, count, rest @ ..] = data else { return };
    let mut sample = images::samples()[usize::from(*kind % 4)].clone();
    let (changes, reads) = rest.split_at((usize::from(*count % 32) * 5).min(rest.len()));
    for change in changes.chunks_exact(5) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], change[3]]);
        sample.change(at as usize, change[4]);
    }
    if kind & 0x80 == 0 {
        sample.seal();
    }
    let (file, path) = scratch();
    sample.write(&file);
    let Ok(disk) = disk_foreign::open(path.as_ref(), sample.format) else { return };
    read(&*disk, reads);
}
