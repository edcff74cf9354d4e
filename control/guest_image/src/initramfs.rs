//! The initramfs of the default guest, and of tests' guests.

use base64ct::{Base64, Encoding};

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
    format!("{COMMAND_PARAMETER}{}", Base64::encode_string(command.as_bytes()))
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
    fn the_command_is_one_word_whatever_is_in_it() {
        assert_eq!(command_parameter("ls"), "strata.cmd=bHM=");
        assert_eq!(command_parameter("echo \"a b\""), "strata.cmd=ZWNobyAiYSBiIg==");
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
