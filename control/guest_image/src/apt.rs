//! Debian packages by apt: which one, fetched, and unpacked.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cache::{Cache, Parts};
use crate::modules;
use crate::{GuestImageError, Progress};

const BUSYBOX_PACKAGE: &str = "busybox-static";
/// The guest's architecture, whatever the host's.
const ARCHITECTURE: &str = "amd64";
/// How much of a failed command's output an error carries.
const OUTPUT_TAIL: usize = 400;
const POLL: Duration = Duration::from_millis(100);

/// Fetch a kernel (by its metapackage) and busybox.
pub(crate) fn fetch(
    metapackage: &str,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Parts, GuestImageError> {
    match fetch_by_lists(metapackage, cache, progress) {
        // A fresh container has no package lists, an old one names versions that
        // the archive no longer has. Root can get new ones.
        Err(GuestImageError::UnknownPackage { .. } | GuestImageError::Command { .. }) if is_root() => {
            progress.phase("running apt-get update");
            run(Command::new("apt-get").args(["-q", "update"]), "apt-get", "")?;
            fetch_by_lists(metapackage, cache, progress)
        }
        other => other,
    }
}

/// Fetch what the package lists on this host name.
fn fetch_by_lists(
    metapackage: &str,
    cache: &Cache,
    progress: &dyn Progress,
) -> Result<Parts, GuestImageError> {
    progress.phase("asking apt for the kernel's package");
    let kernel_package = resolve(metapackage)?;
    let work = cache.work_directory()?;
    let packages = [kernel_package.as_str(), BUSYBOX_PACKAGE].map(|p| format!("{p}:{ARCHITECTURE}"));
    progress.phase(&format!("downloading {kernel_package} and {BUSYBOX_PACKAGE}"));
    download(&work, &packages, progress)?;
    progress.phase("unpacking");
    let kernel = unpack(&work, &kernel_package, "./boot/vmlinuz-*", &modules::patterns())?;
    let busybox = unpack(&work, BUSYBOX_PACKAGE, "*/bin/busybox", &[])?;
    let found = |name: &&str| find_below(&work.join(&kernel_package), &|file| file == modules::file(name));
    Ok(Parts {
        kernel,
        busybox,
        modules: modules::NAMES.iter().filter_map(found).collect(),
        description: format!("Debian {kernel_package} with a busybox shell"),
    })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The versioned kernel package that a metapackage depends on.
fn resolve(metapackage: &str) -> Result<String, GuestImageError> {
    let mut command = Command::new("apt-cache");
    command.args(["show", "--no-all-versions", &format!("{metapackage}:{ARCHITECTURE}")]);
    let unknown = || GuestImageError::UnknownPackage { package: metapackage.to_string() };
    let text = match run(&mut command, "apt-cache", "") {
        Ok(text) => text,
        Err(GuestImageError::Command { .. }) => return Err(unknown()),
        Err(e) => return Err(e),
    };
    first_dependency(&text).ok_or_else(unknown)
}

/// The kernel in `Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)`.
fn first_dependency(control: &str) -> Option<String> {
    let depends = control.lines().find_map(|l| l.strip_prefix("Depends:"))?;
    let names = depends.split([',', '|']).filter_map(|d| d.split_whitespace().next());
    names
        .map(|n| n.split(':').next().unwrap_or(n))
        .find(|n| n.starts_with("linux-image-"))
        .map(str::to_string)
}

/// `apt-get download`: needs no privileges and checks signatures and hashes.
fn download(work: &Path, packages: &[String], progress: &dyn Progress) -> Result<(), GuestImageError> {
    let apt = |extra: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(work).args(["-q", "-y"]).args(extra);
        if is_root() {
            // The download directory may be closed to apt's own user.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command.arg("download").args(packages);
        command
    };
    let remedy = "; check the network and apt's sources, and run `apt-get update` as root";
    let total = total_size(&run(&mut apt(&["--print-uris"]), "apt-get", remedy)?);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| run(&mut apt(&[]), "apt-get", remedy));
        while !worker.is_finished() {
            progress.bytes(directory_size(work).min(total), total);
            std::thread::sleep(POLL);
        }
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    progress.bytes(total, total);
    Ok(())
}

/// Sum of the sizes in lines `'uri' file size hash`.
fn total_size(uris: &str) -> u64 {
    let lines = uris.lines().filter(|l| l.starts_with('\''));
    lines.filter_map(|l| l.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

/// Bytes in a directory and its `partial` subdirectory.
fn directory_size(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries.filter_map(|e| e.ok()?.metadata().ok()).map(|m| if m.is_file() { m.len() } else { 0 }).sum()
}

/// Take the file that matches `pattern` out of a downloaded package, and those that
/// match `others` as far as they are there: dpkg-deb and tar are on every Debian,
/// and know every compression Debian uses.
fn unpack(
    work: &Path,
    package: &str,
    pattern: &'static str,
    others: &[String],
) -> Result<PathBuf, GuestImageError> {
    let missing = || GuestImageError::NotInPackage { package: package.to_string(), file: pattern };
    let prefix = format!("{package}_");
    let deb =
        find_below(work, &|name| name.starts_with(&prefix) && name.ends_with(".deb")).ok_or_else(missing)?;
    let target = work.join(package);
    fs::create_dir(&target).map_err(|source| GuestImageError::Cache {
        what: "create",
        path: target.clone(),
        source,
    })?;
    let mut source = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&deb)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| GuestImageError::NoProgram { program: "dpkg-deb", source })?;
    let mut tar = Command::new("tar");
    tar.arg("-x").arg("-C").arg(&target).args(["--wildcards", pattern]).args(others);
    if let Some(output) = source.stdout.take() {
        tar.stdin(output);
    }
    let result = run(&mut tar, "tar", "; see whether the cache's disk is full");
    // tar reads to the end of the archive, so dpkg-deb has ended too.
    let _ = source.wait();
    if others.is_empty() {
        result?;
    }
    let name = pattern.rsplit('/').next().unwrap_or(pattern).trim_end_matches('*');
    find_below(&target, &|found| found.starts_with(name)).ok_or_else(missing)
}

/// A file in a directory or below whose name is wanted.
fn find_below(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let kind = entry.file_type().ok()?;
        if kind.is_dir() {
            below.push(entry.path());
        } else if kind.is_file() && entry.file_name().to_str().is_some_and(wanted) {
            return Some(entry.path());
        }
    }
    below.iter().find_map(|d| find_below(d, wanted))
}

