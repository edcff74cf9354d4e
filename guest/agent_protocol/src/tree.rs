//! A file or a folder with all that is in it, as a series of items.
//!
//! The sender walks the tree without following symbolic links. The receiver
//! creates every entry relative to a directory it holds open and never follows a
//! link below the destination, so whatever the sender says, and whatever changes
//! meanwhile, nothing is written outside. The system calls for that (openat(2)) are
//! reached through `/proc/self/fd/N/name`, which needs no code but std's.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::codec::{Decoder, Encoder, ProtocolError};
use crate::{ChannelError, MAX_CHUNK};

/// Folders inside folders, at most: each holds a descriptor.
pub const MAX_DEPTH: usize = 128;
/// Set-user-ID and set-group-ID are not taken over: what was harmless on one
/// side is a privilege on the other.
const MODES: u32 = 0o777;

// open(2) on Linux; the first two differ between architectures.
const O_DIRECTORY: i32 = if cfg!(target_arch = "aarch64") { 0o40000 } else { 0o200000 };
const O_NOFOLLOW: i32 = if cfg!(target_arch = "aarch64") { 0o100000 } else { 0o400000 };
const O_NONBLOCK: i32 = 0o4000;

/// Why a destination is refused.
const LINK: &str = "it is a symbolic link, which may be what a guest sent earlier and is not written \
    through; remove it, name what it leads to, or put a slash behind it if that is a folder";

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its data follows.
    File {
        /// How long it is expected to be, in bytes; it may have changed.
        size: u64,
    },
    /// A folder; what is in it follows.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it leads, uninterpreted.
        target: Vec<u8>,
    },
    /// A device, pipe or socket: named, and left out.
    Special,
}

/// One name of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// Components joined by slashes. The first is the name of the whole.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits; others than 0777 are ignored.
    pub mode: u32,
    /// When its content last changed, in seconds since 1970.
    pub modified: u64,
}

/// A part of a tree. Folders come before what is in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeItem {
    /// The next entry.
    Entry(TreeEntry),
    /// More of the last entry, a file.
    Data(Vec<u8>),
    /// The tree is complete.
    End,
}

impl TreeItem {
    pub(crate) fn encode(&self, to: &mut Encoder) {
        match self {
            TreeItem::Entry(TreeEntry { path, kind, mode, modified }) => {
                to.u8(0).string(path).u32(*mode).u64(*modified);
                match kind {
                    EntryKind::File { size } => to.u8(0).u64(*size),
                    EntryKind::Directory => to.u8(1),
                    EntryKind::Symlink { target } => to.u8(2).string(target),
                    EntryKind::Special => to.u8(3),
                };
            }
            TreeItem::Data(bytes) => {
                to.u8(1).raw(bytes);
            }
            TreeItem::End => {
                to.u8(2);
            }
        }
    }

    pub(crate) fn decode(from: &mut Decoder<'_>) -> Result<Self, ProtocolError> {
        match from.u8()? {
            0 => {
                let (path, mode, modified) = (from.string()?, from.u32()?, from.u64()?);
                let kind = match from.u8()? {
                    0 => EntryKind::File { size: from.u64()? },
                    1 => EntryKind::Directory,
                    2 => EntryKind::Symlink { target: from.string()? },
                    3 => EntryKind::Special,
                    other => return Err(ProtocolError::Unknown(other.into())),
                };
                Ok(TreeItem::Entry(TreeEntry { path, kind, mode, modified }))
            }
            1 => match from.rest() {
                bytes if bytes.len() > MAX_CHUNK => Err(ProtocolError::TooLong(bytes.len())),
                bytes => Ok(TreeItem::Data(bytes.to_vec())),
            },
            2 => Ok(TreeItem::End),
            other => Err(ProtocolError::Unknown(other.into())),
        }
    }
}

fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ChannelError + 'a {
    move |e| io::Error::new(e.kind(), format!("cannot {what} {}: {e}", path.display())).into()
}

/// Send the tree at `root`.
///
/// # Errors
/// When something of it cannot be read, or `send` fails.
pub fn send_tree(
    root: &Path,
    send: &mut dyn FnMut(TreeItem) -> Result<(), ChannelError>,
) -> Result<(), ChannelError> {
    // The name of "..", "." or "/" is that of what they stand for.
    let name = match root.file_name() {
        Some(name) => name.to_owned(),
        None => {
            let whole = root.canonicalize().map_err(at("read", root))?;
            whole.file_name().unwrap_or(OsStr::new("root")).to_owned()
        }
    };
    send_entry(root, Path::new(&name), 0, send)?;
    send(TreeItem::End)
}

