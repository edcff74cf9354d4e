//! Identifiers and names of machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Digits of an identifier.
const DIGITS: usize = 8;
/// The longest name, in bytes.
const MAX_NAME: usize = 63;

/// A machine's identifier: eight hexadecimal digits, made when it starts. It is
/// also the name of its directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(String);

/// A name that its owner gave a machine: letters, digits, `-`, `_` and `.`, the
/// first one a letter or digit, at most 63.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineName(String);

/// The text is no identifier or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No identifier.
    #[error("\"{0}\" is not a machine's identifier; it has {DIGITS} hexadecimal digits")]
    Id(String),
    /// No name.
    #[error(
        "\"{0}\" is not a machine's name; use letters, digits, - _ and ., a letter or digit first, at most {MAX_NAME}"
    )]
    Name(String),
}

impl MachineId {
    /// A new one. `number` is random; two machines of one user meet with
    /// probability 2⁻³², and the second takes another.
    pub fn from_number(number: u64) -> Self {
        MachineId(format!("{:08x}", number as u32))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl MachineName {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MachineId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if text.len() == DIGITS && text.bytes().all(digit) {
            Ok(MachineId(text.to_string()))
        } else {
            Err(NameError::Id(text.to_string()))
        }
    }
}

impl FromStr for MachineName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let all = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if first && all && text.len() <= MAX_NAME {
            Ok(MachineName(text.to_string()))
        } else {
            Err(NameError::Name(text.to_string()))
        }
    }
}

macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    )*};
}
as_text! { MachineId MachineName }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory_or_look_like_options() {
        for good in ["web", "Web-1", "a.b_c", "0", &"x".repeat(MAX_NAME)] {
            assert_eq!(good.parse::<MachineName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n", &"x".repeat(MAX_NAME + 1)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn identifiers_are_eight_small_hexadecimal_digits() {
        assert_eq!(MachineId::from_number(0xabc).as_str(), "00000abc");
        assert_eq!(MachineId::from_number(u64::MAX).to_string().parse(), Ok(MachineId("ffffffff".into())));
        for bad in ["", "0", "0123456g", "ABCDEF01", "012345678", "../../ab"] {
            assert!(bad.parse::<MachineId>().is_err(), "{bad:?}");
        }
    }
}
