//! Frames on a byte stream.

use std::io::{self, Read, Write};

use crate::codec::{Decoder, Encoder, MAX_STRING, ProtocolError};
use crate::message::{Hello, Message};

/// The longest payload: a command line of [`MAX_STRING`] twice over, for its
/// arguments and its environment.
pub const MAX_PAYLOAD: usize = 2 * MAX_STRING + 4096;
const HEADER: usize = 5;
/// How much is read from the stream at once.
const READ: usize = 64 << 10;

/// Why a message could not be exchanged.
#[derive(Debug)]
pub enum ChannelError {
    /// The stream failed.
    Io(io::Error),
    /// The stream ended where a message was due.
    Closed,
    /// The other side does not keep to the protocol.
    Protocol(ProtocolError),
}

impl std::fmt::Display for ChannelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ChannelError::Io(e) => write!(f, "{e}"),
            ChannelError::Closed => write!(f, "the connection ended"),
            ChannelError::Protocol(e) => write!(f, "{e}"),
        }
    }
}

impl std::error::Error for ChannelError {}

impl From<io::Error> for ChannelError {
    fn from(e: io::Error) -> Self {
        ChannelError::Io(e)
    }
}

impl From<ProtocolError> for ChannelError {
    fn from(e: ProtocolError) -> Self {
        ChannelError::Protocol(e)
    }
}

/// Puts received bytes together to frames.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// Where the next frame begins in `bytes`.
    start: usize,
}

impl Frames {
    /// Nothing received.
    pub fn new() -> Self {
        Self::default()
    }

    /// More bytes have come. Hold no more than one frame and one read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, if all of it is here.
    ///
    /// # Errors
    /// When the bytes are no message of type `M`.
    pub fn take<M: Message>(&mut self) -> Result<Option<M>, ProtocolError> {
        let held = &self.bytes[self.start..];
        let Some((header, rest)) = held.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, kind] = *header;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_PAYLOAD {
            return Err(ProtocolError::TooLong(length));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let mut decoder = Decoder::new(payload);
        let message = M::decode(kind, &mut decoder)?;
        decoder.end()?;
        self.start += HEADER + length;
        Ok(Some(message))
    }

    /// A message as a frame.
    ///
    /// # Errors
    /// When it is longer than a frame may be.
    pub fn encode(message: &impl Message) -> Result<Vec<u8>, ProtocolError> {
        let mut encoder = Encoder::new();
        // The length is known at the end.
        encoder.u32(0).u8(message.kind());
        message.encode(&mut encoder);
        let mut bytes = encoder.finish();
        let length = bytes.len() - HEADER;
        if length > MAX_PAYLOAD {
            return Err(ProtocolError::TooLong(length));
        }
        bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(bytes)
    }
}

/// A stream and the frames on it. Works on shared references to a socket too,
/// so that one thread can send while another receives.
#[derive(Debug)]
pub struct Channel<S> {
    stream: S,
    frames: Frames,
}

impl<S: Read + Write> Channel<S> {
    /// Messages over this stream.
    pub fn new(stream: S) -> Self {
        Channel { stream, frames: Frames::new() }
    }

    /// Exchange greetings.
    ///
    /// # Errors
    /// When the other side is no agent, or one of another version.
    pub fn greet(&mut self) -> Result<(), ChannelError> {
        self.send(&Hello::ours())?;
        self.receive::<Hello>()?.check()?;
        Ok(())
    }

    /// Send a message.
    ///
    /// # Errors
    /// When the stream fails or the message is too long.
    pub fn send(&mut self, message: &impl Message) -> Result<(), ChannelError> {
        self.stream.write_all(&Frames::encode(message)?)?;
        Ok(())
    }

    /// Wait for a message.
    ///
    /// # Errors
    /// When the stream fails or ends, or brings something else.
    pub fn receive<M: Message>(&mut self) -> Result<M, ChannelError> {
        loop {
            if let Some(message) = self.frames.take()? {
                return Ok(message);
            }
            if self.read_more()? == 0 {
                return Err(ChannelError::Closed);
            }
        }
    }

    /// Read once from the stream; 0: it has ended.
    ///
    /// # Errors
    /// When it fails.
    pub fn read_more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; READ];
        loop {
            match self.stream.read(&mut buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(n) => {
                    self.frames.push(&buffer[..n]);
                    return Ok(n);
                }
            }
        }
    }

    /// A message that has been read already.
    ///
    /// # Errors
    /// When the bytes are no such message.
    pub fn pending<M: Message>(&mut self) -> Result<Option<M>, ProtocolError> {
        self.frames.take()
    }

    /// The stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// The stream, to change how it waits.
    pub fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ToGuest, ToHost};

    #[test]
    fn frames_arrive_whole_whatever_the_pieces() {
        let sent = [ToHost::Stdout(vec![7; 1000]), ToHost::StdinCredit(5), ToHost::Stderr(Vec::new())];
        let bytes: Vec<u8> = sent.iter().flat_map(|m| Frames::encode(m).unwrap()).collect();
        for piece in [1, 3, 7, 1000, bytes.len()] {
            let mut frames = Frames::new();
            let mut seen = Vec::new();
            for part in bytes.chunks(piece) {
                frames.push(part);
                while let Some(m) = frames.take::<ToHost>().unwrap() {
                    seen.push(m);
                }
            }
            assert_eq!(seen, sent, "pieces of {piece}");
        }
    }

    #[test]
    fn hostile_frames_are_refused() {
        fn check(bytes: &[u8], expect: ProtocolError) {
            let mut frames = Frames::new();
            frames.push(bytes);
            assert_eq!(frames.take::<ToGuest>().unwrap_err(), expect, "{bytes:?}");
        }
        check(&[0xff, 0xff, 0xff, 0xff, 1], ProtocolError::TooLong(0xffff_ffff));
        check(&[0, 0, 0, 0, 99], ProtocolError::Unknown(99));
        let mut longer = Frames::encode(&ToGuest::StdinEnd).unwrap();
        longer[0] += 1;
        longer.push(0);
        check(&longer, ProtocolError::Length);
        // A list that says it is long and is not.
        let mut exec = Frames::encode(&ToGuest::CopyOut { path: b"/x".to_vec() }).unwrap();
        exec[5] = 3;
        check(&exec, ProtocolError::Length);
    }

    #[test]
    fn sides_of_different_versions_part_with_a_message() {
        let mut theirs = Frames::encode(&Hello::ours()).unwrap();
        let at = theirs.len() - 2;
        theirs[at] ^= 0x80;
        let stream = (io::Cursor::new(theirs), Vec::new());
        struct Both((io::Cursor<Vec<u8>>, Vec<u8>));
        impl Read for Both {
            fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
                self.0.0.read(to)
            }
        }
        impl Write for Both {
            fn write(&mut self, from: &[u8]) -> io::Result<usize> {
                self.0.1.write(from)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = Channel::new(Both(stream)).greet().unwrap_err().to_string();
        assert!(error.contains("version 129") && error.contains("install"), "{error}");
    }
}
