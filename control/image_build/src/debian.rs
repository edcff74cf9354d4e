//! A Debian, built from its packages.
//!
//! mmdebstrap makes a tar archive of the root file system, as root, in a user
//! namespace or, where a user has no range of IDs for one, by fakechroot; `mkfs.ext4 -d` makes the disk of it, without root under fakeroot,
//! which remembers whose each file is. The disk has no partitions and no boot
//! loader: the kernel is taken out and started directly, and finds its root on
//! an NVMe disk, whose driver Debian's cloud kernel has built in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_image::Progress;
use image_store::{DiskFormat, FirstBoot, Image, ImageName, NewImage, Store};

use crate::error::{BuildError, failed};
use crate::guest_package;
use crate::program;
use crate::tools::{self, Mode, is_root};

/// Size of the root disk unless told otherwise, in bytes. Sparse: what is not
/// written takes no room on the host.
pub const DEFAULT_SIZE: u64 = 4 << 30;
/// The smallest root disk, in bytes: the packages with some room.
pub const MIN_SIZE: u64 = 768 << 20;
/// The largest, in bytes: ext4's with blocks of 4 KiB.
pub const MAX_SIZE: u64 = 16 << 40;

/// What is installed beside Debian's essential packages: a system people can log
/// in to, reach, and install more in.
const PACKAGES: [&str; 19] = [
    "linux-image-cloud-amd64",
    "e2fsprogs",
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "openssh-client",
    "sudo",
    "iproute2",
    "iputils-ping",
    "ca-certificates",
    "curl",
    "less",
    "nano",
    "procps",
    "kmod",
    "netbase",
];

/// Left out of every package, now and when the guest installs more: manuals and
/// translations are half of its files.
const EXCLUDED: [&str; 4] = [
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// The kernel's command line. The root disk is the first NVMe disk and is
/// mounted for writing at once: it is journalled, and was checked when made.
/// Mitigations protect from a processor that is not there.
const CMDLINE: &str = "root=/dev/nvme0n1 rw console=hvc0 console=ttyS0,115200n8r quiet panic=-1 \
    mitigations=off cryptomgr.notests";

/// What Debian to build.
#[derive(Debug, Clone)]
pub struct Debian {
    /// Name of the image.
    pub name: ImageName,
    /// Release: `bookworm`, `trixie`, `stable`; the host's own if absent and it
    /// is a Debian, else `stable`.
    pub suite: Option<String>,
    /// Where packages come from; Debian's own servers if absent.
    pub mirror: Option<String>,
    /// Size of the root disk in bytes.
    pub size: u64,
    /// More packages.
    pub packages: Vec<String>,
    /// Put it in the place of an image of that name.
    pub replace: bool,
}

impl Debian {
    fn validate(&self) -> Result<(), BuildError> {
        let word = |t: &str| {
            let first = t.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
            first && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+._:/".contains(&b))
        };
        let wrong = |what: String| Err(BuildError::Option(what));
        if let Some(suite) = self.suite.as_ref().filter(|s| !word(s)) {
            return wrong(format!("\"{suite}\" is not a Debian release; write e.g. --suite trixie"));
        }
        if let Some(mirror) = self.mirror.as_ref().filter(|m| !word(m) || !m.contains("://")) {
            return wrong(format!("\"{mirror}\" is not a mirror; write a URL of a Debian archive"));
        }
        if let Some(package) = self.packages.iter().find(|p| !word(p)) {
            return wrong(format!("\"{package}\" is not a package's name; write e.g. --package git"));
        }
        if !(MIN_SIZE..=MAX_SIZE).contains(&self.size) {
            return wrong(format!(
                "a root disk of {} MiB is outside {} MiB to {} TiB; write e.g. --size 4G",
                self.size >> 20,
                MIN_SIZE >> 20,
                MAX_SIZE >> 40
            ));
        }
        Ok(())
    }

    fn suite(&self) -> String {
        let release = || fs::read_to_string("/etc/os-release").unwrap_or_default();
        self.suite.clone().or_else(|| host_suite(&release())).unwrap_or_else(|| "stable".to_string())
    }

    /// mmdebstrap's command line, for a tar archive at `archive`.
    fn bootstrap(&self, mode: &Mode, package: &Path, archive: &Path) -> Command {
        let include: Vec<&str> =
            PACKAGES.into_iter().chain(self.packages.iter().map(String::as_str)).collect();
        let mut command = Command::new("mmdebstrap");
        command
            // Users' paths lack what packages' scripts call.
            .env("PATH", administrators_path())
            .arg(format!("--mode={}", mode.word()))
            .args(["--variant=apt", "--architectures=amd64", "--format=tar"])
            .args(["--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Retries \"3\""])
            .arg(format!("--include={}", include.join(",")))
            .args(EXCLUDED.map(|e| format!("--dpkgopt={e}")))
            .arg(format!("--essential-hook=copy-in {} /var/tmp", shell_word(package)))
            .arg(format!(
                "--essential-hook=chroot \"$1\" dpkg -i /var/tmp/{0}.deb && rm \"$1\"/var/tmp/{0}.deb",
                guest_package::PACKAGE
            ))
            // Each machine makes its own; the setup of a guest without a seed disk would keep these.
            .arg("--customize-hook=rm -f \"$1\"/etc/ssh/ssh_host_*_key*")
            .arg("--customize-hook=echo localhost > \"$1\"/etc/hostname; : > \"$1\"/etc/fstab")
            .arg(self.suite())
            .arg(archive)
            .args(&self.mirror);
        command
    }
}

/// The codename of a host that is a Debian.
fn host_suite(release: &str) -> Option<String> {
    let value = |key: &str| {
        let line = release.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_string())
    };
    value("ID").filter(|id| id == "debian").and_then(|_| value("VERSION_CODENAME"))
}

