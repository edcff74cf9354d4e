//! The built-in guest.

use std::path::PathBuf;

use anyhow::Context;
use board::BootSpec;
use guest_image::{GuestImageError, command_parameter, ensure_default_guest};

use crate::progress::Bars;

/// What the built-in guest prints when its shell is ready.
pub const READY: &str = guest_image::READY_MARKER;
/// What precedes the exit status of the command it ran.
pub const STATUS: &str = guest_image::STATUS_MARKER;

/// Its kernel command line. The console uses RTS, so that it holds input back
/// that no program reads yet. Mitigations protect from a processor that is not
/// there; self-tests of ciphers would take half of the start. A panic restarts at
/// once, which ends the run with the panic's status instead of leaving it hanging.
const CMDLINE: &str = "console=ttyS0,115200n8r quiet panic=-1 mitigations=off cryptomgr.notests";

/// Find or fetch the built-in guest's images. With `progress` the work is shown
/// on standard error.
pub fn built_in(command: &[String], append: Option<&str>, progress: bool) -> anyhow::Result<BootSpec> {
    let files = if progress {
        ensure_default_guest(&Bars::new())
    } else {
        ensure_default_guest(&guest_image::Silent)
    };
    let files = files.context("cannot prepare the built-in guest")?;
    if progress {
        eprintln!("strata: {}", files.description);
    }
    let mut cmdline = append.unwrap_or(CMDLINE).to_string();
    if !command.is_empty() {
        cmdline.push(' ');
        cmdline.push_str(&command_parameter(&shell_words(command)));
    }
    Ok(BootSpec { kernel: Some(files.kernel), initrd: Some(files.initrd), cmdline, ..BootSpec::default() })
}

/// One shell command that runs exactly these words. A single word is taken as a
/// whole command line, as `sh -c` takes it.
pub fn shell_words(words: &[String]) -> String {
    let [single] = words else {
        let quoted: Vec<_> = words.iter().map(|w| format!("'{}'", w.replace('\'', r"'\''"))).collect();
        return quoted.join(" ");
    };
    single.clone()
}

/// Where images are kept; a relative path when the environment names no place.
///
/// # Errors
/// When no environment variable names a place.
pub fn cache_dir() -> Result<PathBuf, GuestImageError> {
    guest_image::cache_directory()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_guest_unchanged() {
        let words = |list: &[&str]| shell_words(&list.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        assert_eq!(words(&["uname -a; id"]), "uname -a; id");
        assert_eq!(words(&["echo", "a b", "it's"]), r"'echo' 'a b' 'it'\''s'");
    }
}
