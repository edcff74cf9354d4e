//! Sources of other people's suites, by apt's ordinary client into a private
//! state: the host's own lists and configuration stay as they are, and no
//! privileges are needed. apt verifies what it fetched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// A place in the cache for fetched sources and built programs.
///
/// # Errors
/// When there is no cache directory or it cannot be made.
pub fn place(name: &str) -> Result<PathBuf> {
    let path = guest_image::cache_directory()?.join("suites").join(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// Source package `package`; answers the directory with the parts `wanted` (tar
/// patterns below the tree's root) of its original archive.
///
/// # Errors
/// When apt cannot fetch it or it does not unpack.
pub fn source(package: &str, wanted: &[&str]) -> Result<PathBuf> {
    fetched(package, |work| {
        apt_get(work, &["source", "--download-only", package])?;
        let archive = file_with(work, ".orig.tar.")?;
        unpack(fs::File::open(&archive)?.into(), &archive, wanted, work)
    })
}

/// As [`source`] for a binary package that holds a source archive.
///
/// # Errors
/// As [`source`].
pub fn source_in_binary(package: &str, wanted: &[&str]) -> Result<PathBuf> {
    fetched(package, |work| {
        apt_get(work, &["download", package])?;
        let deb = file_with(work, ".deb")?;
        // Archive within archive, without a copy of either on disk.
        let script = "dpkg-deb --fsys-tarfile \"$0\" | tar -xO --wildcards '*.tar.xz'";
        let mut inner =
            Command::new("sh").args(["-c", script]).arg(&deb).stdout(Stdio::piped()).spawn().context("sh")?;
        let output = inner.stdout.take().context("no output")?;
        unpack(output.into(), Path::new("inner.tar.xz"), wanted, work)?;
        ensure!(inner.wait()?.success(), "{} does not unpack", deb.display());
        Ok(())
    })
}

/// The tree of `package` from the cache, or got by `get` in a directory that
/// takes its name when complete.
fn fetched(package: &str, get: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let tree = place("source")?.join(package);
    if !tree.exists() {
        let work = tree.with_extension("part");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(&work)?;
        get(&work)?;
        // The archives have served.
        for entry in fs::read_dir(&work)?.flatten().filter(|e| e.path().is_file()) {
            fs::remove_file(entry.path())?;
        }
        fs::rename(&work, &tree).with_context(|| format!("cannot keep {}", tree.display()))?;
    }
    let root = fs::read_dir(&tree)?.flatten().map(|e| e.path()).find(|p| p.is_dir());
    root.with_context(|| format!("{} holds no tree; remove it to fetch again", tree.display()))
}

fn file_with(directory: &Path, part: &str) -> Result<PathBuf> {
    let mut files = fs::read_dir(directory)?.flatten().map(|e| e.path());
    files
        .find(|p| p.file_name().is_some_and(|n| n.to_string_lossy().contains(part)))
        .with_context(|| format!("apt left no {part} file in {}", directory.display()))
}

fn unpack(from: Stdio, archive: &Path, wanted: &[&str], into: &Path) -> Result<()> {
    let filter = match archive.extension().and_then(|e| e.to_str()) {
        Some("xz") => "--xz",
        Some("bz2") => "--bzip2",
        _ => "--gzip",
    };
    let patterns = wanted.iter().map(|w| format!("*/{w}"));
    let status = Command::new("tar")
        .args(["-x", filter, "--wildcards", "-C"])
        .arg(into)
        .args(patterns)
        .stdin(from)
        .status()
        .context("cannot run tar")?;
    ensure!(status.success(), "{} does not unpack: {status}", archive.display());
    Ok(())
}

/// Run apt-get on lists of our own, updated at first use.
fn apt_get(work: &Path, arguments: &[&str]) -> Result<()> {
    let state = place("apt")?;
    let sources = state.join("sources.list");
    let run = |arguments: &[&str]| -> Result<()> {
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        let mut command = Command::new("apt-get");
        command.current_dir(work).arg("-q").stdout(Stdio::null()).stderr(Stdio::piped());
        for o in [
            option("Dir::Etc::SourceList", &sources),
            option("Dir::Etc::SourceParts", Path::new("/nonexistent")),
            option("Dir::State::Lists", &state.join("lists")),
            option("Dir::Cache", &state.join("cache")),
            "APT::Sandbox::User=root".to_string(),
            "Acquire::Languages=none".to_string(),
            "APT::Architectures=amd64".to_string(),
        ] {
            command.args(["-o", &o]);
        }
        let output = command.args(arguments).output().context("cannot run apt-get")?;
        if !output.status.success() {
            bail!("apt-get {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    };
    if !sources.exists() {
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(state.join(directory))?;
        }
        let list = debian_sources()?;
        fs::write(&sources, list)?;
        if let Err(e) = run(&["update"]) {
            let _ = fs::remove_file(&sources);
            return Err(e);
        }
    }
    run(arguments)
}

/// Lines of a source list for the Debian archives the host is configured with,
/// binary and source packages.
fn debian_sources() -> Result<String> {
    let format = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", format, "Created-By: Packages"])
        .output()
        .context("cannot run apt-get")?;
    let list = source_list(&String::from_utf8_lossy(&output.stdout));
    ensure!(!list.is_empty(), "apt has no lists of a Debian archive; run as root: apt-get update");
    Ok(list)
}

fn source_list(targets: &str) -> String {
    let debian = targets.lines().filter_map(|l| l.strip_prefix("Debian "));
    debian.flat_map(|l| [format!("deb {l}\n"), format!("deb-src {l}\n")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_archives_become_sources() {
        let targets = "Debian http://mirror/debian/ stable main\nOther http://x/ y main\n";
        assert_eq!(
            source_list(targets),
            "deb http://mirror/debian/ stable main\ndeb-src http://mirror/debian/ stable main\n"
        );
    }
}
