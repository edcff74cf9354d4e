//! Requests of a guest's kernel, as bytes, on a folder of the host.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use virtio_fs::{IN_HEADER, OUT_HEADER, Opcode, ROOT, Server};

// Linux errno numbers.
const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EACCES: i32 = 13;
const ENOTDIR: i32 = 20;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const ESTALE: i32 = 116;

struct Share {
    top: PathBuf,
    server: Server,
    unique: u64,
}

/// Fields of a request, in order.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }
    fn text(mut self, text: &str) -> Self {
        self.0.extend(text.as_bytes());
        self.0.push(0);
        self
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

fn body() -> Body {
    Body::default()
}

fn name(text: &str) -> Body {
    body().text(text)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

impl Share {
    fn new(label: &str, read_only: bool) -> Self {
        let top = std::env::temp_dir().join(format!("strata-fs-{label}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir_all(top.join("share")).unwrap();
        std::fs::write(top.join("secret"), "secret").unwrap();
        let server = Server::new(&top.join("share"), read_only).unwrap();
        let mut share = Share { top, server, unique: 0 };
        let init = share.ask(Opcode::INIT, 0, body().u32(7).u32(36).u32(1 << 17).u32(u32::MAX)).unwrap();
        assert_eq!((init.len(), u32_at(&init, 0), u32_at(&init, 4)), (64, 7, 31));
        share
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.join("share").join(name)
    }

    fn ask(&mut self, opcode: Opcode, node: u64, body: Body) -> Result<Vec<u8>, i32> {
        self.ask_within(opcode, node, body, 1 << 20)
    }

    fn ask_within(&mut self, opcode: Opcode, node: u64, body: Body, room: usize) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let (uid, gid) = (std::fs::metadata(&self.top).unwrap().uid(), 0);
        let length = (IN_HEADER + body.0.len()) as u32;
        let header = Body::default().u32(length).u32(opcode.0).u64(self.unique).u64(node);
        let request = header.u32(uid).u32(gid).u32(1).u32(0).bytes(&body.0).0;
        let answer = self.server.serve(&request, OUT_HEADER + room).expect("an answer");
        assert_eq!(u32_at(&answer, 0) as usize, answer.len());
        assert_eq!(u64_at(&answer, 8), self.unique);
        assert!(answer.len() <= OUT_HEADER + room);
        match u32_at(&answer, 4) as i32 {
            0 => Ok(answer[OUT_HEADER..].to_vec()),
            error => {
                assert_eq!(answer.len(), OUT_HEADER, "an error has no content");
                Err(-error)
            }
        }
    }

    fn look_up(&mut self, folder: u64, text: &str) -> Result<u64, i32> {
        self.ask(Opcode::LOOKUP, folder, name(text)).map(|a| u64_at(&a, 0))
    }

    fn forget(&mut self, node: u64, times: u64) {
        let header = Body::default().u32(48).u32(Opcode::FORGET.0).u64(1).u64(node);
        let request = header.u32(0).u32(0).u32(0).u32(0).u64(times).0;
        assert_eq!(self.server.serve(&request, 0), None);
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        self.ask(Opcode::OPEN, node, body().u32(flags).u32(0)).map(|a| u64_at(&a, 0))
    }

    fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        self.ask(Opcode::READ, 0, body().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0))
    }

    fn write(&mut self, handle: u64, offset: u64, bytes: &[u8]) -> Result<u32, i32> {
        self.write_with(handle, offset, bytes, (0, 0))
    }

    /// With the flags of the write, and of the open file.
    fn write_with(
        &mut self,
        handle: u64,
        offset: u64,
        bytes: &[u8],
        (of_write, of_file): (u32, u32),
    ) -> Result<u32, i32> {
        let body = body().u64(handle).u64(offset).u32(bytes.len() as u32).u32(of_write).u64(0);
        let body = body.u32(of_file).u32(0);
        self.ask(Opcode::WRITE, 0, body.bytes(bytes)).map(|a| u32_at(&a, 0))
    }

    /// Node and handle.
    fn create(&mut self, folder: u64, text: &str, flags: u32, mode: u32) -> Result<(u64, u64), i32> {
        let body = body().u32(flags).u32(mode).u32(0o22).u32(0).text(text);
        self.ask(Opcode::CREATE, folder, body).map(|a| (u64_at(&a, 0), u64_at(&a, 128)))
    }

    fn set_attributes(&mut self, node: u64, valid: u32, size: u64, mode: u32) -> Result<Vec<u8>, i32> {
        let body = body().u32(valid).u32(0).u64(0).u64(size).u64(0).u64(5).u64(6).u64(0);
        let body = body.u32(0).u32(0).u32(0).u32(mode).u32(0).u32(0).u32(0).u32(0);
        self.ask(Opcode::SETATTR, node, body)
    }

    fn names(&mut self, size: u32) -> Vec<String> {
        let handle = self.ask(Opcode::OPENDIR, ROOT, body().u32(0).u32(0)).map(|a| u64_at(&a, 0)).unwrap();
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let body = body().u64(handle).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0);
            let bytes = self.ask(Opcode::READDIRPLUS, ROOT, body).unwrap();
            let mut at = 0;
            if bytes.is_empty() {
                return names;
            }
            while at < bytes.len() {
                let node = u64_at(&bytes, at);
                offset = u64_at(&bytes, at + 136);
                let length = u32_at(&bytes, at + 144) as usize;
                let name = String::from_utf8(bytes[at + 152..at + 152 + length].to_vec()).unwrap();
                assert_eq!(node == 0, name == "." || name == "..", "{name}");
                names.push(name);
                at += 152 + length.next_multiple_of(8);
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.top);
    }
}