/// What mmdebstrap reports on its way, and what to tell of it.
const STEPS: [(&str, &str); 6] = [
    ("running apt-get update", "reading the package lists"),
    ("downloading packages", "downloading packages"),
    ("extracting archives", "unpacking the essential packages"),
    ("installing essential packages", "setting up the essential packages"),
    ("installing remaining packages", "installing the other packages"),
    ("creating tarball", "packing the file system"),
];
/// Steps of ours after those.
const OURS: [&str; 2] = ["making the disk", "storing the image"];

fn step(progress: &dyn Progress, number: usize, text: &str) {
    progress.step(number, STEPS.len() + OURS.len(), text);
}

/// Build a Debian and keep it in the store.
///
/// # Errors
/// [`BuildError`]: each names its remedy.
pub fn build_debian(store: &Store, debian: &Debian, progress: &dyn Progress) -> Result<Image, BuildError> {
    debian.validate()?;
    if !debian.replace && store.find(&debian.name).is_ok() {
        return Err(image_store::StoreError::Exists(debian.name.clone()).into());
    }
    let mode = Mode::of_host();
    tools::provide(&mode, progress)?;
    let intake = store.begin()?;
    let work = intake.directory();
    let package = guest_package::make(work)?;
    // In a user namespace the package is read by another user, who cannot enter the cache.
    let outside = std::env::temp_dir().join(format!("strata-build-{}", std::process::id()));
    let package = if is_root() { package } else { lay_open(&package, &outside)? };
    let archive = work.join("root.tar");
    let result = program::run(
        &mut debian.bootstrap(&mode, &package, &archive),
        match mode {
            Mode::Root => "check the network, the release's name and the mirror",
            _ => "check the network, the release's name and the mirror, or build as root",
        },
        |line| {
            let reported = |s: &(&str, &str)| line.strip_prefix("I: ").is_some_and(|l| l.starts_with(s.0));
            if let Some(number) = STEPS.iter().position(reported) {
                step(progress, number, STEPS[number].1);
            }
        },
    );
    // A copy; nobody needs it now.
    let _ = fs::remove_dir_all(&outside);
    result?;
    step(progress, STEPS.len(), OURS[0]);
    let disk = work.join("disk.raw");
    let (kernel, release) = make_disk(work, &archive, &disk, debian.size)?;
    step(progress, STEPS.len() + 1, OURS[1]);
    let new = NewImage {
        name: debian.name.clone(),
        description: release,
        kernel: Some(kernel),
        initrd: None,
        disk,
        format: DiskFormat::Raw,
        virtual_size: debian.size,
        cmdline: CMDLINE.to_string(),
        first_boot: FirstBoot::Strata,
        source: format!("mmdebstrap {} ({})", debian.suite(), mode.word()),
    };
    let image = store.commit(&intake, &new, debian.replace)?;
    step(progress, STEPS.len() + OURS.len(), "");
    Ok(image)
}

/// A copy of the package where every user can read it.
fn lay_open(package: &Path, directory: &Path) -> Result<PathBuf, BuildError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let made = fs::DirBuilder::new().mode(0o755).create(directory);
    made.map_err(failed("create", directory))?;
    // Whatever the umask took away.
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
        .map_err(failed("protect", directory))?;
    let copy = directory.join(format!("{}.deb", guest_package::PACKAGE));
    fs::copy(package, &copy).map_err(failed("write", &copy))?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).map_err(failed("protect", &copy))?;
    Ok(copy)
}

