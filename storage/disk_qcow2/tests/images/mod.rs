//! Images made by hand.

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
