//! virtiofsd: where it is, and how it is started.
//!
//! There are two: QEMU's own of before 2023 (Debian 12: package qemu-system-common),
//! and the one that took its place (package virtiofsd). They differ in their flags.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::backend::{Backend, BackendError, Patience};

/// Where distributions have it: it is no program for users, so not in their path.
const PLACES: [&str; 4] = ["/usr/libexec", "/usr/lib/virtiofsd", "/usr/lib", "/usr/lib/qemu"];
const PROGRAM: &str = "virtiofsd";

/// Why no daemon serves a folder.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// There is none.
    #[error(
        "there is no virtiofsd in PATH, /usr/libexec, /usr/lib or /usr/lib/qemu; install it (apt-get install virtiofsd, on Debian 12 qemu-system-common), or leave backend=virtiofsd out, which needs nothing"
    )]
    Missing,
    /// It does not start.
    #[error("cannot start {}: {cause}; leave backend=virtiofsd out, which needs nothing", .program.display())]
    Start {
        /// Its path.
        program: PathBuf,
        /// The host's error.
        #[source]
        cause: io::Error,
    },
    /// No socket for it.
    #[error("cannot make a socket for virtiofsd in {}: {cause}; set TMPDIR to a directory that can be written", .directory.display())]
    Socket {
        /// Where.
        directory: PathBuf,
        /// The host's error.
        #[source]
        cause: io::Error,
    },
    /// It does not take part.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Start a virtiofsd for a folder. What it has to say goes to standard error. It ends
/// with the backend.
///
/// To be called before a sandbox closes, which it would inherit.
///
/// # Errors
/// When there is none, or it does not serve.
pub fn start(folder: &Path, read_only: bool) -> Result<Backend, DaemonError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(PLACES.map(PathBuf::from));
    let program = places.map(|p| p.join(PROGRAM)).find(|p| p.is_file()).ok_or(DaemonError::Missing)?;
    let (stream, daemon) = launch(&program, folder, read_only)?;
    Ok(Backend::new(stream, Some(daemon), Patience::default())?)
}

fn launch(program: &Path, folder: &Path, read_only: bool) -> Result<(UnixStream, Child), DaemonError> {
    let failed = |cause| DaemonError::Start { program: program.to_path_buf(), cause };
    let help = Command::new(program).arg("--help").stdin(Stdio::null()).output().map_err(failed)?;
    let help = [help.stdout, help.stderr].concat();
    let (listener, stream) = connection()?;
    // The socket is its standard input: no other descriptor is inherited.
    let daemon = Command::new(program)
        .args(arguments(&String::from_utf8_lossy(&help), folder, read_only))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    Ok((stream, daemon))
}

/// A socket that listens, and the one connection to it that there will ever be.
fn connection() -> Result<(UnixListener, UnixStream), DaemonError> {
    use std::os::unix::fs::DirBuilderExt;
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    // A directory of our own, which others cannot enter; one that is there already is not.
    let directory = std::env::temp_dir().join(format!("strata-share-{}-{number}", std::process::id()));
    let failed = |cause| DaemonError::Socket { directory: directory.clone(), cause };
    std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
    let path = directory.join("socket");
    let pair = UnixListener::bind(&path).and_then(|l| UnixStream::connect(&path).map(|s| (l, s)));
    // Nobody else is to find it.
    let _ = std::fs::remove_dir_all(&directory);
    pair.map_err(failed)
}

/// The command line of the virtiofsd that describes itself by `help`.
fn arguments(help: &str, folder: &Path, read_only: bool) -> Vec<OsString> {
    // The limit on open files stays: raising it may need a privilege.
    let mut line: Vec<OsString> = ["--fd=0", "--rlimit-nofile=0"].map(OsString::from).into();
    if help.contains("--shared-dir") {
        line.extend(["--log-level=error".into(), "--shared-dir".into(), folder.into()]);
        // Beside the device's own refusals, where it can.
        if read_only && help.contains("--readonly") {
            line.push("--readonly".into());
        }
    } else {
        let mut source = b"source=".to_vec();
        for byte in folder.as_os_str().as_bytes() {
            // Commas separate options.
            if matches!(byte, b',' | b'\\') {
                source.push(b'\\');
            }
            source.push(*byte);
        }
        line.extend(["-f", "-o", "log_level=err", "-o"].map(OsString::from));
        line.push(OsString::from_vec(source));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_daemon_has_its_own_flags() {
        let line = |help: &str, read_only| {
            let words = arguments(help, Path::new("/a b,c\\d"), read_only);
            words.iter().map(|w| w.to_str().unwrap()).collect::<Vec<_>>().join("|")
        };
        let new = "--shared-dir <SHARED_DIR>\n --readonly";
        let common = "--fd=0|--rlimit-nofile=0|--log-level=error|--shared-dir|/a b,c\\d";
        assert_eq!(line(new, false), common);
        assert_eq!(line(new, true), format!("{common}|--readonly"));
        assert_eq!(line("--shared-dir", true), common);
        let old = "--fd=0|--rlimit-nofile=0|-f|-o|log_level=err|-o|source=/a b\\,c\\\\d";
        assert_eq!(line("-o source=PATH", true), old);
    }

    #[test]
    fn what_does_not_serve_is_told_with_a_remedy() {
        let told = |program: &str| {
            let (stream, daemon) = launch(Path::new(program), Path::new("/"), false)?;
            Backend::new(stream, Some(daemon), Patience::default()).map(|_| ()).map_err(DaemonError::from)
        };
        for (program, seen) in [("/strata-no-such-program", "cannot start"), ("/bin/true", "does not answer")]
        {
            let text = told(program).unwrap_err().to_string();
            assert!(text.contains(seen) && text.contains("leave backend=virtiofsd out"), "{text}");
        }
    }
}
