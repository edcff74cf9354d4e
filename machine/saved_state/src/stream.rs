//! Sections in a byte stream.
//!
//! Layout, integers little-endian: the magic; then for each section a name
//! length (u8, not 0), the name, a version (u16), a payload length (u32), the
//! payload in postcard's format, and a CRC-32 of all that; then a zero byte and
//! a CRC-32 of everything before.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StateError;

/// Start of every stream; the last byte is the version of the layout above.
const MAGIC: [u8; 8] = *b"STRATA\x00\x01";
/// Longest section name, in bytes.
const MAX_NAME: usize = 64;

/// Builds a stream.
#[derive(Debug)]
pub struct StateWriter {
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl Default for StateWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl StateWriter {
    /// An empty stream.
    pub fn new() -> Self {
        StateWriter { bytes: MAGIC.to_vec(), names: Vec::new() }
    }

    /// Append a section.
    ///
    /// # Errors
    /// [`StateError::BadName`] for an empty, long or repeated name, [`StateError::Contents`] when `value` does not encode.
    pub fn section<T: Serialize>(&mut self, name: &str, version: u16, value: &T) -> Result<(), StateError> {
        if name.is_empty() || name.len() > MAX_NAME || self.names.iter().any(|n| n == name) {
            return Err(StateError::BadName { name: name.to_string() });
        }
        let contents = |cause: String| StateError::Contents { section: name.to_string(), cause };
        let payload = postcard::to_stdvec(value).map_err(|e| contents(e.to_string()))?;
        let len = u32::try_from(payload.len()).map_err(|e| contents(e.to_string()))?;
        let start = self.bytes.len();
        self.bytes.push(name.len() as u8);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(&version.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(&payload);
        let sum = crc32fast::hash(&self.bytes[start..]);
        self.bytes.extend_from_slice(&sum.to_le_bytes());
        self.names.push(name.to_string());
        Ok(())
    }

    /// The finished stream.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(0);
        let sum = crc32fast::hash(&self.bytes);
        self.bytes.extend_from_slice(&sum.to_le_bytes());
        self.bytes
    }
}

/// A checked stream.
#[derive(Debug)]
pub struct StateReader<'a> {
    sections: BTreeMap<String, (u16, &'a [u8])>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, inside: &'static str) -> Result<&'a [u8], StateError> {
        let end = self.at.checked_add(n);
        let piece = end.and_then(|end| self.bytes.get(self.at..end));
        let piece = piece.ok_or(StateError::Truncated { at: self.bytes.len(), inside })?;
        self.at += n;
        Ok(piece)
    }
    fn array<const N: usize>(&mut self, inside: &'static str) -> Result<[u8; N], StateError> {
        let mut a = [0; N];
        a.copy_from_slice(self.take(N, inside)?);
        Ok(a)
    }
    /// Check the stored CRC-32 of everything since `start`.
    fn checksum(&mut self, start: usize, section: &str) -> Result<(), StateError> {
        let computed = crc32fast::hash(&self.bytes[start..self.at]);
        let stored = u32::from_le_bytes(self.array("a checksum")?);
        match computed == stored {
            true => Ok(()),
            false => Err(StateError::Damaged { section: section.to_string(), computed, stored }),
        }
    }
}

impl<'a> StateReader<'a> {
    /// Check a whole stream and index its sections.
    ///
    /// # Errors
    /// What is wrong with it, see [`StateError`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, StateError> {
        let mut c = Cursor { bytes, at: 0 };
        if !bytes.starts_with(&MAGIC) {
            return Err(StateError::NotAState { seen: bytes[..bytes.len().min(MAGIC.len())].to_vec() });
        }
        c.at = MAGIC.len();
        let mut sections = BTreeMap::new();
        loop {
            let start = c.at;
            let [name_len] = c.array("a section's start")?;
            if name_len == 0 {
                c.checksum(0, "end")?;
                return Ok(StateReader { sections });
            }
            let raw = c.take(usize::from(name_len), "a section's name")?;
            let bad = || StateError::BadName { name: String::from_utf8_lossy(raw).into_owned() };
            let name = std::str::from_utf8(raw).map_err(|_| bad())?;
            let version = u16::from_le_bytes(c.array("a section's version")?);
            let len = u32::from_le_bytes(c.array("a section's length")?);
            let payload = c.take(len as usize, "a section's contents")?;
            c.checksum(start, name)?;
            if sections.insert(name.to_string(), (version, payload)).is_some() {
                return Err(bad());
            }
        }
    }

    /// Take section `name`, which must have `version`.
    ///
    /// # Errors
    /// Missing, another version, or contents that do not decode to exactly one `T`.
    pub fn section<T: DeserializeOwned>(&mut self, name: &str, version: u16) -> Result<T, StateError> {
        let &(seen, payload) =
            self.sections.get(name).ok_or_else(|| StateError::Missing { section: name.to_string() })?;
        if seen != version {
            return Err(StateError::Version { section: name.to_string(), seen, wanted: version });
        }
        let contents = |cause: String| StateError::Contents { section: name.to_string(), cause };
        let (value, rest) = postcard::take_from_bytes(payload).map_err(|e| contents(e.to_string()))?;
        if !rest.is_empty() {
            return Err(contents(format!("{} bytes are left over", rest.len())));
        }
        self.sections.remove(name);
        Ok(value)
    }

    /// Nothing may be left that was not asked for.
    ///
    /// # Errors
    /// [`StateError::Unused`] with the names.
    pub fn finish(self) -> Result<(), StateError> {
        match self.sections.is_empty() {
            true => Ok(()),
            false => Err(StateError::Unused { names: self.sections.into_keys().collect() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut w = StateWriter::new();
        w.section("pit", 3, &(7u64, vec![1u8, 2, 3])).unwrap();
        w.section("rtc", 1, &"text".to_string()).unwrap();
        w.finish()
    }

    #[test]
    fn values_come_back() {
        let bytes = sample();
        let mut r = StateReader::new(&bytes).unwrap();
        assert_eq!(r.section::<(u64, Vec<u8>)>("pit", 3), Ok((7, vec![1, 2, 3])));
        assert_eq!(r.section::<String>("rtc", 1), Ok("text".to_string()));
        assert!(matches!(r.section::<u8>("rtc", 1), Err(StateError::Missing { .. })), "taken once");
        assert_eq!(r.finish(), Ok(()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let bytes = sample();
        for at in 0..bytes.len() {
            assert!(StateReader::new(&bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut b = bytes.clone();
                b[at] ^= 1 << bit;
                assert!(StateReader::new(&b).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn refusals_have_names() {
        let bytes = sample();
        let mut r = StateReader::new(&bytes).unwrap();
        assert!(matches!(r.section::<u8>("hpet", 1), Err(StateError::Missing { .. })));
        assert!(matches!(
            r.section::<(u64, Vec<u8>)>("pit", 4),
            Err(StateError::Version { seen: 3, wanted: 4, .. })
        ));
        assert!(matches!(r.section::<u8>("pit", 3), Err(StateError::Contents { .. })), "bytes left over");
        assert_eq!(r.finish(), Err(StateError::Unused { names: vec!["pit".into(), "rtc".into()] }));
        let mut w = StateWriter::new();
        w.section("a", 1, &1u8).unwrap();
        assert!(matches!(w.section("a", 1, &1u8), Err(StateError::BadName { .. })));
        assert!(matches!(StateReader::new(b"ELF"), Err(StateError::NotAState { .. })));
    }
}
