//! TCP (RFC 9293) and UDP (RFC 768) headers.

use port::{Checksum as Left, Offload};

use super::{IpPacket, be16, be32, pseudo_header};

/// Control bits of a TCP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TcpFlags(pub(crate) u8);

impl TcpFlags {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const PSH: u8 = 8;
    pub(crate) const ACK: u8 = 16;

    pub(crate) fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }
}

/// A TCP segment, possibly one that stands for many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpSegment<'a> {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: TcpFlags,
    /// As on the wire, not scaled.
    pub(crate) window: u16,
    /// Maximum segment size option.
    pub(crate) mss: Option<u16>,
    /// Window scale option, as it counts: at most 14.
    pub(crate) scale: Option<u8>,
    pub(crate) payload: &'a [u8],
}

/// Whether a transport checksum is right, or of no interest.
fn checksum_holds(packet: &IpPacket<'_>, offload: &Offload) -> bool {
    if offload.checksum != Left::Complete || offload.segments.is_some() {
        return true;
    }
    let mut sum = pseudo_header(packet.source, packet.destination, packet.protocol, packet.payload.len());
    sum.add(packet.payload);
    sum.finish() == 0
}

impl<'a> TcpSegment<'a> {
    pub(crate) fn parse(packet: &IpPacket<'a>, offload: &Offload) -> Option<Self> {
        let bytes = packet.payload;
        let fixed = bytes.first_chunk::<20>()?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        let options = bytes.get(20..header_len)?;
        if !checksum_holds(packet, offload) {
            return None;
        }
        let mut segment = TcpSegment {
            source: be16(bytes, 0)?,
            destination: be16(bytes, 2)?,
            sequence: be32(bytes, 4)?,
            acknowledged: be32(bytes, 8)?,
            flags: TcpFlags(fixed[13]),
            window: be16(bytes, 14)?,
            mss: None,
            scale: None,
            payload: bytes.get(header_len..)?,
        };
        if segment.flags.has(TcpFlags::SYN) {
            segment.read_options(options);
        }
        Some(segment)
    }

    fn read_options(&mut self, mut options: &[u8]) {
        const END: u8 = 0;
        const NOTHING: u8 = 1;
        const MSS: u8 = 2;
        const SCALE: u8 = 3;
        while let Some((&kind, rest)) = options.split_first() {
            match kind {
                END => return,
                NOTHING => options = rest,
                _ => {
                    let length = rest.first().map_or(0, |l| usize::from(*l));
                    let Some(option) = options.get(..length).filter(|_| length >= 2) else { return };
                    match kind {
                        MSS => self.mss = be16(option, 2),
                        SCALE => self.scale = option.get(2).map(|s| (*s).min(14)),
                        _ => {}
                    }
                    options = options.get(length..).unwrap_or_default();
                }
            }
        }
    }

    /// Sequence numbers the segment takes.
    pub(crate) fn sequence_len(&self) -> u32 {
        let flags = u32::from(self.flags.has(TcpFlags::SYN)) + u32::from(self.flags.has(TcpFlags::FIN));
        self.payload.len() as u32 + flags
    }
}

/// A UDP datagram, possibly one that stands for many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UdpDatagram<'a> {
    pub(crate) source: u16,
    pub(crate) destination: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> UdpDatagram<'a> {
    pub(crate) fn parse(packet: &IpPacket<'a>, offload: &Offload) -> Option<Self> {
        let bytes = packet.payload;
        let length = usize::from(be16(bytes, 4)?);
        let unchecked = be16(bytes, 6)? == 0 && packet.source.is_ipv4();
        if !unchecked && !checksum_holds(packet, offload) {
            return None;
        }
        // One that stands for many may not have its whole length in the field.
        let payload =
            if offload.segments.is_some() { bytes.get(8..)? } else { bytes.get(8..length.max(8))? };
        Some(UdpDatagram { source: be16(bytes, 0)?, destination: be16(bytes, 2)?, payload })
    }
}
