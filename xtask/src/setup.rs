//! Everything a fresh machine needs before the tests can run.

use anyhow::{Result, bail};
use guest_image::{Flavour, GuestFiles, Progress};

use crate::command;

/// A program the run needs, and the Debian package that has it.
struct Tool {
    program: &'static str,
    probe: &'static [&'static str],
    package: &'static str,
}

const TOOLS: [Tool; 6] = [
    Tool { program: "cc", probe: &["--version"], package: "gcc" },
    Tool { program: "git", probe: &["--version"], package: "git" },
    Tool { program: "dpkg-deb", probe: &["--version"], package: "dpkg" },
    Tool { program: "tar", probe: &["--version"], package: "tar" },
    // What makes, checks and compares disk images beside us.
    Tool { program: "qemu-img", probe: &["--version"], package: "qemu-utils" },
    Tool { program: "mkfs.ext4", probe: &["-V"], package: "e2fsprogs" },
];

/// What only the suites that run inside guests need: to unpack and build them.
const SUITE_TOOLS: [Tool; 5] = [
    Tool {
        program: "gcc",
        probe: &["-m32", "-E", "-x", "c", "-include", "stdio.h", "/dev/null"],
        package: "gcc-multilib",
    },
    Tool { program: "perl", probe: &["-MText::Wrap", "-e", "1"], package: "perl" },
    Tool { program: "python3", probe: &["--version"], package: "python3-minimal" },
    Tool { program: "xz", probe: &["--version"], package: "xz-utils" },
    Tool { program: "bzip2", probe: &["--help"], package: "bzip2" },
];

/// Install what is missing, or say exactly what to install.
pub fn tools() -> Result<()> {
    provide(&TOOLS)?;
    if let Err(e) = provide(&SUITE_TOOLS) {
        println!("suites in guests will be skipped: {e}");
    }
    for component in ["fmt", "clippy"] {
        if !command::works(&command::cargo(), &[component, "--version"]) {
            let name = if component == "fmt" { "rustfmt" } else { component };
            if !command::show("rustup", &["component", "add", name]).unwrap_or(false) {
                bail!("cargo {component} is missing; run: rustup component add {name}");
            }
        }
    }
    Ok(())
}

fn provide(tools: &[Tool]) -> Result<()> {
    let missing = tools.iter().filter(|t| !command::works(t.program, t.probe));
    let packages: Vec<&str> = missing.map(|t| t.package).collect();
    if packages.is_empty() { Ok(()) } else { install(&packages) }
}

/// `apt-get install`, as root or through a sudo that asks nothing.
fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    let root = command::output("id", &["-u"]).is_ok_and(|id| id.trim() == "0");
    let prefix: &[&str] = if root {
        &["apt-get"]
    } else if command::works("sudo", &["-n", "true"]) {
        &["sudo", "-n", "apt-get"]
    } else {
        bail!("packages are missing; run as root: apt-get install -y {list}");
    };
    let apt = |args: &[&str]| {
        let all: Vec<&str> = prefix[1..].iter().copied().chain(args.iter().copied()).collect();
        command::show(prefix[0], &all)
    };
    println!("installing {list}");
    let installed = apt(&["-q", "update"])? && apt(&[&["install", "-q", "-y"], packages].concat())?;
    if !installed {
        bail!("apt-get could not install {list}; install them by hand");
    }
    Ok(())
}

struct Lines;

impl Progress for Lines {
    fn phase(&self, text: &str) {
        println!("guest: {text}");
    }
}

/// The guest that whole-machine tests boot, or why there is none.
pub fn guest() -> std::result::Result<GuestFiles, String> {
    guest_image::ensure_guest(Flavour::Cloud, &Lines).map_err(|e| e.to_string())
}
