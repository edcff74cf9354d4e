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
/// What it needs besides without root: pretended ownership for the file system's making.
const WITHOUT_ROOT: Tool = ("fakeroot", "fakeroot");
/// And for the packages' installation: a user namespace, or a pretended root directory.
const NAMESPACE: Tool = ("newuidmap", "uidmap");
const PRETENDED: Tool = ("fakechroot", "fakechroot");
/// User IDs that a distribution's files need.
const IDS: u64 = 65536;

/// How packages are installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As root.
    Root,
    /// In a user namespace with a range of user IDs.
    Namespace,
    /// By libraries that pretend to be root, in a directory that is pretended to be the
    /// root; why not in a namespace.
    Pretended(String),
}

impl Mode {
    /// What this user on this host can do.
    pub fn of_host() -> Mode {
        if is_root() {
            return Mode::Root;
        }
        let uid = rustix::process::geteuid().as_raw();
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let name = user_name(&read("/etc/passwd"), uid).unwrap_or_else(|| uid.to_string());
        for file in ["/etc/subuid", "/etc/subgid"] {
            if !has_range(&read(file), &name, uid) {
                return Mode::Pretended(format!(
                    "{file} has no range of {IDS} for {name}, as `usermod --add-subuids 100000-165535 \
                     --add-subgids 100000-165535 {name}` gives as root"
                ));
            }
        }
        if is_there("unshare") && !succeeds(Command::new("unshare").args(["--user", "true"])) {
            return Mode::Pretended("this host allows users no namespaces of their own".to_string());
        }
        Mode::Namespace
    }

    /// Its name for mmdebstrap.
    pub fn word(&self) -> &'static str {
        match self {
            Mode::Root => "root",
            Mode::Namespace => "unshare",
            Mode::Pretended(_) => "fakechroot",
        }
    }

    fn tools(&self) -> &'static [Tool] {
        match self {
            Mode::Root => &[],
            Mode::Namespace => &[WITHOUT_ROOT, NAMESPACE],
            Mode::Pretended(_) => &[WITHOUT_ROOT, PRETENDED],
        }
    }
}

/// A user's name in the host's list.
fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let line = passwd.lines().find(|l| l.split(':').nth(2) == Some(uid.to_string().as_str()))?;
    line.split(':').next().map(str::to_string)
}

/// Whether a list of ranges (`name:first:count`) has one for a user, by name or number.
fn has_range(list: &str, name: &str, uid: u32) -> bool {
    list.lines().any(|line| {
        let mut parts = line.split(':');
        let owner = parts.next().unwrap_or_default();
        let count = parts.nth(1).and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
        (owner == name || owner == uid.to_string()) && count >= IDS
    })
}

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
pub(crate) fn provide(mode: &Mode, progress: &dyn Progress) -> Result<(), BuildError> {
    let missing: Vec<&Tool> = TOOLS.iter().chain(mode.tools()).filter(|t| !is_there(t.0)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let why = match mode {
        Mode::Pretended(why) if missing.contains(&&PRETENDED) => {
            format!(" (which is needed without a user namespace: {why})")
        }
        _ => String::new(),
    };
    let programs = missing.iter().map(|t| t.0).collect::<Vec<_>>().join(", ");
    let packages: Vec<&str> = missing.iter().map(|t| t.1).collect();
    let told = || BuildError::Missing { missing: format!("{programs}{why}"), packages: packages.join(" ") };
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

    #[test]
    fn a_range_of_user_ids_is_found_by_name_or_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nme:x:1000:1000::/:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000).as_deref(), Some("me"));
        assert_eq!(user_name(passwd, 100), None);
        for (list, found) in [
            ("", false),
            ("me:100000:65536\n", true),
            ("1000:100000:65536\n", true),
            ("you:100000:65536\nme:165536:131072", true),
            ("me:100000:65535\n", false),
            ("me:65536\n", false),
            ("meme:100000:65536\n", false),
            ("me:100000:many\n", false),
        ] {
            assert_eq!(has_range(list, "me", 1000), found, "{list}");
        }
    }

    #[test]
    fn each_mode_has_the_tools_it_needs() {
        let programs = |mode: Mode| mode.tools().iter().map(|t| t.0).collect::<Vec<_>>();
        assert!(programs(Mode::Root).is_empty());
        assert_eq!(programs(Mode::Namespace), ["fakeroot", "newuidmap"]);
        assert_eq!(programs(Mode::Pretended(String::new())), ["fakeroot", "fakechroot"]);
    }
}
