//! One buffer that a driver made available: readable, then writable pieces.

use std::io::{self, Read, Write};

use guest_memory::{GuestMemory, RamOffset, Scalar};

/// A run of guest RAM and its bytes.
pub type Piece = (RamOffset, usize);

/// A validated descriptor chain. All its pieces are guest RAM, the writable ones
/// writable; none is empty. Give it back with [`crate::Queue::complete`].
#[derive(Debug)]
pub struct Chain {
    pub(crate) memory: GuestMemory,
    /// Split: the head's index. Packed: the buffer ID.
    pub(crate) id: u16,
    /// Packed: descriptors of the ring that it occupies.
    pub(crate) slots: u16,
    pub(crate) pieces: Vec<Piece>,
    /// How many of `pieces` are readable; the rest is writable.
    pub(crate) readable: usize,
}

/// A chain is shorter than what is to be read from or written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the buffer ends {missing} bytes early")]
pub struct TooShort {
    /// Bytes missing.
    pub missing: usize,
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|p| p.1 as u64).sum()
}

impl Chain {
    /// What the device reads.
    pub fn readable(&self) -> &[Piece] {
        &self.pieces[..self.readable]
    }

    /// What the device writes.
    pub fn writable(&self) -> &[Piece] {
        &self.pieces[self.readable..]
    }

    /// Bytes to read.
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// Bytes that can be written.
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }

    /// Read from the beginning of the readable part.
    pub fn reader(&self) -> Reader<'_> {
        Reader(Cursor { memory: &self.memory, pieces: self.readable(), at: 0, done: 0 })
    }

    /// Write from the beginning of the writable part.
    pub fn writer(&self) -> Writer<'_> {
        Writer(Cursor { memory: &self.memory, pieces: self.writable(), at: 0, done: 0 })
    }
}

/// A place in a list of pieces.
#[derive(Clone)]
struct Cursor<'a> {
    memory: &'a GuestMemory,
    /// What is left; the first piece is used up to `at`.
    pieces: &'a [Piece],
    at: usize,
    done: u64,
}

impl Cursor<'_> {
    fn remaining(&self) -> u64 {
        total(self.pieces) - self.at as u64
    }

    /// Call `f` for runs of at most `len` bytes in all; answers how many there were.
    fn advance(
        &mut self,
        len: usize,
        mut f: impl FnMut(&GuestMemory, RamOffset, std::ops::Range<usize>),
    ) -> usize {
        let mut moved = 0;
        while moved < len {
            let Some(&(offset, size)) = self.pieces.first() else { break };
            let n = (size - self.at).min(len - moved);
            f(self.memory, RamOffset(offset.0 + self.at as u64), moved..moved + n);
            moved += n;
            self.at += n;
            if self.at == size {
                self.pieces = &self.pieces[1..];
                self.at = 0;
            }
        }
        self.done += moved as u64;
        moved
    }

    fn take(&mut self, len: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.advance(len, |_, offset, run| pieces.push((offset, run.len())));
        pieces
    }

    /// Whether `len` more bytes are there.
    fn check(&self, len: usize) -> Result<(), TooShort> {
        match (len as u64).saturating_sub(self.remaining()) {
            0 => Ok(()),
            missing => Err(TooShort { missing: missing as usize }),
        }
    }
}

/// Reads the readable part of a chain in order. Bytes are copied once: what the
/// guest changes afterwards is not seen.
#[derive(Clone)]
pub struct Reader<'a>(Cursor<'a>);

impl Reader<'_> {
    /// Bytes left.
    pub fn remaining(&self) -> u64 {
        self.0.remaining()
    }

    /// Bytes read, skipped or taken.
    pub fn consumed(&self) -> u64 {
        self.0.done
    }

    /// Read as much as there is, up to the length of `to`.
    pub fn read_some(&mut self, to: &mut [u8]) -> usize {
        self.0.advance(to.len(), |memory, offset, run| memory.read_bytes(offset, &mut to[run]))
    }

    /// Fill `to`.
    ///
    /// # Errors
    /// [`TooShort`]; nothing has been read then.
    pub fn read_all(&mut self, to: &mut [u8]) -> Result<(), TooShort> {
        self.0.check(to.len())?;
        self.read_some(to);
        Ok(())
    }

    /// Read a little-endian number.
    ///
    /// # Errors
    /// [`TooShort`]; nothing has been read then.
    pub fn read_value<T: Scalar>(&mut self) -> Result<T, TooShort> {
        let mut bytes = [0; 16];
        self.read_all(&mut bytes[..T::SIZE])?;
        Ok(T::truncate(u128::from_le_bytes(bytes)))
    }

    /// Pass over at most `len` bytes; answers how many.
    pub fn skip(&mut self, len: usize) -> usize {
        self.0.advance(len, |_, _, _| ())
    }

    /// The next `len` bytes, or what is left, as pieces, for I/O straight from guest RAM.
    pub fn take_pieces(&mut self, len: u64) -> Vec<Piece> {
        self.0.take(len)
    }
}

impl Read for Reader<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        Ok(self.read_some(to))
    }
}

/// Writes the writable part of a chain in order.
#[derive(Clone)]
pub struct Writer<'a>(Cursor<'a>);

impl Writer<'_> {
    /// Bytes of room left.
    pub fn remaining(&self) -> u64 {
        self.0.remaining()
    }

    /// Bytes written, skipped or taken: what [`crate::Queue::complete`] wants to know.
    pub fn written(&self) -> u32 {
        // A chain has at most MAX_CHAIN_BYTES.
        self.0.done as u32
    }

    /// Write as much of `from` as there is room for.
    pub fn write_some(&mut self, from: &[u8]) -> usize {
        self.0.advance(from.len(), |memory, offset, run| {
            memory.write_bytes(offset, &from[run]);
        })
    }

    /// Write all of `from`.
    ///
    /// # Errors
    /// [`TooShort`]; nothing has been written then.
    pub fn write_all_of(&mut self, from: &[u8]) -> Result<(), TooShort> {
        self.0.check(from.len())?;
        self.write_some(from);
        Ok(())
    }

    /// Write a little-endian number.
    ///
    /// # Errors
    /// [`TooShort`]; nothing has been written then.
    pub fn write_value<T: Scalar>(&mut self, value: T) -> Result<(), TooShort> {
        self.write_all_of(&value.widen().to_le_bytes()[..T::SIZE])
    }

    /// Leave at most `len` bytes as they are; answers how many.
    pub fn skip(&mut self, len: usize) -> usize {
        self.0.advance(len, |_, _, _| ())
    }

    /// The next `len` bytes, or what is left, as pieces, for I/O straight into guest RAM.
    pub fn take_pieces(&mut self, len: u64) -> Vec<Piece> {
        self.0.take(len)
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(self.write_some(from))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
