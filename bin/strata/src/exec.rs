//! `strata exec`: a command in a guest, with its streams and exit status here.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use guest_client::{Control, Exec, FailureKind, Guest, GuestError, Size, Streams};
use host_sys::{RawTerminal, SessionSignals};

use crate::failure::InputError;
use crate::machines;

/// How long a guest's agent may take to answer: it may be starting.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What shells answer for a program that cannot be run, or found.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What a shell shows for a command whose output nobody reads: 128 and SIGPIPE.
const BROKEN_PIPE: u8 = 141;

pub const HELP: &str = "Examples:
  strata exec web -- uname -a
  strata exec -it web -- sh
  tar -c site | strata exec -i web -- tar -x -C /srv

Exit status:
  the command's; 128 and the signal's number if a signal ended it
  1    Strata or the host failed, or no agent answers in the guest
  2    wrong command line, or no such machine, user or directory
  126  the command cannot be run
  127  there is no such command";

#[derive(Args)]
pub struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable of its environment; repeat for more. Without =VALUE, this process's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory [default: the user's home]
    #[arg(short, long, value_name = "DIR", default_value = "", hide_default_value = true)]
    pub workdir: String,
    /// User, by name or number, and group [default: the agent's, root]
    #[arg(short, long, value_name = "USER[:GROUP]", default_value = "", hide_default_value = true)]
    pub user: String,
    /// Name or identifier, or how it begins
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

/// Run it; answers its status.
pub fn command(args: &ExecArgs) -> anyhow::Result<u8> {
    let found = machines::find(&args.machine)?;
    let exec = request(args)?;
    // Before any thread: they inherit it.
    let signals = SessionSignals::block().context("cannot block signals")?;
    let raw = match args.tty && args.interactive {
        true => RawTerminal::enter().context("cannot set the terminal to raw mode")?,
        false => None,
    };
    let terminal = args.tty;
    let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
    let streams = Streams {
        stdin: args.interactive.then(|| Box::new(std::io::stdin()) as Box<dyn Read + Send>),
        stdout: &mut stdout,
        stderr: &mut stderr,
    };
    // Until the command runs, a signal ends this process as it always would.
    let guest = Guest::new(&found.vsock(), PATIENCE);
    let early = Early::watch(signals)?;
    let result = guest.exec(exec, streams, |control| early.pass_on(control, terminal));
    drop(raw);
    match result {
        Ok(ending) => Ok(ending.status()),
        Err(GuestError::Host(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(BROKEN_PIPE),
        Err(e) => refused(e).with_context(|| machines::label(&found)),
    }
}

/// A command that does not start has the status a shell would show.
fn refused(error: GuestError) -> anyhow::Result<u8> {
    let GuestError::Failed(failure) = &error else { return Err(error.into()) };
    // A missing user, group or directory is the command line's fault.
    if failure.text.starts_with("no ") {
        return Err(error.into());
    }
    let status = match failure.kind {
        FailureKind::NotFound => NOT_FOUND,
        FailureKind::Refused => CANNOT_RUN,
        FailureKind::Other => return Err(error.into()),
    };
    crate::failure::print(&error.into());
    Ok(status)
}

fn request(args: &ExecArgs) -> anyhow::Result<Exec> {
    use std::os::unix::ffi::OsStrExt;
    let mut env = Vec::new();
    if args.tty {
        let term = std::env::var("TERM").unwrap_or_else(|_| "dumb".to_string());
        env.push(format!("TERM={term}").into_bytes());
    }
    for variable in &args.env {
        let text = match variable.split_once('=') {
            Some(("", _)) => {
                return Err(InputError(format!("-e {variable:?} has no name; write NAME=VALUE")).into());
            }
            Some(_) => variable.clone(),
            // As docker has it: one that is not set here is not set there.
            None => match std::env::var(variable) {
                Ok(value) => format!("{variable}={value}"),
                Err(_) => continue,
            },
        };
        env.push(text.into_bytes());
    }
    Ok(Exec {
        argv: args.command.iter().map(|w| w.as_bytes().to_vec()).collect(),
        env,
        directory: args.workdir.clone().into_bytes(),
        user: args.user.clone().into_bytes(),
        terminal: args.tty.then(|| window_size().unwrap_or(Size { rows: 24, columns: 80 })),
        stdin: args.interactive,
    })
}

/// The size of the terminal this process has, if any.
pub fn window_size() -> Option<Size> {
    let stdout = std::io::stdout();
    let size = if stdout.is_terminal() {
        rustix::termios::tcgetwinsize(stdout)
    } else {
        rustix::termios::tcgetwinsize(std::io::stdin())
    };
    size.ok().map(|s| Size { rows: s.ws_row, columns: s.ws_col })
}

/// Takes signals: they end this process until there is a command to have them.
struct Early(std::sync::Arc<std::sync::Mutex<Option<(Control, bool)>>>);

impl Early {
    fn watch(signals: SessionSignals) -> anyhow::Result<Self> {
        let target = std::sync::Arc::new(std::sync::Mutex::new(None::<(Control, bool)>));
        let own = target.clone();
        // Ends with the process.
        std::thread::Builder::new()
            .name("signals".to_string())
            .spawn(move || {
                loop {
                    let signal = signals.wait();
                    let target = own.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
                    match (target, signal) {
                        // What cannot be sent is for a command that has ended.
                        (Some((control, true)), None) => drop(window_size().map(|s| control.resize(s))),
                        (Some((control, _)), Some(number)) => drop(control.signal(number as u8)),
                        (None, Some(number)) => {
                            host_sys::restore_terminal();
                            std::process::exit(128 + number);
                        }
                        (_, None) => {}
                    }
                }
            })
            .context("cannot start the signal thread")?;
        Ok(Early(target))
    }

    fn pass_on(&self, control: Control, terminal: bool) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((control, terminal));
    }
}
