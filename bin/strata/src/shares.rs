//! Folders of the host for a guest: `-v HOST:GUEST[:ro]`.

use std::path::PathBuf;

use anyhow::Context;
use board::{MachineSpec, ShareSpec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::InputError;

/// A folder and where the guest is to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    host: PathBuf,
    guest: String,
    read_only: bool,
}

/// Parse `HOST:GUEST[:ro]`.
///
/// # Errors
/// When it is something else.
pub fn parse(text: &str) -> Result<Volume, String> {
    let (rest, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    match rest.rsplit_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
            Ok(Volume { host: host.into(), guest: guest.to_string(), read_only })
        }
        _ => Err("not HOST:GUEST[:ro] with a GUEST that begins with /; write e.g. .:/mnt".to_string()),
    }
}

/// A path as a word of the kernel's command line can hold it.
fn encode(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+,@".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02x}") }).collect()
}

/// Put folders into the specification, and what the agent in the guest reads on
/// the kernel's command line.
///
/// # Errors
/// When one is no folder.
pub fn add(volumes: &[Volume], spec: &mut MachineSpec) -> anyhow::Result<()> {
    for (i, Volume { host, guest, read_only }) in volumes.iter().enumerate() {
        let folder = std::fs::canonicalize(host).ok().filter(|f| f.is_dir()).with_context(|| {
            InputError(format!("-v {}: no folder of this name; create it first", host.display()))
        })?;
        let tag = format!("share{i}");
        let suffix = if *read_only { ":ro" } else { "" };
        spec.boot.cmdline.push_str(&format!(" strata.share={tag}:{}{suffix}", encode(guest)));
        spec.shares.push(ShareSpec { tag, folder, read_only: *read_only });
    }
    if !volumes.is_empty() {
        raise_file_limit();
    }
    Ok(())
}

/// Each inode that a guest knows is a descriptor: take as many as may be had.
fn raise_file_limit() {
    let most = getrlimit(Resource::Nofile).maximum;
    // A host that refuses leaves fewer inodes, which the guest is told when they run out.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_as_docker_has_them() {
        let volume = |host: &str, guest: &str, read_only| {
            Ok(Volume { host: host.into(), guest: guest.into(), read_only })
        };
        for (text, expect) in [
            ("/srv:/mnt", volume("/srv", "/mnt", false)),
            (".:/mnt:ro", volume(".", "/mnt", true)),
            ("a:b:/c d:rw", volume("a:b", "/c d", false)),
        ] {
            assert_eq!(parse(text), expect, "{text}");
        }
        for text in ["/srv", "/srv:mnt", ":/mnt", "/srv:/mnt:xx", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(encode("/a b:\u{e9}"), "/a%20b%3a%c3%a9");
    }
}
