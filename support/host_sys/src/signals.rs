//! Termination signals as something a thread waits for.
// UNSAFE: signal-set calls on a local set.
#![allow(unsafe_code, reason = "no library offers sigwait without unsafe code of its own in the caller")]

use std::io;
use std::mem::MaybeUninit;

/// The signals that ask a process to end.
const TERMINATION: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// The termination signals, blocked in every thread started from now on.
#[derive(Debug)]
pub struct TerminationSignals(());

fn set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given; sigaddset then changes
    // an initialised one with valid signal numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in TERMINATION {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

impl TerminationSignals {
    /// Block them. Call before threads are started: they inherit the mask.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn block() -> io::Result<Self> {
        // SAFETY: a valid set; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set(), std::ptr::null_mut()) } {
            0 => Ok(TerminationSignals(())),
            e => Err(io::Error::from_raw_os_error(e)),
        }
    }

    /// Sleep until one arrives; its number.
    pub fn wait(&self) -> i32 {
        let mut signal = 0;
        // SAFETY: a valid set and a place for the number.
        while unsafe { libc::sigwait(&set(), &mut signal) } != 0 {}
        signal
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
