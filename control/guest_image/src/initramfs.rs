//! The initramfs of the default guest, and of tests' guests.

use crate::Archive;

const INIT: &str = include_str!("init.sh");

/// What the guest's console shows right before the shell or the command starts.
pub const READY_MARKER: &str = "strata: shell ready";
/// What precedes the exit status of a command given by [`COMMAND_PARAMETER`].
pub const STATUS_MARKER: &str = "strata: exit status ";
/// Kernel parameter whose value, a shell command in base64, runs instead of an
/// interactive shell; the guest powers off after it.
pub const COMMAND_PARAMETER: &str = "strata.cmd=";

/// A file to put into a guest beside busybox.
#[derive(Debug, Clone, Copy)]
pub struct ExtraFile<'a> {
    /// Its path without the leading slash. `init` replaces the default one.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// Its content.
    pub content: &'a [u8],
}

/// An initramfs with busybox, a start script and more files. Not compressed:
/// copying is faster than decompressing, most of all on an interpreter.
pub fn build_initramfs(busybox: &[u8], extra: &[ExtraFile<'_>]) -> Vec<u8> {
    let mut archive = Archive::new();
    for directory in ["dev", "proc", "sys", "tmp", "root", "run", "bin", "sbin", "usr/bin", "usr/sbin"] {
        archive.directory(directory);
    }
    // The kernel opens the console for the first process before devtmpfs is mounted.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, busybox);
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, b"root:x:0:\n");
    if !extra.iter().any(|f| f.path == "init") {
        archive.file("init", 0o755, INIT.as_bytes());
    }
    for f in extra {
        archive.file(f.path, f.mode, f.content);
    }
    archive.finish()
}

/// The default guest's initramfs: with the agent, and an archive of drivers behind.
pub(crate) fn default_initramfs(busybox: &[u8], modules: &[u8]) -> Vec<u8> {
    let agent = ExtraFile { path: guest_agent::PATH, mode: 0o755, content: guest_agent::bytes() };
    let mut bytes = build_initramfs(busybox, &[agent]);
    bytes.extend_from_slice(modules);
    bytes
}

/// The kernel parameter that makes the default guest run `command`.
pub fn command_parameter(command: &str) -> String {
    format!("{COMMAND_PARAMETER}{}", base64(command.as_bytes()))
}

/// Standard base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().enumerate().fold(0u32, |w, (i, b)| w | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

/// A name that changes whenever the default initramfs would (FNV-1a of its script
/// and the agent).
pub(crate) fn version() -> String {
    let bytes = INIT.bytes().chain(guest_agent::bytes().iter().copied());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_rfc_4648() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(command_parameter("ls"), "strata.cmd=bHM=");
    }

    #[test]
    fn the_markers_are_what_the_script_prints() {
        assert!(INIT.contains(READY_MARKER));
        assert!(INIT.contains(STATUS_MARKER));
        assert!(INIT.contains(&format!("{COMMAND_PARAMETER}*)")));
    }

    #[test]
    fn an_own_init_replaces_the_default() {
        let own = ExtraFile { path: "init", mode: 0o755, content: b"#!/bin/own" };
        let archive = build_initramfs(b"busybox", &[own]);
        let has = |needle: &[u8]| archive.windows(needle.len()).any(|w| w == needle);
        assert!(has(b"#!/bin/own") && !has(READY_MARKER.as_bytes()));
    }
}