#[test]
fn unmounting_leaves_nothing() {
    let mut share = Share::new("unmount", false);
    let held = |path: PathBuf| {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        targets.filter(|target| target.starts_with(&path)).count()
    };
    let (node, handle) = share.create(ROOT, "gone", 2, 0o644).unwrap();
    share.write(handle, 0, b"content").unwrap();
    std::fs::create_dir(share.path("folder")).unwrap();
    let folder = share.look_up(ROOT, "folder").unwrap();
    share.ask(Opcode::UNLINK, ROOT, name("gone")).unwrap();
    assert!(share.server.is_in_use() && share.server.nodes() == 3);
    // Of the file that has no name any more: as a node, and opened.
    let path = share.path("gone (deleted)");
    assert_eq!(held(path.clone()), 2);
    assert_eq!(share.ask(Opcode::DESTROY, 0, body()), Ok(Vec::new()));
    assert!(!share.server.is_in_use());
    assert_eq!((share.server.nodes(), held(path), held(share.path("folder"))), (1, 0, 0));
    // Nothing is served until the next mount, which knows nothing of the one before.
    assert_eq!(share.look_up(ROOT, "folder"), Err(EIO));
    share.forget(folder, 1);
    share.ask(Opcode::INIT, 0, body().u32(7).u32(36).u32(1 << 17).u32(u32::MAX)).unwrap();
    assert_eq!(share.open(node, 0), Err(ESTALE));
    assert!(share.read(handle, 0, 7).is_err());
    assert_ne!(share.look_up(ROOT, "folder").unwrap(), folder);
}

#[test]
fn files_are_made_written_read_and_removed() {
    let mut s = Share::new("files", false);
    let (node, handle) = s.create(ROOT, "a", 2, 0o100_640).unwrap();
    assert_eq!(std::fs::metadata(s.path("a")).unwrap().mode() & 0o7777, 0o640);
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
    assert_eq!(s.write(handle, 10, &bytes), Ok(300_000));
    assert_eq!(std::fs::read(s.path("a")).unwrap()[10..], bytes);
    assert_eq!(s.read(handle, 10, 1 << 20).unwrap(), bytes);
    assert_eq!(s.read(handle, 300_000, 100).unwrap().len(), 10);
    assert_eq!(s.read(handle, 1 << 40, 100), Ok(Vec::new()));
    let attributes = s.set_attributes(node, 1 | 8 | 32, 5, 0o4600).unwrap();
    assert_eq!(u64_at(&attributes, 24), 5, "its size");
    let about = std::fs::metadata(s.path("a")).unwrap();
    assert_eq!((about.len(), about.mtime(), about.mode() & 0o7777), (5, 6, 0o4600));
    s.ask(Opcode::FSYNC, node, body().u64(handle).u32(1).u32(0)).unwrap();
    s.ask(Opcode::RELEASE, node, body().u64(handle).u32(0).u32(0).u64(0)).unwrap();
    assert_eq!(s.read(handle, 0, 1), Err(9));
    // It was there: opened as it is.
    let (again, _) = s.create(ROOT, "a", 2, 0o100_777).unwrap();
    assert_eq!((again, std::fs::metadata(s.path("a")).unwrap().len()), (node, 5));
    assert_eq!(s.create(ROOT, "a", 2 | 0o200, 0o100_777), Err(17), "exclusively");
    s.ask(Opcode::UNLINK, ROOT, name("a")).unwrap();
    assert_eq!(s.look_up(ROOT, "a"), Err(ENOENT));
}

