//! A root file system on a disk: busybox and a script, for kernels that start
//! without an initramfs.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use guest_image::GuestFiles;
use tempfile::TempDir;

/// What the scripts use, and a little more.
const APPLETS: [&str; 24] = [
    "sh",
    "mount",
    "umount",
    "ls",
    "dd",
    "cat",
    "echo",
    "sync",
    "poweroff",
    "sha256sum",
    "head",
    "seq",
    "cmp",
    "wc",
    "sleep",
    "grep",
    "cut",
    "tr",
    "test",
    "expr",
    "usleep",
    "blockdev",
    "fstrim",
    "rm",
];

/// Mounts what scripts need and runs the one in `/jobs` that the kernel's command
/// line names with `JOB=`.
const INIT: &str = "#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
sh /jobs/$JOB
sync
poweroff -f
";

/// Run a program of the host; None, told, if it is not installed.
///
/// # Errors
/// When it fails.
pub fn tool(program: &str, arguments: &[&str]) -> Result<Option<String>> {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        println!("skipped: no {program}");
        return Ok(None);
    };
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {}: {text}", output.status);
    Ok(Some(text))
}

/// An image of a root file system, in a directory of its own.
pub struct RootDisk {
    directory: TempDir,
    /// The raw image.
    pub image: PathBuf,
}

impl RootDisk {
    /// Make one of `size` bytes with these scripts, by name. None, told, without
    /// mkfs.ext4.
    ///
    /// # Errors
    /// When the host has no room, or a tool fails.
    pub fn make(files: &GuestFiles, size: u64, scripts: &[(&str, &str)]) -> Result<Option<Self>> {
        let directory = tempfile::tempdir().context("no temporary directory")?;
        let root = directory.path().join("root");
        for name in ["bin", "sbin", "dev", "proc", "sys", "tmp", "jobs", "log"] {
            std::fs::create_dir_all(root.join(name))?;
        }
        let program = |path: &Path, bytes: &[u8]| -> Result<()> {
            std::fs::write(path, bytes)?;
            Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
        };
        program(&root.join("bin/busybox"), &std::fs::read(&files.busybox)?)?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        program(&root.join("sbin/init"), INIT.as_bytes())?;
        for (name, text) in scripts {
            program(&root.join("jobs").join(name), text.as_bytes())?;
        }
        let image = directory.path().join("root.img");
        std::fs::File::create(&image)?.set_len(size)?;
        let (from, to) = (root.to_string_lossy(), image.to_string_lossy());
        let made = tool("mkfs.ext4", &["-q", "-F", "-d", &from, &to])?;
        Ok(made.map(|_| RootDisk { directory, image }))
    }

    /// A path beside the image.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The kernel's command line to start from the first NVMe disk and run a script.
    pub fn command_line(script: &str) -> String {
        format!(
            "console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rw init=/sbin/init quiet panic=-1 \
             mitigations=off cryptomgr.notests JOB={script}"
        )
    }
}
