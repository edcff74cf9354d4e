//! The descriptor: lines of `key=value`, and one for each extent.

use crate::input::FormatError;

/// Most bytes of a descriptor; VMware's and QEMU's have up to 20 sectors.
pub const MAX_DESCRIPTOR_BYTES: u64 = 1 << 20;
/// Most extents: 1 TiB of split files of 2 GiB. Each takes an open file.
pub const MAX_EXTENTS: usize = 512;
/// What the descriptor says of a disk without a parent.
const NO_PARENT: &str = "ffffffff";

/// What begins an extent's line.
const ACCESS: [&str; 3] = ["RW", "RDONLY", "NOACCESS"];

/// What an extent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The disk's bytes.
    Flat,
    /// Grains with tables.
    Sparse,
    /// Zeroes.
    Zero,
}

/// An extent's line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub sectors: u64,
    pub kind: Kind,
    /// A file beside the descriptor.
    pub name: String,
    /// Where a flat extent begins in its file, in sectors.
    pub offset: u64,
}

/// What a descriptor says, once it is known to be sane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub extents: Vec<Line>,
}

impl Descriptor {
    pub fn parse(bytes: &[u8]) -> Result<Descriptor, FormatError> {
        // Embedded ones are padded with zeroes.
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(text);
        if !text.trim_start().starts_with("# Disk DescriptorFile") {
            return Err(FormatError::Missing("VMDK descriptor"));
        }
        let mut extents = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // A file's name in an extent's line may have a sign of equality too.
            let first = line.split_whitespace().next().unwrap_or_default();
            match line.split_once('=') {
                _ if ACCESS.contains(&first) => extents.push(extent(line)?),
                Some((key, value)) => setting(key.trim(), value.trim().trim_matches('"'))?,
                None => return Err(FormatError::Line(shown(line))),
            }
            if extents.len() > MAX_EXTENTS {
                let text = format!("has more than {MAX_EXTENTS} extents");
                return Err(FormatError::Feature(text));
            }
        }
        if extents.is_empty() {
            return Err(FormatError::Missing("extent in its descriptor"));
        }
        Ok(Descriptor { extents })
    }
}

/// No more of a hostile line than a message can have.
fn shown(line: &str) -> String {
    line.chars().take(80).collect()
}

/// A setting that says whether the image can be read.
fn setting(key: &str, value: &str) -> Result<(), FormatError> {
    if key.eq_ignore_ascii_case("parentCID") && !value.eq_ignore_ascii_case(NO_PARENT) {
        return Err(FormatError::Parent);
    }
    if key.eq_ignore_ascii_case("parentFileNameHint") {
        return Err(FormatError::Parent);
    }
    Ok(())
}

/// Words between spaces; quotes keep spaces in one.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        words.push(word.to_string());
        rest = after.trim_start();
    }
    Some(words)
}

/// `RW 4192256 SPARSE "name.vmdk"`, `RW 4192256 FLAT "name-flat.vmdk" 0`, `RW 64 ZERO`.
fn extent(line: &str) -> Result<Line, FormatError> {
    let told = || FormatError::Line(shown(line));
    let words = words(line).ok_or_else(told)?;
    let word = |n: usize| words.get(n).map(String::as_str);
    if !matches!(word(0), Some("RW" | "RDONLY")) {
        return Err(told());
    }
    let sectors = word(1).and_then(|w| w.parse::<u64>().ok()).filter(|n| *n > 0).ok_or_else(told)?;
    let kind = match word(2) {
        Some("FLAT" | "VMFS") => Kind::Flat,
        Some("SPARSE") => Kind::Sparse,
        Some("ZERO") => Kind::Zero,
        Some(other @ ("VMFSSPARSE" | "SESPARSE" | "VMFSRDM" | "VMFSRAW")) => {
            return Err(FormatError::Feature(format!("has an extent of kind {other}")));
        }
        _ => return Err(told()),
    };
    let name = word(3).unwrap_or_default().to_string();
    // The name is the image's word, and could be any file's of this host.
    let beside = !name.is_empty() && !name.contains('/') && name != ".." && name != ".";
    if kind != Kind::Zero && !beside {
        let text = format!("names a file elsewhere, \"{}\"", shown(&name));
        return Err(FormatError::Feature(text));
    }
    let offset = word(4).map_or(Ok(0), |w| w.parse::<u64>().map_err(|_| told()))?;
    Ok(Line { sectors, kind, name, offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &str) -> Result<Descriptor, FormatError> {
        Descriptor::parse(format!("# Disk DescriptorFile\nversion=1\n{lines}\n").as_bytes())
    }

    #[test]
    fn extents_are_read_in_order() {
        let d = parse(
            "CID=123a\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n\
             RW 100 FLAT \"a b=c-f001.vmdk\" 7\nRDONLY 5 ZERO\nRW 9 SPARSE \"s.vmdk\"\n\nddb.uuid = \"60 00\"",
        );
        let line = |sectors, kind, name: &str, offset| Line { sectors, kind, name: name.into(), offset };
        let expected = [
            line(100, Kind::Flat, "a b=c-f001.vmdk", 7),
            line(5, Kind::Zero, "", 0),
            line(9, Kind::Sparse, "s.vmdk", 0),
        ];
        assert_eq!(d.expect("a good one").extents, expected);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let extents = "RW 1 ZERO\n".repeat(MAX_EXTENTS + 1);
        for (lines, text) in [
            ("", "extent in its descriptor"),
            ("RW 1 FLAT \"/etc/shadow\" 0", "elsewhere"),
            ("RW 1 FLAT \"../x\" 0", "elsewhere"),
            ("RW 1 FLAT \"..\" 0", "elsewhere"),
            ("RW 1 FLAT", "elsewhere"),
            ("RW 1 FLAT \"x", "descriptor with"),
            ("RW 0 FLAT \"x\" 0", "RW 0"),
            ("RW -1 FLAT \"x\" 0", "RW -1"),
            ("RW 99999999999999999999 FLAT \"x\" 0", "9999"),
            ("RW 1 FLAT \"x\" y", "\"x\" y"),
            ("NOACCESS 1 ZERO", "NOACCESS"),
            ("RW 1 VMFSSPARSE \"x\"", "VMFSSPARSE"),
            ("RW 1 WHAT \"x\"", "WHAT"),
            ("parentCID=0badcafe\nRW 1 ZERO", "another image"),
            ("parentFileNameHint=\"/etc/passwd\"\nRW 1 ZERO", "another image"),
            (&extents, "more than 512"),
        ] {
            let message = parse(lines).expect_err(lines).to_string();
            assert!(message.contains(text), "{message} lacks {text}");
            assert!(message.contains("; "), "{message}");
        }
        assert!(Descriptor::parse(b"hello").is_err());
    }
}
