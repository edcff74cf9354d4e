//! The packet contract between a network device and what carries its frames.
//!
//! A [`Port`] is one queue pair's way out of the machine. The device's worker
//! owns it and calls it from one thread: [`Port::send`] for each frame the guest
//! transmits, [`Port::receive`] when [`Port::ready_fd`] is readable, when frames
//! were sent (answers may be waiting) and when the guest has given receive
//! buffers again. A port has no thread and no queue towards the device of its own: frames wait
//! where they come from (a socket, a tap) until the guest has room.
//!
//! Frames are whole Ethernet frames without the frame check sequence. Work left
//! to the other side (checksums, cutting into segments) travels beside them as an
//! [`Offload`], whose wire form is the header of virtio 1.2 section 5.1.6.

mod capture;
mod offload;

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

pub use capture::{Capture, CaptureError};
pub use offload::{Checksum, HEADER_LEN, Offload, Offloads, SegmentKind, Segments};

/// Bytes of an Ethernet header without tag.
pub const ETHERNET_HEADER: usize = 14;
/// The longest frame in bytes: an IPv6 packet with the longest payload, behind an
/// Ethernet header with one VLAN tag.
pub const MAX_FRAME: usize = ETHERNET_HEADER + 4 + 40 + u16::MAX as usize;
/// The least MTU a port may have, in bytes: IPv6's (RFC 8200 section 5).
pub const MIN_MTU: u16 = 1280;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// All stations.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

    /// Whether it names a group of stations.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Text that is no Ethernet address of one station.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{0}\" is no Ethernet address of one station; write six bytes such as 52:54:00:12:34:56")]
pub struct MacAddressError(String);

impl std::str::FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || MacAddressError(text.to_string());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        let mac = MacAddress(bytes);
        if parts.next().is_some() || mac.is_multicast() || bytes == [0; 6] { Err(wrong()) } else { Ok(mac) }
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

/// What a port can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// What it takes in [`Port::send`].
    pub accepts: Offloads,
    /// What it can leave to the receiver of its frames, if [`Port::set_receiver`] says so.
    pub gives: Offloads,
    /// The longest packet without segmentation, in bytes behind the Ethernet header.
    pub mtu: u16,
}

/// One queue pair's way out of the machine.
///
/// Frames handed to [`Port::send`] come from a guest: an implementation must not
/// panic for any content, and must not keep more memory for them than its named
/// caps. In exchange it may rely on being called by one thread at a time.
pub trait Port: Send {
    /// What the port can do; the same at every call.
    fn capabilities(&self) -> Capabilities;

    /// What the receiver of frames has agreed to take over; nothing until said.
    fn set_receiver(&mut self, takes: Offloads);

    /// Carry a frame. One that cannot be carried is dropped, as on a wire.
    fn send(&mut self, frame: &[u8], offload: &Offload);

    /// Hand over what has arrived, until nothing is left or the sink has no room.
    fn receive(&mut self, sink: &mut dyn FrameSink);

    /// Readable when something new has happened since the last [`Port::receive`]:
    /// not because that one ended for want of room.
    fn ready_fd(&self) -> BorrowedFd<'_>;

    /// Whether the guest uses the port's pair of queues; it does until said.
    fn set_active(&mut self, _active: bool) {}

    /// The guest's side has started anew: forget all that was of the old one.
    fn reset(&mut self) {}
}

/// Takes frames on behalf of a guest.
pub trait FrameSink {
    /// Whether a frame of any length will be taken. Ask before each
    /// [`FrameSink::take`], before the frame is read from where it waits.
    fn room(&mut self) -> bool;

    /// Take a frame, given in pieces. One for which there is no room is lost.
    fn take(&mut self, parts: &[&[u8]], offload: &Offload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let mac: MacAddress = "52:54:00:12:34:5F".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:12:34:5f");
        for wrong in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "5:54:00:12:34:56",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }
}
