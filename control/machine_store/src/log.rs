//! What a console said, in bounded room.
//!
//! Two files take turns: when one is full the other is emptied and goes on. The
//! newest half of the cap is always there, and nothing needs to be opened,
//! renamed or removed on the way, which the sandbox of a run would not let it do.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes of each of the two files.
const CAP: u64 = 4 << 20;

const NAMES: [&str; 2] = ["console.0.log", "console.1.log"];

/// The writing end.
#[derive(Debug)]
pub struct ConsoleLog {
    files: [File; 2],
    active: usize,
    written: u64,
    cap: u64,
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// Which file is written to: one is always less than full.
fn active(lengths: [u64; 2], cap: u64) -> usize {
    usize::from(lengths[0] >= cap)
}

impl ConsoleLog {
    /// Open or make the log of a machine's directory, to go on where it ended.
    ///
    /// # Errors
    /// When the host refuses the files.
    pub fn open(directory: &Path) -> io::Result<ConsoleLog> {
        Self::with_cap(directory, CAP)
    }

    fn with_cap(directory: &Path, cap: u64) -> io::Result<ConsoleLog> {
        use std::os::unix::fs::OpenOptionsExt;
        let open = |name| File::options().create(true).append(true).mode(0o600).open(directory.join(name));
        let files = [open(NAMES[0])?, open(NAMES[1])?];
        let lengths = [length(&files[0])?, length(&files[1])?];
        let active = active(lengths, cap);
        if lengths[active] >= cap {
            // Both full: made by another hand.
            files[active].set_len(0)?;
        }
        let written = length(&files[active])?;
        Ok(ConsoleLog { files, active, written, cap })
    }

    /// Add what was said.
    ///
    /// # Errors
    /// When the host refuses, as where its disk is full.
    pub fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = (self.cap - self.written).min(bytes.len() as u64) as usize;
            (&self.files[self.active]).write_all(&bytes[..room])?;
            self.written += room as u64;
            bytes = &bytes[room..];
            if self.written >= self.cap {
                self.active ^= 1;
                self.files[self.active].set_len(0)?;
                self.written = 0;
            }
        }
        Ok(())
    }
}

/// The reading end: all that is left, and then what comes.
#[derive(Debug)]
pub struct LogReader {
    files: [File; 2],
    active: usize,
    at: u64,
    cap: u64,
}

impl LogReader {
    /// Open the log of a machine's directory; its oldest byte comes first. `None`
    /// where there is none.
    ///
    /// # Errors
    /// When the host refuses the files.
    pub fn open(directory: &Path) -> io::Result<Option<LogReader>> {
        Self::with_cap(directory, CAP)
    }

    fn with_cap(directory: &Path, cap: u64) -> io::Result<Option<LogReader>> {
        let open = |name| match File::open(directory.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        };
        let (Some(first), Some(second)) = (open(NAMES[0])?, open(NAMES[1])?) else { return Ok(None) };
        let files = [first, second];
        let active = active([length(&files[0])?, length(&files[1])?], cap);
        // The other one is older, and empty if the log never filled a file.
        Ok(Some(LogReader { files, active: active ^ 1, at: 0, cap }))
    }

    /// What has been said since the last call; nothing if there is nothing new.
    ///
    /// # Errors
    /// When the host cannot read.
    pub fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut said = Vec::new();
        // Two turns show all that is there.
        for _ in 0..3 {
            let file = &mut self.files[self.active];
            if length(file)? < self.at {
                // Emptied meanwhile: what was missed is gone.
                self.at = 0;
            }
            file.seek(SeekFrom::Start(self.at))?;
            self.at += file.take(self.cap).read_to_end(&mut said)? as u64;
            let other = length(&self.files[self.active ^ 1])?;
            // The writer is over there: this one is full, or its first turn is still to come.
            let unused = self.active == 1 && self.at == 0 && (1..self.cap).contains(&other);
            let over = self.at >= self.cap || unused;
            if !over {
                break;
            }
            (self.active, self.at) = (self.active ^ 1, 0);
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(directory: &Path, cap: u64) -> String {
        let mut reader = LogReader::with_cap(directory, cap).unwrap().unwrap();
        String::from_utf8(reader.more().unwrap()).unwrap()
    }

    #[test]
    fn the_newest_half_is_always_there_in_order_and_no_more_than_the_cap() {
        let scratch = tempfile::tempdir().unwrap();
        let mut log = ConsoleLog::with_cap(scratch.path(), 16).unwrap();
        let mut all = String::new();
        for i in 0..60 {
            let word = format!("{i},");
            log.put(word.as_bytes()).unwrap();
            all.push_str(&word);
            let shown = read(scratch.path(), 16);
            assert!(all.ends_with(&shown), "{shown} of {all}");
            assert!(shown.len() >= all.len().min(16) && shown.len() <= 32, "{shown} of {all}");
        }
        // A process that takes it up goes on where it ended.
        let mut again = ConsoleLog::with_cap(scratch.path(), 16).unwrap();
        again.put(b"end").unwrap();
        assert!(read(scratch.path(), 16).ends_with("59,end"), "{}", read(scratch.path(), 16));
    }

    #[test]
    fn one_who_follows_sees_every_byte_once() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(LogReader::with_cap(scratch.path(), 16).unwrap().is_none());
        let mut log = ConsoleLog::with_cap(scratch.path(), 16).unwrap();
        let mut reader = LogReader::with_cap(scratch.path(), 16).unwrap().unwrap();
        let (mut all, mut seen) = (Vec::new(), Vec::new());
        for i in 0..100u8 {
            let said: Vec<u8> = (0..i % 7).map(|n| b'a' + (i + n) % 26).collect();
            log.put(&said).unwrap();
            all.extend(said);
            seen.extend(reader.more().unwrap());
            assert_eq!(seen, all, "after {i}");
        }
    }
}
