//! Archives of the "newc" cpio format (Linux
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040000;
const FILE: u32 = 0o100000;
const SYMLINK: u32 = 0o120000;
const CHARACTER_DEVICE: u32 = 0o020000;
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction. Paths have no leading slash; missing parent
/// directories are added. Owner is root and every time is zero, so that equal
/// contents make equal archives.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a directory; a second time does nothing.
    pub fn directory(&mut self, path: &str) -> &mut Self {
        if !path.is_empty() && self.directories.insert(path.to_string()) {
            self.parents(path);
            self.entry(path, DIRECTORY | 0o755, &[], (0, 0));
        }
        self
    }

    /// Add a regular file with its permission bits.
    ///
    /// # Panics
    /// When the content is 4 GiB or larger, which the format cannot say.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.parents(path);
        self.entry(path, FILE | (mode & 0o7777), content, (0, 0));
        self
    }

    /// Add a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.parents(path);
        self.entry(path, SYMLINK | 0o777, target.as_bytes(), (0, 0));
        self
    }

    /// Add a character device node.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> &mut Self {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE | (mode & 0o7777), &[], (major, minor));
        self
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[], (0, 0));
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8], (major, minor): (u32, u32)) {
        let size = u32::try_from(content.len()).expect("a file in an initramfs is below 4 GiB");
        self.inode += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let name_size = path.len() as u32 + 1;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for f in fields {
            self.bytes.extend_from_slice(format!("{f:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_format_says() {
        let mut a = Archive::new();
        a.file("bin/x", 0o755, b"abc").symlink("bin/y", "x").character_device("dev/console", 0o600, 5, 1);
        let bytes = a.finish();
        assert_eq!(bytes.len() % 4, 0);
        let mut at = 0;
        let mut seen = Vec::new();
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + i * 8..at + 14 + i * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let name = std::str::from_utf8(&bytes[at + 110..at + 109 + field(11)]).unwrap().to_string();
            let data = (at + 110 + field(11)).next_multiple_of(4);
            seen.push((name.clone(), field(1), bytes[data..data + field(6)].to_vec(), (field(9), field(10))));
            if name == TRAILER {
                break;
            }
            at = (data + field(6)).next_multiple_of(4);
        }
        let row =
            |name: &str, mode, data: &str, device| (name.to_string(), mode, data.as_bytes().to_vec(), device);
        let expected = [
            row("bin", 0o40755, "", (0, 0)),
            row("bin/x", 0o100755, "abc", (0, 0)),
            row("bin/y", 0o120777, "x", (0, 0)),
            row("dev", 0o40755, "", (0, 0)),
            row("dev/console", 0o20600, "", (5, 1)),
            row(TRAILER, 0, "", (0, 0)),
        ];
        assert_eq!(seen, expected);
    }
}
