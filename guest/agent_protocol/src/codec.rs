//! Values as bytes: little endian integers, strings and lists with a length.

/// The longest string: an argument of a command may be this long (the kernel's
/// own limit is 128 KiB, execve(2)).
pub const MAX_STRING: usize = 128 << 10;
/// The most elements in a list.
pub const MAX_LIST: usize = 8192;

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// A message ends before its last field, or goes on after it.
    Length,
    /// A string, list or frame is longer than allowed.
    TooLong(usize),
    /// A number that stands for nothing in this place.
    Unknown(u64),
    /// A sound message that is not allowed now.
    OutOfOrder(&'static str),
    /// The first frame is no greeting.
    NoGreeting,
    /// The other side speaks another version.
    Version(u16),
    /// A path that leads out of the tree it belongs to.
    Path,
    /// A tree that is not called what was asked for.
    Name,
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProtocolError::Length => write!(f, "a message is shorter or longer than its fields"),
            ProtocolError::TooLong(n) => write!(f, "a field of {n} bytes or elements is longer than allowed"),
            ProtocolError::Unknown(n) => write!(f, "a message has the unknown value {n:#x}"),
            ProtocolError::OutOfOrder(what) => write!(f, "{what} came out of order"),
            ProtocolError::NoGreeting => write!(f, "the other side is no agent of Strata"),
            ProtocolError::Version(theirs) => write!(
                f,
                "the other side speaks version {theirs} of the protocol, this one {}; install the agent of this version of Strata in the guest",
                crate::VERSION
            ),
            ProtocolError::Path => write!(f, "a path leads out of the tree that is copied"),
            ProtocolError::Name => {
                write!(f, "the other side sent something of another name than was asked for")
            }
        }
    }
}

impl std::error::Error for ProtocolError {}

/// Writes values.
#[derive(Debug, Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// A byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Bytes as they are, to the end of the message.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A string with its length.
    pub fn string(&mut self, bytes: &[u8]) -> &mut Self {
        self.u32(bytes.len() as u32).raw(bytes)
    }

    /// A list of strings.
    pub fn strings(&mut self, list: &[Vec<u8>]) -> &mut Self {
        self.u32(list.len() as u32);
        for s in list {
            self.string(s);
        }
        self
    }
}

/// Reads values; every read is checked.
#[derive(Debug)]
pub struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    /// Read from these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Decoder(bytes)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ProtocolError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(ProtocolError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtocolError> {
        self.take(N)?.try_into().map_err(|_| ProtocolError::Length)
    }

    /// A byte.
    ///
    /// # Errors
    /// When the message has ended; so for all of these.
    pub fn u8(&mut self) -> Result<u8, ProtocolError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// As [`Decoder::u8`].
    pub fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// As [`Decoder::u8`].
    pub fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// As [`Decoder::u8`].
    pub fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A truth value: 0 or 1.
    ///
    /// # Errors
    /// As [`Decoder::u8`]; also on another number.
    pub fn bool(&mut self) -> Result<bool, ProtocolError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(ProtocolError::Unknown(n.into())),
        }
    }

    /// Everything up to the end.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A string with its length.
    ///
    /// # Errors
    /// As [`Decoder::u8`]; also when longer than [`MAX_STRING`].
    pub fn string(&mut self) -> Result<Vec<u8>, ProtocolError> {
        let length = self.u32()? as usize;
        if length > MAX_STRING {
            return Err(ProtocolError::TooLong(length));
        }
        Ok(self.take(length)?.to_vec())
    }

    /// A list of strings.
    ///
    /// # Errors
    /// As [`Decoder::string`]; also when longer than [`MAX_LIST`].
    pub fn strings(&mut self) -> Result<Vec<Vec<u8>>, ProtocolError> {
        let count = self.u32()? as usize;
        if count > MAX_LIST {
            return Err(ProtocolError::TooLong(count));
        }
        // Grown as elements arrive: a count alone must not allocate.
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(self.string()?);
        }
        Ok(list)
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// When something is.
    pub fn end(&self) -> Result<(), ProtocolError> {
        if self.0.is_empty() { Ok(()) } else { Err(ProtocolError::Length) }
    }
}