fn send_entry(
    path: &Path,
    name: &Path,
    depth: usize,
    send: &mut dyn FnMut(TreeItem) -> Result<(), ChannelError>,
) -> Result<(), ChannelError> {
    let about = fs::symlink_metadata(path).map_err(at("read", path))?;
    let entry = |kind| {
        TreeItem::Entry(TreeEntry {
            path: name.as_os_str().as_bytes().to_vec(),
            kind,
            mode: about.mode() & MODES,
            modified: about.mtime().try_into().unwrap_or(0),
        })
    };
    if about.is_symlink() {
        let target = fs::read_link(path).map_err(at("read", path))?;
        return send(entry(EntryKind::Symlink { target: target.as_os_str().as_bytes().to_vec() }));
    }
    if about.is_dir() {
        if depth >= MAX_DEPTH {
            let deep = io::Error::other(format!("more than {MAX_DEPTH} folders inside each other"));
            return Err(at("copy", path)(deep));
        }
        send(entry(EntryKind::Directory))?;
        for child in fs::read_dir(path).map_err(at("read", path))? {
            let child = child.map_err(at("read", path))?.file_name();
            send_entry(&path.join(&child), &name.join(&child), depth + 1, send)?;
        }
        return Ok(());
    }
    if !about.is_file() {
        return send(entry(EntryKind::Special));
    }
    // It may have become a link or a pipe since it was looked at.
    let open = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
    let mut file = open.map_err(at("open", path))?;
    if !file.metadata().map_err(at("read", path))?.is_file() {
        return send(entry(EntryKind::Special));
    }
    send(entry(EntryKind::File { size: about.len() }))?;
    loop {
        let mut bytes = Vec::new();
        (&mut file).take(MAX_CHUNK as u64).read_to_end(&mut bytes).map_err(at("read", path))?;
        if bytes.is_empty() {
            return Ok(());
        }
        send(TreeItem::Data(bytes))?;
    }
}

/// Bytes in the files of a tree, as far as it can be read.
pub fn tree_size(root: &Path) -> u64 {
    fn size(path: &Path, depth: usize) -> u64 {
        match fs::symlink_metadata(path) {
            Ok(m) if m.is_file() => m.len(),
            Ok(m) if m.is_dir() && depth < MAX_DEPTH => {
                let entries = fs::read_dir(path).into_iter().flatten().flatten();
                entries.map(|e| size(&e.path(), depth + 1)).sum()
            }
            _ => 0,
        }
    }
    size(root, 0)
}

/// A folder that is held open.
#[derive(Debug)]
struct Folder {
    name: Vec<u8>,
    file: File,
    /// What it is to be set to when it is complete, if it was made here.
    finish: Option<(u32, u64)>,
}

/// A name in a folder that is held open, whatever became of the folder's own name.
fn inside(folder: &File, name: &[u8]) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(OsStr::from_bytes(name))
}

fn open_folder(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_DIRECTORY | O_NOFOLLOW).open(path)
}

fn set(file: &File, mode: u32, modified: u64) -> io::Result<()> {
    // A time the file system cannot hold is no reason to fail.
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(modified));
    let _ = time.map(|t| file.set_modified(t));
    file.set_permissions(Permissions::from_mode(mode & MODES))
}

/// What a tree is called where it is put into a folder. Whoever asks an untrusted
/// side for a tree says so: the sender would choose among the names of that folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TreeName {
    /// As the sender calls it, who is trusted.
    Sent,
    /// This; a sender that calls it otherwise is refused.
    Asked(Vec<u8>),
    /// This, whatever the sender calls it.
    Given(Vec<u8>),
}

impl TreeName {
    /// The name that [`send_tree`] gives the tree at `asked`. One without a name of
    /// its own, as "..", "." and "/", is called `otherwise`.
    pub fn asked_for(asked: &Path, otherwise: &OsStr) -> Self {
        match asked.file_name() {
            Some(name) => TreeName::Asked(name.as_bytes().to_vec()),
            None => TreeName::Given(otherwise.as_bytes().to_vec()),
        }
    }
}

