//! Whose turn it is.

use std::collections::VecDeque;

/// Those with something to do, in turn.
///
/// A flow that ends stays in the list until it is at the front, or until the list
/// is swept: to look for it there and then would let a guest that opens and ends
/// flows buy a walk with each packet. Each walk follows as many ends as it looks at
/// entries, and the list never has more than twice the entries that flows can fill.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    waiting: VecDeque<T>,
    most: usize,
}

impl<T: Copy + PartialEq> Turns<T> {
    /// For so many at a time that live.
    pub(crate) fn new(most: usize) -> Self {
        Turns { waiting: VecDeque::new(), most }
    }

    /// Let one wait that does not wait yet. `lives` tells which of the others still do.
    pub(crate) fn push(&mut self, one: T, mut lives: impl FnMut(T) -> bool) {
        if self.waiting.len() >= 2 * self.most {
            self.waiting.retain(|other| lives(*other));
        }
        self.waiting.push_back(one);
    }

    pub(crate) fn contains(&self, one: T) -> bool {
        self.waiting.contains(&one)
    }

    /// Whose turn it is.
    pub(crate) fn front(&self) -> Option<T> {
        self.waiting.front().copied()
    }

    /// The one at the front has had its turn; `again`: it is to have another.
    pub(crate) fn next(&mut self, again: bool) {
        if let Some(one) = self.waiting.pop_front()
            && again
        {
            self.waiting.push_back(one);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    use port::{FrameSink, Offload, Port};

    use crate::wire::{Header, protocol, pseudo_header};
    use crate::{Nat, NatConfig};

    /// A guest that gives no buffers.
    struct NoRoom;

    impl FrameSink for NoRoom {
        fn room(&mut self) -> bool {
            false
        }
        fn take(&mut self, _: &[&[u8]], _: &Offload) {
            unreachable!("there is no room");
        }
    }

    fn send(nat: &mut Nat, kind: u8, mut payload: Vec<u8>, checksum_at: usize) {
        let (guest, gateway) = (Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 2));
        let (mac, router) = nat.link.macs();
        let mut sum = pseudo_header(guest.into(), gateway.into(), kind, payload.len());
        if kind == protocol::ICMP {
            sum = Default::default();
        }
        sum.add(&payload);
        payload[checksum_at..checksum_at + 2].copy_from_slice(&sum.finish().to_be_bytes());
        let header = Header::ip((router, mac), guest.into(), gateway.into(), kind, payload.len());
        nat.send(&[header.bytes(), &payload].concat(), &Offload::NONE);
    }

    fn udp(nat: &mut Nat, from: u16, to: u16) {
        let payload = [from, to, 9, 0].map(u16::to_be_bytes).concat();
        send(nat, protocol::UDP, [payload, vec![b'x']].concat(), 6);
    }

    fn tcp(nat: &mut Nat, from: u16, to: u16, flags: u8) {
        let mut payload = [from, to].map(u16::to_be_bytes).concat();
        payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 255, 255, 0, 0, 0, 0]);
        send(nat, protocol::TCP, payload, 16);
    }

    #[test]
    fn flows_that_come_and_go_before_a_guest_without_buffers_leave_nothing() {
        const ROUNDS: u16 = 2600;
        let closed_udp = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let closed_tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut nat = Nat::new(NatConfig::default()).unwrap();
        // An answer that waits keeps all others from their turn.
        send(&mut nat, protocol::ICMP, vec![8, 0, 0, 0, 0, 1, 0, 1], 2);
        let mut most = (0, 0);
        for port in 1024..1024 + ROUNDS {
            udp(&mut nat, port, closed_udp);
            // SYN, SYN again, RST.
            for flags in [2, 2, 4] {
                tcp(&mut nat, port, closed_tcp, flags);
            }
            nat.receive(&mut NoRoom);
            most = (most.0.max(nat.udp.waiting()), most.1.max(nat.tcp.waiting()));
        }
        assert_eq!((nat.udp.len(), nat.tcp.len()), (crate::udp::MAX_FLOWS, 0));
        // Both were many, and never more than the cap.
        let in_bounds = |seen: usize, flows: usize| (flows..=2 * flows).contains(&seen);
        assert!(in_bounds(most.0, crate::udp::MAX_FLOWS), "{most:?}");
        assert!(in_bounds(most.1, crate::tcp::MAX_CONNECTIONS), "{most:?}");
    }
}
