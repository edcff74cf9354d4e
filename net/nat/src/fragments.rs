//! Putting fragments of a guest's datagrams together (RFC 791 section 3.2, RFC 8200 section 4.5).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::wire::IpPacket;

/// Datagrams in the making: a guest fragments few at a time. Memory is at most 1 MiB.
const MAX_DATAGRAMS: usize = 16;
/// Bytes of the longest datagram.
const MAX_LENGTH: usize = 65_535;
/// Pieces of one datagram: 64 KiB over the least MTU of IPv4 in practice.
const MAX_PIECES: usize = 128;
/// How long a datagram may be incomplete.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Identity {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Datagram {
    identity: Identity,
    bytes: Vec<u8>,
    /// Places and lengths of what has arrived, in order.
    pieces: Vec<(usize, usize)>,
    /// Known when the last fragment has arrived.
    length: Option<usize>,
    until: Instant,
}

/// Datagrams in the making.
#[derive(Debug, Default)]
pub(crate) struct Fragments(Vec<Datagram>);

impl Fragments {
    /// Take a fragment; answers the payload if its datagram is whole now.
    pub(crate) fn add(&mut self, packet: &IpPacket<'_>, now: Instant) -> Option<Vec<u8>> {
        let fragment = packet.fragment?;
        self.0.retain(|d| d.until > now);
        let identity = Identity {
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            id: fragment.id,
        };
        let at = self.0.iter().position(|d| d.identity == identity).unwrap_or_else(|| {
            if self.0.len() >= MAX_DATAGRAMS {
                self.0.remove(0);
            }
            let until = now + PATIENCE;
            self.0.push(Datagram { identity, bytes: Vec::new(), pieces: Vec::new(), length: None, until });
            self.0.len() - 1
        });
        match self.0.get_mut(at)?.add(fragment.offset, fragment.more, packet.payload) {
            Some(true) => Some(self.0.remove(at).bytes),
            Some(false) => None,
            // Overlaps are attacks (RFC 5722): nothing of the datagram is used.
            None => {
                self.0.remove(at);
                None
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

impl Datagram {
    /// Whether it is whole; `None` if the piece does not fit.
    fn add(&mut self, offset: usize, more: bool, piece: &[u8]) -> Option<bool> {
        let end = offset + piece.len();
        let beyond = self.length.is_some_and(|l| end > l || !more);
        if end > MAX_LENGTH
            || piece.is_empty()
            || beyond
            || self.pieces.len() >= MAX_PIECES
            || (more && piece.len() % 8 != 0)
        {
            return None;
        }
        let before = self.pieces.partition_point(|p| p.0 < offset);
        let clear_left = before == 0 || self.pieces.get(before - 1).is_none_or(|p| p.0 + p.1 <= offset);
        let clear_right = self.pieces.get(before).is_none_or(|p| end <= p.0);
        if !clear_left || !clear_right || (!more && end < self.bytes.len()) {
            return None;
        }
        if !more {
            self.length = Some(end);
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(offset..end)?.copy_from_slice(piece);
        self.pieces.insert(before, (offset, piece.len()));
        let filled: usize = self.pieces.iter().map(|p| p.1).sum();
        Some(self.length == Some(filled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Fragment, protocol};
    use proptest::prelude::*;

    fn packet(payload: &[u8], offset: usize, more: bool) -> IpPacket<'_> {
        IpPacket {
            source: IpAddr::from([10, 0, 2, 15]),
            destination: IpAddr::from([1, 2, 3, 4]),
            protocol: protocol::UDP,
            hops: 64,
            payload,
            fragment: Some(Fragment { id: 7, offset, more }),
            whole: &[],
        }
    }

    #[test]
    fn pieces_in_any_order_make_a_datagram() {
        let whole: Vec<u8> = (0..40u8).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
            let (mut fragments, now) = (Fragments::default(), Instant::now());
            let mut result = None;
            for i in order {
                let (from, to) = (i * 16, (i * 16 + 16).min(40));
                assert_eq!(result, None);
                result = fragments.add(&packet(&whole[from..to], from, to < 40), now);
            }
            assert_eq!(result.as_deref(), Some(&whole[..]), "{order:?}");
            assert!(fragments.0.is_empty());
        }
    }

    #[test]
    fn overlaps_spoil_the_datagram() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        assert_eq!(fragments.add(&packet(&[0; 16], 0, true), now), None);
        assert_eq!(fragments.add(&packet(&[1; 16], 8, true), now), None);
        assert!(fragments.0.is_empty());
    }

    proptest! {
        #[test]
        fn any_fragments_are_survived(list in proptest::collection::vec((0usize..70_000, any::<bool>(), 0usize..3000, 0u32..40), 0..200)) {
            let (mut fragments, now) = (Fragments::default(), Instant::now());
            let bytes = [0; 3000];
            for (offset, more, length, id) in list {
                let mut p = packet(&bytes[..length], offset, more);
                p.fragment = Some(Fragment { id, offset, more });
                let _ = fragments.add(&p, now);
                prop_assert!(fragments.0.len() <= MAX_DATAGRAMS);
            }
        }
    }
}