/// Run a command to its end; its output, or an error with the end of what it said.
fn run(
    command: &mut Command,
    program: &'static str,
    remedy: &'static str,
) -> Result<String, GuestImageError> {
    let output = command
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .map_err(|source| GuestImageError::NoProgram { program, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
    let mut text = lines.join("; ");
    if let Some((at, _)) = text.char_indices().rev().nth(OUTPUT_TAIL) {
        text = format!("...{}", &text[at..]);
    }
    if text.is_empty() {
        text = output.status.to_string();
    }
    let words: Vec<&OsStr> = std::iter::once(command.get_program()).chain(command.get_args()).collect();
    let command = words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ");
    Err(GuestImageError::Command { command, output: text, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dependency_of_a_metapackage() {
        let control = "Package: linux-image-cloud-amd64\nVersion: 6.1.1-2\n\
            Depends: initramfs-tools | dracut, linux-image-6.1.0-56-cloud-amd64:amd64 (= 6.1.192-2)\nSection: kernel\n";
        assert_eq!(first_dependency(control).unwrap(), "linux-image-6.1.0-56-cloud-amd64");
        assert_eq!(first_dependency("Package: x\nDepends: libc6\n"), None);
        assert_eq!(first_dependency(""), None);
    }

    #[test]
    fn sizes_of_print_uris() {
        let text =
            "'http://x/a.deb' a_1_amd64.deb 928188 SHA256:0\n'http://x/b.deb' b.deb 12 SHA256:0\nnoise\n";
        assert_eq!(total_size(text), 928_200);
    }

    #[test]
    fn a_failing_command_is_quoted_with_what_it_said() {
        let error =
            run(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"]), "sh", "; try again");
        let text = error.unwrap_err().to_string();
        assert!(text.contains("sh -c") && text.contains("no such thing; try again"), "{text}");
        let error =
            run(&mut Command::new("strata-no-such-program"), "strata-no-such-program", "").unwrap_err();
        assert!(error.to_string().contains("cannot run strata-no-such-program"), "{error}");
    }
}
