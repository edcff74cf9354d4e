//! The controlling terminal in raw mode, and back.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::PoisonError;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// What standard input's terminal was before [`RawTerminal::enter`]; `None` when
/// it is as it was. Process-wide because the terminal is.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps standard input's terminal in raw mode; dropping it restores what was.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Switch standard input's terminal to raw mode: every key reaches us, none
    /// is echoed or makes a signal. `None` if standard input is no terminal. A
    /// panic restores the terminal before its message is printed.
    ///
    /// # Errors
    /// When the host refuses to read or set the terminal's modes.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.local_modes.remove(LocalModes::ISIG);
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            default(info);
        }));
        Ok(Some(RawTerminal(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Put the terminal back, once. For exit paths that run no destructors.
pub fn restore() {
    let saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = saved {
        // Nothing better can be done with a failure on the way out.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &before);
    }
}
