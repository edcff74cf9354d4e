//! What the host does to locked instructions that cross a cache line.

use std::fs;
use std::sync::OnceLock;

/// Whether the host ends processes for such instructions (`split_lock_detect=fatal` on its
/// kernel's command line). Found out at the first call.
pub fn split_locks_are_fatal() -> bool {
    static FATAL: OnceLock<bool> = OnceLock::new();
    *FATAL.get_or_init(|| fs::read_to_string("/proc/cmdline").is_ok_and(|line| fatal(&line)))
}

/// The last of several counts, as to the kernel.
fn fatal(command_line: &str) -> bool {
    let mut settings =
        command_line.split_whitespace().filter_map(|word| word.strip_prefix("split_lock_detect="));
    settings.next_back() == Some("fatal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_command_line_tells() {
        for (line, want) in [
            ("", false),
            ("root=/dev/sda1 quiet", false),
            ("split_lock_detect=warn", false),
            ("quiet split_lock_detect=fatal\n", true),
            ("split_lock_detect=fatal split_lock_detect=off", false),
            ("nosplit_lock_detect=fatal", false),
        ] {
            assert_eq!(fatal(line), want, "{line:?}");
        }
    }
}
