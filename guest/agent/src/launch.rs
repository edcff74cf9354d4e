//! A process with its user, terminal or pipes.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agent_protocol::{Exec, Size};

use crate::sys;
use crate::users::{self, User};

/// What a login gives to users who say nothing else.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process and the agent's ends of its streams, none of which blocks.
pub struct Launched {
    pub child: Child,
    /// What it reads; None: nothing.
    pub stdin: Option<File>,
    /// What it writes, and its errors where they come apart.
    pub stdout: Option<File>,
    pub stderr: Option<File>,
    /// The terminal's own side, for its size.
    pub terminal: Option<File>,
}

fn file(fd: impl Into<OwnedFd>) -> io::Result<File> {
    let fd: OwnedFd = fd.into();
    sys::set_nonblocking(fd.as_fd())?;
    Ok(File::from(fd))
}

/// Set a terminal's size; 0 by 0 says nothing.
pub fn resize(terminal: &File, size: Size) -> io::Result<()> {
    match size {
        Size { rows: 0, .. } | Size { columns: 0, .. } => Ok(()),
        Size { rows, columns } => sys::set_terminal_size(terminal.as_fd(), rows, columns),
    }
}

fn wrong(kind: io::ErrorKind, text: String) -> io::Error {
    io::Error::new(kind, text)
}

/// Who runs it, and who the process has to become for that.
fn user(wanted: &[u8]) -> io::Result<(User, bool)> {
    if wanted.is_empty() {
        // The owner of our own process directory is who we are.
        let uid = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self")?);
        return Ok((users::find(&uid.to_string())?, false));
    }
    let name = String::from_utf8_lossy(wanted);
    Ok((users::find(&name)?, true))
}

fn command(exec: &Exec, user: &User) -> io::Result<Command> {
    let Some((program, arguments)) = exec.argv.split_first().filter(|(p, _)| !p.is_empty()) else {
        return Err(wrong(io::ErrorKind::InvalidInput, "no program is named".to_string()));
    };
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(arguments.iter().map(|a| OsStr::from_bytes(a)));
    command.env_clear().env("PATH", PATH).env("HOME", &user.home);
    command.env("USER", &user.name).env("LOGNAME", &user.name).env("SHELL", &user.shell);
    for variable in &exec.env {
        let Some(equals) = variable.iter().position(|b| *b == b'=').filter(|at| *at > 0) else {
            let text = format!("\"{}\" is not NAME=value", String::from_utf8_lossy(variable));
            return Err(wrong(io::ErrorKind::InvalidInput, text));
        };
        let (name, value) = variable.split_at(equals);
        command.env(OsStr::from_bytes(name), OsStr::from_bytes(&value[1..]));
    }
    let asked = Path::new(OsStr::from_bytes(&exec.directory));
    let home = Path::new(&user.home);
    if !exec.directory.is_empty() {
        if !asked.is_dir() {
            let text = format!("no directory {} in the guest", asked.display());
            return Err(wrong(io::ErrorKind::NotFound, text));
        }
        command.current_dir(asked);
    } else {
        command.current_dir(if home.is_dir() { home } else { Path::new("/") });
    }
    Ok(command)
}

/// Start a command.
///
/// # Errors
/// When it cannot be started; the kind says whether something is missing.
pub fn launch(exec: &Exec) -> io::Result<Launched> {
    let (user, other) = user(&exec.user)?;
    let mut command = command(exec, &user)?;
    let credentials = other.then_some(user.credentials);
    let named = |e: io::Error| {
        let program = exec.argv.first().map(|p| String::from_utf8_lossy(p)).unwrap_or_default();
        io::Error::new(e.kind(), format!("{program}: {e}"))
    };
    let Some(size) = exec.terminal else {
        sys::prepare(&mut command, false, credentials);
        command.stdin(if exec.stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(named)?;
        return Ok(Launched {
            stdin: child.stdin.take().map(file).transpose()?,
            stdout: child.stdout.take().map(file).transpose()?,
            stderr: child.stderr.take().map(file).transpose()?,
            terminal: None,
            child,
        });
    };
    let master = OpenOptions::new().read(true).write(true).open("/dev/ptmx")?;
    let peer = sys::terminal_peer(master.as_fd())?;
    resize(&master, size)?;
    sys::prepare(&mut command, true, credentials);
    command.stdin(peer.try_clone()?).stdout(peer.try_clone()?).stderr(peer);
    let child = command.spawn().map_err(named)?;
    // The command holds the terminal's other side until it is dropped: then only
    // the process has it, and its end is seen.
    drop(command);
    let master = file(master)?;
    let stdin = exec.stdin.then(|| master.try_clone()).transpose()?;
    let terminal = Some(master.try_clone()?);
    Ok(Launched { child, stdin, stdout: Some(master), stderr: None, terminal })
}
