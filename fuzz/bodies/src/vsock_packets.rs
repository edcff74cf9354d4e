//! Arbitrary packets of a guest, with receive buffers of arbitrary sizes: the
//! device stays alive, and everything for the guest has a sound header.

use virtio_core::VirtioDevice;
use virtio_core::mock::{Bench, BenchConfig};
use virtio_vsock::{HEADER, HOST_CID, Header, VirtioVsock, VsockConfig};

const CID: u64 = 3;

/// One run.
pub fn vsock_packets(input: &[u8]) {
    let device = VirtioVsock::new(VsockConfig { cid: CID, listener: None, to_host: None }).expect("a device");
    let config = BenchConfig { inline: true, ..BenchConfig::default() };
    let mut bench = Bench::new(device, config);
    let mut rest = input;
    while let Some((&[kind, length], after)) = rest.split_first_chunk() {
        let bytes;
        (bytes, rest) = after.split_at(after.len().min(length.into()));
        if bench.queues.iter().any(|q| q.outstanding() > 200) {
            break;
        }
        if kind & 1 != 0 {
            bench.post(0, &[], &[u32::from(length) * 8 + 1]);
            bench.kick(0);
        } else {
            // Mostly well addressed, so that it gets beyond the first check.
            let mut packet = bytes.to_vec();
            if kind & 2 != 0 && packet.len() >= 16 {
                packet[..8].copy_from_slice(&CID.to_le_bytes());
                packet[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
            }
            bench.post(1, &[&packet], &[]);
            bench.kick(1);
        }
        while bench.poll(1).is_some() {}
        while let Some(answer) = bench.poll(0) {
            let header = Header::decode(answer.data[..HEADER].try_into().expect("a header"));
            assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, 1));
            assert_eq!(header.len as usize, answer.data.len() - HEADER);
        }
    }
    bench.device.quiesce();
}
