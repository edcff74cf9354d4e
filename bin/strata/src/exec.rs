//! `strata exec`: a command in a guest, with its streams and exit status here.

use std::io::{IsTerminal, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use guest_client::{Control, Exec, FailureKind, Guest, GuestError, Size, Streams};
use host_sys::{RawTerminal, SessionSignals};

use crate::failure::InputError;
use crate::machines;

/// How long a guest's agent may take to answer: it may be starting.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a command may take to end by a signal before this process does without it:
/// the guest may be paused, or its agent not Strata's.
const GRACE: Duration = Duration::from_secs(10);
/// The signals that mean that: SIGHUP and SIGTERM. Commands may live on with SIGINT and
/// SIGQUIT, which keys send.
const ENDS: [i32; 2] = [1, 15];
/// What shells answer for a program that cannot be run, or found.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What a shell shows for a command whose output nobody reads: 128 and SIGPIPE.
const BROKEN_PIPE: u8 = 141;

pub const HELP: &str = "Examples:
  strata exec web -- uname -a
  strata exec -it web -- sh
  tar -c site | strata exec -i web -- tar -x -C /srv

Signals are the command's. A second one within 10 seconds ends strata exec, and so do SIGTERM and
SIGHUP when the command has not ended 10 seconds later: the way out of a guest that is paused or
hangs. With -it, Ctrl-C is typed, not a signal: close the terminal, or `kill` strata exec.

Exit status:
  the command's; 128 and the signal's number if a signal ended it or strata exec
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

/// Takes signals: they end this process until there is a command to have them, and
/// where that does not end by them.
struct Early(Arc<Mutex<Option<(Control, bool)>>>);

impl Early {
    fn watch(signals: SessionSignals) -> anyhow::Result<Self> {
        let target = Arc::new(Mutex::new(None::<(Control, bool)>));
        let own = target.clone();
        let mut repeated = Repeated::default();
        // Ends with the process. Nothing in it waits for the guest.
        std::thread::Builder::new()
            .name("signals".to_string())
            .spawn(move || {
                loop {
                    let signal = signals.wait();
                    let target = own.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    match (target, signal) {
                        // What cannot be sent is for a command that has ended.
                        (Some((control, true)), None) => drop(window_size().map(|s| control.resize(s))),
                        (Some((control, _)), Some(number)) if !repeated.take(Instant::now()) => {
                            let _ = control.signal(number as u8);
                            if ENDS.contains(&number) {
                                leave_later(number);
                            }
                        }
                        (_, Some(number)) => leave(number),
                        (_, None) => {}
                    }
                }
            })
            .context("cannot start the signal thread")?;
        Ok(Early(target))
    }

    fn pass_on(&self, control: Control, terminal: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((control, terminal));
    }
}

/// Tells a signal that is sent again because the one before did nothing.
#[derive(Debug, Default)]
struct Repeated(Option<Instant>);

impl Repeated {
    /// A signal has come: whether one came less than [`GRACE`] before.
    fn take(&mut self, now: Instant) -> bool {
        self.0.replace(now).is_some_and(|before| now.saturating_duration_since(before) < GRACE)
    }
}

/// End this process, in the middle of whatever it does; the agent hangs up on the command.
fn leave(signal: i32) {
    host_sys::restore_terminal();
    std::process::exit(128 + signal);
}

/// The same, if the command has not ended by itself in time.
fn leave_later(signal: i32) {
    let later = move || {
        std::thread::sleep(GRACE);
        eprint!("strata: the command has not ended within {GRACE:?} after the signal; left\r\n");
        leave(signal);
    };
    // Without a thread it is as if no time was given.
    if std::thread::Builder::new().name("grace".to_string()).spawn(later).is_err() {
        leave(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_soon_after_another_is_a_repeated_one() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut repeated = Repeated::default();
        let seen = [0, 60, 60 + 9, 60 + 9 + 10].map(|at| repeated.take(start + second * at));
        assert_eq!(seen, [false, false, true, false]);
    }
}
