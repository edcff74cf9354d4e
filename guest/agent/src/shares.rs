//! Folders that the host shares, mounted where the kernel's command line says:
//! `strata.share=TAG:PATH[:ro]`, a word for each. `%XX` stands for a byte that such
//! a word cannot hold.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::sys;

const PARAMETER: &str = "strata.share=";

/// A folder to mount.
#[derive(Debug, PartialEq, Eq)]
struct Share {
    tag: Vec<u8>,
    path: Vec<u8>,
    read_only: bool,
}

/// Undo `%XX`; what is none stays.
fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

fn parse(word: &str) -> Option<Share> {
    let mut parts = word.strip_prefix(PARAMETER)?.split(':');
    let (tag, path) = (decode(parts.next()?), decode(parts.next()?));
    let read_only = match parts.next() {
        None => false,
        Some("ro") => true,
        Some(_) => return None,
    };
    path.starts_with(b"/").then_some(Share { tag, path, read_only })
}

fn mount(share: &Share) -> io::Result<()> {
    let Share { tag, path, read_only } = share;
    fs::create_dir_all(Path::new(OsStr::from_bytes(path)))?;
    let (source, target) = (CString::new(tag.clone())?, CString::new(path.clone())?);
    sys::mount(&source, &target, c"virtiofs", *read_only, c"")
}

/// Mount all that the command line names and that are not mounted yet.
///
/// # Errors
/// When one cannot be mounted; the others are all the same.
pub fn mount_all() -> io::Result<()> {
    let mounted = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mut result = Ok(());
    for share in fs::read_to_string("/proc/cmdline")?.split_whitespace().filter_map(parse) {
        let tag = String::from_utf8_lossy(&share.tag).into_owned();
        let is_there = mounted.lines().any(|l| l.starts_with(&format!("{tag} ")) && l.contains(" virtiofs "));
        if is_there {
            continue;
        }
        if let Err(e) = mount(&share) {
            let path = String::from_utf8_lossy(&share.path);
            eprintln!("strata-agent: cannot mount share {tag} at {path}: {e}");
            result = Err(e);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command_line_name_shares() {
        let share = |path: &str, read_only| {
            Some(Share { tag: b"share0".to_vec(), path: path.as_bytes().to_vec(), read_only })
        };
        for (word, expect) in [
            ("strata.share=share0:/mnt", share("/mnt", false)),
            ("strata.share=share0:/mnt:ro", share("/mnt", true)),
            ("strata.share=share0:/a%20b%3a%25%zz", share("/a b:%%zz", false)),
            ("strata.share=share0:mnt", None),
            ("strata.share=share0", None),
            ("strata.share=share0:/mnt:rw", None),
            ("quiet", None),
        ] {
            assert_eq!(parse(word), expect, "{word}");
        }
    }
}
