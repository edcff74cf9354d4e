//! The digest of a file, holes or not.
//!
//! A disk image of 4 GiB holds a few hundred MiB; reading its holes would cost
//! more than all the rest. So the digest is BLAKE3 over the file's length and
//! then, for each [`PIECE`] that is not all zeros, its number and its own BLAKE3.
//! A hole and written zeros give the same digest.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::copy::data_extents;

/// Bytes hashed as one.
const PIECE: u64 = 1 << 20;
/// Digits of a digest.
const DIGITS: usize = 64;
/// Told apart from every other use of the hash.
const CONTEXT: &str = "strata image_store 2026 sparse file";

/// What a blob is named by: 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest of a file.
    ///
    /// # Errors
    /// When the host cannot read it.
    pub fn of(file: &File) -> io::Result<Digest> {
        let length = file.metadata()?.len();
        let mut hash = blake3::Hasher::new_derive_key(CONTEXT);
        hash.update(&length.to_le_bytes());
        let mut buffer = vec![0; PIECE as usize];
        let mut next = 0;
        for extent in data_extents(file)? {
            // Extents may begin and end within a piece; each piece counts once.
            for piece in next.max(extent.start / PIECE)..extent.end.div_ceil(PIECE) {
                let at = piece * PIECE;
                let bytes = &mut buffer[..PIECE.min(length - at) as usize];
                file.read_exact_at(bytes, at)?;
                if bytes.iter().any(|b| *b != 0) {
                    hash.update(&piece.to_le_bytes());
                    hash.update(blake3::hash(bytes).as_bytes());
                }
                next = piece + 1;
            }
        }
        Ok(Digest(hash.finalize().to_hex().to_string()))
    }

    /// Its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough of it for people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Digest {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == DIGITS && text.bytes().all(digit) {
            Ok(Digest(text.to_string()))
        } else {
            Err(format!("\"{text}\" is not a digest; it has {DIGITS} hexadecimal digits"))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            Scratch(std::env::temp_dir().join(format!("strata-digest-{}-{n}", std::process::id())))
        }
        fn file(&self) -> File {
            let mut options = File::options();
            options.create(true).truncate(true).read(true).write(true).open(&self.0).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn holes_and_written_zeros_are_the_same_and_length_counts() {
        let (a, b) = (Scratch::new(), Scratch::new());
        let (sparse, full) = (a.file(), b.file());
        sparse.set_len(3 * PIECE + 5).unwrap();
        sparse.write_all_at(b"data", PIECE + 17).unwrap();
        full.write_all_at(&vec![0; (3 * PIECE + 5) as usize], 0).unwrap();
        full.write_all_at(b"data", PIECE + 17).unwrap();
        assert_eq!(Digest::of(&sparse).unwrap(), Digest::of(&full).unwrap());
        full.set_len(3 * PIECE + 6).unwrap();
        assert_ne!(Digest::of(&sparse).unwrap(), Digest::of(&full).unwrap());
    }

    #[test]
    fn an_empty_file_has_a_digest_that_never_changes() {
        let scratch = Scratch::new();
        let digest = Digest::of(&scratch.file()).unwrap();
        // Stores on disks rest on it.
        assert_eq!(digest.short(), "0627a822e5c4");
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn every_byte_and_its_place_count(at in 0u64..(2 * PIECE), byte in 1u8..) {
            let scratch = Scratch::new();
            let file = scratch.file();
            file.set_len(2 * PIECE).unwrap();
            let before = Digest::of(&file).unwrap();
            file.write_all_at(&[byte], at).unwrap();
            let after = Digest::of(&file).unwrap();
            prop_assert_ne!(&before, &after);
            file.write_all_at(&[0], at).unwrap();
            prop_assert_eq!(before, Digest::of(&file).unwrap());
        }
    }

    #[test]
    fn only_digits_are_digests() {
        for bad in ["", "0", &"g".repeat(DIGITS), &"A".repeat(DIGITS), &"0".repeat(DIGITS + 1), "../../x"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }
}
