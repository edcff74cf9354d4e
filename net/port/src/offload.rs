//! Work on a frame that one side leaves to the other.

/// Bytes of the header before each frame: `struct virtio_net_hdr` with
/// `num_buffers` (virtio 1.2 section 5.1.6; always there from version 1 on).
pub const HEADER_LEN: usize = 12;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_ECN`, a bit beside the type.
const ECN: u8 = 0x80;

/// State of a frame's transport checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// In the frame as the protocol says; not known to be right.
    #[default]
    Complete,
    /// In the frame or left out, and no reason to check it.
    Verified,
    /// To be made: the ones' complement sum from `start` to the end goes to `start + offset`,
    /// where the sum of the pseudo header already stands.
    Partial {
        /// First byte of the sum, from the start of the frame.
        start: u16,
        /// Place of the result, from `start`.
        offset: u16,
    },
}

/// What kind of packets a frame is to be cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// Fragments of one UDP datagram.
    UdpFragments,
    /// UDP datagrams of their own.
    UdpDatagrams,
}

impl SegmentKind {
    /// `VIRTIO_NET_HDR_GSO_*`.
    fn code(self) -> u8 {
        match self {
            SegmentKind::Tcp4 => 1,
            SegmentKind::UdpFragments => 3,
            SegmentKind::Tcp6 => 4,
            SegmentKind::UdpDatagrams => 5,
        }
    }
}

/// A frame that stands for several packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// How it is cut.
    pub kind: SegmentKind,
    /// Payload bytes of each packet; never 0.
    pub size: u16,
    /// Bytes of all headers, a hint.
    pub header_len: u16,
    /// TCP with CWR set, which only the first segment keeps.
    pub ecn: bool,
}

/// Work on a frame that one side leaves to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The transport checksum.
    pub checksum: Checksum,
    /// Set for a frame that stands for several packets.
    pub segments: Option<Segments>,
}

impl Offload {
    /// Nothing is left to do, or to believe.
    pub const NONE: Offload = Offload { checksum: Checksum::Complete, segments: None };

    /// Read a header. `None`: a kind of segments that does not exist, or segments of no size.
    pub fn from_header(header: &[u8; HEADER_LEN]) -> Option<Offload> {
        let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1, ..] = *header;
        let checksum = if flags & NEEDS_CHECKSUM != 0 {
            Checksum::Partial { start: u16::from_le_bytes([c0, c1]), offset: u16::from_le_bytes([o0, o1]) }
        } else if flags & DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        let kind = match gso & !ECN {
            0 => return Some(Offload { checksum, segments: None }),
            1 => SegmentKind::Tcp4,
            3 => SegmentKind::UdpFragments,
            4 => SegmentKind::Tcp6,
            5 => SegmentKind::UdpDatagrams,
            _ => return None,
        };
        let size = u16::from_le_bytes([s0, s1]);
        let segments = Segments { kind, size, header_len: u16::from_le_bytes([h0, h1]), ecn: gso & ECN != 0 };
        (size != 0).then_some(Offload { checksum, segments: Some(segments) })
    }

    /// Write a header; `num_buffers` is left 1.
    pub fn to_header(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        match self.checksum {
            Checksum::Complete => {}
            Checksum::Verified => header[0] = DATA_VALID,
            Checksum::Partial { start, offset } => {
                header[0] = NEEDS_CHECKSUM;
                header[6..8].copy_from_slice(&start.to_le_bytes());
                header[8..10].copy_from_slice(&offset.to_le_bytes());
            }
        }
        if let Some(s) = self.segments {
            header[1] = s.kind.code() | if s.ecn { ECN } else { 0 };
            header[2..4].copy_from_slice(&s.header_len.to_le_bytes());
            header[4..6].copy_from_slice(&s.size.to_le_bytes());
        }
        header[10] = 1;
        header
    }
}

/// Which offloads one side takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Partial checksums; the others need it.
    pub checksum: bool,
    /// TCP segments over IPv4.
    pub tcp4: bool,
    /// TCP segments over IPv6.
    pub tcp6: bool,
    /// TCP segments with CWR set.
    pub ecn: bool,
    /// Fragments of a UDP datagram.
    pub udp_fragments: bool,
    /// UDP datagrams.
    pub udp_datagrams: bool,
}

impl Offloads {
    /// None.
    pub const NONE: Offloads = Offloads {
        checksum: false,
        tcp4: false,
        tcp6: false,
        ecn: false,
        udp_fragments: false,
        udp_datagrams: false,
    };

    /// Those of both.
    #[must_use]
    pub fn and(self, other: Offloads) -> Offloads {
        Offloads {
            checksum: self.checksum && other.checksum,
            tcp4: self.tcp4 && other.tcp4,
            tcp6: self.tcp6 && other.tcp6,
            ecn: self.ecn && other.ecn,
            udp_fragments: self.udp_fragments && other.udp_fragments,
            udp_datagrams: self.udp_datagrams && other.udp_datagrams,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_written() {
        let kinds =
            [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::UdpFragments, SegmentKind::UdpDatagrams];
        let checksums = [Checksum::Complete, Checksum::Verified, Checksum::Partial { start: 34, offset: 16 }];
        for checksum in checksums {
            let plain = Offload { checksum, segments: None };
            assert_eq!(Offload::from_header(&plain.to_header()), Some(plain));
            for (kind, ecn) in kinds.into_iter().flat_map(|k| [(k, false), (k, true)]) {
                let segments = Segments { kind, size: 1448, header_len: 66, ecn };
                let offload = Offload { checksum, segments: Some(segments) };
                assert_eq!(Offload::from_header(&offload.to_header()), Some(offload));
            }
        }
    }

    #[test]
    fn impossible_headers_are_refused() {
        let mut header = [0; HEADER_LEN];
        header[1] = 1;
        assert_eq!(Offload::from_header(&header), None, "segments of no size");
        for kind in [2, 6, 0x7f] {
            header[1] = kind;
            header[4] = 1;
            assert_eq!(Offload::from_header(&header), None, "kind {kind}");
        }
    }
}
