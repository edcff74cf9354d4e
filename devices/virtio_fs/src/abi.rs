//! The protocol's numbers and structures (Linux `include/uapi/linux/fuse.h`, 7.31).

use rustix::io::Errno;

/// What a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opcode(pub u32);

macro_rules! opcodes {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Opcode {
            $(#[doc = concat!("FUSE_", stringify!($name), ".")] pub const $name: Self = Self($number);)*
        }
    };
}

opcodes! {
    LOOKUP = 1, FORGET = 2, GETATTR = 3, SETATTR = 4, READLINK = 5, SYMLINK = 6, MKNOD = 8, MKDIR = 9,
    UNLINK = 10, RMDIR = 11, RENAME = 12, LINK = 13, OPEN = 14, READ = 15, WRITE = 16, STATFS = 17,
    RELEASE = 18, FSYNC = 20, SETXATTR = 21, GETXATTR = 22, LISTXATTR = 23, REMOVEXATTR = 24, FLUSH = 25,
    INIT = 26, OPENDIR = 27, READDIR = 28, RELEASEDIR = 29, FSYNCDIR = 30, GETLK = 31, SETLK = 32, SETLKW = 33, ACCESS = 34, CREATE = 35,
    INTERRUPT = 36, DESTROY = 38,
    BATCH_FORGET = 42, FALLOCATE = 43, READDIRPLUS = 44, RENAME2 = 45, LSEEK = 46, COPY_FILE_RANGE = 47,
    SYNCFS = 50, TMPFILE = 51, STATX = 52,
}

impl Opcode {
    /// Whether it is a request of [`crate::Server`]'s that changes something, whatever it says; OPEN
    /// does if its flags say so.
    pub fn changes(self) -> bool {
        let changing = [
            Opcode::SETATTR,
            Opcode::SYMLINK,
            Opcode::MKNOD,
            Opcode::MKDIR,
            Opcode::UNLINK,
            Opcode::RMDIR,
            Opcode::RENAME,
            Opcode::RENAME2,
            Opcode::LINK,
            Opcode::WRITE,
            Opcode::CREATE,
            Opcode::SETXATTR,
            Opcode::REMOVEXATTR,
            Opcode::FALLOCATE,
            Opcode::COPY_FILE_RANGE,
        ];
        changing.contains(&self)
    }
}

/// The version served.
pub const MAJOR: u32 = 7;
/// Its minor number: the newest fields this server knows of.
pub const MINOR: u32 = 31;
/// The oldest minor version whose structures have today's sizes.
pub const MIN_MINOR: u32 = 23;
/// The node that is the shared folder.
pub const ROOT: u64 = 1;

/// Bytes of a request's header, and of an answer's.
pub const IN_HEADER: usize = 40;
/// See [`IN_HEADER`].
pub const OUT_HEADER: usize = 16;

/// Flags of INIT that this server takes: asynchronous and large reads and writes,
/// data dropped when a file has changed, folders with attributes, more than 32 pages.
pub const INIT_FLAGS: u32 = 1 | 1 << 5 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 18 | 1 << 22;
/// The most pages of one request.
pub const MAX_PAGES: u16 = 256;
/// The most bytes of one read or write.
pub const MAX_TRANSFER: usize = MAX_PAGES as usize * 4096;
/// The most of anything else, names and attribute values: XATTR_SIZE_MAX and two names.
pub const MAX_ARGUMENTS: usize = (64 << 10) + 1024;

/// Bits of SETATTR's `valid`.
pub mod set {
    #![allow(missing_docs, reason = "the names are the protocol's: FATTR_MODE and so on")]
    pub const MODE: u32 = 1;
    pub const UID: u32 = 2;
    pub const GID: u32 = 4;
    pub const SIZE: u32 = 8;
    pub const ATIME: u32 = 16;
    pub const MTIME: u32 = 32;
    pub const FH: u32 = 64;
    pub const ATIME_NOW: u32 = 128;
    pub const MTIME_NOW: u32 = 256;
}

/// The header of a request.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// What it wants.
    pub opcode: Opcode,
    /// What the answer is known by.
    pub unique: u64,
    /// About which node.
    pub node: u64,
    /// On whose behalf.
    pub uid: u32,
    /// And which group's.
    pub gid: u32,
}

/// Reads a request; what is missing is EINVAL.
#[derive(Debug, Clone, Copy)]
pub struct In<'a>(pub &'a [u8]);

impl<'a> In<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*head)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_ne_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_ne_bytes)
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(head)
    }

    /// Text that ends in a zero byte, without it.
    pub fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|b| *b == 0).ok_or(Errno::INVAL)?;
        let text = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Ok(text)
    }

    /// The name of something in a folder: one component that leads nowhere else.
    pub fn name(&mut self) -> Result<&'a [u8], Errno> {
        match self.text()? {
            b"" | b"." | b".." => Err(Errno::INVAL),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            name if name.len() > 255 => Err(Errno::NAMETOOLONG),
            name => Ok(name),
        }
    }

    /// The header.
    pub fn header(&mut self) -> Result<Request, Errno> {
        let _len = self.u32()?;
        let opcode = Opcode(self.u32()?);
        let (unique, node, uid, gid) = (self.u64()?, self.u64()?, self.u32()?, self.u32()?);
        let (_pid, _padding) = (self.u32()?, self.u32()?);
        Ok(Request { opcode, unique, node, uid, gid })
    }
}

/// Writes an answer.
#[derive(Debug, Default)]
pub struct Out(pub Vec<u8>);

impl Out {
    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// So many zero bytes.
    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}
