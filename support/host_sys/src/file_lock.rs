//! Byte-range locks of open file descriptions (fcntl(2), "Open file description locks").
// UNSAFE: fcntl with a pointer to a structure of ours.
#![allow(unsafe_code, reason = "open file description locks have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

fn lock_of(kind: libc::c_int, byte: u64) -> io::Result<libc::flock> {
    let start = byte.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    })
}

fn fcntl(file: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call, and both commands read and write
    // one `flock` behind the pointer, which is a valid one of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Hold a shared lock on one byte of a file open for reading, until all of the
/// open file description's descriptors are closed.
///
/// # Errors
/// When another holds it exclusively, or the file system has no locks.
pub fn share(file: BorrowedFd<'_>, byte: u64) -> io::Result<()> {
    fcntl(file, libc::F_OFD_SETLK, &mut lock_of(libc::F_RDLCK, byte)?)
}

/// Let go of all locks of a file's open description, though another process may still have
/// a descriptor of it: one that was forked and has not executed its program yet.
///
/// # Errors
/// When the file system has no locks.
pub fn release(file: BorrowedFd<'_>) -> io::Result<()> {
    let mut all = lock_of(libc::F_UNLCK, 0)?;
    all.l_len = 0;
    fcntl(file, libc::F_OFD_SETLK, &mut all)
}

/// Whether another open file description holds any lock on the byte.
///
/// # Errors
/// When the file system has no locks.
pub fn held_by_other(file: BorrowedFd<'_>, byte: u64) -> io::Result<bool> {
    let mut lock = lock_of(libc::F_WRLCK, byte)?;
    fcntl(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}
