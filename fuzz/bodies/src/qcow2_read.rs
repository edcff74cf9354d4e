//! qcow2 images with what is only read (clusters compressed by deflate and zstd,
//! extended L2 entries, internal snapshots) and arbitrary changes are refused, or read
//! without a panic and with little memory. Input: which image, the count of changes,
//! (cluster, 16-bit place in it, byte) for each, then reads of 4 bytes.

use std::io::Write;
use std::sync::OnceLock;

use disk_qcow2::{Backing, open_to_read, snapshots};

use crate::images::qcow2::{Kind, feature_rich};
use crate::images::{read, scratch};

fn bases() -> &'static [(usize, Vec<u8>)] {
    static BASES: OnceLock<Vec<(usize, Vec<u8>)>> = OnceLock::new();
    BASES.get_or_init(|| {
        let kinds = [(false, false), (false, true), (true, false), (true, true)];
        let image = |(extended_l2, zstd)| {
            let kind = Kind { extended_l2, zstd };
            (kind.cluster(), feature_rich(kind))
        };
        kinds.map(image).into()
    })
}

/// One run.
pub fn qcow2_read(data: &[u8]) {
    let [kind, count, rest @ ..] = data else { return };
    let (cluster, mut image) = bases()[usize::from(*kind % 4)].clone();
    let (changes, reads) = rest.split_at((usize::from(*count % 32) * 4).min(rest.len()));
    for change in changes.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % cluster;
        let len = image.len();
        image[(usize::from(change[0]) * cluster + at) % len] = change[3];
    }
    let (mut file, path) = scratch();
    file.write_all(&image).expect("its bytes");
    let mut wanted = vec![None];
    if let Ok(found) = snapshots(path.as_ref()) {
        wanted.extend(found.into_iter().take(2).map(|s| Some(s.id)));
    }
    for wanted in wanted {
        if let Ok(disk) = open_to_read(path.as_ref(), Backing::Deny, wanted.as_deref()) {
            read(&*disk, reads);
        }
    }
}