#[test]
fn folders_links_and_names() {
    let mut s = Share::new("names", false);
    let folder = u64_at(&s.ask(Opcode::MKDIR, ROOT, body().u32(0o750).u32(0).text("d")).unwrap(), 0);
    assert_eq!(std::fs::metadata(s.path("d")).unwrap().mode() & 0o777, 0o750);
    s.create(folder, "f", 1, 0o100_600).unwrap();
    let node = s.look_up(folder, "f").unwrap();
    s.ask(Opcode::LINK, ROOT, body().u64(node).text("hard")).unwrap();
    assert_eq!(std::fs::metadata(s.path("hard")).unwrap().nlink(), 2);
    let link = u64_at(&s.ask(Opcode::SYMLINK, ROOT, body().text("l").text("d/f")).unwrap(), 0);
    assert_eq!(s.ask(Opcode::READLINK, link, body()).unwrap(), b"d/f");
    s.ask(Opcode::RENAME2, folder, body().u64(ROOT).u32(1).u32(0).text("f").text("g")).unwrap();
    assert!(s.path("g").exists() && !s.path("d/f").exists());
    let taken = s.ask(Opcode::RENAME2, ROOT, body().u64(ROOT).u32(1).u32(0).text("g").text("hard"));
    assert_eq!(taken, Err(17));
    // A whiteout is a device node.
    let whiteout = s.ask(Opcode::RENAME2, ROOT, body().u64(ROOT).u32(4).u32(0).text("g").text("w"));
    assert_eq!(whiteout, Err(EINVAL));
    s.ask(Opcode::RENAME, ROOT, body().u64(folder).text("g").text("h")).unwrap();
    assert_eq!(s.ask(Opcode::RMDIR, ROOT, name("d")), Err(39));
    s.ask(Opcode::UNLINK, folder, name("h")).unwrap();
    s.ask(Opcode::RMDIR, ROOT, name("d")).unwrap();
    let fifo = body().u32(0o010_644).u32(0).u32(0).u32(0).text("p");
    s.ask(Opcode::MKNOD, ROOT, fifo).unwrap();
    assert_eq!(s.names(4096).len(), 5);
}

