//! A guest whose TCP is not ours, at the end of a wire that may lose frames.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant as Clock};

use nat::Nat;
use port::{Checksum, FrameSink, Offload, Offloads, Port, SegmentKind, Segments};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv6Address};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Both directions of the wire; loses one of so many frames.
#[derive(Default)]
pub struct Wire {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: VecDeque<Vec<u8>>,
    pub lose_every: usize,
    /// Frames that the guest gives buffers for at a time, if not many.
    pub narrow: Option<usize>,
    /// The guest takes checksums and segmentation over.
    pub takes: bool,
    /// Longest frame that stood for several.
    pub longest: usize,
    /// Frames that were TCP resets by IPv4.
    pub resets: usize,
    chance: u64,
}

impl Wire {
    fn loses(&mut self) -> bool {
        // A linear congruence (Knuth's MMIX): the same frames in each run, in no rhythm.
        self.chance =
            self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.lose_every != 0 && (self.chance >> 33) as usize % self.lose_every == 0
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Ones' complement sum, folded.
fn sum(bytes: &[u8]) -> u16 {
    let word = |c: &[u8]| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Do what a card does with a partial checksum (virtio 1.2 section 5.1.6.2).
fn complete_checksum(frame: &mut [u8], start: usize, offset: usize) {
    let value = !sum(&frame[start..]);
    frame[start + offset..start + offset + 2].copy_from_slice(&value.to_be_bytes());
}

/// Do what a card does with TCP over IPv4 that is to be cut: segments whose pseudo headers
/// stand in their checksum fields.
fn cut(frame: &[u8], segments: Segments) -> Vec<Vec<u8>> {
    assert_eq!(segments.kind, SegmentKind::Tcp4);
    let headers = 34 + usize::from(frame[46] >> 4) * 4;
    assert_eq!(usize::from(segments.header_len), headers);
    let sequence = u32::from_be_bytes(frame[38..42].try_into().unwrap());
    let count = (frame.len() - headers).div_ceil(segments.size.into());
    let pieces = frame[headers..].chunks(segments.size.into()).enumerate();
    let cut = pieces.map(|(i, piece)| {
        let mut f = [&frame[..headers], piece].concat();
        let length = (headers - 34 + piece.len()) as u16;
        f[16..18].copy_from_slice(&(length + 20).to_be_bytes());
        f[24..26].fill(0);
        let ip = !sum(&f[14..34]);
        f[24..26].copy_from_slice(&ip.to_be_bytes());
        let at = sequence.wrapping_add(i as u32 * u32::from(segments.size));
        f[38..42].copy_from_slice(&at.to_be_bytes());
        if i + 1 < count {
            // FIN and PSH are the last one's.
            f[47] &= !9;
        }
        let pseudo = sum(&[&f[26..34], &[0, 6], &length.to_be_bytes()].concat());
        f[50..52].copy_from_slice(&pseudo.to_be_bytes());
        f
    });
    let whole = sum(&[&frame[26..34], &[0, 6], &(be16(frame, 16) - 20).to_be_bytes()].concat());
    assert_eq!(be16(frame, 50), whole, "the pseudo header's sum");
    cut.collect()
}

impl FrameSink for Wire {
    fn room(&mut self) -> bool {
        self.to_guest.len() < self.narrow.unwrap_or(64)
    }
    fn take(&mut self, parts: &[&[u8]], offload: &Offload) {
        let frame = parts.concat();
        let frames = match offload.segments {
            Some(segments) => {
                assert!(self.takes, "work for a guest that takes none over");
                self.longest = self.longest.max(frame.len());
                cut(&frame, segments)
            }
            None => vec![frame],
        };
        for mut frame in frames {
            self.resets += usize::from(frame[12..14] == [8, 0] && frame[23] == 6 && frame[47] & 4 != 0);
            assert!(frame.len() <= 1514);
            if let Checksum::Partial { start, offset } = offload.checksum {
                assert!(self.takes, "work for a guest that takes none over");
                complete_checksum(&mut frame, start.into(), offset.into());
            }
            if !self.loses() {
                self.to_guest.push_back(frame);
            }
        }
    }
}

pub struct Received(Vec<u8>);
pub struct Transmit<'a>(&'a mut Wire);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        if !self.0.loses() {
            self.0.from_guest.push_back(frame);
        }
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_>)> {
        let frame = self.to_guest.pop_front()?;
        Some((Received(frame), Transmit(self)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        Some(Transmit(self))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// A guest behind a NAT.
pub struct Guest {
    pub nat: Nat,
    pub wire: Wire,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    next_port: u16,
}

impl Guest {
    /// With the address that DHCP would give, and one by IPv6.
    pub fn new(nat: Nat) -> Guest {
        let mut guest = Guest::without_address(nat);
        guest.interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(IpAddress::v4(10, 0, 2, 15), 24)).unwrap();
            list.push(IpCidr::new(IpAddress::v6(0xfd00, 0xa00, 2, 0, 0, 0, 0, 0x15), 64)).unwrap();
        });
        guest.interface.routes_mut().add_default_ipv4_route(Ipv4Addr::new(10, 0, 2, 2)).unwrap();
        let router = Ipv6Address::new(0xfd00, 0xa00, 2, 0, 0, 0, 0, 2);
        guest.interface.routes_mut().add_default_ipv6_route(router).unwrap();
        guest
    }

    pub fn without_address(nat: Nat) -> Guest {
        let mut wire = Wire::default();
        let config = Config::new(EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]).into());
        let interface = Interface::new(config, &mut wire, Instant::now());
        Guest { nat, wire, interface, sockets: SocketSet::new(Vec::new()), next_port: 40_000 }
    }

    /// Take checksums and segmentation over.
    pub fn take_work(&mut self) {
        self.wire.takes = true;
        self.nat.set_receiver(Offloads { checksum: true, tcp4: true, ..Offloads::NONE });
    }

    /// Let everyone act once.
    pub fn step(&mut self) {
        self.interface.poll(Instant::now(), &mut self.wire, &mut self.sockets);
        while let Some(frame) = self.wire.from_guest.pop_front() {
            self.nat.send(&frame, &Offload::NONE);
        }
        self.nat.receive(&mut self.wire);
    }

    /// Let everyone act until this answers something.
    pub fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> Option<T>) -> T {
        let start = Clock::now();
        loop {
            self.step();
            if let Some(value) = done(self) {
                return value;
            }
            assert!(start.elapsed() < LIMIT, "{what} takes too long");
            if self.wire.to_guest.is_empty() {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    pub fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Open a connection; answers its state once that is settled.
    pub fn connect(&mut self, to: (IpAddress, u16)) -> (SocketHandle, tcp::State) {
        let handle = self.tcp();
        self.next_port += 1;
        let port = self.next_port;
        let context = self.interface.context();
        self.sockets.get_mut::<tcp::Socket>(handle).connect(context, to, port).unwrap();
        let state = self.until("connecting", |g| {
            let state = g.sockets.get::<tcp::Socket>(handle).state();
            (state != tcp::State::SynSent).then_some(state)
        });
        (handle, state)
    }

    /// Send all of this.
    pub fn send(&mut self, handle: SocketHandle, data: &[u8]) {
        let mut sent = 0;
        self.until("sending", |g| {
            let socket = g.sockets.get_mut::<tcp::Socket>(handle);
            if socket.can_send() {
                sent += socket.send_slice(&data[sent..]).unwrap();
            }
            (sent == data.len()).then_some(())
        });
    }

    /// Receive to the end of the stream.
    pub fn receive_all(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut all = Vec::new();
        self.until("a connection", |g| {
            let state = g.sockets.get::<tcp::Socket>(handle).state();
            (!matches!(state, tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived))
                .then_some(())
        });
        self.until("receiving", |g| {
            let socket = g.sockets.get_mut::<tcp::Socket>(handle);
            while socket.can_recv() {
                socket
                    .recv(|bytes| {
                        all.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            (!socket.may_recv()).then_some(())
        });
        all
    }
}
