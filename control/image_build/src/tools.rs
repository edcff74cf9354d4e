//! The programs needed, and how to get them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use guest_image::Progress;

use crate::error::BuildError;
use crate::program;

/// A program, and the Debian package that has it.
type Tool = (&'static str, &'static str);

/// What a build needs.
const TOOLS: [Tool; 4] =
    [("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs"), ("dpkg-deb", "dpkg"), ("tar", "tar")];
/// What it needs besides without root: user namespaces for the packages'
/// installation, pretended ownership for the file system's making.
const WITHOUT_ROOT: [Tool; 2] = [("newuidmap", "uidmap"), ("fakeroot", "fakeroot")];

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a program is in the path or where administrators' programs are.
fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|d| d.join(program).is_file())
}

/// Install what is missing, as root or by a sudo that asks nothing; else say
/// what to install.
pub(crate) fn provide(progress: &dyn Progress) -> Result<(), BuildError> {
    let more = if is_root() { &[][..] } else { &WITHOUT_ROOT };
    let missing: Vec<&Tool> = TOOLS.iter().chain(more).filter(|t| !is_there(t.0)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs = missing.iter().map(|t| t.0).collect::<Vec<_>>().join(", ");
    let packages: Vec<&str> = missing.iter().map(|t| t.1).collect();
    let told = || BuildError::Missing { missing: programs.clone(), packages: packages.join(" ") };
    if !is_there("apt-get") {
        return Err(told());
    }
    let prefix: &[&str] = if is_root() {
        &["apt-get"]
    } else if succeeds(Command::new("sudo").args(["-n", "true"])) {
        &["sudo", "-n", "apt-get"]
    } else {
        return Err(told());
    };
    progress.phase(&format!("installing {}", packages.join(", ")));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).args(arguments);
        program::run(&mut command, "install the packages by hand", |_| {})
    };
    let install = [&["-q", "-y", "install", "--no-install-recommends"], &packages[..]].concat();
    // A fresh host has no package lists.
    apt(&install).or_else(|_| apt(&["-q", "update"]).and_then(|()| apt(&install)))
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_where_administrators_have_them_too() {
        assert!(is_there("sh"));
        assert!(!is_there("strata-no-such-program"));
    }
}
