//! Names of images.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name or tag, in bytes.
const MAX_PART: usize = 63;
/// The tag of a name that has none.
const DEFAULT_TAG: &str = "latest";

/// A name and a tag: `debian`, which is `debian:latest`, or `debian:13`. Both
/// parts are small letters, digits, `.`, `_` and `-`, the first a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName {
    name: String,
    tag: String,
}

/// The text is no image's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not an image's name; write NAME or NAME:TAG with small letters, digits, . _ and -, at most {MAX_PART} each"
)]
pub struct ImageNameError(String);

impl ImageName {
    /// The part before the colon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part after the colon.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name of its manifest's file, which holds no colon.
    pub(crate) fn file_name(&self) -> String {
        format!("{}@{}.json", self.name, self.tag)
    }

    /// The image a manifest's file is for.
    pub(crate) fn from_file_name(file: &str) -> Option<Self> {
        let (name, tag) = file.strip_suffix(".json")?.split_once('@')?;
        format!("{name}:{tag}").parse().ok()
    }
}

fn is_part(part: &str) -> bool {
    let small = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let all = part.bytes().all(|b| small(b) || b"._-".contains(&b));
    part.bytes().next().is_some_and(small) && all && part.len() <= MAX_PART
}

impl FromStr for ImageName {
    type Err = ImageNameError;
    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        let (name, tag) = text.split_once(':').unwrap_or((text, DEFAULT_TAG));
        if is_part(name) && is_part(tag) {
            Ok(ImageName { name: name.to_string(), tag: tag.to_string() })
        } else {
            Err(ImageNameError(text.to_string()))
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = ImageNameError;
    fn try_from(text: String) -> Result<Self, ImageNameError> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> String {
        format!("{}:{}", name.name, name.tag)
    }
}

impl fmt::Display for ImageName {
    /// Without the default tag, as people say it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tag.as_str() {
            DEFAULT_TAG => f.pad(&self.name),
            tag => f.pad(&format!("{}:{tag}", self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_shown_as_people_write_them() {
        for (text, name, tag, shown) in [
            ("debian", "debian", "latest", "debian"),
            ("debian:13", "debian", "13", "debian:13"),
            ("debian:latest", "debian", "latest", "debian"),
            ("my-vm_2.0:a.b", "my-vm_2.0", "a.b", "my-vm_2.0:a.b"),
        ] {
            let read: ImageName = text.parse().unwrap();
            assert_eq!((read.name(), read.tag(), read.to_string().as_str()), (name, tag, shown));
            assert_eq!(ImageName::from_file_name(&read.file_name()), Some(read));
        }
    }

    #[test]
    fn what_could_leave_the_directory_or_look_like_an_option_is_no_name() {
        let long = "x".repeat(MAX_PART + 1);
        for bad in
            ["", ":", "a:", ":a", "-a", ".", "..", "../x", "a/b", "a:b:c", "A", "ä", "a b", "a@b", &long]
        {
            assert!(bad.parse::<ImageName>().is_err(), "{bad}");
        }
        for file in ["debian.json", "a@b", "@.json", "a@b@c.json", "notes"] {
            assert_eq!(ImageName::from_file_name(file), None, "{file}");
        }
    }
}