#[test]
fn a_large_folder_is_listed_whole_with_every_buffer() {
    let mut s = Share::new("large", false);
    let mut expect: Vec<String> = (0..300).map(|i| format!("{}{i}", "n".repeat(i % 90))).collect();
    for n in &expect {
        std::fs::write(s.path(n), "").unwrap();
    }
    expect.extend([".".to_string(), "..".to_string()]);
    expect.sort();
    for size in [512, 4096, 1 << 20] {
        let mut names = s.names(size);
        names.sort();
        assert_eq!(names, expect, "{size}");
    }
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let mut s = Share::new("escape", false);
    symlink(s.top.clone(), s.path("out")).unwrap();
    symlink(s.top.join("secret"), s.path("link")).unwrap();
    std::fs::create_dir(s.path("d")).unwrap();
    let folder = s.look_up(ROOT, "d").unwrap();
    for wrong in ["", ".", "..", "../secret", "d/..", "/etc/passwd", "out/secret"] {
        for opcode in [Opcode::LOOKUP, Opcode::UNLINK, Opcode::RMDIR] {
            assert_eq!(s.ask(opcode, folder, name(wrong)), Err(EINVAL), "{opcode:?} {wrong}");
        }
        assert_eq!(s.create(folder, wrong, 2, 0o100_600), Err(EINVAL), "{wrong}");
        let mkdir = body().u32(0o700).u32(0).text(wrong);
        assert_eq!(s.ask(Opcode::MKDIR, folder, mkdir), Err(EINVAL), "{wrong}");
        for (from, to) in [(wrong, "x"), ("x", wrong)] {
            let rename = body().u64(ROOT).text(from).text(to);
            assert_eq!(s.ask(Opcode::RENAME, folder, rename), Err(EINVAL), "{from} {to}");
        }
    }
    // Links are nodes of their own: neither opened, changed through, nor walked through.
    for link in ["link", "out"] {
        let node = s.look_up(ROOT, link).unwrap();
        assert_eq!(s.open(node, 0), Err(EACCES), "{link}");
        assert_eq!(s.look_up(node, "secret"), Err(ENOTDIR), "{link}");
        assert_eq!(s.ask(Opcode::OPENDIR, node, body().u32(0).u32(0)), Err(ENOTDIR), "{link}");
        assert!(s.set_attributes(node, 8, 0, 0).is_err(), "{link}");
        assert_eq!(s.create(node, "x", 2, 0o100_600), Err(ENOTDIR), "{link}");
    }
    assert_eq!(s.create(ROOT, "link", 0o1002, 0o100_600), Err(EACCES));
    assert_eq!(std::fs::read(s.top.join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read_dir(&s.top).unwrap().count(), 2);
    // A node that was never given, and one that is forgotten.
    assert_eq!(s.look_up(999, "x"), Err(ESTALE));
    s.forget(folder, u64::MAX);
    assert_eq!(s.look_up(folder, "x"), Err(ESTALE));
    s.forget(ROOT, u64::MAX);
    assert!(s.look_up(ROOT, "d").is_ok());
}

#[test]
fn what_the_host_renames_meanwhile_does_not_mislead() {
    let mut s = Share::new("race", false);
    std::fs::create_dir(s.path("d")).unwrap();
    let folder = s.look_up(ROOT, "d").unwrap();
    std::fs::rename(s.path("d"), s.path("e")).unwrap();
    symlink(s.top.clone(), s.path("d")).unwrap();
    s.create(folder, "new", 2, 0o100_600).unwrap();
    assert!(s.path("e/new").exists() && !s.top.join("new").exists());
    // A file becomes a link between its being looked up and opened.
    std::fs::write(s.path("f"), "mine").unwrap();
    let file = s.look_up(ROOT, "f").unwrap();
    std::fs::rename(s.path("f"), s.path("g")).unwrap();
    symlink(s.top.join("secret"), s.path("f")).unwrap();
    let handle = s.open(file, 0).unwrap();
    assert_eq!(s.read(handle, 0, 100).unwrap(), b"mine");
}

#[test]
fn pipes_and_devices_are_never_opened_or_made() {
    let mut s = Share::new("special", false);
    let made = std::process::Command::new("mkfifo").arg(s.path("p")).status().unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(s.path("s")).unwrap();
    for special in ["p", "s"] {
        let node = s.look_up(ROOT, special).unwrap();
        for flags in [0, 1, 2] {
            // A pipe without a writer would block for ever.
            assert_eq!(s.open(node, flags), Err(EACCES), "{special} {flags}");
        }
        assert_eq!(s.create(ROOT, special, 2, 0o100_600), Err(EACCES), "{special}");
    }
    for kind in [0o020_000, 0o060_000, 0o040_000, 0] {
        let node = body().u32(kind | 0o666).u32(0x103).u32(0).u32(0).text("null");
        assert_eq!(s.ask(Opcode::MKNOD, ROOT, node), Err(EPERM), "{kind:o}");
    }
}

#[test]
fn a_read_only_share_changes_nothing() {
    let mut s = Share::new("read_only", true);
    std::fs::write(s.path("f"), "text").unwrap();
    std::fs::set_permissions(s.path("f"), PermissionsExt::from_mode(0o666)).unwrap();
    let node = s.look_up(ROOT, "f").unwrap();
    let handle = s.open(node, 0).unwrap();
    assert_eq!(s.read(handle, 0, 9).unwrap(), b"text");
    for flags in [1, 2, 0o1000] {
        assert_eq!(s.open(node, flags), Err(EROFS), "{flags:o}");
    }
    for opcode in [4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47] {
        let full = name("f").text("g").bytes(&[0; 128]);
        assert_eq!(s.ask(Opcode(opcode), ROOT, full), Err(EROFS), "opcode {opcode}");
    }
    assert_eq!(std::fs::read_dir(s.path("")).unwrap().count(), 1);
}

#[test]
fn malformed_requests_are_refused() {
    let mut s = Share::new("malformed", false);
    assert!(s.server.serve(&[], 100).is_none() && s.server.serve(&[0; 39], 100).is_none());
    for opcode in (0..60).filter(|o| ![2, 3, 5, 17, 18, 25, 26, 29, 38, 42].contains(o)) {
        // A body that is not there.
        let error = s.ask(Opcode(opcode), ROOT, body());
        let expect = [EINVAL, ENOSYS, 0];
        let number = error.map_or_else(|e| e, |_| 0);
        assert!(expect.contains(&number), "opcode {opcode}: {number}");
    }
    assert_eq!(s.ask(Opcode::LOOKUP, ROOT, body().bytes(b"no end")), Err(EINVAL));
    // More than it says, and less room than the answer has.
    let write = body().u64(1).u64(0).u32(u32::MAX).u32(0).u64(0).u32(0).u32(0).bytes(b"x");
    assert_eq!(s.ask(Opcode::WRITE, 0, write), Err(EINVAL));
    std::fs::write(s.path("f"), "x").unwrap();
    assert_eq!(s.ask_within(Opcode::LOOKUP, ROOT, name("f"), 20), Err(EINVAL));
    // Before INIT nothing is served; an INIT forgets all.
    s.server.reset();
    assert_eq!(s.look_up(ROOT, "f"), Err(5));
}

#[test]
fn nodes_are_counted_and_forgotten() {
    let mut s = Share::new("forget", false);
    std::fs::write(s.path("f"), "x").unwrap();
    let node = s.look_up(ROOT, "f").unwrap();
    assert_eq!(s.look_up(ROOT, "f"), Ok(node));
    assert_eq!(s.server.nodes(), 2);
    s.forget(node, 1);
    assert_eq!(s.server.nodes(), 2);
    s.forget(node, 1);
    assert_eq!(s.server.nodes(), 1);
    assert_ne!(s.look_up(ROOT, "f"), Ok(node), "a number is not used twice");
}

#[test]
fn attributes_of_users_are_kept_and_others_refused() {
    let mut s = Share::new("xattr", false);
    let (node, _) = s.create(ROOT, "f", 2, 0o100_600).unwrap();
    let set = |n: &str| body().u32(5).u32(0).text(n).bytes(b"value");
    match s.ask(Opcode::SETXATTR, node, set("user.a")) {
        // The host's file system has none.
        Err(95) => return,
        other => other.map(drop).unwrap(),
    }
    let size = s.ask(Opcode::GETXATTR, node, body().u32(0).u32(0).text("user.a")).unwrap();
    assert_eq!(u32_at(&size, 0), 5);
    assert_eq!(s.ask(Opcode::GETXATTR, node, body().u32(64).u32(0).text("user.a")).unwrap(), b"value");
    assert_eq!(s.ask(Opcode::GETXATTR, node, body().u32(2).u32(0).text("user.a")), Err(34));
    assert_eq!(s.ask(Opcode::LISTXATTR, node, body().u32(64).u32(0)).unwrap(), b"user.a\0");
    s.ask(Opcode::REMOVEXATTR, node, name("user.a")).unwrap();
    for other in ["security.capability", "trusted.x", "system.posix_acl_access"] {
        assert_eq!(s.ask(Opcode::SETXATTR, node, set(other)), Err(95), "{other}");
    }
}

/// The soft limit on descriptors lowered to `most` for as long as this is kept: a
/// share takes half of it, and at least 256.
fn few_descriptors(most: u64) -> impl Drop {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    struct Back(Rlimit);
    impl Drop for Back {
        fn drop(&mut self) {
            setrlimit(Resource::Nofile, self.0).unwrap();
        }
    }
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: before.maximum }).unwrap();
    Back(before)
}