/// Creates a tree from its items.
#[derive(Debug)]
pub struct Receiver {
    /// Where the tree is put.
    base: File,
    /// What the tree is called there.
    name: TreeName,
    /// The folders that lead to the current entry.
    open: Vec<Folder>,
    /// The file that is being written.
    file: Option<(File, u32, u64)>,
    /// The tree's own first name, once known.
    first: Option<Vec<u8>>,
    skipped: u64,
}

impl Receiver {
    /// Put a tree at `destination`: into it, called `name`, if it is a folder; else
    /// by the destination's name. Links that lead to it are followed; one that is of
    /// the destination's own name only for a sender who is trusted
    /// ([`TreeName::Sent`]), or where a slash behind it asks for that.
    ///
    /// # Errors
    /// When there is no such place, or it is a link that is not followed.
    pub fn new(destination: &Path, name: TreeName) -> io::Result<Self> {
        let told = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", destination.display()));
        if name != TreeName::Sent {
            return Self::of_stranger(destination, name, told);
        }
        let (base, name) = match fs::canonicalize(destination) {
            Ok(folder) if folder.is_dir() => (folder, name),
            // The user named it: a link on the way there is meant.
            Ok(file) => split(&file)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => split(destination)?,
            Err(e) => return Err(told(e)),
        };
        let base = OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(base).map_err(told)?;
        Ok(Self::at(base, name))
    }

    fn at(base: File, name: TreeName) -> Self {
        Receiver { base, name, open: Vec::new(), file: None, first: None, skipped: 0 }
    }

    /// For a sender that is not trusted: a link of the destination's name may be what
    /// an earlier copy brought, so only links on the way to it are followed.
    fn of_stranger(
        destination: &Path,
        name: TreeName,
        told: impl Fn(io::Error) -> io::Error,
    ) -> io::Result<Self> {
        let (folder, name) = match open_folder(destination) {
            Ok(base) => return Ok(Self::at(base, name)),
            Err(_) if fs::symlink_metadata(destination).is_ok_and(|m| m.is_symlink()) => {
                return Err(told(io::Error::other(LINK)));
            }
            // A file, or nothing yet: its entry is made or opened without following a link.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                split(destination)?
            }
            Err(e) => return Err(told(e)),
        };
        let base = OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(folder).map_err(told)?;
        Ok(Self::at(base, name))
    }

    /// The entries left out: devices, pipes and sockets.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Take the next item. Answers how many bytes of content it brought.
    ///
    /// # Errors
    /// When it does not belong here, or the host refuses.
    pub fn accept(&mut self, item: TreeItem) -> Result<u64, ChannelError> {
        match item {
            TreeItem::Entry(entry) => {
                self.finish_file()?;
                let shown = PathBuf::from(OsStr::from_bytes(&entry.path));
                self.entry(entry).map_err(|e| match e {
                    ChannelError::Io(e) => at("write", &shown)(e),
                    other => other,
                })?;
                Ok(0)
            }
            TreeItem::Data(bytes) => {
                let (file, ..) = self.file.as_mut().ok_or(ProtocolError::OutOfOrder("file content"))?;
                file.write_all(&bytes)?;
                Ok(bytes.len() as u64)
            }
            TreeItem::End => {
                self.finish_file()?;
                if self.first.is_none() {
                    return Err(ProtocolError::OutOfOrder("the end of a tree").into());
                }
                self.leave_to(0)?;
                Ok(0)
            }
        }
    }

    fn finish_file(&mut self) -> io::Result<()> {
        self.file.take().map_or(Ok(()), |(file, mode, modified)| set(&file, mode, modified))
    }

    /// Leave all folders but the outermost `depth`.
    fn leave_to(&mut self, depth: usize) -> io::Result<()> {
        while self.open.len() > depth {
            let Some(folder) = self.open.pop() else { break };
            if let Some((mode, modified)) = folder.finish {
                set(&folder.file, mode, modified)?;
            }
        }
        Ok(())
    }

    /// The entry's components, none of which leads elsewhere.
    fn components(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
        let mut parts: Vec<Vec<u8>> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        let wrong = |p: &Vec<u8>| p.is_empty() || p == b"." || p == b".." || p.contains(&0);
        if parts.len() > MAX_DEPTH + 1 || parts.iter().any(wrong) {
            return Err(ProtocolError::Path);
        }
        let own = self.first.get_or_insert_with(|| parts[0].clone());
        if *own != parts[0] {
            return Err(ProtocolError::Path);
        }
        match &self.name {
            TreeName::Asked(name) if parts[0] != *name => return Err(ProtocolError::Name),
            TreeName::Asked(_) | TreeName::Sent => {}
            TreeName::Given(name) => parts[0].clone_from(name),
        }
        Ok(parts)
    }

    fn entry(&mut self, entry: TreeEntry) -> Result<(), ChannelError> {
        let TreeEntry { path, kind, mode, modified } = entry;
        let mut parts = self.components(&path)?;
        let Some(name) = parts.pop() else { return Err(ProtocolError::Path.into()) };
        let common = self.open.iter().zip(&parts).take_while(|(f, p)| f.name == **p).count();
        // Folders come before what is in them: they are open, or never were told.
        if common != parts.len() {
            return Err(ProtocolError::OutOfOrder("what is in a folder").into());
        }
        self.leave_to(common)?;
        let target = inside(self.open.last().map_or(&self.base, |f| &f.file), &name);
        match kind {
            EntryKind::Directory => {
                // As for files: nobody enters it before it has its own mode.
                let made = match fs::DirBuilder::new().mode(0o700).create(&target) {
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
                    other => other.map(|()| true)?,
                };
                let file = open_folder(&target)?;
                self.open.push(Folder { name, file, finish: made.then_some((mode, modified)) });
            }
            EntryKind::File { .. } => {
                let mut options = OpenOptions::new();
                // A reader of a half-written file would see it with the wrong mode: nobody reads it.
                options.write(true).create(true).mode(0o600).custom_flags(O_NOFOLLOW | O_NONBLOCK);
                let file = options.open(&target)?;
                if !file.metadata()?.is_file() {
                    return Err(io::Error::other("there is something else of that name").into());
                }
                file.set_len(0)?;
                self.file = Some((file, mode, modified));
            }
            EntryKind::Symlink { target: leads_to } => {
                match fs::remove_file(&target) {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
                symlink(OsStr::from_bytes(&leads_to), &target)?;
            }
            EntryKind::Special => self.skipped += 1,
        }
        Ok(())
    }
}

