//! What a device that passes requests on knows of them (Linux
//! `include/uapi/linux/fuse.h`).

use rustix::io::Errno;

/// Bytes of a request's header, and of an answer's.
pub(crate) const IN_HEADER: usize = 40;
/// See [`IN_HEADER`].
pub(crate) const OUT_HEADER: usize = 16;
/// Bytes between the header of FUSE_WRITE and what is written.
pub(crate) const WRITE_ARGUMENTS: usize = 40;

/// `open(2)`'s flags for writing and shortening.
const O_ACCMODE: u32 = 3;
/// See [`O_ACCMODE`].
const O_TRUNC: u32 = 0o1000;

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opcode(pub u32);

impl Opcode {
    pub const LOOKUP: Self = Self(1);
    pub const FORGET: Self = Self(2);
    pub const GETATTR: Self = Self(3);
    pub const READLINK: Self = Self(5);
    pub const OPEN: Self = Self(14);
    pub const READ: Self = Self(15);
    pub const WRITE: Self = Self(16);
    pub const STATFS: Self = Self(17);
    pub const RELEASE: Self = Self(18);
    pub const FSYNC: Self = Self(20);
    pub const GETXATTR: Self = Self(22);
    pub const LISTXATTR: Self = Self(23);
    pub const FLUSH: Self = Self(25);
    pub const INIT: Self = Self(26);
    pub const OPENDIR: Self = Self(27);
    pub const READDIR: Self = Self(28);
    pub const RELEASEDIR: Self = Self(29);
    pub const FSYNCDIR: Self = Self(30);
    pub const GETLK: Self = Self(31);
    pub const SETLK: Self = Self(32);
    pub const SETLKW: Self = Self(33);
    pub const ACCESS: Self = Self(34);
    pub const INTERRUPT: Self = Self(36);
    pub const DESTROY: Self = Self(38);
    pub const BATCH_FORGET: Self = Self(42);
    pub const READDIRPLUS: Self = Self(44);
    pub const LSEEK: Self = Self(46);
    pub const SYNCFS: Self = Self(50);

    /// Those that change nothing; OPEN does if its flags say so.
    const HARMLESS: [Self; 27] = [
        Self::LOOKUP,
        Self::FORGET,
        Self::GETATTR,
        Self::READLINK,
        Self::OPEN,
        Self::READ,
        Self::STATFS,
        Self::RELEASE,
        Self::FSYNC,
        Self::GETXATTR,
        Self::LISTXATTR,
        Self::FLUSH,
        Self::INIT,
        Self::OPENDIR,
        Self::READDIR,
        Self::RELEASEDIR,
        Self::FSYNCDIR,
        Self::GETLK,
        Self::SETLK,
        Self::SETLKW,
        Self::ACCESS,
        Self::INTERRUPT,
        Self::DESTROY,
        Self::BATCH_FORGET,
        Self::READDIRPLUS,
        Self::LSEEK,
        Self::SYNCFS,
    ];
}

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

    /// Whether it may be passed on where the guest is to change nothing. What is not
    /// known may not.
    pub fn is_harmless(&self, request: &[u8]) -> bool {
        let opens = |flags: u32| flags & (O_ACCMODE | O_TRUNC) == 0;
        match self.opcode {
            Opcode::OPEN => u32_at(request, IN_HEADER).is_some_and(opens),
            other => Opcode::HARMLESS.contains(&other),
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
        let harmless = |opcode: Opcode, arguments: &[u8]| {
            let mut request = [plain(opcode).as_slice(), arguments].concat();
            let length = request.len() as u32;
            request[..4].copy_from_slice(&length.to_ne_bytes());
            Request::parse(&request).unwrap().is_harmless(&request)
        };
        for (opcode, flags, expect) in [
            (Opcode::OPEN, 0, true),
            (Opcode::OPEN, 0o100_000, true),
            (Opcode::OPEN, 1, false),
            (Opcode::OPEN, 2, false),
            (Opcode::OPEN, O_TRUNC, false),
            (Opcode::READ, 0, true),
            (Opcode::WRITE, 0, false),
            (Opcode(4), 0, false),
            (Opcode(9999), 0, false),
        ] {
            assert_eq!(harmless(opcode, &u32::to_ne_bytes(flags)), expect, "{opcode:?} {flags:o}");
        }
        assert!(!harmless(Opcode::OPEN, &[0, 0]), "cut short");
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
