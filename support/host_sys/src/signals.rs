//! Signals as something a thread waits for.
// UNSAFE: signal-set calls on a local set.
#![allow(unsafe_code, reason = "no library offers sigwait without unsafe code of its own in the caller")]

use std::io;
use std::mem::MaybeUninit;

/// The signals that ask a process to end.
const TERMINATION: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Those, and a terminal's change of size.
const SESSION: [libc::c_int; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGWINCH];

/// The termination signals, blocked in every thread started from now on.
#[derive(Debug)]
pub struct TerminationSignals(());

/// What a terminal session passes on to its command: the termination signals and
/// changes of the terminal's size, blocked in every thread started from now on.
#[derive(Debug)]
pub struct SessionSignals(());

fn set(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given; sigaddset then changes
    // an initialised one with valid signal numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

fn block(signals: &[libc::c_int]) -> io::Result<()> {
    // SAFETY: a valid set; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set(signals), std::ptr::null_mut()) } {
        0 => Ok(()),
        e => Err(io::Error::from_raw_os_error(e)),
    }
}

fn wait(signals: &[libc::c_int]) -> i32 {
    let mut signal = 0;
    // SAFETY: a valid set and a place for the number.
    while unsafe { libc::sigwait(&set(signals), &mut signal) } != 0 {}
    signal
}

impl TerminationSignals {
    /// Block them. Call before threads are started: they inherit the mask.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn block() -> io::Result<Self> {
        block(&TERMINATION).map(|()| TerminationSignals(()))
    }

    /// Sleep until one arrives; its number.
    pub fn wait(&self) -> i32 {
        wait(&TERMINATION)
    }
}

impl SessionSignals {
    /// Block them. Call before threads are started: they inherit the mask.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn block() -> io::Result<Self> {
        block(&SESSION).map(|()| SessionSignals(()))
    }

    /// Sleep until one arrives. `None`: the terminal has another size; else the
    /// signal's number.
    pub fn wait(&self) -> Option<i32> {
        Some(wait(&SESSION)).filter(|s| *s != libc::SIGWINCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_termination_signal_reaches_the_waiting_thread() {
        let thread = std::thread::spawn(|| {
            let signals = TerminationSignals::block().unwrap();
            // SAFETY: raise only sends this thread a signal that it has blocked.
            assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
            signals.wait()
        });
        assert_eq!(thread.join().unwrap(), libc::SIGTERM);
    }
}