/// Make the disk of the archive; answers the kernel's file and the release's name.
fn make_disk(work: &Path, archive: &Path, disk: &Path, size: u64) -> Result<(PathBuf, String), BuildError> {
    let tree = work.join("root");
    fs::create_dir(&tree).map_err(failed("create", &tree))?;
    // Both in one shell: what fakeroot remembers ends with it.
    let script = "set -e; tar -x -p --numeric-owner -f \"$1\" -C \"$2\"; rm \"$1\"
        mkfs.ext4 -F -q -L root -m 1 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard -d \"$2\" \"$3\" \"$4\"";
    let mut command = if is_root() { Command::new("sh") } else { Command::new("fakeroot") };
    if !is_root() {
        command.arg("sh");
    }
    command.args(["-c", script, "sh"]).args([archive, &tree, disk]).arg(format!("{}k", size >> 10));
    command.env("PATH", administrators_path());
    program::run(&mut command, "make room in the cache's file system, or give a larger --size", |_| {})?;
    let kernel = work.join("vmlinuz");
    let boot = tree.join("boot");
    let found = newest_kernel(&boot)?;
    fs::copy(&found, &kernel).map_err(failed("read", &found))?;
    let release = fs::read_to_string(tree.join("etc/debian_version")).unwrap_or_default();
    let version = found.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let version = version.trim_start_matches("vmlinuz-");
    fs::remove_dir_all(&tree).map_err(failed("remove", &tree))?;
    Ok((kernel, format!("Debian {}, Linux {version}, systemd", release.trim())))
}

fn newest_kernel(boot: &Path) -> Result<PathBuf, BuildError> {
    let entries = fs::read_dir(boot).map_err(failed("read", boot))?;
    let is_kernel =
        |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("vmlinuz-"));
    let newest = entries.flatten().map(|e| e.path()).filter(is_kernel).max();
    newest.ok_or_else(|| failed("find a kernel in", boot)(std::io::ErrorKind::NotFound.into()))
}

/// The path, with the programs of administrators.
fn administrators_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A word of a shell's command line.
fn shell_word(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian() -> Debian {
        Debian {
            name: "debian".parse().unwrap(),
            suite: Some("trixie".into()),
            mirror: None,
            size: DEFAULT_SIZE,
            packages: vec!["git".into()],
            replace: false,
        }
    }

    #[test]
    fn what_the_host_is_decides_the_release() {
        let bookworm = "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(host_suite(bookworm).as_deref(), Some("bookworm"));
        assert_eq!(host_suite("ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
        assert_eq!(host_suite("ID=\"debian\"\n"), None, "sid names none");
        assert_eq!(host_suite(""), None);
    }

    #[test]
    fn options_that_programs_would_misread_are_refused() {
        let refused = |change: &dyn Fn(&mut Debian), seen: &str| {
            let mut wrong = debian();
            change(&mut wrong);
            let e = wrong.validate().unwrap_err().to_string();
            assert!(e.contains(seen) && e.contains("; "), "{e}");
        };
        debian().validate().unwrap();
        refused(&|d| d.suite = Some("--help".into()), "--help");
        refused(&|d| d.suite = Some("a b".into()), "a b");
        refused(&|d| d.mirror = Some("/etc/passwd".into()), "/etc/passwd");
        refused(&|d| d.packages = vec!["git,-x".into()], "git,-x");
        refused(&|d| d.size = 1 << 20, "1 MiB");
        refused(&|d| d.size = MAX_SIZE + 1, "16 TiB");
    }

    #[test]
    fn the_release_the_packages_and_the_mirror_reach_mmdebstrap() {
        let mut wanted = debian();
        wanted.mirror = Some("http://mirror.test/debian".into());
        let command = wanted.bootstrap(&Mode::Root, Path::new("/a b/it's.deb"), Path::new("/x/root.tar"));
        let words: Vec<_> = command.get_args().map(|w| w.to_string_lossy().into_owned()).collect();
        assert_eq!(words[words.len() - 3..], ["trixie", "/x/root.tar", "http://mirror.test/debian"]);
        let include = words.iter().find_map(|w| w.strip_prefix("--include=")).unwrap();
        assert!(include.starts_with("linux-image-cloud-amd64,") && include.ends_with(",git"), "{include}");
        assert!(words.iter().any(|w| w.contains(r"copy-in '/a b/it'\''s.deb' /var/tmp")), "{words:?}");
    }
}
