//! What a device that passes requests on knows of them (Linux
//! `include/uapi/linux/fuse.h`).

use rustix::io::Errno;
use virtio_fs::{IN_HEADER, OUT_HEADER, Opcode};

/// Bytes between the header of FUSE_WRITE and what is written.
pub(crate) const WRITE_ARGUMENTS: usize = 40;

/// `open(2)`'s flags for writing and shortening.
const O_ACCMODE: u32 = 3;
/// See [`O_ACCMODE`].
const O_TRUNC: u32 = 0o1000;

/// Requests that change nothing; OPEN does if its flags say so.
const HARMLESS: [Opcode; 28] = [
    Opcode::LOOKUP,
    Opcode::FORGET,
    Opcode::GETATTR,
    Opcode::READLINK,
    Opcode::OPEN,
    Opcode::READ,
    Opcode::STATFS,
    Opcode::RELEASE,
    Opcode::FSYNC,
    Opcode::GETXATTR,
    Opcode::LISTXATTR,
    Opcode::FLUSH,
    Opcode::INIT,
    Opcode::OPENDIR,
    Opcode::READDIR,
    Opcode::RELEASEDIR,
    Opcode::FSYNCDIR,
    Opcode::GETLK,
    Opcode::SETLK,
    Opcode::SETLKW,
    Opcode::ACCESS,
    Opcode::INTERRUPT,
    Opcode::DESTROY,
    Opcode::BATCH_FORGET,
    Opcode::READDIRPLUS,
    Opcode::LSEEK,
    Opcode::SYNCFS,
    Opcode::STATX,
];

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub opcode: Opcode,
    /// What the answer is known by.
    pub unique: u64,
}

impl Request {
    /// Read a request's header; none if it is too short or says another length.
    pub fn parse(request: &[u8]) -> Option<Self> {
        let header: &[u8; IN_HEADER] = request.first_chunk()?;
        let unique = u64::from_ne_bytes(*header[8..].first_chunk()?);
        let said = usize::try_from(u32_at(header, 0)?).ok()?;
        (said == request.len()).then_some(Request { opcode: Opcode(u32_at(header, 4)?), unique })
    }

    /// Why it may not be passed on where the guest is to change nothing. What is not known is
    /// not there, as to the server of our own: a driver goes on without it.
    pub fn refusal(&self, request: &[u8]) -> Option<Errno> {
        let opens = |flags: u32| flags & (O_ACCMODE | O_TRUNC) == 0;
        let harmless = match self.opcode {
            Opcode::OPEN => u32_at(request, IN_HEADER).is_some_and(opens),
            other => HARMLESS.contains(&other),
        };
        let changes = matches!(self.opcode, Opcode::OPEN | Opcode::TMPFILE) || self.opcode.changes();
        match (harmless, changes) {
            (true, _) => None,
            (false, true) => Some(Errno::ROFS),
            (false, false) => Some(Errno::NOSYS),
        }
    }
}

/// A request without arguments. Its number is one that daemons accept: not 0.
pub(crate) fn plain(opcode: Opcode) -> [u8; IN_HEADER] {
    let mut request = [0; IN_HEADER];
    request[..4].copy_from_slice(&(IN_HEADER as u32).to_ne_bytes());
    request[4..8].copy_from_slice(&opcode.0.to_ne_bytes());
    request[8..16].copy_from_slice(&1u64.to_ne_bytes());
    request
}

/// The answer that a request has failed.
pub(crate) fn failure(unique: u64, error: Errno) -> [u8; OUT_HEADER] {
    let mut answer = [0; OUT_HEADER];
    answer[..4].copy_from_slice(&(OUT_HEADER as u32).to_ne_bytes());
    answer[4..8].copy_from_slice(&(-error.raw_os_error()).to_ne_bytes());
    answer[8..].copy_from_slice(&unique.to_ne_bytes());
    answer
}

/// Whether an answer says that what was asked for has been done.
pub(crate) fn is_success(answer: &[u8]) -> bool {
    u32_at(answer, 4) == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_may_change_nothing_opens_for_reading_only() {
        let refusal = |opcode: Opcode, arguments: &[u8]| {
            let mut request = [plain(opcode).as_slice(), arguments].concat();
            let length = request.len() as u32;
            request[..4].copy_from_slice(&length.to_ne_bytes());
            Request::parse(&request).unwrap().refusal(&request)
        };
        let (changes, absent) = (Some(Errno::ROFS), Some(Errno::NOSYS));
        for (opcode, flags, expect) in [
            (Opcode::OPEN, 0, None),
            (Opcode::OPEN, 0o100_000, None),
            (Opcode::OPEN, 1, changes),
            (Opcode::OPEN, 2, changes),
            (Opcode::OPEN, O_TRUNC, changes),
            (Opcode::READ, 0, None),
            (Opcode::STATX, 0, None),
            (Opcode::WRITE, 0, changes),
            (Opcode::SETATTR, 0, changes),
            (Opcode::TMPFILE, 0, changes),
            // POLL, BMAP and what may come.
            (Opcode(40), 0, absent),
            (Opcode(37), 0, absent),
            (Opcode(9999), 0, absent),
        ] {
            assert_eq!(refusal(opcode, &u32::to_ne_bytes(flags)), expect, "{opcode:?} {flags:o}");
        }
        assert_eq!(refusal(Opcode::OPEN, &[0, 0]), changes, "cut short");
    }

    #[test]
    fn a_request_says_how_long_it_is() {
        let request = plain(Opcode::INIT);
        assert_eq!(Request::parse(&request), Some(Request { opcode: Opcode::INIT, unique: 1 }));
        assert_eq!(Request::parse(&request[..39]), None);
        assert_eq!(Request::parse(&[request.as_slice(), &[0]].concat()), None);
        let answer = failure(7, Errno::IO);
        assert_eq!((answer[4..8].to_vec(), is_success(&answer)), ((-5i32).to_ne_bytes().to_vec(), false));
    }
}
