//! Vectored input and output on memory that others change meanwhile.
//!
//! rustix takes `IoSlice`s, which are Rust references; memory of a guest that runs
//! must not be behind one.
// UNSAFE: system calls that read and write through pointers the caller vouches for.
#![allow(unsafe_code, reason = "iovecs of memory that is behind no reference")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most pieces of one call (IOV_MAX of Linux).
pub const MAX_PIECES: usize = 1024;

/// A run of memory: `struct iovec`.
pub type RawPiece = libc::iovec;

/// Which way, and from where in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// From the file's byte into memory.
    ReadAt(u64),
    /// From memory to the file's byte.
    WriteAt(u64),
    /// From a stream into memory.
    Read,
    /// From memory into a stream.
    Write,
    /// From memory into a socket, without a signal when its peer has gone, and
    /// without waiting.
    Send,
    /// From a socket into memory, without waiting.
    Receive,
}

/// Move bytes between a file and at most [`MAX_PIECES`] pieces; answers how many.
/// Interrupted calls are made again.
///
/// # Errors
/// What the kernel says.
///
/// # Safety
/// Each piece is valid for reads, and for those transfers that fill memory for
/// writes, during the call; other threads and the guest may use it meanwhile.
pub unsafe fn transfer(file: BorrowedFd<'_>, what: Transfer, pieces: &[RawPiece]) -> io::Result<usize> {
    let count = pieces.len().min(MAX_PIECES);
    let (fd, list) = (file.as_raw_fd(), pieces.as_ptr());
    let position =
        |at: u64| libc::off64_t::try_from(at).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
    loop {
        // SAFETY: `list` has `count` entries, and the caller vouches for what they
        // point to; the kernel copies to and from user memory as others do.
        let n = unsafe {
            match what {
                Transfer::ReadAt(at) => libc::preadv64(fd, list, count as libc::c_int, position(at)?),
                Transfer::WriteAt(at) => libc::pwritev64(fd, list, count as libc::c_int, position(at)?),
                Transfer::Read => libc::readv(fd, list, count as libc::c_int),
                Transfer::Write => libc::writev(fd, list, count as libc::c_int),
                Transfer::Send => {
                    libc::sendmsg(fd, &message(list, count), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
                }
                Transfer::Receive => libc::recvmsg(fd, &mut message(list, count), libc::MSG_DONTWAIT),
            }
        };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// A message of these pieces alone.
fn message(list: *const RawPiece, count: usize) -> libc::msghdr {
    // SAFETY: all zeroes is a message without address, pieces and control data.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = list.cast_mut();
    m.msg_iovlen = count;
    m
}
