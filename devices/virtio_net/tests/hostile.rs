//! A driver that makes chains of anything on every queue harms nobody.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use port::{Capabilities, FrameSink, MAX_FRAME, MacAddress, Offload, Offloads, Port};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use virtio_core::mock::{Bench, BenchConfig};
use virtio_core::{VirtioDevice, features};
use virtio_net::VirtioNet;

const ALL: Offloads =
    Offloads { checksum: true, tcp4: true, tcp6: true, ecn: true, udp_fragments: true, udp_datagrams: true };

/// Answers each frame with one of another length.
struct Answers {
    lengths: Vec<usize>,
    file: OwnedFd,
}

impl Port for Answers {
    fn capabilities(&self) -> Capabilities {
        Capabilities { accepts: ALL, gives: ALL, mtu: 1500 }
    }
    fn set_receiver(&mut self, _takes: Offloads) {}
    fn send(&mut self, frame: &[u8], _offload: &Offload) {
        assert!(frame.len() <= MAX_FRAME);
        self.lengths.push(frame.len() * 37 % MAX_FRAME);
    }
    fn receive(&mut self, sink: &mut dyn FrameSink) {
        while let Some(length) = self.lengths.pop().filter(|_| sink.room()) {
            sink.take(&[&vec![0xff; length]], &Offload::NONE);
        }
    }
    fn ready_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A chain: its queue, what the device reads, sizes of what it writes.
type Posted = (u16, Vec<Vec<u8>>, Vec<u32>);

fn chain() -> impl Strategy<Value = Posted> {
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..40),
        // Commands that are nearly right.
        (0u8..7, 0u8..7, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(a, b, rest)| [
            vec![a, b],
            rest
        ]
        .concat()),
        (1usize..70_000).prop_map(|n| vec![0; n]),
    ];
    let readable = proptest::collection::vec(bytes, 0..4);
    let writable = proptest::collection::vec(1u32..70_000, 0..4);
    (0u16..3, readable, writable)
        .prop_filter("a chain is not empty", |(_, r, w)| !r.is_empty() || !w.is_empty())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_chain_is_survived(chains in proptest::collection::vec(chain(), 1..40), packed: bool, inline: bool) {
        let port = Answers { lengths: Vec::new(), file: eventfd(0, EventfdFlags::CLOEXEC).unwrap() };
        let features = if packed { u64::MAX } else { !features::RING_PACKED };
        let card = VirtioNet::new(MacAddress([2; 6]), vec![Box::new(port)]);
        let mut bench = Bench::new(card, BenchConfig { features, inline });
        for (queue, readable, writable) in &chains {
            let parts: Vec<&[u8]> = readable.iter().map(Vec::as_slice).collect();
            bench.post(*queue, &parts, writable);
            bench.kick(*queue);
        }
        // Whatever was sent and commanded comes back; so do the queues, from a thread that lives.
        for queue in [1, 2] {
            let posted = chains.iter().filter(|c| c.0 == queue).count();
            for _ in 0..posted {
                bench.wait(queue);
            }
        }
        let queues = bench.device.quiesce();
        prop_assert!(queues.len() == 3 && queues.iter().all(Option::is_some));
    }
}
