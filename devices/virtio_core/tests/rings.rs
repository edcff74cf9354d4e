//! The mock driver against the queues of a device, in both formats.

mod echo;

use echo::Echo;
use virtio_core::VirtioDevice;
use virtio_core::features::{EVENT_IDX, INDIRECT_DESC, RING_PACKED};
use virtio_core::mock::{Bench, BenchConfig};

/// Every set of ring features, inline and on a thread.
fn variants() -> impl Iterator<Item = BenchConfig> {
    (0..16u64).map(|n| BenchConfig {
        features: [RING_PACKED, EVENT_IDX, INDIRECT_DESC]
            .iter()
            .enumerate()
            .fold(0, |f, (i, bit)| if n >> i & 1 != 0 { f | bit } else { f }),
        inline: n & 8 != 0,
    })
}

fn inverted(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|b| !b).collect()
}

#[test]
fn chains_of_all_shapes_come_back() {
    for config in variants() {
        let mut bench = Bench::new(Echo::default(), config);
        for round in 0..200u32 {
            let bytes: Vec<u8> = (0..round % 97).map(|i| (i * 7 + round) as u8).collect();
            let (a, b) = bytes.split_at(bytes.len() / 3);
            let queue = (round % 2) as u16;
            let (readable, writable): (&[&[u8]], &[u32]) = match round % 4 {
                0 => (&[&bytes], &[200]),
                1 => (&[a, b], &[1, 0, 199]),
                2 => (&[a, &[], b], &[16, 200]),
                _ => (&[&bytes], &[3]),
            };
            let room: u32 = writable.iter().sum();
            let expected = inverted(&bytes[..bytes.len().min(room as usize)]);
            let r = bench.request(queue, readable, writable);
            assert_eq!(
                (r.written as usize, &r.data),
                (expected.len(), &expected),
                "{config:?} round {round}"
            );
        }
        assert!(!bench.interrupts.needs_reset());
        bench.device.quiesce();
        assert_eq!(bench.device.answered(), 200);
    }
}