/// The folder a new name is made in, and the name.
fn split(path: &Path) -> io::Result<(PathBuf, TreeName)> {
    let ends_in_slash = path.as_os_str().as_bytes().ends_with(b"/");
    let Some(name) = path.file_name().filter(|_| !ends_in_slash) else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{}: no such folder; create it first", path.display()),
        ));
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    Ok((folder, TreeName::Given(name.as_bytes().to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("strata-tree-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn copy(from: &Path, to: &Path) -> Result<u64, ChannelError> {
        let mut receiver = Receiver::new(to, TreeName::Sent)?;
        send_tree(from, &mut |item| receiver.accept(item).map(drop))?;
        Ok(receiver.skipped())
    }

    fn entry(path: &[u8], kind: EntryKind) -> TreeItem {
        TreeItem::Entry(TreeEntry { path: path.to_vec(), kind, mode: 0o4755, modified: 1 })
    }

    #[test]
    fn a_tree_arrives_with_modes_times_and_links() {
        let s = Scratch::new("whole");
        let from = s.0.join("from");
        fs::create_dir_all(from.join("a/deep")).unwrap();
        fs::write(from.join("a/file"), vec![7; MAX_CHUNK * 2 + 1]).unwrap();
        fs::write(from.join("a/deep/empty"), "").unwrap();
        fs::set_permissions(from.join("a/file"), Permissions::from_mode(0o640)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        fs::set_permissions(from.join("a/deep"), Permissions::from_mode(0o500)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();

        let to = s.0.join("to");
        assert_eq!(copy(&from, &to).unwrap(), 1, "a socket is left out");
        assert_eq!(fs::read(to.join("a/file")).unwrap(), vec![7; MAX_CHUNK * 2 + 1]);
        assert_eq!(fs::metadata(to.join("a/file")).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::metadata(to.join("a/deep")).unwrap().mode() & 0o777, 0o500);
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        let time = |p: &Path| fs::metadata(p.join("a/file")).unwrap().mtime();
        assert_eq!(time(&to), time(&from));
        // Into a folder that is there, and over what is there.
        copy(&from, &to).unwrap();
        assert!(to.join("from/a/file").is_file());
        copy(&from, &to).unwrap();
        assert_eq!(tree_size(&from), tree_size(&to.join("from")));
        fs::set_permissions(to.join("a/deep"), Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn nothing_is_written_outside_the_destination() {
        let s = Scratch::new("escape");
        let (outside, to) = (s.0.join("outside"), s.0.join("to"));
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(&to).unwrap();
        let refused = |items: &[TreeItem]| {
            let mut receiver = Receiver::new(&to, TreeName::Sent).unwrap();
            let result = items.iter().try_for_each(|i| receiver.accept(i.clone()).map(drop));
            assert!(result.is_err(), "{items:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{items:?}");
        };
        let file = || EntryKind::File { size: 1 };
        let link = |to: &str| EntryKind::Symlink { target: to.as_bytes().to_vec() };
        for path in ["../outside/x", "/outside/x", "t/../../outside/x", "", ".", "..", "t//x", "t/x\0"] {
            refused(&[entry(b"t", EntryKind::Directory), entry(path.as_bytes(), file())]);
            refused(&[entry(path.as_bytes(), file())]);
        }
        // Through a link that the tree itself brought.
        let brought = entry(b"l", link("../outside"));
        refused(&[brought.clone(), entry(b"l", EntryKind::Directory)]);
        refused(&[brought, entry(b"l/x", file())]);
        // Over a link that was there, as a file and as a folder.
        symlink(outside.join("x"), to.join("there")).unwrap();
        refused(&[entry(b"there", file())]);
        refused(&[entry(b"there", EntryKind::Directory)]);
        // Out of order: a folder that was never told, content without a file, two trees.
        refused(&[entry(b"a/b", file())]);
        refused(&[TreeItem::Data(vec![1])]);
        refused(&[TreeItem::End]);
        refused(&[entry(b"a", EntryKind::Directory), entry(b"b", EntryKind::Directory)]);
    }

    #[test]
    fn a_sender_does_not_choose_the_name_in_a_folder() {
        let s = Scratch::new("name");
        let names = |folder: &Path| -> Vec<_> {
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
        };
        // What was asked for, what is sent, and the name that appears, if any.
        let check = |asked: &str, sent: &[TreeItem], expect: Option<&str>| {
            let to = s.0.join("to");
            let _ = fs::remove_dir_all(&to);
            fs::create_dir(&to).unwrap();
            let name = TreeName::asked_for(Path::new(asked), OsStr::new("web"));
            let mut receiver = Receiver::new(&to, name).unwrap();
            let result = sent.iter().try_for_each(|i| receiver.accept(i.clone()).map(drop));
            assert_eq!(result.is_ok(), expect.is_some(), "{asked}: {result:?}");
            assert_eq!(names(&to), Vec::from_iter(expect), "{asked}");
        };
        let file = |path: &str| [entry(path.as_bytes(), EntryKind::File { size: 0 })];
        let link = EntryKind::Symlink { target: b"/etc".to_vec() };
        check("/var/log/syslog", &file("syslog"), Some("syslog"));
        check("/var/log/syslog", &file(".bashrc"), None);
        check("/var/log/syslog", &file("syslog2"), None);
        check("/var/log/syslog", &[entry(b".ssh", link)], None);
        check("/var/log/syslog", &[entry(b".git", EntryKind::Directory)], None);
        check("/srv/site/", &[entry(b"site", EntryKind::Directory)], Some("site"));
        check("site/.", &[entry(b"site", EntryKind::Directory)], Some("site"));
        for nameless in ["/", ".", "..", "site/..", ""] {
            check(nameless, &[entry(b".git", EntryKind::Directory)], Some("web"));
        }
        // By a name of the user's own, whatever is sent.
        let name = TreeName::asked_for(Path::new("/etc/hosts"), OsStr::new("web"));
        let mut receiver = Receiver::new(&s.0.join("to/own"), name).unwrap();
        receiver.accept(file(".bashrc")[0].clone()).unwrap();
        assert!(names(&s.0.join("to")).contains(&"own".to_string()));
        assert!(!names(&s.0.join("to")).contains(&".bashrc".to_string()));
    }

    #[test]
    fn the_sender_calls_a_tree_as_the_receiver_expects() {
        let s = Scratch::new("agree");
        fs::create_dir_all(s.0.join("from/in")).unwrap();
        for (number, asked) in
            ["from", "from/", "from/.", "from/in", "from/in/..", "from/in/"].iter().enumerate()
        {
            let asked = s.0.join(asked);
            let to = s.0.join(format!("to{number}"));
            fs::create_dir(&to).unwrap();
            let name = TreeName::asked_for(&asked, OsStr::new("web"));
            let mut receiver = Receiver::new(&to, name).unwrap();
            send_tree(&asked, &mut |item| receiver.accept(item).map(drop)).unwrap();
            assert_eq!(fs::read_dir(&to).unwrap().count(), 1, "{}", asked.display());
        }
    }

    #[test]
    fn a_stranger_does_not_write_through_a_link_it_brought() {
        let s = Scratch::new("stranger");
        let victim = s.0.join("victim");
        let (secret, folder) = (victim.join("secret"), victim.join("folder"));
        fs::create_dir_all(&folder).unwrap();
        let link = |to: &Path| EntryKind::Symlink { target: to.as_os_str().as_bytes().to_vec() };
        let file = || EntryKind::File { size: 4 };
        let receive = |to: &str, items: &[TreeItem]| {
            let name = TreeName::asked_for(Path::new("/var/log/app.log"), OsStr::new("web"));
            let mut receiver = Receiver::new(&s.0.join(to), name)?;
            items.iter().try_for_each(|i| receiver.accept(i.clone()).map(drop))
        };
        // Where the link a first copy brought leads, then what a second brings there.
        let refused = |leads_to: &Path, kind: EntryKind| {
            fs::write(&secret, "mine").unwrap();
            let there = s.0.join("there");
            let _ = fs::remove_file(&there);
            receive("there", &[entry(b"app.log", link(leads_to)), TreeItem::End]).unwrap();
            let shown = format!("{kind:?} at {}", leads_to.display());
            let second = [entry(b"app.log", kind), TreeItem::Data(b"evil".to_vec())];
            let e = receive("there", &second).unwrap_err().to_string();
            assert!(e.contains("there: it is a symbolic link") && e.contains("; remove it"), "{shown}: {e}");
            assert_eq!(fs::read(&secret).unwrap(), b"mine", "{shown}");
            assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "{shown}");
            assert!(!victim.join("new").exists(), "{shown}");
        };
        refused(&secret, file());
        refused(&victim.join("new"), file());
        refused(&folder, file());
        refused(&folder, EntryKind::Directory);
        refused(&folder, link(&secret));
        // Links on the way are the user's, and one with a slash behind it is such a one.
        symlink(&victim, s.0.join("way")).unwrap();
        for to in ["way/folder", "way/folder/app.log", "there/", "there/."] {
            receive(to, &[entry(b"app.log", file()), TreeItem::Data(b"data".to_vec())]).unwrap();
            assert_eq!(fs::read(folder.join("app.log")).unwrap(), b"data", "{to}");
            fs::remove_file(folder.join("app.log")).unwrap();
        }
        // One that comes after the destination was looked at is not followed either.
        let name = TreeName::Asked(b"app.log".to_vec());
        let mut receiver = Receiver::new(&s.0.join("late"), name).unwrap();
        symlink(&secret, s.0.join("late")).unwrap();
        receiver.accept(entry(b"app.log", file())).unwrap_err();
        assert_eq!(fs::read(&secret).unwrap(), b"mine");
    }

    #[test]
    fn nobody_enters_a_folder_before_it_is_complete() {
        let s = Scratch::new("open");
        let mode = |name: &str| fs::metadata(s.0.join(name)).unwrap().mode() & 0o777;
        let mut receiver = Receiver::new(&s.0, TreeName::Sent).unwrap();
        for path in ["t", "t/in"] {
            receiver.accept(entry(path.as_bytes(), EntryKind::Directory)).unwrap();
        }
        assert_eq!((mode("t"), mode("t/in")), (0o700, 0o700));
        receiver.accept(entry(b"t/next", EntryKind::Directory)).unwrap();
        assert_eq!((mode("t"), mode("t/in"), mode("t/next")), (0o700, 0o755, 0o700));
        receiver.accept(TreeItem::End).unwrap();
        assert_eq!((mode("t"), mode("t/in"), mode("t/next")), (0o755, 0o755, 0o755));
    }

    #[test]
    fn a_privilege_is_not_taken_over() {
        let s = Scratch::new("suid");
        let mut receiver = Receiver::new(&s.0.join("new"), TreeName::Sent).unwrap();
        receiver.accept(entry(b"x", EntryKind::File { size: 0 })).unwrap();
        receiver.accept(TreeItem::End).unwrap();
        assert_eq!(fs::metadata(s.0.join("new")).unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn a_place_that_is_not_there_is_told() {
        let s = Scratch::new("place");
        for path in ["none/", "none/x/y"] {
            let e = Receiver::new(&s.0.join(path), TreeName::Sent).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::NotFound, "{e}");
        }
    }
}