#[test]
fn a_guest_knows_more_files_than_the_host_has_descriptors() {
    // Only what is made now asks for the limit; other tests keep theirs.
    let limit = few_descriptors(1024);
    let mut s = Share::new("many", false);
    drop(limit);
    let open_now = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open_now();
    const FILES: usize = 1200;
    s.ask(Opcode::MKDIR, ROOT, body().u32(0o755).u32(0).text("d")).unwrap();
    let folder = s.look_up(ROOT, "d").unwrap();
    for i in 0..FILES {
        std::fs::write(s.path(&format!("d/{i}")), i.to_string()).unwrap();
    }
    let nodes: Vec<u64> = (0..FILES).map(|i| s.look_up(folder, &i.to_string()).unwrap()).collect();
    assert!(open_now() - before < 700, "{} descriptors", open_now() - before);
    let about = |s: &mut Share, node| s.ask(Opcode::GETATTR, node, body().u32(0).u32(0).u64(0));
    let read = |s: &mut Share, node| -> Result<String, i32> {
        let handle = s.open(node, 0)?;
        let bytes = s.read(handle, 0, 100)?;
        s.ask(Opcode::RELEASE, node, body().u64(handle).u32(0).u32(0).u64(0))?;
        Ok(String::from_utf8(bytes).unwrap())
    };
    for (i, node) in nodes.iter().enumerate() {
        assert_eq!(read(&mut s, *node), Ok(i.to_string()));
        assert_eq!(u64_at(&about(&mut s, *node).unwrap(), 24), i.to_string().len() as u64);
    }
    // The first have been let go again. What the guest does to their names changes nothing:
    let rename = |to: u64, old: &str, new: &str| body().u64(to).text(old).text(new);
    s.ask(Opcode::RENAME, folder, rename(ROOT, "0", "moved")).unwrap();
    s.ask(Opcode::RENAME, folder, rename(folder, "1", "2")).unwrap();
    s.ask(Opcode::UNLINK, folder, name("3")).unwrap();
    s.ask(Opcode::LINK, ROOT, body().u64(nodes[4]).text("linked")).unwrap();
    s.ask(Opcode::UNLINK, folder, name("4")).unwrap();
    for node in &nodes[100..] {
        about(&mut s, *node).unwrap();
    }
    for (i, node) in nodes.iter().enumerate().take(5) {
        assert_eq!(read(&mut s, *node), Ok(i.to_string()), "{i}");
    }
    assert_eq!(s.look_up(ROOT, "moved"), Ok(nodes[0]));
    assert_eq!(s.look_up(ROOT, "linked"), Ok(nodes[4]));
    // What the host puts in the place of one that was let go is not taken for it.
    std::fs::remove_file(s.path("d/5")).unwrap();
    symlink("/etc/passwd", s.path("d/5")).unwrap();
    std::fs::rename(s.path("d/7"), s.path("d/6")).unwrap();
    assert_eq!(about(&mut s, nodes[5]), Err(ESTALE));
    assert_eq!(s.open(nodes[6], 0), Err(ESTALE));
    assert_ne!(s.look_up(folder, "5").unwrap(), nodes[5]);
    nodes.iter().for_each(|node| s.forget(*node, 1));
    s.look_up(ROOT, "d").unwrap();
    assert!(open_now() - before < 100, "{} descriptors", open_now() - before);
}

