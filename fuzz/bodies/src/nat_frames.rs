//! Whatever frames a guest sends, the NAT answers or drops them. Nothing leaves:
//! all egress is refused, and what is written is dropped.

use arbitrary::{Arbitrary, Unstructured};
use nat::{Nat, NatConfig, Policy};
use port::{Checksum, FrameSink, HEADER_LEN, MAX_FRAME, Offload, Offloads, Port};

#[derive(Arbitrary, Debug)]
enum Step {
    /// A frame as it is, behind a header as it is.
    Raw {
        header: [u8; HEADER_LEN],
        frame: Vec<u8>,
    },
    /// An IPv4 packet with a right header: the parsers behind it are reached.
    V4 {
        protocol: u8,
        to: u8,
        fragment: u16,
        payload: Vec<u8>,
    },
    /// The same for IPv6.
    V6 {
        protocol: u8,
        hops: u8,
        to: u8,
        payload: Vec<u8>,
    },
    /// A UDP datagram to a port of the router or the name server.
    Udp {
        port: u8,
        payload: Vec<u8>,
    },
    /// Let it answer.
    Receive {
        room: u8,
        takes: bool,
    },
    Reset,
}

struct Sink(u8);

impl FrameSink for Sink {
    fn room(&mut self) -> bool {
        self.0 > 0
    }
    fn take(&mut self, parts: &[&[u8]], _: &Offload) {
        self.0 = self.0.saturating_sub(1);
        assert!(parts.iter().map(|p| p.len()).sum::<usize>() <= MAX_FRAME);
    }
}

/// To the router, from the guest.
const MACS: [u8; 12] = [0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56];

fn v4(protocol: u8, to: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = [0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, to];
    header[2..4].copy_from_slice(&((payload.len() + 20) as u16).to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    let sum: u32 = header.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(c[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&MACS[..], &[8, 0], &header, payload].concat()
}

fn v6(protocol: u8, hops: u8, to: u8, payload: &[u8]) -> Vec<u8> {
    let address = |last: u8| [0xfd, 0, 0x0a, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, protocol, hops];
    [&MACS[..], &[0x86, 0xdd], &header, &address(15), &address(to), payload].concat()
}

/// One run.
pub fn nat_frames(data: &[u8]) {
    let Ok(steps) = <Vec<Step>>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let policy = Policy { deny_by_default: true, ..Policy::default() };
    let resolvers = vec!["127.0.0.1:9".parse().expect("an address")];
    let log =
        rate_log::RateLog::with_limit("network", 1, std::time::Duration::from_secs(60), Box::new(|_| ()));
    let config =
        NatConfig { policy, resolvers, host_loopback: false, log: log.into(), ..NatConfig::default() };
    let mut nat = Nat::new(config).expect("a NAT");
    let partial = Offload { checksum: Checksum::Partial { start: 34, offset: 6 }, segments: None };
    for step in steps.into_iter().take(200) {
        match step {
            Step::Raw { header, frame } => {
                if let Some(offload) = Offload::from_header(&header) {
                    nat.send(&frame, &offload);
                }
            }
            Step::V4 { protocol, to, fragment, payload } if payload.len() < 65_000 => {
                nat.send(&v4(protocol, to, fragment, &payload), &partial);
            }
            Step::V6 { protocol, hops, to, payload } if payload.len() < 65_000 => {
                nat.send(&v6(protocol, hops, to, &payload), &partial);
            }
            Step::Udp { port, payload } if payload.len() < 65_000 => {
                let [high, low] = (payload.len() as u16 + 8).to_be_bytes();
                let (to, port) = if port & 1 == 0 { (2, 67) } else { (3, 53) };
                let datagram = [&[0, 68, 0, port, high, low, 0, 0], &payload[..]].concat();
                nat.send(&v4(17, to, 0, &datagram), &partial);
            }
            Step::Receive { room, takes } => {
                let takes = Offloads { checksum: takes, tcp4: takes, tcp6: takes, ..Offloads::NONE };
                nat.set_receiver(takes);
                nat.receive(&mut Sink(room));
            }
            Step::Reset => nat.reset(),
            _ => {}
        }
    }
    assert_eq!(nat.counters().tcp_connections, 0, "nothing is let out");
}
