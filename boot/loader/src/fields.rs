//! Checked little-endian reads from an untrusted image.

use crate::error::{LoadError, Result};

/// An image and the name errors call it by.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    /// What the image is, for errors.
    pub what: &'static str,
    /// All its bytes.
    pub bytes: &'a [u8],
}

macro_rules! read {
    ($name:ident, $t:ty) => {
        /// The little-endian value at `offset`.
        pub fn $name(&self, offset: u64) -> Result<$t> {
            let raw = self.slice(offset, size_of::<$t>() as u64)?;
            let mut value = [0; size_of::<$t>()];
            value.copy_from_slice(raw);
            Ok(<$t>::from_le_bytes(value))
        }
    };
}

impl<'a> Fields<'a> {
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Fields { what, bytes }
    }

    /// `len` bytes at `offset`.
    pub fn slice(&self, offset: u64, len: u64) -> Result<&'a [u8]> {
        let have = self.bytes.len() as u64;
        let needed = offset.saturating_add(len);
        if needed > have {
            return Err(LoadError::Truncated { what: self.what, needed, have });
        }
        Ok(&self.bytes[offset as usize..needed as usize])
    }

    read!(u8, u8);
    read!(u16, u16);
    read!(u32, u32);
    read!(u64, u64);

    /// An error about one of this image's fields.
    pub fn malformed(&self, field: &'static str, value: u64, expected: &'static str) -> LoadError {
        LoadError::Malformed { what: self.what, field, value, expected }
    }
}

/// Put a little-endian value into a table under construction. The tables are
/// ours and of fixed size, so a bad offset is a bug.
pub(crate) fn put<const N: usize>(table: &mut [u8], offset: usize, value: [u8; N]) {
    table[offset..offset + N].copy_from_slice(&value);
}
