//! Copies that share or skip what they can.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// How a copy came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMethod {
    /// Both files share their blocks until one is written (`FICLONE`).
    Shared,
    /// Data was copied, holes stayed holes.
    Sparse,
}

/// Where a file has data, in order. A file system that knows no holes says all of it.
///
/// # Errors
/// When the host cannot tell.
pub fn data_extents(file: &File) -> io::Result<Vec<Range<u64>>> {
    let length = file.metadata()?.len();
    let mut extents = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data up to the end.
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => at,
            Err(e) => return Err(e.into()),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(length),
            Err(Errno::INVAL) => length,
            Err(e) => return Err(e.into()),
        };
        if end <= start {
            // It was cut short meanwhile.
            break;
        }
        extents.push(start..end);
        at = end;
    }
    Ok(extents)
}

/// Copy a file to a new one of mode 0600 that shares or skips what it can.
/// `size`: the copy's length in bytes, if it is to be longer; the rest is a hole.
///
/// # Errors
/// When the target exists or the host refuses; the target is removed then.
pub fn thin_copy(from: &Path, to: &Path, size: Option<u64>) -> io::Result<CopyMethod> {
    use std::os::unix::fs::OpenOptionsExt;
    let source = File::open(from)?;
    let target = File::options().create_new(true).write(true).mode(0o600).open(to)?;
    let copied = fill(&source, &target, size);
    if copied.is_err() {
        // The copy's own error is the one to tell.
        let _ = std::fs::remove_file(to);
    }
    copied
}

/// A new file of mode 0600 that shares the blocks of another until one is written.
/// False where the file systems cannot; nothing is left then. `size`: as in [`thin_copy`].
///
/// # Errors
/// When the target exists or the host refuses.
pub fn share(from: &Path, to: &Path, size: Option<u64>) -> io::Result<bool> {
    use std::os::unix::fs::OpenOptionsExt;
    let source = File::open(from)?;
    let target = File::options().create_new(true).write(true).mode(0o600).open(to)?;
    let length = source.metadata()?.len();
    let shared = rustix::fs::ioctl_ficlone(&target, &source).is_ok();
    let sized = match size.filter(|s| shared && *s > length) {
        Some(size) => target.set_len(size),
        None => Ok(()),
    };
    if !shared || sized.is_err() {
        std::fs::remove_file(to)?;
    }
    sized.map(|()| shared)
}

fn fill(source: &File, target: &File, size: Option<u64>) -> io::Result<CopyMethod> {
    let length = source.metadata()?.len();
    let method = match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => CopyMethod::Shared,
        // Another file system, or one that cannot share.
        Err(_) => {
            target.set_len(length)?;
            for extent in data_extents(source)? {
                copy_range(source, target, extent)?;
            }
            CopyMethod::Sparse
        }
    };
    if let Some(size) = size.filter(|s| *s > length) {
        target.set_len(size)?;
    }
    Ok(method)
}

/// Copy a range in the host's kernel, or through a buffer where that cannot.
fn copy_range(source: &File, target: &File, range: Range<u64>) -> io::Result<()> {
    let (mut from, mut to) = (range.start, range.start);
    while from < range.end {
        let left = usize::try_from(range.end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
            // The source was cut short meanwhile: what is missing reads as zeros.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                return copy_by_buffer(source, target, from..range.end);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_by_buffer(source: &File, target: &File, range: Range<u64>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        let room = (range.end - at).min(buffer.len() as u64) as usize;
        match source.read_at(&mut buffer[..room], at)? {
            0 => break,
            n => {
                target.write_all_at(&buffer[..n], at)?;
                at += n as u64;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_copy_has_the_same_bytes_no_more_blocks_and_the_length_asked_for() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        let source = File::create(&from).unwrap();
        source.set_len(64 * MIB).unwrap();
        for at in [0, 5 * MIB + 3, 64 * MIB - 4] {
            source.write_all_at(b"data", at).unwrap();
        }
        thin_copy(&from, &to, Some(80 * MIB)).unwrap();
        let copied = std::fs::read(&to).unwrap();
        assert_eq!(copied.len() as u64, 80 * MIB);
        assert!(copied[..64 * MIB as usize] == std::fs::read(&from).unwrap()[..]);
        assert!(copied[64 * MIB as usize..].iter().all(|b| *b == 0));
        let held = std::fs::metadata(&to).unwrap();
        assert!(held.blocks() * 512 < MIB, "{} blocks: the holes were filled", held.blocks());
        assert_eq!(held.mode() & 0o777, 0o600);
        // Neither is the other.
        File::options().write(true).open(&to).unwrap().write_all_at(b"else", 0).unwrap();
        assert_eq!(&std::fs::read(&from).unwrap()[..4], b"data");
    }

    #[test]
    fn a_buffer_does_what_the_kernel_would() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        let bytes: Vec<u8> = (0..3 * MIB + 7).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&from, &bytes).unwrap();
        let target = File::create(&to).unwrap();
        copy_by_buffer(&File::open(&from).unwrap(), &target, 0..bytes.len() as u64).unwrap();
        assert!(std::fs::read(&to).unwrap() == bytes);
    }

    #[test]
    fn what_exists_is_not_overwritten_and_a_failure_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
        std::fs::write(&from, "new").unwrap();
        std::fs::write(&to, "old").unwrap();
        assert_eq!(thin_copy(&from, &to, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&to).unwrap(), b"old");
        assert!(thin_copy(&scratch.path().join("none"), &scratch.path().join("x"), None).is_err());
        // A directory opens and cannot be read.
        assert!(thin_copy(scratch.path(), &scratch.path().join("y"), None).is_err());
        assert!(!scratch.path().join("x").exists() && !scratch.path().join("y").exists());
    }
}
