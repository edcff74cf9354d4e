//! What of ours is in a built image: a Debian package, `strata-guest`.
//!
//! As a package it is known to the guest's dpkg, and it satisfies the kernel's
//! wish for a program that makes initramfs archives: these guests boot without one.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{BuildError, failed};
use crate::program;

/// Its name.
pub(crate) const PACKAGE: &str = "strata-guest";

const CONTROL: &str = concat!(
    "Package: strata-guest\nVersion: ",
    env!("CARGO_PKG_VERSION"),
    "\nArchitecture: amd64\nSection: admin\nPriority: optional\n",
    "Maintainer: Strata <strata@localhost>\nProvides: linux-initramfs-tool\n",
    "Description: First start and consoles of a Strata guest\n",
    " Takes identity and files from the seed disk, serves the serial consoles, and\n runs what `strata exec` and `strata cp` ask for.\n",
);

/// Path in the guest, mode, content.
const FILES: [(&str, u32, &str); 6] = [
    ("usr/lib/strata/setup", 0o755, include_str!("../guest/setup")),
    ("usr/lib/strata/console", 0o755, include_str!("../guest/console")),
    ("usr/lib/systemd/system/strata-setup.service", 0o644, include_str!("../guest/strata-setup.service")),
    (
        "usr/lib/systemd/system/strata-ssh-keys.service",
        0o644,
        include_str!("../guest/strata-ssh-keys.service"),
    ),
    (
        "usr/lib/systemd/system/serial-getty@.service.d/strata.conf",
        0o644,
        include_str!("../guest/serial-getty.conf"),
    ),
    ("usr/lib/systemd/network/80-strata.network", 0o644, include_str!("../guest/80-strata.network")),
];

/// Where systemd finds what a target wants, and what.
const WANTED: [(&str, &str); 3] = [
    ("sysinit.target.wants", "strata-setup.service"),
    ("multi-user.target.wants", "strata-ssh-keys.service"),
    ("multi-user.target.wants", "systemd-networkd.service"),
];

/// Make the package in a directory; answers its file.
pub(crate) fn make(directory: &Path) -> Result<PathBuf, BuildError> {
    let tree = directory.join(PACKAGE);
    write(&tree.join("DEBIAN/control"), 0o644, CONTROL)?;
    for (path, mode, content) in FILES {
        write(&tree.join(path), mode, content)?;
    }
    for (target, unit) in WANTED {
        let wants = tree.join("usr/lib/systemd/system").join(target);
        fs::create_dir_all(&wants).map_err(failed("create", &wants))?;
        let link = wants.join(unit);
        symlink(format!("../{unit}"), &link).map_err(failed("create", &link))?;
    }
    let agent = tree.join(guest_agent::PATH);
    write_bytes(&agent, 0o755, guest_agent::bytes())?;
    write(&tree.join(guest_agent::UNIT_PATH), 0o644, guest_agent::systemd_unit())?;
    let (link, target) = guest_agent::UNIT_LINK;
    let link = tree.join(link);
    if let Some(wants) = link.parent() {
        fs::create_dir_all(wants).map_err(failed("create", wants))?;
    }
    symlink(target, &link).map_err(failed("create", &link))?;
    open_folders(&tree)?;
    let file = directory.join(format!("{PACKAGE}.deb"));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]).arg(&tree).arg(&file);
    program::run(&mut build, "report it", |_| {})?;
    Ok(file)
}

/// Give every folder of the package its mode, which the umask had a say in: dpkg-deb
/// wants to know what is in them, and they are the guest's in the end.
fn open_folders(folder: &Path) -> Result<(), BuildError> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(failed("protect", folder))?;
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let entry = entry.map_err(failed("read", folder))?;
        // A link to a folder is none.
        if entry.file_type().map_err(failed("read", folder))?.is_dir() {
            open_folders(&entry.path())?;
        }
    }
    Ok(())
}

fn write(path: &Path, mode: u32, content: &str) -> Result<(), BuildError> {
    write_bytes(path, mode, content.as_bytes())
}

