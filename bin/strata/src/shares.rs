//! Folders of the host for a guest: `-v HOST:GUEST[:OPTION,…]`.

use std::path::PathBuf;

use anyhow::Context;
use board::{MachineSpec, ShareBackend, ShareSpec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::failure::InputError;

/// A folder and where the guest is to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    host: PathBuf,
    guest: String,
    read_only: bool,
    backend: ShareBackend,
}

/// Parse `HOST:GUEST[:OPTION,…]`.
///
/// # Errors
/// When it is something else.
pub fn parse(text: &str) -> Result<Volume, String> {
    let wrong = "not HOST:GUEST[:OPTION,…] with a GUEST that begins with /; write e.g. .:/mnt";
    let (mut read_only, mut backend) = (false, ShareBackend::default());
    let rest = match text.rsplit_once(':') {
        Some((rest, options)) if !options.starts_with('/') => {
            for option in options.split(',') {
                match option {
                    "ro" => read_only = true,
                    "rw" => read_only = false,
                    "backend=internal" => backend = ShareBackend::Internal,
                    "backend=virtiofsd" => backend = ShareBackend::Virtiofsd,
                    _ if !rest.contains(':') => return Err(wrong.to_string()),
                    _ => {
                        return Err(format!(
                            "\"{option}\" is not an option; use ro, rw, backend=internal or backend=virtiofsd"
                        ));
                    }
                }
            }
            rest
        }
        _ => text,
    };
    match rest.rsplit_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
            Ok(Volume { host: host.into(), guest: guest.to_string(), read_only, backend })
        }
        _ => Err(wrong.to_string()),
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
    for (i, Volume { host, guest, read_only, backend }) in volumes.iter().enumerate() {
        let folder = std::fs::canonicalize(host).ok().filter(|f| f.is_dir()).with_context(|| {
            InputError(format!("-v {}: no folder of this name; create it first", host.display()))
        })?;
        let tag = format!("share{i}");
        let suffix = if *read_only { ":ro" } else { "" };
        spec.boot.cmdline.push_str(&format!(" strata.share={tag}:{}{suffix}", encode(guest)));
        spec.shares.push(ShareSpec { tag, folder, read_only: *read_only, backend: *backend });
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
        let volume = |host: &str, guest: &str, read_only, backend| {
            Ok(Volume { host: host.into(), guest: guest.into(), read_only, backend })
        };
        let (internal, virtiofsd) = (ShareBackend::Internal, ShareBackend::Virtiofsd);
        for (text, expect) in [
            ("/srv:/mnt", volume("/srv", "/mnt", false, internal)),
            (".:/mnt:ro", volume(".", "/mnt", true, internal)),
            ("a:b:/c d:rw", volume("a:b", "/c d", false, internal)),
            (".:/mnt:backend=virtiofsd", volume(".", "/mnt", false, virtiofsd)),
            ("a:b:/c:ro,backend=virtiofsd", volume("a:b", "/c", true, virtiofsd)),
            (".:/mnt:backend=internal", volume(".", "/mnt", false, internal)),
        ] {
            assert_eq!(parse(text), expect, "{text}");
        }
        for text in
            ["/srv", "/srv:mnt", ":/mnt", "/srv:/mnt:xx", "", "/srv:ro", "/srv:/mnt:", "/srv:/mnt:ro,"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(".:/mnt:backend=nfs").unwrap_err().contains("backend=nfs"));
        assert_eq!(encode("/a b:\u{e9}"), "/a%20b%3a%c3%a9");
    }
}