/// Each write says whether it appends: a program may change its mind, and the guest's page cache
/// writes where its pages are.
#[test]
fn writes_append_if_they_say_so() {
    const WRITE_CACHE: u32 = 1;
    const O_RDWR_APPEND: u32 = 2 | 0o2000;
    let mut s = Share::new("append", false);
    let (_, made) = s.create(ROOT, "log", O_RDWR_APPEND, 0o644).unwrap();
    assert_eq!(s.write_with(made, 0, b"one", (0, O_RDWR_APPEND)), Ok(3));
    // Another has appended what this guest has not seen.
    std::fs::OpenOptions::new().append(true).open(s.path("log")).unwrap().write_all(b"two").unwrap();
    assert_eq!(s.write_with(made, 3, b"three", (0, O_RDWR_APPEND)), Ok(5));
    assert_eq!(std::fs::read(s.path("log")).unwrap(), b"onetwothree");
    let node = s.look_up(ROOT, "log").unwrap();
    let opened = s.open(node, O_RDWR_APPEND).unwrap();
    for handle in [made, opened] {
        assert_eq!(s.write_with(handle, 0, b"ONE", (WRITE_CACHE, O_RDWR_APPEND)), Ok(3), "a page");
        assert_eq!(s.write_with(handle, 3, b"TWO", (0, 2)), Ok(3), "no longer appending");
        assert_eq!(std::fs::read(s.path("log")).unwrap(), b"ONETWOthree");
    }
}
