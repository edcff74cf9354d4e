//! Images made by hand.

#![allow(dead_code, reason = "each test binary uses some of these")]

use std::io::Write;

const CLUSTER: usize = 512;

/// A version 3 image of 64 KiB with clusters of 512 bytes: header, refcount table,
/// refcount block, first-level table, a second-level table, two clusters of data.
pub fn small() -> Vec<u8> {
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

/// Features of an image that is only read.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Entries of 16 bytes, which tell of parts of clusters.
    pub extended_l2: bool,
    /// Compressed by zstd, not deflate.
    pub zstd: bool,
}

impl Kind {
    /// Bytes of a cluster: the least that is allowed.
    pub fn cluster(self) -> usize {
        if self.extended_l2 { 16 << 10 } else { CLUSTER }
    }

    /// A cluster of `0xcc`, compressed.
    fn packed(self) -> Vec<u8> {
        if self.zstd {
            // A frame of one segment, its size in two bytes less 256; the last block, one byte repeated.
            let size = (self.cluster() as u16 - 256).to_le_bytes();
            let block = (self.cluster() as u32) << 3 | 1 << 1 | 1;
            let head = [0x28, 0xb5, 0x2f, 0xfd, 0x60, size[0], size[1]];
            return [&head[..], &block.to_le_bytes()[..3], &[0xcc]].concat();
        }
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&vec![0xcc; self.cluster()]).expect("memory has room");
        encoder.finish().expect("memory has room")
    }
}

/// A version 3 image: cluster 0 of the disk has data (`0xaa`; with extended entries its
/// second part reads as zeroes), cluster 1 is compressed, cluster 2 reads as zeroes, the
/// rest is not there. Two snapshots, "1" of the same tables and "two" of an empty disk.
pub fn feature_rich(kind: Kind) -> Vec<u8> {
    let size = kind.cluster();
    let mut image = vec![0; 9 * size];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let cluster = |n: usize, flags: u64| ((n * size) as u64 | flags).to_be_bytes();
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &size.ilog2().to_be_bytes());
    put(24, &(64u64 << 10).to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &cluster(3, 0));
    put(48, &cluster(1, 0));
    put(56, &1u32.to_be_bytes());
    put(60, &2u32.to_be_bytes());
    put(64, &cluster(7, 0));
    put(72, &(u64::from(kind.zstd) << 3 | u64::from(kind.extended_l2) << 4).to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &112u32.to_be_bytes());
    put(104, &[kind.zstd.into()]);
    put(size, &cluster(2, 0));
    for n in 0..9 {
        put(2 * size + 2 * n, &2u16.to_be_bytes());
    }
    put(3 * size, &cluster(4, 0));
    let entry = if kind.extended_l2 { 16 } else { 8 };
    put(4 * size, &cluster(5, 0));
    put(4 * size + entry, &cluster(6, 1 << 62));
    if kind.extended_l2 {
        put(4 * size + 8, &(1u64 << 33 | 0xffff_fffd).to_be_bytes());
        put(4 * size + 2 * entry + 8, &(0xffff_ffff_u64 << 32).to_be_bytes());
    } else {
        put(4 * size + 2 * entry, &1u64.to_be_bytes());
    }
    put(5 * size, &vec![0xaa; size]);
    put(6 * size, &kind.packed());
    let snapshot = |l1: usize, id: &str, name: &str| {
        let mut e = vec![0; 56];
        e[..8].copy_from_slice(&cluster(l1, 0));
        e[8..12].copy_from_slice(&2u32.to_be_bytes());
        e[12..14].copy_from_slice(&(id.len() as u16).to_be_bytes());
        e[14..16].copy_from_slice(&(name.len() as u16).to_be_bytes());
        e[36..40].copy_from_slice(&16u32.to_be_bytes());
        e[48..56].copy_from_slice(&(64u64 << 10).to_be_bytes());
        e.extend_from_slice(id.as_bytes());
        e.extend_from_slice(name.as_bytes());
        e.resize(e.len().next_multiple_of(8), 0);
        e
    };
    put(7 * size, &[snapshot(3, "1", "same"), snapshot(8, "2", "two")].concat());
    image
}