fn write_bytes(path: &Path, mode: u32, content: &[u8]) -> Result<(), BuildError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("create", parent))?;
    }
    fs::write(path, content).map_err(failed("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("protect", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_are_shell_and_say_what_the_command_line_looks_for() {
        for (path, mode, content) in FILES.iter().filter(|f| f.1 & 0o111 != 0) {
            assert!(content.starts_with("#!/bin/sh\n"), "{path} {mode:o}");
            let file = std::env::temp_dir().join(format!(
                "strata-script-{}-{}",
                path.replace('/', "-"),
                std::process::id()
            ));
            fs::write(&file, content).unwrap();
            let parsed = Command::new("sh").arg("-n").arg(&file).status().unwrap();
            fs::remove_file(&file).unwrap();
            assert!(parsed.success(), "{path}");
        }
        let console = FILES[1].2;
        assert!(console.contains(guest_image::READY_MARKER) && console.contains(guest_image::STATUS_MARKER));
    }

    #[test]
    fn the_package_is_one_that_dpkg_reads() {
        let directory = std::env::temp_dir().join(format!("strata-package-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let file = match make(&directory) {
            Err(BuildError::NoProgram { .. }) => return println!("skipped: no dpkg-deb here"),
            made => made.unwrap(),
        };
        let list = Command::new("dpkg-deb").arg("--contents").arg(&file).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        for (path, ..) in FILES {
            assert!(list.contains(&format!("./{path}\n")), "{path}: {list}");
        }
        assert!(list.contains("systemd-networkd.service -> ../systemd-networkd.service"), "{list}");
        assert!(list.contains(&format!("./{}\n", guest_agent::PATH)), "{list}");
        assert!(list.contains("strata-agent.service -> ../strata-agent.service"), "{list}");
        assert!(list.contains("root/root"), "{list}");
        let folders: Vec<_> = list.lines().filter(|l| l.starts_with('d')).collect();
        assert!(folders.len() > 3 && folders.iter().all(|f| f.starts_with("drwxr-xr-x ")), "{list}");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_users_umask_is_no_part_of_the_package() {
        // A process has one umask, and other tests run in this one.
        for umask in ["027", "077"] {
            let script = format!("umask {umask} && exec \"$0\" --exact \"$1\"");
            let test = "guest_package::tests::the_package_is_one_that_dpkg_reads";
            let mut command = Command::new("sh");
            command.args(["-c", &script]).arg(std::env::current_exe().unwrap()).arg(test);
            let out = command.output().unwrap();
            let said = String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success() && said.contains("1 passed"), "umask {umask}: {said}");
        }
    }

    /// An existing folder of a test's own.
    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("strata-guest-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("etc/ssh")).unwrap();
        directory
    }

    fn shell(script: &str) {
        let out = Command::new("sh").args(["-euc", script]).output().unwrap();
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    }

    #[test]
    fn host_keys_that_a_machine_is_given_stay_and_others_go() {
        let root = scratch("given");
        let at = root.to_str().unwrap();
        fs::write(root.join("etc/ssh/ssh_host_ecdsa_key"), "the image's").unwrap();
        fs::create_dir_all(root.join("seed/etc/ssh")).unwrap();
        fs::write(root.join("seed/etc/ssh/ssh_host_ed25519_key"), "mine").unwrap();
        shell(&format!("tar -c -C {at}/seed -f {at}/files.tar etc"));
        // What the setup does with files, in this root.
        let setup = FILES[0].2;
        let from = setup
            .find("# Another machine's keys")
            .unwrap()
            .min(setup.find("if [ -e \"$data/files.tar").unwrap());
        let part = &setup[from..setup.find("printf '%s\\n' \"$instance\" >").unwrap()];
        let part = part.replace(" /etc/ssh", &format!(" {at}/etc/ssh")).replace("-C /", &format!("-C {at}"));
        assert_eq!(part.matches(at).count(), 2, "{part}");
        shell(&format!("data={at}\n{part}"));
        assert_eq!(fs::read(root.join("etc/ssh/ssh_host_ed25519_key")).unwrap(), b"mine");
        assert!(!root.join("etc/ssh/ssh_host_ecdsa_key").exists());
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn host_keys_that_are_missing_are_made() {
        if Command::new("ssh-keygen").arg("-?").output().is_err() {
            return println!("skipped: no ssh-keygen here");
        }
        let unit = FILES[3].2;
        let command = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
        // What systemd makes of it: two dollars are one.
        let command = command.replace("$$", "$");
        for given in [&[][..], &["ed25519"], &["ecdsa"], &["ed25519", "ecdsa"]] {
            let root = scratch("missing");
            let key = |kind: &str| root.join(format!("etc/ssh/ssh_host_{kind}_key"));
            given.iter().for_each(|kind| fs::write(key(kind), "mine").unwrap());
            let here = command.replace("/etc/ssh", root.join("etc/ssh").to_str().unwrap());
            shell(&format!("{here} < /dev/null"));
            for kind in ["ed25519", "ecdsa"] {
                let held = fs::read(key(kind)).unwrap();
                assert_eq!(held == b"mine", given.contains(&kind), "{given:?}: {kind}");
            }
            fs::remove_dir_all(&root).unwrap();
        }
    }
}
