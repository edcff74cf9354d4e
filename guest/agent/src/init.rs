//! Being the first process of a small guest: mount what the kernel offers, serve
//! the host, run a command, reap orphans, power off.
//!
//! The serving agent is a process of its own: the first process inherits orphans
//! and has to reap them, which would take the exit statuses of commands away from
//! whoever waits for them.

use std::ffi::{CStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::sys;

/// What precedes the exit status of the command on the console: the owner of the
/// machine takes it as the run's own.
const STATUS_MARKER: &str = "strata: exit status ";

/// What is mounted where it is not yet: type, place, options.
const MOUNTS: [(&CStr, &CStr, &CStr); 6] = [
    (c"proc", c"/proc", c""),
    (c"sysfs", c"/sys", c""),
    (c"devtmpfs", c"/dev", c"mode=0755"),
    (c"devpts", c"/dev/pts", c"ptmxmode=0666,mode=0620,gid=5"),
    (c"tmpfs", c"/run", c"mode=0755"),
    (c"tmpfs", c"/tmp", c"mode=1777"),
];

fn mount_all() {
    for (kind, place, options) in MOUNTS {
        // It may be there, or the root may be read-only; what needs it will tell.
        let _ = std::fs::create_dir_all(place.to_string_lossy().as_ref());
        let mounted = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let place_text = place.to_string_lossy();
        if mounted.lines().any(|l| l.split(' ').nth(1) == Some(place_text.as_ref())) {
            continue;
        }
        if let Err(e) = sys::mount(kind, place, kind, false, options) {
            eprintln!("strata-agent: cannot mount {place_text}: {e}");
        }
    }
}

/// What a shell would show of a wait status (wait(2)).
fn shell_status(status: i32) -> i32 {
    match status & 0x7f {
        0 => status >> 8 & 0xff,
        signal => 128 + signal,
    }
}

/// Be the first process; `command` empty: until the guest is ended otherwise.
///
/// # Errors
/// When this is not the first process, or the command cannot be started.
pub fn run(command: &[OsString]) -> io::Result<()> {
    if std::process::id() != 1 {
        return Err(io::Error::other("only the first process is init; start `strata-agent serve` instead"));
    }
    sys::end_when_asked();
    mount_all();
    // What cannot be mounted has been told.
    let _ = crate::shares::mount_all();
    let mut server = Command::new("/proc/self/exe").arg("serve").spawn()?.id();
    let mut main = None;
    if let Some((program, arguments)) = command.split_first() {
        let mut main_command = Command::new(program);
        match main_command.args(arguments).process_group(0).spawn() {
            Ok(child) => main = Some(child.id()),
            Err(e) => {
                eprintln!("strata-agent: {}: {e}", program.to_string_lossy());
                println!("{STATUS_MARKER}127");
                return Err(sys::end(false));
            }
        }
    }
    loop {
        match sys::reap() {
            Ok((pid, status)) if Some(pid) == main => {
                println!("{STATUS_MARKER}{}", shell_status(status));
                return Err(sys::end(false));
            }
            // The server never ends by itself unless there is no vsock.
            Ok((pid, status)) if pid == server && status != 0x100 => {
                server = Command::new("/proc/self/exe").arg("serve").spawn()?.id();
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // No child is left: only the kernel's signals wake us now.
            Err(_) => std::thread::sleep(std::time::Duration::from_secs(3600)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_what_a_shell_shows() {
        for (raw, shown) in [(0, 0), (0x0300, 3), (0xff00, 255), (9, 137), (0x8b, 139)] {
            assert_eq!(shell_status(raw), shown, "{raw:#x}");
        }
    }

    #[test]
    fn only_the_first_process_is_init() {
        assert!(run(&[]).unwrap_err().to_string().contains("serve"));
    }
}
